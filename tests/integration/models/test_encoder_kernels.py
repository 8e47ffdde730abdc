"""Each kernel of the encoders gives what torch gives, for rows of any lengths."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from inference.models.on_torch import encoder_kernels, fused

SLACK, QUERIES = encoder_kernels.SLACK, encoder_kernels.QUERIES
EPS = np.float32(1e-12)
seeds = st.integers(0, 2**32 - 1)


def normal(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def with_slack(array, axis=0, fill=0.0):
    room = [(0, SLACK if one == axis else 0) for one in range(array.ndim)]
    return np.ascontiguousarray(np.pad(array, room, constant_values=fill))


@given(
    sizes=st.lists(st.integers(1, 140), min_size=1, max_size=6),
    heads=st.integers(1, 3),
    depth=st.sampled_from([32, 64, 96]),
    scale=st.sampled_from([0.3, 1.0, 6.0]),
    seed=seeds,
)
@settings(deadline=None, max_examples=40)
def test_attention_is_torchs_for_each_row_alone(sizes, heads, depth, scale, seed):
    width, tokens = heads * depth, sum(sizes)
    query, key, value = normal(seed, 3, tokens, width, scale=scale)
    bias = normal(seed + 1, width)
    out = np.full((tokens + SLACK, width), np.nan, np.float32)
    longest = (max(sizes) + 31) // 32 * 32
    encoder_kernels.compiled().attend(
        with_slack(np.concatenate([query, value], 1)), with_slack(np.ascontiguousarray(key.T), axis=1), bias,
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), np.float32(depth**-0.5), np.zeros((heads, 0), np.float32),
        np.zeros((QUERIES, longest), np.float32), np.zeros((QUERIES, depth + 2), np.float32), out,
    )  # fmt: skip
    begin = 0
    for size in sizes:
        here = slice(begin, begin + size)
        q, k, v = (
            torch.from_numpy(one[here].reshape(size, heads, depth)).transpose(0, 1).double()
            for one in (query + bias, key, value)
        )
        wanted = functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(size, width)
        np.testing.assert_allclose(out[here], wanted.numpy(), atol=2e-5 * max(1, scale**2), rtol=1e-4)
        begin += size


def test_scores_that_are_far_apart_neither_overflow_nor_vanish():
    query, key = np.full((2, 32), 1e3, np.float32), np.stack([np.full(32, 1e3), np.full(32, -1e3)]).astype(np.float32)
    value, out = normal(0, 2, 32), np.zeros((2 + SLACK, 32), np.float32)
    encoder_kernels.compiled().attend(
        with_slack(np.concatenate([query, value], 1)), with_slack(np.ascontiguousarray(key.T), axis=1),
        np.zeros(32, np.float32), np.array([0, 2]), np.float32(1), np.zeros((1, 0), np.float32),
        np.zeros((QUERIES, 32), np.float32),
        np.zeros((QUERIES, 34), np.float32), out,
    )  # fmt: skip
    np.testing.assert_allclose(out[:2], np.stack([value[0], value[0]]), atol=1e-6)


@given(tokens=st.integers(1, 9), width=st.sampled_from([16, 48, 1536]), scale=st.sampled_from([0.1, 1, 30]), seed=seeds)
@settings(deadline=None)
def test_gelu_is_the_exact_one_in_float32(tokens, width, scale, seed):
    x, added = normal(seed, tokens + 1, width, scale=scale), normal(seed + 1, width)
    wanted = functional.gelu(torch.from_numpy((x + added)[:tokens].astype(np.float64))).numpy()
    beyond = x[tokens].copy()
    encoder_kernels.compiled().add_gelu(x, added, tokens)
    # erf's 2e-7 and its rounding, times half of the 5 or so where GELU still is not 0
    np.testing.assert_allclose(x[:tokens], wanted, atol=1.5e-6, rtol=1e-6)
    assert np.array_equal(x[tokens], beyond)


@pytest.mark.parametrize("extreme", [-1e30, -40.0, -3.0, -0.0, 0.0, 3.0, 40.0, 1e30])
def test_gelu_of_extremes(extreme):
    x = np.full((1, 16), extreme, np.float32)
    encoder_kernels.compiled().add_gelu(x, np.zeros(16, np.float32), 1)
    wanted = functional.gelu(torch.tensor(extreme, dtype=torch.float64)).item()
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=2e-6 if abs(extreme) < 100 else 1e23)


@given(tokens=st.integers(1, 9), width=st.sampled_from([16, 384, 1024]), offset=st.sampled_from([0, 50]), seed=seeds)
@settings(deadline=None)
def test_residual_and_layer_norm_are_torchs(tokens, width, offset, seed):
    x, hidden = normal(seed, 2, tokens + 1, width)
    added, weight, bias = normal(seed + 1, 3, width)
    x += offset
    summed = torch.from_numpy((x + added + hidden).astype(np.float64))
    wanted = functional.layer_norm(
        summed, (width,), torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), 1e-12
    )
    beyond = hidden[tokens].copy()
    encoder_kernels.compiled().add_norm(x, added, weight, bias, EPS, tokens, hidden)
    np.testing.assert_allclose(hidden[:tokens], wanted.numpy()[:tokens], atol=5e-5, rtol=1e-4)
    assert np.array_equal(hidden[tokens], beyond)


@given(tokens=st.integers(1, 9), width=st.sampled_from([16, 384]), seed=seeds)
@settings(deadline=None)
def test_embeddings_are_gathered_summed_and_normalised(tokens, width, seed):
    words, positions = normal(seed, 50, width), normal(seed + 1, 20, width)
    types, weight, bias = normal(seed + 2, 3, width)
    generator = np.random.default_rng(seed)
    ids, places = generator.integers(0, 50, tokens), generator.integers(0, 20, tokens)
    out = np.zeros((tokens, width), np.float32)
    encoder_kernels.compiled().embed(ids, places, words, positions, types, weight, bias, EPS, out)
    summed = torch.from_numpy(words[ids] + positions[places] + types)
    wanted = functional.layer_norm(summed, (width,), torch.from_numpy(weight), torch.from_numpy(bias), 1e-12)
    np.testing.assert_allclose(out, wanted.numpy(), atol=1e-5, rtol=1e-4)


@given(
    tokens=st.integers(1, 230), depth=st.sampled_from([3, 96, 384]), columns=st.sampled_from([32, 96]),
    more=st.sampled_from([0, 16]), seed=seeds,
)  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_a_product_writes_its_columns_of_its_rows_and_nothing_else(tokens, depth, columns, more, seed):
    x, weight = torch.from_numpy(normal(seed, tokens, depth)), torch.from_numpy(normal(seed + 1, columns, depth))
    out = torch.full((tokens + 1, columns + more), 7.0)
    fused.Product(fused.panels_of(weight), encoder_kernels.compiled().multiply).into(x, out, tokens)
    torch.testing.assert_close(out[:tokens, :columns], (x.double() @ weight.t().double()).float(), atol=1e-4, rtol=1e-5)
    assert (out[tokens:] == 7).all()
    assert (out[:, columns:] == 7).all()
