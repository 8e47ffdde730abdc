from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.protocol import memory
from inference.protocol.memory import ALIGNED_TO, KEPT_BYTES, LEAST_BYTES, POOLED_BYTES, Pool


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@pytest.fixture
def pool() -> Iterator[Pool]:
    return Pool()


@given(st.integers(1, 3 * POOLED_BYTES), st.integers(-(1 << 40), 1 << 40))
def test_memory_has_the_size_and_lies_where_it_was_asked_to(size: int, offset: int) -> None:
    view = Pool().take(size, offset)
    assert len(view) == size
    assert not view.readonly
    assert (address(view) - offset) % ALIGNED_TO == 0


def test_memory_is_used_again_once_nobody_refers_to_it(pool: Pool) -> None:
    first = pool.take(300_000)
    place = address(first)
    del first
    assert address(pool.take(290_000)) == place


def test_memory_is_not_used_again_while_a_part_or_an_array_of_it_is_alive(pool: Pool) -> None:
    first = pool.take(300_000)
    part, array = first[10:20], np.frombuffer(pool.take(300_000), np.uint8)
    places = {address(first), array.ctypes.data}
    del first
    assert address(pool.take(300_000)) not in places
    del part, array
    assert address(pool.take(300_000)) in places


def test_what_is_kept_is_bounded_and_makes_room_for_other_sizes(pool: Pool) -> None:
    held = [pool.take(POOLED_BYTES) for _ in range(2 * KEPT_BYTES // POOLED_BYTES)]
    assert pool.kept_bytes == KEPT_BYTES
    small = pool.take(1)
    assert pool.kept_bytes == KEPT_BYTES
    assert len(small) == 1
    held.clear()
    place = address(pool.take(LEAST_BYTES))
    assert pool.kept_bytes <= KEPT_BYTES
    assert address(pool.take(LEAST_BYTES)) == place
    assert sum(map(len, pool.blocks)) == pool.kept_bytes


def test_what_is_larger_than_the_pool_keeps_is_given_up() -> None:
    pool = Pool()
    pool.take(POOLED_BYTES + 1)
    assert not pool.blocks


def test_huge_pages_are_asked_for_where_memory_is_large_and_nothing_happens_elsewhere(pool: Pool) -> None:
    large = pool.take(16 << 20)
    memory.in_huge_pages(large)
    memory.in_huge_pages(pool.take(100))
    memory.in_huge_pages(memoryview(bytearray(100)))
    large[:] = bytes(len(large))
    start = f"{address(large):x}-"
    text = Path("/proc/self/smaps").read_text()
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("this kernel gives no huge pages")
    flags = next(
        line for line in text.partition(start)[2].splitlines() if line.startswith("VmFlags:")
    ) if start in text else " hg"  # fmt: skip
    assert " hg" in flags
