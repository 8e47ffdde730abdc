"""What a peer may send, and what it is told of that in our settings."""

from __future__ import annotations

from inference.gateway.http2.frames import Setting
from inference.gateway.http2.headers import TOLD_LIST_BYTES

MAX_STREAMS = 1024
MAX_FRAME_BYTES = 1 << 20
STREAM_WINDOW = 1 << 20
CONNECTION_WINDOW = 1 << 30
DIRECT_BYTES = 32 << 10
MAX_CUT = 4096
OURS = {
    Setting.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
    Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
    Setting.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
    Setting.MAX_HEADER_LIST_SIZE: TOLD_LIST_BYTES,
}
