"""Weights in 8 and 4 bits: what quantising changes is small, and products are those of the weights that it leaves."""

import copy

import pytest
import torch

from inference.errors import Rejected
from inference.generation import perplexity
from inference.models.on_torch.language import TorchLanguageModel
from inference.models.on_torch.language.packed import MANY_ROWS
from inference.models.on_torch.language.quantised import Quantised, quantise
from inference.models.on_torch.language.weights import SafetensorsWeights
from inference.protocol.settings import GenerationSettings
from tests.support.decoders import BLOCK, BLOCKS, Text, expected, made, random_tokens, step_of

SHAPES = [(96, 64), (70, 96), (33, 56), (32, 1536)]
KEPT = ("q_proj", "k_proj", "v_proj", "qkv_proj", "lm_head")  # in 8 bits even where the rest has 4
RELATIVE = {8: 0.007, 4: 0.08}  # root mean square of what changes, of Gaussian weights


def gaussian(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_weights_come_back_nearly_as_they_were(bits, outputs, inputs):
    weight = gaussian(outputs, inputs)
    weight[3] = 0
    weight[5] *= 1e4  # a loud output costs its neighbours nothing
    found = quantise(weight, bits)
    again = found.dense().T
    assert again.shape == weight.shape
    for row, own in ((again[row], weight[row]) for row in range(outputs) if row != 3):
        assert (row - own).norm() < 1.5 * RELATIVE[bits] * own.norm()
    rest = [row for row in range(outputs) if row not in {3, 5}]
    assert (again[rest] - weight[rest]).norm() < RELATIVE[bits] * weight[rest].norm()
    assert again[3].abs().max() < 1e-25
    assert again.argmax(1).tolist()[5] == weight.argmax(1).tolist()[5]


def test_an_error_of_8_bits_is_at_most_half_a_step_of_its_group():
    weight = gaussian(64, 128)
    step = weight.unflatten(1, (2, 64)).abs().amax(-1, keepdim=True) / 127
    error = (quantise(weight, 8).dense().T - weight).abs().unflatten(1, (2, 64))
    assert (error <= step * 0.76).all()  # half a step, and a quarter where the scale's rounding cuts off the largest
    assert (error <= step * 0.51).float().mean() > 0.98


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_products_are_those_of_the_dense_weights(bits, outputs, inputs):
    found = quantise(gaussian(outputs, inputs), bits)
    bias = gaussian(outputs, seed=2)
    for rows in (0, 1, 2, 3, 7, 8, 13, MANY_ROWS[bits] - 1, MANY_ROWS[bits]):
        x = gaussian(rows, inputs, seed=rows)
        wanted = (x.double() @ found.dense().double()).float()
        torch.testing.assert_close(found.product(x, None), wanted, atol=2e-5 * inputs**0.5, rtol=1e-5)
        torch.testing.assert_close(found.product(x, bias), wanted + bias, atol=2e-5 * inputs**0.5, rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_rows_product_does_not_depend_on_the_rows_beside_it(bits):
    found, x = quantise(gaussian(70, 64), bits), gaussian(15, 64, seed=2)
    alone = torch.cat([found.product(x[row : row + 1], None) for row in range(15)])
    assert torch.equal(found.product(x, None), alone)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_can_be_looked_up(bits):
    found, chosen = quantise(gaussian(70, 64), bits), torch.tensor([0, 69, 31, 32, 31])
    assert torch.equal(found.rows(chosen), found.dense().T[chosen])


def test_bfloat16_in_gives_bfloat16_out():
    found, x = quantise(gaussian(70, 64), 8), gaussian(3, 64, seed=2).bfloat16()
    given = found.product(x, None)
    assert given.dtype is torch.bfloat16
    torch.testing.assert_close(given.float(), x.float() @ found.dense(), atol=0.1, rtol=0.01)


def test_an_odd_number_of_inputs_has_no_4_bits():
    quantise(gaussian(8, 33), 8)
    with pytest.raises(Rejected, match="33 inputs cannot be quantised to int4"):
        quantise(gaussian(8, 33), 4)


def served(folder, **settings):
    ours = TorchLanguageModel(SafetensorsWeights(folder), GenerationSettings(**settings), "cpu")
    ours.allocate(BLOCKS, BLOCK)
    return ours


def with_weights_of(theirs, bits):
    """transformers' model with what quantising leaves of its weights."""
    changed = copy.deepcopy(theirs)
    for name, module in changed.named_modules():
        if isinstance(module, torch.nn.Linear):
            own = 8 if name.endswith(KEPT) else bits
            module.weight.data = quantise(module.weight.data, own).dense().T.contiguous()
    return changed


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["llama", "llama-tied-biased", "qwen3", "gemma3", "phi3"])
def test_a_quantised_decoder_gives_the_logits_of_the_weights_that_are_left(family, bits, tmp_path):
    theirs, _ = made(family, tmp_path)
    ours = served(tmp_path, quantization=f"int{bits}")
    left = with_weights_of(theirs, bits)
    if left.config.tie_word_embeddings:
        left.model.embed_tokens.weight.data = left.lm_head.weight.data
    tokens = random_tokens(40, 1)
    text = Text(tokens, list(range(9)))
    found = torch.cat([ours.forward(step_of([(text, count)])) for count in (20, 1, 1, 18)])
    torch.testing.assert_close(found, expected(left, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("quantization", "of_logits", "of_perplexity"), [("int8", 0.03, 0.02), ("int4", 0.5, 0.4)])
def test_logits_and_perplexity_stay_near(quantization, of_logits, of_perplexity, tmp_path):
    _, plain = made("qwen3", tmp_path)
    changed = served(tmp_path, quantization=quantization)
    tokens = random_tokens(60, 1)
    before, after = (model.forward(step_of([(Text(tokens, list(range(9))), 60)])) for model in (plain, changed))
    assert 0 < (after - before).norm() < of_logits * before.norm()
    one, two = (perplexity.perplexity(model, before.argmax(-1).tolist()) for model in (plain, changed))
    assert abs(two / one - 1) < of_perplexity


def test_the_weights_take_the_bytes_that_the_setting_promises(tmp_path):
    made("llama", tmp_path)
    for quantization, most in (("int8", 1.6), ("int4", 1.2)):  # tiny layers fill up their panels and groups
        ours = served(tmp_path, quantization=quantization)
        layer = ours.layers[0]
        parts = [layer.qkv, layer.output, layer.gate_up, layer.down]
        assert all(isinstance(part, Quantised) for part in parts)
        held = sum(part.weights.nbytes + part.scales.nbytes for part in parts)
        assert held < most * sum(part.outputs * part.inputs for part in parts)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_gives_the_same_bits_alone_and_among_many(bits):
    """Few rows are multiplied with packed weights, many with panels that were unpacked for them."""
    weight, x = quantise(torch.randn(70, 96), bits), torch.randn(MANY_ROWS[bits] + 5, 96)
    together = weight.product(x, None)
    for row in (0, MANY_ROWS[bits] // 2, MANY_ROWS[bits] + 4):
        assert torch.equal(together[row], weight.product(x[row : row + 1], None)[0])
