"""The compiled loops of language models on the CPU give what torch's operations give, whatever the shapes and the threads."""

import threading

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.models.on_torch.language import attention, walker
from inference.models.on_torch.language.panels import panelled
from inference.models.on_torch.language.team import Team, meet
from tests.support.decoders import FAMILIES, Text, made, random_tokens, step_of

BLOCK = 8


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(rows=st.integers(0, 70), outputs=st.integers(1, 100), inputs=st.integers(1, 90), has_bias=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_product_is_torchs_whatever_the_shape(rows, outputs, inputs, has_bias):
    x, weight = random(rows, inputs), random(outputs, inputs, seed=1)
    bias = random(outputs, seed=2) if has_bias else None
    torch.testing.assert_close(panelled(weight).product(x, bias), F.linear(x, weight, bias), atol=1e-4, rtol=1e-5)


def test_more_rows_than_stay_near_are_multiplied_too():
    x, weight = random(700, 600), random(40, 600, seed=1)
    torch.testing.assert_close(panelled(weight).product(x, None), F.linear(x, weight), atol=1e-3, rtol=1e-5)


@given(rows=st.integers(1, 40), chosen=st.data())
@settings(max_examples=20, deadline=None)
def test_a_row_gives_the_same_bits_whatever_is_beside_it(rows, chosen):
    x, weight = random(rows, 50), panelled(random(70, 50, seed=1))
    row = chosen.draw(st.integers(0, rows - 1))
    assert torch.equal(weight.product(x, None)[row], weight.product(x[row : row + 1], None)[0])


def test_rows_are_the_weights_of_the_chosen_outputs():
    weight, chosen = random(70, 9), torch.tensor([0, 69, 33, 33])
    assert torch.equal(panelled(weight).rows(chosen), weight[chosen])


@given(
    texts=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=5),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    width=st.sampled_from([6, 16, 24, 48, 64, 96, 128, 136, 144]),
    window=st.sampled_from([0, 1, 7, 33]),
    softcap=st.sampled_from([0.0, 5.0]),
)
@settings(max_examples=60, deadline=None)
def test_attention_is_that_of_gathered_blocks(texts, kv_heads, group, width, window, softcap):
    """texts: new tokens and tokens before them, of each sequence; their blocks lie anywhere, the rest is not a number."""
    counts = [-(-(new + old) // BLOCK) for new, old in texts]
    free = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(3)).tolist()
    tables = torch.zeros(len(texts), max(counts), dtype=torch.int32)
    keys, values = (torch.full((sum(counts), kv_heads, BLOCK, width), float("nan")) for _ in range(2))
    for n, (new, old) in enumerate(texts):
        for index in range(counts[n]):
            block, inside = free.pop(), min(BLOCK, new + old - index * BLOCK)
            tables[n, index] = block
            keys[block, :, :inside] = random(kv_heads, inside, width, seed=10 * n + index)
            values[block, :, :inside] = random(kv_heads, inside, width, seed=1000 + 10 * n + index)
    starts = torch.tensor([0, *np.cumsum([new for new, _ in texts])], dtype=torch.int32)
    lengths = torch.tensor([new + old for new, old in texts], dtype=torch.int32)
    queries, shape = random(int(starts[-1]), kv_heads * group, width), attention.Shape(0.2, window, softcap)
    spans = [(int(starts[n]), int(starts[n + 1]), int(lengths[n])) for n in range(len(texts))]
    batch = attention.Batch(
        *(torch.empty(0) for _ in range(3)), tables, torch.empty(0), starts, lengths, spans, is_compiled=True
    )
    found = walker.attend(queries, keys, values, batch, shape)
    batch.is_compiled = False
    torch.testing.assert_close(found, attention.attend(queries, keys, values, batch, shape), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "phi3-longrope"])
def test_a_step_as_a_program_is_the_step_operation_by_operation(family, tmp_path):
    _, ours = made(family, tmp_path)
    program = ours._walker
    assert program is not None, "every family goes through the program"
    texts = [Text(random_tokens(90, 1), list(range(12))), Text(random_tokens(30, 2), list(range(40, 33, -1)))]
    for counts in ((70, 5), (1, 1), (3, 20), (1, 1)):
        before = [text.computed for text in texts]
        one = ours.forward(step_of(list(zip(texts, counts, strict=True))))
        for text, done in zip(texts, before, strict=True):
            text.computed = done
        ours._walker = None
        two = ours.forward(step_of(list(zip(texts, counts, strict=True))))
        ours._walker = program
        torch.testing.assert_close(one, two, atol=1e-5 * float(two.abs().max()), rtol=0)


@numba.njit(numba.void(numba.intp, numba.intp, numba.intp, numba.int64[:, ::1]), nogil=True)
def write_and_read(member, members, place, seen):
    """Each turn every member writes its number; after the barrier it counts what the others wrote."""
    for turn in range(len(seen)):
        seen[turn, member] = 1
        meet(members, place)
        total = 0
        for other in range(members):
            total += seen[turn, other]
        meet(members, place)
        if total != members:
            seen[turn, members] = 1


@pytest.mark.parametrize("members", [1, 2, 5])
def test_members_meet_before_any_goes_on(members):
    team, seen = Team(members), np.zeros((300, members + 1), np.int64)
    team.run(write_and_read, seen)
    assert seen[:, :members].all()
    assert not seen[:, members].any()
    team.close()


def test_a_team_serves_one_caller_after_the_other_and_its_threads_end():
    team, found = Team(3), []

    def work():
        seen = np.zeros((50, 4), np.int64)
        team.run(write_and_read, seen)
        found.append(bool(seen[:, :3].all()) and not seen[:, 3].any())

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert found == [True] * 4
    helpers = [thread for thread in threading.enumerate() if thread.name.startswith("team-") and thread in team.threads]
    assert len(helpers) == 2
    team.close()
    for helper in helpers:
        helper.join(20)
        assert not helper.is_alive()
