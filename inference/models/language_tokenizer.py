"""A language model's tokenizer: text to ids and back, the true bytes of each token, and what a chat template needs.

From `tokenizer.json` and the files beside it, or out of a GGUF file. The backend is native code that can panic; that
arrives here as a BaseException and leaves as InvalidInput.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, processors

from inference.artifacts import gguf, jsons
from inference.errors import InvalidInput, Rejected

if TYPE_CHECKING:
    from pathlib import Path

MAX_CHARACTERS = 1 << 24
MAX_TOKENIZER_BYTES = 64 << 20
MAX_CONFIG_BYTES = 1 << 20
MAX_TEMPLATE_BYTES = 1 << 18
MARKS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SPACE = "\u2581"  # how sentencepiece writes a space
REMEDY = "Save the tokenizer again: AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(folder)."


@dataclass(slots=True)
class Tokens:
    """What is known of a tokenizer besides its backend. special_tokens: "bos_token" -> "<s>", ... for templates."""

    special_tokens: dict[str, str] = field(default_factory=dict)
    chat_template: str = ""
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()


class LanguageTokenizer:
    """backend: the `tokenizers.Tokenizer`, without truncation and padding. vocabulary: ids are below it. special_ids:
    marks, no text. chat_template: Jinja, "" where the model brings none.
    """

    def __init__(self, backend: Any, tokens: Tokens) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special_tokens = tokens.special_tokens
        self.chat_template = tokens.chat_template
        self.bos_id = tokens.bos_id
        self.eos_ids = tokens.eos_ids
        added: dict[int, Any] = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.vocabulary = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._bytes_of = _byte_reader(backend.decoder)

    @property
    def eos_id(self) -> int | None:
        """The tokenizer's own end of text; `eos_ids` are all that end an answer."""
        text = self.special_tokens.get("eos_token")
        found: int | None = self.backend.token_to_id(text) if text else None
        return found

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids; special tokens that stand in the text become their ids. Raises InvalidInput for what cannot be read."""
        if len(text) > MAX_CHARACTERS:
            raise InvalidInput(f"the text has {len(text)} characters; {MAX_CHARACTERS} are the most that are read")
        ids: list[int] = _guarded(lambda: self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text; bytes that are no whole character become the replacement character. Raises InvalidInput."""
        for id_ in ids:
            if not 0 <= id_ < 1 << 32:
                raise InvalidInput(f"{id_} is no token id: ids are 0 to {self.vocabulary - 1}")
        text: str = _guarded(lambda: self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))
        return text

    def token_bytes(self, id_: int) -> bytes:
        """The true bytes that this token stands for; b"" for an id without a token. Marks give their own text."""
        token = self.backend.id_to_token(id_) if 0 <= id_ < 1 << 32 else None
        return b"" if token is None else self._bytes_of(token)


def load_tokenizer(folder: Path) -> LanguageTokenizer:
    """The tokenizer of a Hugging Face folder, or of the GGUF file that lies in `folder`. Raises Rejected."""
    if (folder / "tokenizer.json").is_file():
        return _from_folder(folder)
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and _begins_as_gguf(path)]
    if len(found) != 1:
        raise Rejected("there is no tokenizer.json", remedy=REMEDY, check="load")
    from inference.models import gguf_tokenizer

    return gguf_tokenizer.load(gguf.read(found[0]))


def _begins_as_gguf(path: Path) -> bool:
    with path.open("rb") as source:
        return source.read(4) == gguf.MAGIC


def _from_folder(folder: Path) -> LanguageTokenizer:
    config = _json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").stat().st_size > MAX_TOKENIZER_BYTES:
        raise Rejected(f"tokenizer.json is larger than {MAX_TOKENIZER_BYTES} bytes", remedy=REMEDY, check="load")
    backend = built(lambda: Tokenizer.from_file(str(folder / "tokenizer.json")), "tokenizer.json cannot be read")
    marks = _marks(config) or _marks(_json(folder / "special_tokens_map.json"))
    built(lambda: _complete(backend, config, marks), "tokenizer_config.json does not fit tokenizer.json")
    tokens = Tokens(marks, _template(folder, config), bos_id=_id(backend, marks.get("bos_token")))
    tokens.eos_ids = _ends(folder, _id(backend, marks.get("eos_token")))
    return LanguageTokenizer(backend, tokens)


