"""Small real tokenizers, trained on a few sentences: byte-level BPE, and sentencepiece's manner with byte fallback."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

END, START, CALLS, ARGS = "<|im_end|>", "<|im_start|>", "[TOOL_CALLS]", "[ARGS]"
SPECIAL = [END, START, CALLS, ARGS]
_SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    'Call it with {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}} and then wait.',
    "日本語のテキストと中文文本。 Ünïcödé naïve café 🙂👍🏽",
    "<think> first this, then that </think> stop STOP ### END",
]


class SmallVocabulary:
    """As the models' tokenizer: `Vocabulary` over a `tokenizers.Tokenizer`."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        self.special_ids = frozenset(backend.token_to_id(one) for one in SPECIAL)

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        return self.decode([token], skip_special_tokens=False).encode()


def byte_level(size: int = 480) -> SmallVocabulary:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    backend.train_from_iterator(_SENTENCES, trainer)
    backend.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("</tool_call>", special=False)])
    return SmallVocabulary(backend)


def sentencepiece_like(size: int = 400) -> SmallVocabulary:
    """Llama 2's form: a space before the text, spaces as ▁, unknown characters as bytes."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=pieces, show_progress=False)
    trained.train_from_iterator([one.encode("ascii", "ignore").decode() for one in _SENTENCES], trainer)
    import json

    model = json.loads(trained.to_str())["model"]
    backend = Tokenizer(
        models.BPE(
            vocab=model["vocab"],
            merges=[tuple(one) for one in model["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = trained.normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(one, special=True) for one in SPECIAL])
    return SmallVocabulary(backend)
