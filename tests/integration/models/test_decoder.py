"""The decoder gives transformers' logits for a random model of each family, however its tokens come."""

import json

import pytest
import torch

from inference.errors import Rejected
from inference.models.on_torch.language import TorchLanguageModel
from inference.models.on_torch.language.spec import spec_of
from inference.models.on_torch.language.weights import SafetensorsWeights
from inference.protocol.settings import GenerationSettings
from tests.support.decoders import BLOCK, FAMILIES, SMALL, Text, expected, made, random_tokens, step_of


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
