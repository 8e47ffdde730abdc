"""Client of the gateway's WebSocket: many requests at once on one connection, streams, sequences.

    async with Stream("ws://127.0.0.1:8000", key) as stream:
        answer = await stream.infer("digits", {"x": array})
        answer["y"].values

An input is a numpy array (or anything with `dtype`, `shape` and `tobytes`), or (datatype, shape, bytes or values).
Everything here is specified in docs/websocket.md; errors are those of `inference.errors`.
"""

from inference.streaming.answers import Answer, Tensor
from inference.streaming.stream import Sequence, Stream
from inference.streaming.sync import SyncStream

__all__ = ["Answer", "Sequence", "Stream", "SyncStream", "Tensor"]
