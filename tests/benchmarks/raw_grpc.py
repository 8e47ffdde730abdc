"""A lean client of ModelInfer for benchmarks: one HTTP/2 connection, so many calls in flight, no library in the way."""

from __future__ import annotations

import asyncio
import time

from hpack import Decoder

from inference.gateway.http2 import frames
from inference.gateway.http2.frames import Setting
from inference.gateway.http2.headers import field

WINDOW = 1 << 30


class Client(asyncio.Protocol):
    """calls: how many it makes, `concurrency` of them at once. Its future ends with the seconds that they took."""

    def __init__(self, method: str, payload: bytes, key: str, calls: int, concurrency: int) -> None:
        fields = [(b":path", method.encode()), (b":authority", b"bench"), (b"content-type", b"application/grpc")]
        fields += [(b"te", b"trailers"), (b"authorization", f"Bearer {key}".encode())]
        self.block = b"\x83\x86" + b"".join(field(name, value) for name, value in fields)
        self.body = b"\0" + len(payload).to_bytes(4, "big") + payload
        self.left, self.concurrency, self.under_way = calls, concurrency, 0
        self.number, self.rest, self.taken, self.failed = -1, b"", 0, 0
        self.began = 0.0
        self.decoder = Decoder()
        self.done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]
        self.transport = transport
        more = frames.window_update(0, WINDOW)
        transport.write(frames.PREFACE + frames.settings({Setting.INITIAL_WINDOW_SIZE: WINDOW}) + more)
        self.began = time.perf_counter()
        self.fill()

    def fill(self) -> None:
        out = []
        while self.left and self.under_way < self.concurrency:
            self.left -= 1
            self.under_way += 1
            self.number += 2
            out.append(frames.head(len(self.block), frames.HEADERS, 4, self.number) + self.block)
            for at in range(0, len(self.body), 16384):
                part = self.body[at : at + 16384]
                ends = at + 16384 >= len(self.body)
                out.append(frames.head(len(part), frames.DATA, int(ends), self.number) + part)
        if out:
            self.transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        at, end = 0, len(data)
        while end - at >= 9:
            high, low, kind, flags, _number = frames.read_head(data, at)
            size = high << 8 | low
            if end - at - 9 < size:
                break
            payload = data[at + 9 : at + 9 + size]
            at += 9 + size
            if kind == frames.HEADERS:
                self.ended(payload, is_last=bool(flags & 1))
            elif kind == frames.DATA:
                self.taken += size
            elif kind == frames.PING and not flags & 1:
                self.transport.write(frames.ping(payload, is_ack=True))
            elif kind == frames.SETTINGS and not flags & 1:
                self.transport.write(frames.SETTINGS_ACK)
            elif kind in {frames.RST_STREAM, frames.GOAWAY}:
                raise AssertionError((kind, payload))
        self.rest = data[at:]
        if self.taken > WINDOW // 2:
            self.transport.write(frames.window_update(0, self.taken))
            self.taken = 0
        self.fill()

    def ended(self, block: bytes, *, is_last: bool) -> None:
        fields = dict(self.decoder.decode(block, raw=True)) if self.number < 200 or self.failed else None
        if is_last:
            self.failed += fields is not None and fields.get(b"grpc-status") != b"0"
            self.under_way -= 1
            if not self.left and not self.under_way:
                self.done.set_result(time.perf_counter() - self.began)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionResetError("the server closed"))


async def load(port: int, method: str, payload: bytes, *, key: str, calls: int, concurrency: int) -> float:
    """Calls a second."""
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(
        lambda: Client(method, payload, key, calls, concurrency), "127.0.0.1", port
    )
    took_s = await client.done
    assert not client.failed
    transport.close()
    return calls / took_s
