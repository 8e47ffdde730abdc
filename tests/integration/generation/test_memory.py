"""How many blocks of keys and values there are, beside adapters that may come later."""

import pytest

from inference.generation import memory
from inference.generation.memory import cache_size
from inference.models.on_torch.language import TorchLanguageModel, source_of
from inference.protocol.settings import GenerationSettings
from tests.support import engines, language

SETTINGS = GenerationSettings(max_adapters=3, max_adapter_rank=4, max_num_seqs=512)
ALL = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(scope="module")
def model():
    return TorchLanguageModel(source_of(engines.tiny()[0]), SETTINGS, "cpu")


def test_the_bound_of_the_adapters_holds_what_they_take(model, tmp_path):
    language.adapter(tmp_path, rank=4, modules=ALL)
    for slot in (1, 2, 3):
        model.load_adapter(slot, tmp_path)
    loaded = list(model.adapters._slots.values())
    model.adapters._join(tuple(loaded), range(model.adapters._head))
    pairs = [pair for one in (*loaded, *model.adapters._joined.values()) for pair in one.pairs.values()]
    taken = sum(tensor.nbytes for pair in pairs for tensor in pair)
    # these adapters change attention only: down to 3 * 32 + 32 inputs and up to 3 * 64 + 32 outputs of each layer
    assert taken == 2 * 3 * 4 * 4 * 2 * (3 * 32 + 3 * 64 + 32 + 32)
    assert taken < model.adapters_bytes
    whole = 3 * (32 + 64) + (32 + 32) + 2 * (32 + 112) + (56 + 32)
    assert model.adapters_bytes == 2 * 3 * 4 * 4 * (2 * whole + 32 + language.VOCABULARY)


def test_a_model_without_slots_reserves_nothing():
    assert TorchLanguageModel(source_of(engines.tiny()[0]), GenerationSettings(), "cpu").adapters_bytes == 0


def test_keys_and_values_leave_room_for_adapters(model):
    one = model.block_bytes(SETTINGS.block_size)
    left = memory.WORK_BYTES + 1000 * one
    assert cache_size(model, SETTINGS, left_bytes=left).blocks == 1000
    assert cache_size(model, SETTINGS, left_bytes=left, reserved_bytes=300 * one).blocks == 700
    # a bound that was set without them
    assert cache_size(model, SETTINGS, left_bytes=left, reserved_bytes=5000 * one).blocks == 500
