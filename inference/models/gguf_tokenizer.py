"""A tokenizer out of a GGUF file's metadata: byte-level BPE ("gpt2") or sentencepiece BPE with byte fallback ("llama").

The file holds vocabulary, merges or scores, and kinds of tokens; how text is cut before it is merged, it only names
(`tokenizer.ggml.pre`). The patterns are those that the named models' own tokenizer.json carry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from inference.artifacts import gguf_config
from inference.artifacts.paths import shown
from inference.errors import Rejected
from inference.models.language_tokenizer import (
    SPACE,
    LanguageTokenizer,
    Tokens,
    built,
    checked_template,
    frame,
)

if TYPE_CHECKING:
    from inference.artifacts.gguf import Header

UNKNOWN, CONTROL, OWN = 2, 3, 4  # llama.cpp's kinds of tokens that are not ordinary text
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
LLAMA3 = rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}|{_TAIL}"
TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_TAIL_SLASH}"
GPT4O = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_TAIL_SLASH}"
)
PATTERNS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "dbrx", "pixtral"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4"), GPT4O),
    "tekken": TEKKEN,
}
BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "codeshell", "command-r"})
GPT2 = frozenset({"", "default", "gpt-2", "gpt2", "phi-2", "jina-en", "jina-es", "jina-de"})
# Whole words that are in the vocabulary are taken as they are, whatever the merges say.
WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"})
FIRST_BY_DEFAULT = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"})
ELSE = "Upload the model's Hugging Face folder (config.json, tokenizer.json, *.safetensors) instead."


def load(header: Header) -> LanguageTokenizer:
    """Raises Rejected for a kind of tokenizer that is not known here, and for lists that do not fit each other."""
    kind, pre = header.text("tokenizer.ggml.model"), header.text("tokenizer.ggml.pre")
    texts, kinds = _vocabulary(header)
    if kind == "gpt2":
        backend = built(lambda: _byte_level(header, pre, texts), "the GGUF file's merges do not fit its vocabulary")
    elif kind == "llama":
        backend = built(lambda: _sentencepiece(header, texts), "the GGUF file's vocabulary cannot be read")
    else:
        _refuse(f"has a tokenizer of the kind {shown(kind)}; gpt2 and llama are read")
    built(lambda: _add(backend, texts, kinds), "the GGUF file's special tokens cannot be read")
    tokens = _tokens(header, texts)
    is_first = kind == "llama" or pre in FIRST_BY_DEFAULT
    first = tokens.special_tokens.get("bos_token") if _says(header, "bos", default=is_first) else None
    last = tokens.special_tokens.get("eos_token") if _says(header, "eos", default=False) else None
    if first or last:
        frame(backend, first, last)
    return LanguageTokenizer(backend, tokens)


def _vocabulary(header: Header) -> tuple[list[str], list[int]]:
    texts = header.items("tokenizer.ggml.tokens", "text")
    kinds = header.items("tokenizer.ggml.token_type", "int") or [1] * len(texts)
    if not texts or len(kinds) != len(texts):
        _refuse("brings no tokenizer, or lists of tokens that do not fit each other")
    if len(set(texts)) != len(texts):
        # A mapping by text would lose one of them; llama.cpp's own converters make such names distinct.
        _refuse("has two tokens with the same text")
    return texts, kinds


def _byte_level(header: Header, pre: str, texts: list[str]) -> Any:
    merges = [tuple(line.split(" ", 1)) for line in header.items("tokenizer.ggml.merges", "text")]
    vocabulary = {text: id_ for id_, text in enumerate(texts)}
    backend: Any = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in WHOLE_WORDS))
    backend.pre_tokenizer = _cuts(pre)
    backend.decoder = decoders.ByteLevel()
    if PATTERNS.get(pre) is QWEN2:
        backend.normalizer = normalizers.NFC()
    return backend


def _cuts(pre: str) -> Any:
    if pre in PATTERNS:
        pieces = pre_tokenizers.Split(Regex(PATTERNS[pre]), behavior="isolated")
        return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in BY_DIGIT:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if pre not in GPT2:
        _refuse(f"cuts text in the way {shown(pre)}, which is not known here")
    return words


def _sentencepiece(header: Header, texts: list[str]) -> Any:
    is_gemma = header.text("general.architecture").startswith("gemma")
    if is_gemma:  # its file writes tokens of nothing but spaces as spaces
        texts[:] = [SPACE * len(text) if text and not text.strip(" ") else text for text in texts]
    vocabulary = {text: id_ for id_, text in enumerate(texts)}
    scores = header.items("tokenizer.ggml.scores", "float")
    # Gemma's scores do not follow the order of its merges; the order of its tokens does.
    ranks = [-float(id_) for id_ in range(len(texts))] if is_gemma or len(scores) != len(texts) else scores
    unknown = header.integer("tokenizer.ggml.unknown_token_id", 0)
    backend: Any = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=merges_of(vocabulary, ranks),
            unk_token=texts[unknown] if 0 <= unknown < len(texts) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    joined: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if header.flag("tokenizer.ggml.add_space_prefix", default=not is_gemma):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
        joined.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence(joined)
    return backend


def merges_of(vocabulary: dict[str, int], ranks: list[float]) -> list[tuple[str, str]]:
    """The merges that a scored vocabulary stands for, best first: every way to make a token out of two others."""
    found: list[tuple[float, int, int, str, str]] = []
    for text, id_ in vocabulary.items():
        for at in range(1, len(text)):
            left, right = vocabulary.get(text[:at]), vocabulary.get(text[at:])
            if left is not None and right is not None:
                found.append((-ranks[id_], left, right, text[:at], text[at:]))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add(backend: Any, texts: list[str], kinds: list[int]) -> None:
    special = [text for text, kind in zip(texts, kinds, strict=True) if kind in {UNKNOWN, CONTROL} and text]
    own = [text for text, kind in zip(texts, kinds, strict=True) if kind == OWN and text.strip(" " + SPACE)]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in own])


def _tokens(header: Header, texts: list[str]) -> Tokens:
    names = {
        "bos_token": "bos",
        "eos_token": "eos",
        "unk_token": "unknown",
        "pad_token": "padding",
        "sep_token": "seperator",
    }
    ids = {mark: _id(header, f"tokenizer.ggml.{name}_token_id", len(texts)) for mark, name in names.items()}
    return Tokens(
        special_tokens={mark: texts[id_] for mark, id_ in ids.items() if id_ is not None},
        chat_template=checked_template(header.text("tokenizer.chat_template")),
        bos_id=ids["bos_token"],
        eos_ids=frozenset(gguf_config.stops(header)),
    )


def _id(header: Header, key: str, size: int) -> int | None:
    found = header.integer(key, -1)
    if found >= size:
        _refuse(f"says {key} beyond its vocabulary")
    return found if found >= 0 else None


def _says(header: Header, mark: str, *, default: bool) -> bool:
    return header.flag(f"tokenizer.ggml.add_{mark}_token", default=default)


def _refuse(why: str) -> NoReturn:
    raise Rejected(f"the GGUF file {why}", remedy=ELSE, check="load")
