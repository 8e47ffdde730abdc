"""Client of the gateway's WebSocket: many requests at once on one connection, streams, sequences.

    import asyncio
    from inference.streaming import Stream

    async def main():
        async with Stream("http://127.0.0.1:8000", "ser_<id>.<secret>") as stream:
            answer = await stream.infer("digits", {"x": ("FP32", [1, 64], [0.0] * 64)}, timeout_s=5.0)
            print(answer["y"].values)

    asyncio.run(main())

An input is (datatype, shape, bytes or flat values), or a numpy array (or anything with `dtype`, `shape` and `tobytes`);
an output's `.numpy()` is an array. `SyncStream` is the same without asyncio. Everything here is specified in
docs/websocket.md; errors are those of `inference.errors`, and every wait ends by its deadline.
"""

from inference.streaming.answers import Answer, Tensor
from inference.streaming.stream import Sequence, Stream
from inference.streaming.sync import SyncSequence, SyncStream

__all__ = ["Answer", "Sequence", "Stream", "SyncSequence", "SyncStream", "Tensor"]
