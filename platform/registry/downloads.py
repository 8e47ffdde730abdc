"""Files of the store as downloads: always an attachment of opaque bytes, read piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from django.http import StreamingHttpResponse

from registry.conversions import FILE_NAME, Converted

PIECE_BYTES = 1 << 20


def attachment(file: Converted) -> StreamingHttpResponse:
    """The file under the name that it has beside a config.json."""
    response = StreamingHttpResponse(_pieces(file.path), content_type="application/octet-stream")
    response["Content-Disposition"] = f'attachment; filename="{FILE_NAME}"'
    response["Content-Length"] = str(file.size_bytes)
    response["ETag"] = f'"{file.sha256}"'
    response["Cache-Control"] = "private, no-store"
    return response


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    # A plain file object would be read into memory whole before an ASGI server sends its first byte.
    source = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(source.read, PIECE_BYTES):
            yield piece
    finally:
        await asyncio.to_thread(source.close)
