"""Token ids in the place of a text, as one BYTES element: 0xFF, which no UTF-8 text holds, then each id as int32,
little-endian. What a text encoder takes instead of a text.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

MARK = b"\xff"
MOST = (1 << 31) - 1


def packed(ids: Sequence[int]) -> bytes:
    """Each id 0 to MOST. Raises struct.error for others."""
    return MARK + struct.pack(f"<{len(ids)}i", *ids)


def unpacked(element: bytes) -> list[int] | None:
    """None for an element that is a text, or is cut short."""
    if not element.startswith(MARK) or len(element) % 4 != 1:
        return None
    return list(struct.unpack(f"<{len(element) // 4}i", element[1:]))
