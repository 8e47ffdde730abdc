"""Frames with descriptors beside them: in order, in any pieces, taken only where expected."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import msgspec

from inference.host import wire
from inference.protocol.frames import encode


class Note(msgspec.Struct):
    text: str
    count: int


def names(found: list[tuple[Note, list[int]]]) -> list[tuple[str, list[str]]]:
    result = []
    for note, descriptors in found:
        result.append((note.text, [str(Path(f"/proc/self/fd/{d}").readlink()) for d in descriptors]))
        for descriptor in descriptors:
            os.close(descriptor)
    return result


def test_each_message_gets_its_own_descriptors() -> None:
    here, there = socket.socketpair()
    null, zero = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
    inbox: wire.Inbox[Note] = wire.Inbox(Note, lambda note: note.count)
    with here, there:
        wire.send(here, Note("a", 2), [null, zero])
        wire.send(here, Note("b", 0), [])
        wire.send(here, Note("c", 1), [zero])
        found: list[tuple[str, list[str]]] = []
        while len(found) < 3:
            found += names(inbox.receive(there) or [])
    assert found == [("a", ["/dev/null", "/dev/zero"]), ("b", []), ("c", ["/dev/zero"])]
    os.close(null)
    os.close(zero)


def test_descriptors_of_a_peer_that_may_send_none_are_not_taken() -> None:
    here, there = socket.socketpair()
    inbox: wire.Inbox[Note] = wire.Inbox(Note)
    with here, there:
        before = len(list(Path("/proc/self/fd").iterdir()))
        socket.send_fds(here, [encode(Note("a", 1))], [0, 1, 2])
        ((note, descriptors),) = inbox.receive(there) or []
        assert (note.text, descriptors) == ("a", [])
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_end_of_the_stream_is_none() -> None:
    here, there = socket.socketpair()
    here.close()
    with there:
        assert wire.Inbox[Note](Note, lambda _: 0).receive(there) is None


async def test_a_frame_larger_than_the_socket_takes_is_sent_whole() -> None:
    here, there = socket.socketpair()
    here.setblocking(False)
    inbox: wire.Inbox[Note] = wire.Inbox(Note, lambda note: note.count)
    with here, there:
        note = Note("x" * 900_000, 1)
        sending = asyncio.create_task(wire.send_soon(here, note, [0]))
        there.setblocking(False)
        found: list[tuple[Note, list[int]]] = []
        while not found:
            await wire.readable(there)
            found = inbox.receive(there) or []
        await sending
        assert found[0][0] == note
        os.close(found[0][1][0])
