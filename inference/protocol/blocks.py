"""Blocks of memory that a gateway lends to a replica on the same machine, so that large tensors cross without a copy.

A block is an anonymous file, passed as a descriptor and mapped at both ends. The laws: its size is sealed, so neither
end can make the other's mapping end in a fault; a block for inputs is sealed against everybody's writing but its
maker's; a block is lent to one replica only, so no replica ever sees what was sent to another.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket

from inference.errors import Malformed

_NO_NEW_WRITERS = 0x10  # F_SEAL_FUTURE_WRITE, Linux 5.1; the module has no name for it
_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Block(mmap.mmap):
    """A mapped block. number: its name on the wire; descriptor: of the maker, -1 once it is closed; lender: who may
    take it; used_at: monotonic s, when it was last taken.
    """

    number = 0
    is_for_answers = False
    descriptor = -1
    lender: object = None
    used_at = 0.0


def made(number: int, size: int, *, is_for_answers: bool) -> Block:
    """A block of `size` bytes that are zero. Raises OSError where the kernel has no such thing."""
    descriptor = os.memfd_create("serinus-block", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        block = Block(descriptor, size)
        seals = _SIZE if is_for_answers else _SIZE | _NO_NEW_WRITERS
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    block.number, block.is_for_answers, block.descriptor = number, is_for_answers, descriptor
    return block


def closed(block: Block) -> None:
    """It can be lent to nobody any more; its memory goes when nobody refers to it."""
    if block.descriptor >= 0:
        os.close(block.descriptor)
        block.descriptor = -1


def handed(descriptor: int, block: Block) -> None:
    """Sends one byte on the socket of this descriptor, and the block's own descriptor beside it; the byte alone if the
    block is closed. Raises OSError.
    """
    with socket.socket(fileno=os.dup(descriptor)) as own:
        if block.descriptor >= 0:
            socket.send_fds(own, [b"\0"], [block.descriptor])
        else:
            own.send(b"\0")


def mapped(descriptor: int, size: int, *, is_writable: bool) -> mmap.mmap:
    """A lent block as its borrower sees it. Raises OSError, or Malformed for what is no block of that size."""
    seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    if seals & _SIZE != _SIZE or os.fstat(descriptor).st_size != size:
        raise Malformed("what was lent is no block of that size")
    return mmap.mmap(descriptor, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if is_writable else 0))
