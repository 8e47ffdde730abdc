"""Promises of the response cache: the store and the key by properties, the executor around a real batcher."""

import asyncio
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.artifacts.manifest import RuntimeSettings
from inference.batching.cache import ENTRY_BYTES, Cached, Store, key_of
from inference.errors import Draining, ModelFailed, PoisonInput, Rejected
from inference.models import LoadContext, load
from inference.replica import executors
from inference.runtime.runner import Runner
from inference.runtime.warmup import warm_up
from inference.runtime.work import Ticket, awaited
from tests.support import artifacts


@given(
    st.integers(0, 6 * ENTRY_BYTES),
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 200)), max_size=60),
)
def test_the_store_keeps_within_its_bytes_and_drops_the_least_recently_used(largest, acts):
    store, reference = Store(largest), {}
    for is_put, key, items in acts:
        name = bytes([key])
        if is_put:
            outputs = {"y": np.full(items, key, "u1")}
            store.put(name, outputs)
            size = ENTRY_BYTES + items
            if size <= largest and name not in reference:
                while sum(len(a) + ENTRY_BYTES for a in reference.values()) + size > largest:
                    del reference[next(iter(reference))]
                reference[name] = outputs["y"]
        else:
            found = store.get(name)
            assert (found is not None) == (name in reference)
            if found is not None:
                assert np.array_equal(found["y"], reference[name])
                reference[name] = reference.pop(name)
        assert store.size_bytes == sum(len(a) + ENTRY_BYTES for a in reference.values()) <= largest
        assert len(store) == len(reference)


def test_what_is_kept_is_a_copy_of_its_own():
    store, whole = Store(10_000), np.arange(100.0)
    store.put(b"k", {"y": whole[:2], "t": artifacts.texts("a", "b")})
    whole[0] = 7
    kept = store.get(b"k")
    assert kept["y"].tolist() == [0, 1]
    assert kept["y"].base is None
    with pytest.raises(ValueError, match="read-only"):
        kept["y"][0] = 1


ARRAYS = st.one_of(
    st.lists(st.integers(0, 3), min_size=1, max_size=4).flatmap(
        lambda values: st.sampled_from(["u1", "i4", "f4"]).map(lambda kind: np.array(values, kind))
    ),
    st.lists(st.sampled_from(["", "a", "ab", "b", "\0"]), min_size=1, max_size=3).map(lambda w: artifacts.texts(*w)),
)
REQUESTS = st.tuples(
    st.dictionaries(st.sampled_from(["a", "b", "ab"]), ARRAYS, min_size=1, max_size=3),
    st.lists(st.sampled_from(["y", "z"]), unique=True),
    st.dictionaries(st.sampled_from(["p", "q"]), st.sampled_from([1, 1.0, True, "1", "True", 0]), max_size=2),
)


def written(request):
    inputs, wanted, parameters = request
    return (
        sorted((name, a.dtype.str, a.shape, [bytes(i) for i in a] if a.dtype == object else a.tobytes()) for name, a in inputs.items()),
        sorted(wanted),
        sorted((name, type(value).__name__, str(value)) for name, value in parameters.items()),
    )  # fmt: skip


@given(REQUESTS, REQUESTS)
def test_two_requests_have_one_key_only_when_they_are_equal(one, other):
    assert (key_of(*one) == key_of(*other)) == (written(one) == written(other))


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (6,), (1, 6)], ids=str)
def test_the_shape_is_in_the_key(shape):
    assert (key_of({"x": np.zeros((6, 1), "f4")}, [], {}) == key_of({"x": np.zeros(shape, "f4")}, [], {})) is False


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (({"x": artifacts.texts("ab", "")}, [], {}), ({"x": artifacts.texts("a", "b")}, [], {})),
        (({"x": artifacts.texts("a")}, ["b", "c"], {}), ({"x": artifacts.texts("a")}, ["bc"], {})),
        (({"x": artifacts.texts("a")}, [], {"p": "1"}), ({"x": artifacts.texts("a")}, [], {"p": 1})),
    ],
    ids=["elements", "outputs", "parameters"],
)
def test_parts_that_read_alike_when_put_together_have_different_keys(one, other):
    assert key_of(*one) != key_of(*other)


