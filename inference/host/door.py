"""The supervisor's socket: mode 0600, peers of this user only, few of them, each frame bounded."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from inference.errors import SerinusError
from inference.host import folders
from inference.protocol.frames import Decoder, encode
from inference.protocol.supervision import Refused, ToSupervisor

log = structlog.get_logger()
MAX_CLIENTS = 32
IDLE_S = 300.0
WRITE_S = 10.0
READ_BYTES = 1 << 16
_PEER = struct.Struct("3i")

Answer = Callable[[ToSupervisor], msgspec.Struct]


class Door:
    """Answers each message of each client by `answer`, in order."""

    def __init__(self, path: Path, answer: Answer, is_child: Callable[[int], bool]) -> None:
        self._path = path
        self._answer = answer
        self._is_child = is_child
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        folders.private(self._path.parent)
        sock = folders.listen(self._path, backlog=MAX_CLIENTS)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock)

    async def close(self) -> None:
        if self._server:
            self._server.close()
            for writer in list(self._writers):
                writer.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        refusal = self._refusal(writer)
        try:
            if refusal:
                await _write(writer, refusal)
                return
            self._writers.add(writer)
            await self._converse(reader, writer)
        except (OSError, TimeoutError, SerinusError) as error:
            log.debug("door.client_left", error=str(error))
        finally:
            self._writers.discard(writer)
            writer.close()

    def _refusal(self, writer: asyncio.StreamWriter) -> Refused | None:
        if len(self._writers) >= MAX_CLIENTS:
            return Refused("overloaded", f"more than {MAX_CLIENTS} clients")
        pid, uid = peer_of(writer.get_extra_info("socket"))
        if uid not in {os.getuid(), 0} or self._is_child(pid):
            return Refused("forbidden", "this process may not speak to the supervisor")
        return None

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder: Decoder[ToSupervisor] = Decoder(ToSupervisor, max_body_bytes=0)
        while True:
            async with asyncio.timeout(IDLE_S):
                data = await reader.read(READ_BYTES)
            if not data:
                return
            try:
                messages = decoder.feed(data)
            except SerinusError as error:
                await _write(writer, Refused(error.code, error.message))
                return
            for message, _ in messages:
                await _write(writer, self._try(message))

    def _try(self, message: ToSupervisor) -> msgspec.Struct:
        try:
            return self._answer(message)
        except SerinusError as error:
            return Refused(error.code, error.message)
        except Exception:
            log.exception("door.failed")
            return Refused("internal", "the supervisor failed; its log says why")


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end."""
    pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


async def _write(writer: asyncio.StreamWriter, message: msgspec.Struct) -> None:
    writer.write(encode(message))
    async with asyncio.timeout(WRITE_S):
        await writer.drain()
