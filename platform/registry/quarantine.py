"""One writer at a time appends to a quarantine file; what must not stay is cut off again."""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import fcntl
import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inference.errors import Malformed, StorageFull
from registry.tus_wire import Request, TusError

ALGORITHMS = ("sha256", "sha1")
WRITE_BYTES = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the client says that this one request's body hashes to."""

    algorithm: str
    digest: bytes

    @classmethod
    def read(cls, header: str) -> Checksum | None:
        """Of `Upload-Checksum: sha256 <base64>`; None without one. Raises Malformed."""
        if not header:
            return None
        algorithm, _, value = header.partition(" ")
        if algorithm not in ALGORITHMS:
            raise Malformed(f"Upload-Checksum: choose one of {', '.join(ALGORITHMS)}")
        try:
            return cls(algorithm, base64.b64decode(value, validate=True))
        except binascii.Error as error:
            raise Malformed("Upload-Checksum: the digest is no base64") from error

    def hasher(self) -> Any:
        return hashlib.new(self.algorithm, usedforsecurity=False)


class Append:
    """The file, open and locked (by the kernel, so a killed process holds nothing). Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise TusError(423, "conflict", "another request is writing to this upload: wait for it") from None
        self.offset = os.fstat(self._descriptor).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    async def take(self, request: Request, length: int, checksum: Checksum | None) -> None:
        """Appends the request's body, at most up to `length`. Raises TusError, StorageFull, ConnectionResetError."""
        start, hasher = self.offset, checksum.hasher() if checksum else None
        buffer = bytearray()
        try:
            async for piece in request.chunks():
                buffer += piece
                if self.offset + len(buffer) > length:
                    raise TusError(413, "too_large", "that is more than the upload's length")
                if len(buffer) >= WRITE_BYTES:
                    await self._flush(buffer, hasher)
            await self._flush(buffer, hasher)
            if checksum and not hmac.compare_digest(hasher.digest(), checksum.digest):  # type: ignore[union-attr]
                raise TusError(460, "checksum_mismatch", "the checksum does not fit the body: send it again")
        except ConnectionResetError:
            await self._flush(buffer, hasher)
            raise
        except TusError as error:
            if error.status != 408:
                self._cut(start)
            raise
        except StorageFull:
            self._cut(start)
            raise

    async def _flush(self, buffer: bytearray, hasher: Any) -> None:
        if buffer:
            await asyncio.to_thread(self._write, bytes(buffer), hasher)
            buffer.clear()

    def _write(self, data: bytes, hasher: Any) -> None:
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._descriptor, view)
                self.offset += written
                view = view[written:]
        except OSError as error:
            if error.errno in _FULL:
                raise StorageFull from error
            raise
        if hasher is not None:
            hasher.update(data)

    def _cut(self, offset: int) -> None:
        os.ftruncate(self._descriptor, offset)
        self.offset = offset