def test_views_that_lie_otherwise_in_memory_are_equal():
    whole = np.arange(12, dtype="f4").reshape(3, 4)
    assert key_of({"x": whole.T}, [], {}) == key_of({"x": np.ascontiguousarray(whole.T)}, [], {})


class Asked(Ticket):
    future: object = None


def ask(executor, *values, parameters=None):
    future = asyncio.get_running_loop().create_future()
    inputs = {"input": np.array([values], "f4")}
    now = time.monotonic()
    ticket = Asked(inputs, 1, float("inf"), now, awaited(future), parameters=parameters or {})
    ticket.future = future
    executor.submit(ticket)
    return ticket


@pytest.fixture
async def cached(tmp_path):
    artifacts.echo(tmp_path, factor=2, faults=[{"value": 13, "kind": "raise"}])
    given = RuntimeSettings(response_cache_bytes=1 << 20, window_ms=0)
    runner = Runner(load("echo", LoadContext(tmp_path, given)))
    executor = executors.make(runner, given, warm_up(runner), on_hang=lambda: None)
    assert isinstance(executor, Cached)
    yield executor
    executor.stop()


async def test_the_second_time_there_is_no_pass(cached):
    first = await ask(cached, 1, 2, 3, 4).future
    second = await ask(cached, 1, 2, 3, 4).future
    assert (first.is_cached, second.is_cached) == (False, True)
    assert second.outputs["output"].tolist() == first.outputs["output"].tolist() == [[2, 4, 6, 8]]
    found = cached.statistics
    assert (found.cache_hit.count, found.cache_miss.count) == (1, 1)
    assert (found.success.count, found.queue.count, found.inference_count) == (2, 2, 2)
    assert (found.execution_count, found.compute_infer.count) == (1, 1)


async def test_other_inputs_and_other_parameters_are_other_requests(cached):
    await ask(cached, 1, 2, 3, 4).future
    assert not (await ask(cached, 1, 2, 3, 5).future).is_cached
    assert not (await ask(cached, 1, 2, 3, 4, parameters={"k": 1}).future).is_cached


async def test_errors_are_not_kept(cached):
    for _ in range(2):
        with pytest.raises((PoisonInput, ModelFailed)):
            await ask(cached, 13, 0, 0, 0).future
    assert cached.statistics.cache_hit.count == 0


async def test_nobody_is_told_within_submit_and_who_leaves_is_not_told(cached):
    await ask(cached, 1, 2, 3, 4).future
    stays, leaves = ask(cached, 1, 2, 3, 4), ask(cached, 1, 2, 3, 4)
    assert not stays.future.done()
    assert cached.in_flight == 2
    cached.cancel(leaves)
    assert (await stays.future).is_cached
    await asyncio.sleep(0.01)
    assert not leaves.future.done()
    assert cached.in_flight == 0


async def test_closed_it_refuses_even_what_it_knows(cached):
    await ask(cached, 1, 2, 3, 4).future
    cached.close()
    with pytest.raises(Draining):
        ask(cached, 1, 2, 3, 4)
    assert await cached.drained(1)


@pytest.mark.parametrize("other", [{"decoupled": True}, {"sequence": {}}], ids=["decoupled", "sequence"])
def test_stateful_and_decoupled_models_cannot_be_cached(tmp_path, other):
    from inference.artifacts.manifest import settings_from

    artifacts.echo(tmp_path)
    with pytest.raises(Rejected, match="cannot be cached"):
        load("echo", LoadContext(tmp_path, settings_from({"response_cache_bytes": 1, **other})))
