"""The fused pass of BERT and its kin: transformers' own answers, from several threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from inference.errors import InvalidInput
from inference.models.on_torch import encoder_families, encoder_kernels, fused, hf_encoder, packing

SIZES = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 160,
    "vocab_size": 99,
}
PACKED = packing.Packed(0, types=True)


def network(kind="bert", **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | {"max_position_embeddings": 200, "pad_token_id": 1} | changes))
    made = hf_encoder._network(config, "features").eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("bias"):  # zero when new, and a forgotten bias would go unseen
                weight.normal_(0, 0.5)
    return made


@pytest.fixture(scope="module", params=["bert", "distilbert", "mpnet"])
def bert(request):
    made = network(request.param)
    with torch.no_grad():  # a bias by distance that is seen beside the scores
        for name, weight in made.named_parameters():
            if "relative" in name:
                weight.normal_(0, 2)
    found = fused.proven(made, None, 1, 64)
    assert found is not None
    return made, found


def rows(*sizes, seed=0):
    generator = np.random.default_rng(seed)  # 1 is the padding, which MPNet gives no position
    return [generator.integers(2, 99, size) for size in sizes]


def assert_same(bert, ids):
    made, way = bert
    with torch.inference_mode():
        found = way.hidden(made, ids)
    for one, row in zip(found, ids, strict=True):
        np.testing.assert_allclose(one.numpy(), packing.alone(made, row).numpy(), atol=2e-5, rtol=1e-4)


@given(sizes=st.lists(st.integers(1, 198), min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=10)
def test_it_answers_as_transformers_does_for_each_row_alone(bert, sizes, seed):
    assert_same(bert, rows(*sizes, seed=seed))


def test_a_batch_of_many_tokens_goes_in_parts(bert):
    assert_same(bert, rows(*[170] * 5, 1, 90))


def test_lanes_do_not_write_into_each_others_work(bert):
    made, way = bert
    batches = [rows(*[40 + 7 * n, 9, 100], seed=n) for n in range(12)]
    with torch.inference_mode():
        wanted = [way.hidden(made, one) for one in batches]

    def again(number):
        with torch.inference_mode():
            return [way.hidden(made, batches[number]) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for alone, found in zip(wanted, pool.map(again, range(12)), strict=True):
            for one in found:
                assert all(torch.equal(a, b) for a, b in zip(one, alone, strict=True))


@pytest.mark.parametrize("ids", [[99], [-1], [3] * 201])
def test_ids_that_have_no_embedding_are_refused_and_read_nothing(bert, ids):
    with pytest.raises(InvalidInput, match=f"99 tokens and takes {200 - bert[1].first_position} at once"):
        bert[1].hidden(bert[0], [np.array(ids)])


@given(st.lists(st.integers(1, 600), min_size=1, max_size=40))
def test_parts_hold_every_row_in_order_and_no_more_than_fits(sizes):
    ids = [np.full(size, index) for index, size in enumerate(sizes)]
    parts = list(fused._parts(ids))
    assert [one[0] for part in parts for one in part] == list(range(len(sizes)))
    assert all(len(part) == 1 or sum(one.size for one in part) <= fused.TOKENS_AT_ONCE for part in parts)


@pytest.mark.parametrize(
    ("kind", "first"), [("bert", 0), ("roberta", 2), ("electra", 0), ("distilbert", 0), ("mpnet", 2)]
)
def test_kin_prove_that_they_are(kind, first):
    made = network(kind, **({"embedding_size": 96} if kind == "electra" else {}))
    way = packing.proven(made, 1, 64)
    assert (way is None) == (kind == "mpnet"), "whose layers know no packed rows"
    found = fused.proven(made, way, 1, 64)
    assert isinstance(found, fused.Fused)
    assert found.first_position == first


def test_what_is_added_by_distance_is_that_of_the_pair():
    made, tokens = network("mpnet"), 30
    found = encoder_families.distances(made, tokens)
    wanted = made.encoder.compute_position_bias(torch.empty(1, tokens, 1))[0]
    for query in (0, 7, tokens - 1):
        assert torch.equal(found[:, tokens - 1 - query :][:, :tokens], wanted[:, query])


@pytest.mark.parametrize(
    "change",
    [{"hidden_act": "gelu_new"}, {"hidden_act": "relu"}, {"num_attention_heads": 6}, {"intermediate_size": 100}],
)
def test_what_the_kernels_do_not_compute_stays_with_transformers(change):
    assert fused.proven(network(**change), PACKED, 1, 64) is None


def test_what_gives_other_answers_is_not_used(monkeypatch):
    kept = encoder_kernels.compiled()

    def shifted(x, added, tokens):
        kept.add_gelu(x, added + np.float32(0.01), tokens)

    monkeypatch.setattr(encoder_kernels, "compiled", lambda: kept._replace(add_gelu=shifted))
    assert fused.proven(network(), PACKED, 1, 64) is None


def test_without_numba_encoders_are_packed_as_before(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "inference.models.on_torch.encoder_kernels", None)
    monkeypatch.delattr("inference.models.on_torch.encoder_kernels")
    assert fused.proven(network(), PACKED, 1, 64) is None
