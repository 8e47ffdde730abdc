"""The decoder gives transformers' logits for a random model of each family, however its tokens come."""

import json

import pytest
import torch

from inference.errors import Rejected
from inference.models.language import Step
from inference.models.on_torch.language import TorchLanguageModel
from inference.models.on_torch.language.spec import spec_of
from inference.models.on_torch.language.weights import SafetensorsWeights
from inference.protocol.settings import GenerationSettings

BLOCK, BLOCKS = 8, 64
SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 500.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1000.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 2.5, 3.0],
        "original_max_position_embeddings": 64, "rope_theta": 1000.0}  # fmt: skip
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-tied-biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1000.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral-window": ("Mistral", {"sliding_window": 11, "head_dim": 8}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2, "pad_token_id": 0}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3", {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24}),
    "phi3": ("Phi3", {"pad_token_id": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}),
    "phi3-longrope": ("Phi3", {"pad_token_id": 0, "rope_parameters": LONG, "original_max_position_embeddings": 64}),
}  # fmt: skip


def made(family, folder):
    """A random model in transformers, saved; and ours, loaded from the same files."""
    import transformers

    name, more = FAMILIES[family]
    config_class = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    torch.manual_seed(3)
    theirs = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, config_class)(**SMALL | more)).eval()
    with torch.no_grad():  # norms of ones would hide a wrong one
        for parameter_name, parameter in theirs.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(folder)
    ours = TorchLanguageModel(SafetensorsWeights(folder), GenerationSettings(), "cpu")
    ours.allocate(BLOCKS, BLOCK)
    return theirs, ours


class Text:
    """One sequence of a test: its tokens, how far they are computed, its blocks."""

    def __init__(self, tokens, blocks):
        self.tokens, self.blocks, self.computed = tokens, blocks, 0


def step_of(parts):
    """parts: (text, how many new tokens); wants the logits of all of them."""
    tokens, positions, slots, starts, lengths = [], [], [], [0], []
    for text, count in parts:
        places = range(text.computed, text.computed + count)
        tokens += [text.tokens[place] for place in places]
        positions += places
        slots += [text.blocks[place // BLOCK] * BLOCK + place % BLOCK for place in places]
        text.computed += count
        starts.append(len(tokens))
        lengths.append(text.computed)
    width = max(len(text.blocks) for text, _ in parts)
    tables = [text.blocks + [0] * (width - len(text.blocks)) for text, _ in parts]
    longs = [torch.tensor(one) for one in (tokens, positions, slots)]
    ints = [torch.tensor(one, dtype=torch.int32) for one in (starts, lengths, tables)]
    return Step(*longs, *ints, torch.arange(len(tokens)))


def expected(theirs, tokens):
    with torch.no_grad():
        return theirs(torch.tensor([tokens])).logits[0].float()


def random_tokens(count, seed):
    return torch.randint(0, SMALL["vocab_size"], (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "phi3-longrope"])
def test_logits_are_those_of_transformers_whole_in_chunks_and_mixed(family, tmp_path):
    theirs, ours = made(family, tmp_path)
    whole, chunked = Text(random_tokens(70, 1), list(range(9))), Text(random_tokens(53, 2), list(range(40, 33, -1)))
    first = ours.forward(step_of([(whole, 64)]))
    torch.testing.assert_close(first, expected(theirs, whole.tokens)[:64], atol=1e-4, rtol=0)
    # Chunks of odd sizes and single tokens of another text, beside the first text's decoding.
    found, rest = [], []
    for count in (5, 13, 1, 1, 30, 3):
        beside = [(whole, 1)]
        logits = ours.forward(step_of([(chunked, count), *beside]))
        found.append(logits[:count])
        rest.append(logits[count:])
    torch.testing.assert_close(torch.cat(found), expected(theirs, chunked.tokens), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat(rest), expected(theirs, whole.tokens)[64:70], atol=1e-4, rtol=0)


def test_long_factors_hold_for_every_position_of_a_model_with_a_long_context(tmp_path):
    """transformers takes the short ones for short texts, but then a text that grows past the border changes its past."""
    theirs, ours = made("phi3-longrope", tmp_path)
    tokens = random_tokens(70, 1)
    text = Text(tokens, list(range(9)))
    found = [ours.forward(step_of([(text, count)])) for count in (5, 13, 1, 51)]
    torch.testing.assert_close(torch.cat(found), expected(theirs, tokens), atol=1e-4, rtol=0)


def test_blocks_move_with_their_content(tmp_path):
    theirs, ours = made("llama", tmp_path)
    tokens = random_tokens(24, 5)
    text = Text(tokens, [1, 2, 3])
    ours.forward(step_of([(text, 16)]))
    saved = ours.save_blocks([1])
    ours.copy_blocks([(2, 9)])
    ours.load_blocks([8], saved)
    text.blocks = [8, 9, 10]
    torch.testing.assert_close(ours.forward(step_of([(text, 8)])), expected(theirs, tokens)[16:], atol=1e-4, rtol=0)


def test_only_wanted_rows_are_given_and_there_may_be_none(tmp_path):
    _, ours = made("llama", tmp_path)
    step = step_of([(Text(random_tokens(9, 1), [0, 1]), 9)])
    step.wanted = torch.tensor([8])
    assert ours.forward(step).shape == (1, SMALL["vocab_size"])
    step.wanted = torch.empty(0, dtype=torch.int64)
    assert ours.forward(step).shape == (0, SMALL["vocab_size"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "rwkv"}, "rwkv"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_act": "maxout"}, "maxout"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
    ],
)
def test_what_is_not_known_is_named(change, words):
    with pytest.raises(Rejected, match=words):
        spec_of({"model_type": "llama"} | SMALL | change)


def test_weights_that_do_not_fit_are_named(tmp_path):
    made("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 57}))
    with pytest.raises(Rejected, match=r"gate_proj.weight has shape \[56, 32\], config.json says \[57, 32\]"):
        TorchLanguageModel(SafetensorsWeights(tmp_path), GenerationSettings(), "cpu")


def test_half_the_cache_says_half_the_bytes(tmp_path):
    _, ours = made("llama", tmp_path)
    assert ours.block_bytes(BLOCK) == 2 * 3 * 2 * BLOCK * 8 * 4
    assert (ours.facts.vocabulary, ours.facts.max_context, ours.facts.stops) == (97, 128, frozenset({2}))
