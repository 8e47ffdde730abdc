"""SmolLM2-135M-Instruct out of its package, in our decoder and in transformers on the same dequantised weights."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

from inference.models.language_tokenizer import load_tokenizer
from inference.protocol.generation import Chat
from inference.protocol.settings import GenerationSettings
from inference.replica.language_text import LanguageText
from tests.support.gguf_files import smollm2
from tests.support.manners import EOS

SECRET = "The gardener counts: one rose, two roses, three roses, four roses, five roses, six roses"
QUESTIONS = [
    "What is the capital of France?",
    f"Repeat this word for word: {SECRET}.",
    "Write one sentence about the sea.",
    "List the numbers from one to twenty.",
    "Translate to French: Good morning, my friend.",
    "def mean(values): complete this function in Python.",
    "Why do canaries sing? Answer in two sentences, and say where they come from.",
    "Continue the song: la la la, la la la, la la la,",
]
FORMS = ["Explain {} to a child.", "Write a short poem about {}.", "Name three facts about {}.", "What is {}?"]
TOPICS = [
    "rain", "gravity", "bread", "the Moon", "a volcano", "democracy", "the violin", "photosynthesis", "a black hole",
    "chess", "the Roman empire", "electricity", "a whale", "the internet",
]  # fmt: skip


@cache
def ours() -> Any:
    """Our decoder, fp32 on the CPU; `allocate` gives it a cache."""
    from inference.models.on_torch.gguf_weights import GgufWeights
    from inference.models.on_torch.language import TorchLanguageModel

    return TorchLanguageModel(GgufWeights(smollm2()), GenerationSettings(), "cpu")


@cache
def theirs() -> Any:
    """transformers' model of the same file."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from inference.models.on_torch.gguf_weights import GgufWeights

    source = GgufWeights(smollm2())
    model = LlamaForCausalLM(LlamaConfig(**source.config)).eval()
    weights = {name: source.get(name) for name in source.names()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(weights)
    return model


@cache
def tokenizer() -> Any:
    return load_tokenizer(smollm2().parent)


@cache
def text() -> LanguageText:
    model = ours()
    return LanguageText(tokenizer(), model.facts, GenerationSettings(), max_context=model.facts.max_context)


def prompts(count: int) -> list[list[int]]:
    """Token ids of so many chats, at most 64; they begin with the template's own words."""
    more = [form.format(topic) for topic, form in itertools.product(TOPICS, FORMS)]
    chats = [Chat([{"role": "user", "content": asked}]) for asked in (QUESTIONS + more)[:count]]
    return [text().prompt(chat)[1] for chat in chats]


def greedy(prompt: list[int], limit: int) -> list[int]:
    """transformers' greedy answer, with the token that ends it."""
    import torch

    ids = torch.tensor([prompt])
    with torch.inference_mode():
        made = theirs().generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, eos_token_id=EOS,
            pad_token_id=0,
        )  # fmt: skip
    found: list[int] = made[0, len(prompt) :].tolist()
    return found