def _complete(backend: Any, config: dict[str, Any], marks: dict[str, str]) -> None:
    """What tokenizer_config.json says and tokenizer.json does not: more added tokens, and which marks frame a text."""
    declared = config.get("added_tokens_decoder")
    have = {token.content for token in backend.get_added_tokens_decoder().values()}
    for _, one in sorted((declared if isinstance(declared, dict) else {}).items(), key=lambda item: int(item[0])):
        if isinstance(one, dict) and isinstance(one.get("content"), str) and one["content"] not in have:
            flags = {key: bool(one.get(key, False)) for key in ("single_word", "lstrip", "rstrip", "normalized")}
            backend.add_tokens([AddedToken(one["content"], special=bool(one.get("special", False)), **flags)])
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in marks.values() if text not in known]
    )
    if "add_bos_token" in config or "add_eos_token" in config:
        first, last = marks.get("bos_token"), marks.get("eos_token")
        frame(backend, first if config.get("add_bos_token") else None, last if config.get("add_eos_token") else None)


def frame(backend: Any, first: str | None, last: str | None) -> None:
    """Makes `encode` put these tokens around a text."""
    around = [*([first] if first else []), "$A", *([last] if last else [])]
    used = {text: backend.token_to_id(text) for text in (first, last) if text}
    backend.post_processor = processors.TemplateProcessing(single=around, special_tokens=list(used.items()))


def _marks(config: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in MARKS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            found[name] = text
    return found


def _template(folder: Path, config: dict[str, Any]) -> str:
    """chat_template.jinja, chat_template.json, or the one in tokenizer_config.json ("default" of several)."""
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        if alone.stat().st_size > MAX_TEMPLATE_BYTES:
            raise _long_template()
        return alone.read_text(encoding="utf-8", errors="replace")
    held = _json(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(held, list):
        named = {one.get("name"): one.get("template") for one in held if isinstance(one, dict)}
        held = named.get("default")
    return checked_template(held if isinstance(held, str) else "")


def checked_template(template: str) -> str:
    """Raises Rejected for one that is too long."""
    if len(template.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
        raise _long_template()
    return template


def _long_template() -> Rejected:
    return Rejected(f"the chat template is longer than {MAX_TEMPLATE_BYTES} bytes", remedy="Shorten it.", check="load")


def _ends(folder: Path, own: int | None) -> frozenset[int]:
    """As transformers' generate has it: generation_config.json, else config.json, else the tokenizer's own."""
    for name in ("generation_config.json", "config.json"):
        told = _json(folder / name).get("eos_token_id")
        listed = told if isinstance(told, list) else [told]
        if found := [one for one in listed if type(one) is int and one >= 0]:
            return frozenset(found)
    return frozenset() if own is None else frozenset({own})


def _json(path: Path) -> dict[str, Any]:
    limit = MAX_TOKENIZER_BYTES if path.name == "tokenizer_config.json" else MAX_CONFIG_BYTES
    return jsons.read(path, limit, remedy=REMEDY) if path.is_file() else {}


def _id(backend: Any, text: str | None) -> int | None:
    found: int | None = backend.token_to_id(text) if text else None
    return found


def built(make: Callable[[], Any], complaint: str) -> Any:
    """What `make` gives. Raises Rejected(complaint) for whatever native code raises."""
    try:
        return make()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Rejected(complaint, remedy=REMEDY, check="load") from error


def _guarded(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise InvalidInput("the model's tokenizer cannot read this text") from error


def byte_alphabet() -> dict[str, int]:
    """GPT-2's way to write bytes as printable characters: character -> byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(other)}


def _byte_reader(decoder: Any) -> Callable[[str], bytes]:
    """How this decoder reads one token."""
    kinds = _decoder_kinds(decoder)
    if "ByteLevel" in kinds:
        alphabet = byte_alphabet()

        def level(token: str) -> bytes:
            try:
                return bytes([alphabet[character] for character in token])
            except KeyError:
                return token.encode("utf-8", "replace")

        return level
    falls_back, spaced = "ByteFallback" in kinds, bool(kinds & {"Replace", "Metaspace"})

    def fallback(token: str) -> bytes:
        if falls_back and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return (token.replace(SPACE, " ") if spaced else token).encode("utf-8", "replace")

    return fallback


def _decoder_kinds(decoder: Any) -> set[str]:
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    parts = state.get("decoders", []) if state.get("type") == "Sequence" else [state]
    return {str(part.get("type")) for part in parts}
