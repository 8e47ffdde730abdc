"""Hostile bytes and coming and going on the WebSocket door of a real gateway process: nothing is left behind."""

import asyncio
import json
import random
import struct
from pathlib import Path

import pytest

from inference.gateway import rfc6455
from tests.support.gateway_house import House, request, until

HANDSHAKE = (
    b"GET /v2/models/mlp/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    found.publish(found.table(public=True, queue_limit=1000))
    found.gateway().wait_live().wait_ready()
    yield found
    found.close()


def descriptors(house):
    return len(list(Path(f"/proc/{house.gateways[0].process.pid}/fd").iterdir()))


def streams(house):
    text = house.gateways[0].get("/metrics").text
    return [line for line in text.splitlines() if line.startswith("serinus_websocket_connections")]


async def opened(house):
    reader, writer = await asyncio.open_connection("127.0.0.1", house.gateways[0].port)
    writer.write(HANDSHAKE)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 101")
    return reader, writer


def masked(opcode, payload, *, last=True):
    head = rfc6455.frame_head(opcode, len(payload))
    return bytes([head[0] if last else head[0] & 0x7F, head[1] | 0x80]) + head[2:] + bytes(4) + payload


async def frames(reader):
    """Every frame until the connection ends."""
    found = []
    try:
        while True:
            first, size = await reader.readexactly(2)
            if size == 126:
                size = int.from_bytes(await reader.readexactly(2), "big")
            elif size == 127:
                size = int.from_bytes(await reader.readexactly(8), "big")
            found.append((first & 15, await reader.readexactly(size)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return found


def malformed(rng):
    """The bytes of one message that is wrong somewhere."""
    good = json.dumps(request(identity="x")).encode()
    kind = rng.randrange(6)
    if kind == 0:
        return masked(rfc6455.TEXT, rng.randbytes(rng.randint(0, 60)))
    if kind == 1:
        text = bytearray(good)
        text[rng.randrange(len(text))] = rng.randrange(32, 127)
        return masked(rfc6455.TEXT, bytes(text))
    if kind == 2:
        return masked(
            rfc6455.BINARY, struct.pack("<I", rng.choice((0, 1, len(good), 1 << 31))) + good[: rng.randint(0, 99)]
        )
    if kind == 3:
        return masked(rng.randrange(16), rng.randbytes(rng.randint(0, 200)), last=rng.random() < 0.5)
    if kind == 4:
        return rng.randbytes(rng.randint(1, 40))
    head = {
        "type": rng.choice(("generate", "cancel", "credit", "stats", "nothing", "")),
        "id": rng.choice(("", "x", 5, None)),
    }
    return masked(rfc6455.TEXT, json.dumps(head).encode())


async def test_two_thousand_malformed_messages_are_answered_or_close_the_connection(house):
    rng = random.Random(3)
    before = await asyncio.to_thread(descriptors, house)
    seen = {"error": 0, "answer": 0, "close": 0}
    for _ in range(20):
        pairs = await asyncio.gather(*(opened(house) for _ in range(20)))
        for _, writer in pairs:
            # one more that is whole and right: what came before it did no harm, or has closed the connection
            wrong = b"".join(malformed(rng) for _ in range(5))
            writer.write(wrong + masked(rfc6455.CLOSE, b"\x03\xe8"))
            writer.write_eof()
        for found in await asyncio.gather(*(asyncio.wait_for(frames(reader), 10) for reader, _ in pairs)):
            for opcode, payload in found:
                if opcode == rfc6455.CLOSE:
                    assert rfc6455.close_code(payload) != rfc6455.NO_CODE
                    seen["close"] += 1
                elif opcode in {rfc6455.TEXT, rfc6455.BINARY}:
                    body = json.loads(payload if opcode == rfc6455.TEXT else payload[4:])
                    assert body.get("code", "") != "internal", body
                    seen["error" if "error" in body else "answer"] += 1
        for _, writer in pairs:
            writer.close()
    assert seen["error"] > 100
    assert seen["close"] > 100
    await asyncio.to_thread(until, lambda: descriptors(house) <= before + 2, 10)
    assert "outputs" in (await asyncio.to_thread(house.gateways[0].post)).json()


async def test_coming_and_going_leaves_nothing(house):
    before, streams_before = await asyncio.to_thread(descriptors, house), await asyncio.to_thread(streams, house)
    ask = masked(rfc6455.TEXT, json.dumps(request(identity="1")).encode())

    async def come_and_go(rude):
        for _ in range(15):
            _, writer = await opened(house)
            writer.write(ask)
            if not rude:
                writer.write(masked(rfc6455.CLOSE, b"\x03\xe8"))
            writer.transport.abort() if rude else writer.close()

    await asyncio.gather(*(come_and_go(number % 2 == 0) for number in range(20)))
    await asyncio.to_thread(until, lambda: descriptors(house) <= before + 2, 30)
    await asyncio.to_thread(until, lambda: streams(house) == streams_before)
    assert "outputs" in (await asyncio.to_thread(house.gateways[0].post)).json()
