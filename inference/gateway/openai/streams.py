"""Events to a reader of server-sent events: the status is the first event's, an error after it comes as an event, and the
reader's pace is the replica's (see DataPlane.stream).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from inference.errors import SerinusError, ServerError
from inference.gateway.openai.asking import Asking
from inference.gateway.openai.chunks import Writer
from inference.gateway.web import SSE_TYPE, Headers, Stream

_NO_CACHE = (b"cache-control", b"no-cache")
_log = logging.getLogger(__name__)


async def written(asking: Asking, writer: Writer) -> AsyncGenerator[list[bytes], None]:
    """Messages, event by event."""
    async with contextlib.aclosing(asking.events()) as events:
        async for event in events:
            yield writer.event(event)


async def opened(
    messages: AsyncGenerator[list[bytes], None], writer: Writer, request_id: str, headers: Callable[[], Headers]
) -> Stream:
    """The stream, once its first event is there. Raises what went wrong until then."""
    try:
        first: list[bytes] = await anext(messages, [])
    except BaseException:
        await messages.aclose()
        raise
    return Stream(_pieces(first, messages, writer, request_id), headers=[SSE_TYPE, _NO_CACHE, *headers()])


async def _pieces(
    first: list[bytes], messages: AsyncGenerator[list[bytes], None], writer: Writer, request_id: str
) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(messages):
        for message in first:
            yield message
        try:
            async for found in messages:
                for message in found:
                    yield message
            last = writer.end()
        except SerinusError as error:
            last = writer.failed(error)
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            _log.exception("the stream of request %s failed", request_id)
            last = writer.failed(ServerError())
    for message in last:
        yield message
