"""Keys and values in another dtype than the model's: near the same answers, and refused where a device has it not."""

import pytest
import torch

from inference.errors import Rejected
from inference.models.on_torch.language import TorchLanguageModel, attention, through_transformers
from inference.models.on_torch.language.cache import BlockCache
from inference.models.on_torch.language.weights import SafetensorsWeights
from inference.protocol.settings import GenerationSettings
from tests.support import causal_models, decoders


def served(folder, **settings):
    ours = TorchLanguageModel(SafetensorsWeights(folder), GenerationSettings(**settings), "cpu")
    ours.allocate(decoders.BLOCKS, decoders.BLOCK)
    return ours


def logits(model):
    text = decoders.Text(decoders.random_tokens(40, 1), list(range(9)))
    return torch.cat([model.forward(decoders.step_of([(text, count)])) for count in (20, 1, 1, 18)])


def test_bfloat16_keys_and_values_take_half_the_memory(tmp_path):
    _, plain = decoders.made("llama", tmp_path)
    ours = served(tmp_path, kv_cache_dtype="bfloat16")
    assert 2 * ours.block_bytes(16) == plain.block_bytes(16)
    before, after = logits(plain), logits(ours)
    assert 0 < (after - before).norm() < 0.02 * before.norm()


def test_float32_keys_and_values_of_a_bfloat16_model(tmp_path):
    _, plain = decoders.made("llama", tmp_path)
    ours = served(tmp_path, dtype="bfloat16", kv_cache_dtype="float32")
    assert ours.block_bytes(16) == plain.block_bytes(16)
    before, after = logits(plain), logits(ours)
    assert 0 < (after - before).norm() < 0.05 * before.norm()


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"kv_cache_dtype": "fp8"}, "needs a GPU that has float8"), ({"cuda_graphs": True}, "needs a CUDA GPU")],
)
def test_what_a_cpu_has_not_is_refused(tmp_path, setting, words):
    decoders.made("llama", tmp_path)
    with pytest.raises(Rejected, match=words) as caught:
        served(tmp_path, **setting)
    assert caught.value.remedy
    with pytest.raises(Rejected, match=f"generation.{next(iter(setting))} is for families"):
        through_transformers(causal_models.made("gpt2")[0], GenerationSettings(**setting), "cpu")


def test_fp8_blocks_are_written_read_copied_and_saved(tmp_path):
    """The torch path of it, which a CPU can run though it is not offered there."""
    _, plain = decoders.made("llama", tmp_path)
    ours = served(tmp_path)
    ours.kept = attention.FP8
    ours.allocate(decoders.BLOCKS, decoders.BLOCK)
    assert 4 * ours.block_bytes(16) == plain.block_bytes(16)
    before, after = logits(plain), logits(ours)
    assert 0 < (after - before).norm() < 0.15 * before.norm()
    assert isinstance(ours.cache, BlockCache)
    keys = ours.cache.keys.float()
    ours.copy_blocks([(0, 20), (1, 21)])
    saved = ours.save_blocks([2, 3])
    ours.load_blocks([30, 31], saved)
    again = ours.cache.keys.float()
    for source, target in ((0, 20), (1, 21), (2, 30), (3, 31)):
        assert torch.equal(again[:, target], keys[:, source])
        assert again[:, target].any()


def test_what_fp8_cannot_hold_is_cut_off():
    cache = torch.zeros(1, 1, 4, 2, dtype=attention.FP8)
    rows = torch.tensor([[[1e6, -1e6]], [[0.5, 2.0]]])
    attention.store(cache, torch.tensor([0, 0]), torch.tensor([1, 3]), rows)
    assert cache.float()[0, 0].tolist() == [[0, 0], [448, -448], [0, 0], [0.5, 2]]
