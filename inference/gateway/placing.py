"""Where a large frame of a WebSocket is received: in a block of the replica that will read it, if that is known yet."""

from __future__ import annotations

from collections.abc import Container

from inference.errors import SerinusError
from inference.gateway import envelopes, rfc6455
from inference.gateway.dataplane import DataPlane
from inference.protocol import memory


def placed(
    plane: DataPlane,
    first: bytes,
    size: int,
    *,
    is_whole: bool,
    most_bytes: int,
    number: int | None,
    allowed: Container[str],
    name: str,
) -> memoryview | None:
    """As rfc6455.Place says. most_bytes: of a frame; name, number: of the connection's address, "" and None for those
    that frames name; allowed: the endpoints of which it is known that the caller may use them.
    """
    begun = envelopes.begun(first)
    if begun is None:
        if len(first) < rfc6455.FIRST_BYTES:
            return None
        begun = envelopes.Begun(4 + int.from_bytes(first[:4], "little"))
    if not is_whole:
        size = max(size, min(begun.size_bytes, most_bytes))
    found = None
    if name or begun.model in allowed:
        try:
            version = number if number is not None else envelopes.version_of(begun)
            found = plane.memory(name or begun.model, version, size, -begun.start)
        except SerinusError:  # the frame is refused when it is here
            found = None
    return found if found is not None else memory.pool.take(size, -begun.start)
