from __future__ import annotations

import mmap
import os
import socket

import pytest

from inference.errors import Malformed
from inference.protocol import blocks

SIZE = 1 << 16


def borrowed(block: blocks.Block) -> int:
    """A descriptor of it, as it comes out of the socket at the other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        blocks.handed(ours.fileno(), block)
        data, descriptors, _, _ = socket.recv_fds(theirs, 10, 1)
    assert data == b"\0"
    return descriptors[0]


@pytest.mark.parametrize("is_for_answers", [False, True])
def test_both_ends_see_the_same_memory(is_for_answers: bool) -> None:
    block = blocks.made(1, SIZE, is_for_answers=is_for_answers)
    there = blocks.mapped(borrowed(block), SIZE, is_writable=is_for_answers)
    block[:3] = b"abc"
    assert there[:3] == b"abc"
    if is_for_answers:
        there[:3] = b"xyz"
        assert block[:3] == b"xyz"
    else:
        assert memoryview(there).readonly
    blocks.closed(block)
    assert there[3:] == bytes(SIZE - 3)


def test_a_borrower_cannot_write_to_inputs_by_any_way() -> None:
    descriptor = borrowed(blocks.made(1, SIZE, is_for_answers=False))
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, SIZE)
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR), SIZE)


@pytest.mark.parametrize("is_for_answers", [False, True])
@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_neither_end_can_change_the_size(is_for_answers: bool, size: int) -> None:
    block = blocks.made(1, SIZE, is_for_answers=is_for_answers)
    for descriptor in (borrowed(block), block.descriptor):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)


def test_what_is_no_sealed_block_of_that_size_is_not_mapped() -> None:
    block = blocks.made(1, SIZE, is_for_answers=True)
    with pytest.raises(Malformed):
        blocks.mapped(block.descriptor, SIZE + 1, is_writable=False)
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, SIZE)
    with pytest.raises(Malformed):
        blocks.mapped(loose, SIZE, is_writable=False)
    with pytest.raises(OSError, match="Invalid argument"):
        blocks.mapped(os.open("/dev/null", os.O_RDWR), SIZE, is_writable=False)


def test_a_closed_block_is_handed_over_as_nothing() -> None:
    block = blocks.made(1, SIZE, is_for_answers=False)
    blocks.closed(block)
    blocks.closed(block)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        blocks.handed(ours.fileno(), block)
        assert socket.recv_fds(theirs, 10, 1)[:2] == (b"\0", [])
