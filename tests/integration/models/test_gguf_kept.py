"""Weights that stay as their GGUF file has them: the file's own values, in the file's own size."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from inference.errors import Rejected
from inference.models.on_torch import gguf_blocks
from inference.models.on_torch.gguf_weights import GgufWeights
from inference.models.on_torch.language import TorchLanguageModel
from inference.models.on_torch.language.panels import Panelled
from inference.models.on_torch.language.quantised import Beside, Quantised, kept
from inference.models.on_torch.language.weights import SafetensorsWeights
from inference.protocol.settings import GenerationSettings
from tests.support import decoders, gguf_files

TYPES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
SCALES = {"Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,)}  # where the float16 numbers of a block lie


def random_rows(name, outputs, inputs):
    """Rows of random blocks, uint8 [outputs, bytes], with scales of a bearable size."""
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    mind = np.random.default_rng(outputs)
    blocks = mind.integers(0, 256, (outputs * inputs // elements, size), dtype=np.uint8)
    for at in SCALES.get(name, (0, 2)):
        blocks[:, at : at + 2] = mind.normal(size=(len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(outputs, -1)


def as_kept(rows, name):
    found = gguf_blocks.taken_apart(rows, name)
    return kept(torch.from_numpy(found.whole), torch.from_numpy(found.scales), found.bits)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(70, 256), (32, 768)])
def test_the_values_are_the_files_to_the_last_bit(name, outputs, inputs):
    rows = random_rows(name, outputs, inputs)
    wanted = torch.from_numpy(dequantize(rows, GGMLQuantizationType[name])).reshape(outputs, inputs)
    found = as_kept(rows, name)
    assert torch.equal(found.dense().T, wanted)
    chosen = torch.tensor([0, outputs - 1, 31, 5, 31])
    assert torch.equal(found.rows(chosen), wanted[chosen])


@pytest.mark.parametrize("name", TYPES)
def test_products_are_those_of_the_values(name):
    found, inputs = as_kept(random_rows(name, 70, 256), name), 256
    dense, bias = found.dense(), torch.randn(70)
    for rows in (0, 1, 3, 8, 13, 24):
        x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
        wanted = (x.double() @ dense.double() + bias.double()).float()
        scale = float(dense.abs().max()) * inputs**0.5
        torch.testing.assert_close(found.product(x, bias), wanted, atol=2e-6 * scale, rtol=1e-5)


def test_other_types_have_no_kernel():
    assert gguf_blocks.taken_apart(np.zeros((2, 18), np.uint8), "IQ4_NL") is None
    assert not gguf_blocks.has_kernel("Q2_K")


def both(path, **settings):
    """The model dequantised, and kept as it is."""
    models = [
        TorchLanguageModel(GgufWeights(path), GenerationSettings(quantization=way, **settings), "cpu")
        for way in ("none", "gguf")
    ]
    for model in models:
        model.allocate(32, decoders.BLOCK)
    return models


def logits(model, count=40):
    text = decoders.Text(decoders.random_tokens(count, 1), list(range(9)))
    return torch.cat([model.forward(decoders.step_of([(text, size)])) for size in (20, 1, 1, 18)])


# Every family and every type twice: what a product is does not depend on the family.
FAMILIES = {
    "llama": ("Q4_0", "Q5_1"),
    "qwen3": ("Q8_0", "Q4_1"),
    "gemma3": ("Q8_0", "Q5_1"),
    "phi3": ("Q4_0", "Q4_1"),
}


@pytest.mark.parametrize(
    ("family", "dtype"), [(family, dtype) for family, dtypes in FAMILIES.items() for dtype in dtypes]
)
def test_a_model_answers_as_its_dequantised_self(family, dtype, tmp_path):
    gguf_files.write(gguf_files.small_model(family), tmp_path / "m.gguf", family, dtype=dtype)
    opened, held = both(tmp_path / "m.gguf")
    torch.testing.assert_close(logits(held), logits(opened), atol=1e-4, rtol=0)
    assert held.weight_bytes < opened.weight_bytes
    assert held.facts.notes[0].endswith(dtype)
    assert opened.facts.notes == []


def test_parts_of_a_layer_may_be_kept_in_different_ways(tmp_path):
    others = {"attn_v": "Q8_0", "ffn_up": "F32", "attn_output": "IQ4_NL", "token_embd": "F16"}
    gguf_files.write(gguf_files.small_model("llama"), tmp_path / "m.gguf", "llama", dtype="Q4_1", others=others)
    opened, held = both(tmp_path / "m.gguf")
    torch.testing.assert_close(logits(held), logits(opened), atol=1e-4, rtol=0)
    layer = held.layers[1]
    assert isinstance(layer.qkv, Beside)
    assert [part.outputs for part in layer.qkv.parts] == [96, 32]
    assert isinstance(layer.gate_up, Beside)
    assert isinstance(layer.gate_up.parts[1], Panelled)
    assert isinstance(layer.output, Panelled)
    assert isinstance(held.embedding, Panelled)
    layers = len(held.layers)
    assert held.facts.notes == [
        f"kept as the file has them: {4 * layers + 1} Q4_1, {layers} Q8_0",
        f"dequantised to float32, for want of a kernel: {layers} IQ4_NL",
    ]


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    model = gguf_files.small_model("llama")
    model.model.layers[0].mlp.down_proj.weight.data = torch.randn(64, 64)
    gguf_files.write(model, tmp_path / "m.gguf", "llama", dtype="Q8_0")
    with pytest.raises(Rejected, match=r"has shape \[64, 64\]"):
        TorchLanguageModel(GgufWeights(tmp_path / "m.gguf"), GenerationSettings(quantization="gguf"), "cpu")


def test_a_folder_has_nothing_to_keep(tmp_path):
    decoders.made("llama", tmp_path)
    with pytest.raises(Rejected, match="this is a folder"):
        TorchLanguageModel(SafetensorsWeights(tmp_path), GenerationSettings(quantization="gguf"), "cpu")


def test_smollm2_is_kept_in_the_size_of_its_file():
    path = gguf_files.smollm2()
    opened, held = both(path, max_model_len=256)
    assert held.facts.notes == ["kept as the file has them: 210 Q4_1, 1 Q8_0"]
    assert opened.weight_bytes == 4 * 134_515_008
    assert held.weight_bytes < path.stat().st_size
    assert all(isinstance(layer.qkv, Quantised) for layer in held.layers)
    text = [decoders.Text([504, 3575, 282, 4649, 314, 7042, 30, 260, 1780], [1, 0, 2]) for _ in range(2)]
    one, two = (model.forward(decoders.step_of([(text[at], 9)])) for at, model in enumerate((opened, held)))
    assert (one - two).abs().max() < 1e-5 * one.abs().max()  # the same weights; sums are rounded in another order
    for name in ("qkv", "output", "gate_up", "down"):
        kept, plain = getattr(held.layers[29], name), getattr(opened.layers[29], name)
        assert torch.equal(kept.dense().T, plain.rows(torch.arange(plain.outputs)))


def test_an_embedding_of_a_fourth_form_leaves_steps_compiled(tmp_path):
    others = {"ffn_down": "Q8_0", "attn_output": "Q4_0", "token_embd": "Q5_1"}
    gguf_files.write(gguf_files.small_model("llama"), tmp_path / "m.gguf", "llama", dtype="Q4_1", others=others)
    opened, held = both(tmp_path / "m.gguf")
    assert len({one.form for one in held.packed()}) == 4
    assert held._walker is not None
    torch.testing.assert_close(logits(held), logits(opened), atol=1e-4, rtol=0)
