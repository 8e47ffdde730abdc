"""Broken messages by the thousand against one gateway: seeded mutations of golden ones, every answer looked at.

Message `index` of a kind depends on (seed, kind, index) alone, so that a finding can be made again by itself. The laws:
an answer is 200 or a typed error; a connection may be closed without an answer only where the message never was whole:
a binary request gets one, and so does each WebSocket message in a sound frame; nothing else is ever seen. Findings go into `fuzz_corpus.json`, which is replayed each time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.errors import BY_CODE
from tests.support.fuzz_frames import (
    PREFACE,
    answers_in,
    closes,
    frame,
    frame2,
    frames_of,
    kinds_of,
    literal,
    messages_in,
)
from tests.support.hygiene import LEAKS

CORPUS = Path(__file__).with_name("fuzz_corpus.json")
STATUSES = {200, 400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 501, 503}
CLOSE_CODES = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1012}
PATIENCE_S = 20.0
QUIET_S = 0.05
FRAMES = 24
SPICE = [b"-", b"9" * 25, b"1e400", b"null", b"{}", b"[]", b"\0", b'"', b"\\u0000", b"true", b"\xff\xfe", b"\r\n", b":"]


@dataclass
class Target:
    """An endpoint `name` with one input FP32 [-1, 16], and a key for it. grpc_port: 0 leaves gRPC out."""

    port: int
    key: str
    name: str = "mlp"
    input: str = "x"
    grpc_port: int = 0


@dataclass
class Findings:
    """messages: sent; seen: answers by status, code or kind of end; problems: what must not be, each to be replayed."""

    messages: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def problem(self, kind: str, index: object, what: str, data: bytes) -> None:
        self.problems.append(f"{kind} {index}: {what}: {base64.b64encode(data[:4000]).decode()}")


def mutated(rng: random.Random, data: bytes) -> bytes:
    """One to five edits: a byte, a cut, a piece doubled, spice, pieces swapped, noise; now and then none."""
    body = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 5])):
        at = rng.randrange(len(body) or 1)
        kind = rng.randrange(6)
        if kind == 0 and body:
            body[at] = rng.randrange(256)
        elif kind == 1:
            del body[at : at + rng.randint(1, 8)]
        elif kind == 2:
            body[at:at] = body[at : at + rng.randint(1, 16)]
        elif kind == 3:
            body[at:at] = rng.choice(SPICE)
        elif kind == 4:
            body = body[at:] + body[:at]
        else:
            body[at:at] = rng.randbytes(rng.randint(1, 4))
    return bytes(body)


# -- messages -----------------------------------------------------------------------------------------------------------


def plain(target: Target, identity: str = "1") -> bytes:
    data = [round(0.1 * number, 1) for number in range(16)]
    given = {"name": target.input, "shape": [1, 16], "datatype": "FP32", "data": data}
    return json.dumps({"id": identity, "inputs": [given], "parameters": {"priority": 1}}).encode()


def binary(target: Target) -> tuple[bytes, bytes]:
    given = {"name": target.input, "shape": [2, 16], "datatype": "FP32", "parameters": {"binary_data_size": 128}}
    return json.dumps({"id": "1", "inputs": [given]}).encode(), struct.pack("<32f", *range(32))


def head(target: Target, *lines: str) -> bytes:
    start = [f"POST /v2/models/{target.name}/infer HTTP/1.1", "Host: x", f"Authorization: Bearer {target.key}"]
    return "\r\n".join([*start, *lines, "", ""]).encode()


def binary_message(rng: random.Random, target: Target) -> bytes:
    """A binary request whose own length is right: what is wrong is its header, its JSON or its tensors."""
    first, rest = binary(target)
    broken = mutated(rng, first) if rng.random() < 0.8 else first
    split = rng.choice([len(broken)] * 4 + [len(first), 0, 1, len(broken) + len(rest), 10**6, rng.randrange(400)])
    tail = rng.choice([rest] * 4 + [rest[:-1], rest + b"\0", b"", mutated(rng, rest)])
    lines = [f"Inference-Header-Content-Length: {split}", f"Content-Length: {len(broken) + len(tail)}"]
    return head(target, *lines) + broken + tail


def head_message(rng: random.Random, target: Target) -> bytes:
    body = plain(target)
    return mutated(rng, head(target, f"Content-Length: {len(body)}", "Content-Type: application/json")) + body


def chunked_message(rng: random.Random, target: Target) -> bytes:
    body, pieces = plain(target), []
    while body:
        size = rng.randint(1, 60)
        pieces.append(b"%x\r\n%b\r\n" % (len(body[:size]), body[:size]))
        body = body[size:]
    chunks = b"".join(pieces) + b"0\r\n\r\n"
    return head(target, "Transfer-Encoding: chunked") + mutated(rng, chunks)


def websocket_message(rng: random.Random, target: Target) -> bytes:
    """Some frames of one connection; most have a sound frame around a broken message, some are broken themselves."""
    found = b""
    for number in range(FRAMES):
        if rng.random() < 0.5:
            payload, opcode = mutated(rng, plain(target, str(number))), 1
            if rng.random() < 0.97:  # a text that is no UTF-8 ends the connection
                payload = payload.decode(errors="replace").encode()
        else:
            first, rest = binary(target)
            first = mutated(rng, first.replace(b'"1"', b'"%d"' % number))
            size = rng.choice([len(first)] * 6 + [0, len(first) + 1, 2**32 - 1, rng.randrange(300)])
            payload, opcode = struct.pack("<I", size) + first + rest, 2
        whole = frame(payload, opcode, rng.randbytes(4))
        if rng.random() < 0.02:
            whole = mutated(rng, whole[:14]) + whole[14:]
        found += whole
    return found


METHODS = ["ModelInfer"] * 6 + [
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "ModelReady",
    "TraceSetting",
    "LogSettings",
]


def grpc_request(rng: random.Random, target: Target) -> bytes:
    """Protobuf of an infer request."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=target.name, id="1")
    given = request.inputs.add(name=target.input, datatype="FP32", shape=[2, 16])
    if rng.random() < 0.5:
        given.contents.fp32_contents.extend(range(32))
    else:
        request.raw_input_contents.append(struct.pack("<32f", *range(32)))
    found: bytes = request.SerializeToString()
    return found


def grpc_message(rng: random.Random, target: Target) -> bytes:
    """A method's number, then the message: an infer request, broken."""
    return bytes([rng.randrange(len(METHODS))]) + mutated(rng, grpc_request(rng, target))


def http2_message(rng: random.Random, target: Target) -> bytes:
    """A whole gRPC call as HTTP/2 frames, with others between them; what is broken is a head, a message or a frame."""

    method = rng.choice(["ServerLive", "ModelInfer", "ModelStreamInfer"])
    call = b"\x83\x86" + literal(4, f"/inference.GRPCInferenceService/{method}") + literal(1, "x")
    call += literal(31, "application/grpc") + literal(23, f"Bearer {target.key}") + b"\0\2te\x08trailers"
    message = b"" if method == "ServerLive" else grpc_request(rng, target)
    broken = rng.randrange(4)  # 3: nothing within a frame
    call = mutated(rng, call) if broken == 0 else call
    message = mutated(rng, message) if broken == 1 else message
    size = len(message) if rng.random() < 0.9 else rng.choice([0, len(message) + 1, 2**32 - 1])
    frames = [frame2(4, 0, 0, struct.pack(">HI", 4, 65535)), frame2(1, 4, 1, call)]
    frames.append(frame2(0, 1, 1, struct.pack(">BI", rng.random() < 0.05, size) + message))
    others = [
        frame2(6, 0, 0, bytes(8)),
        frame2(8, 0, 0, struct.pack(">I", 1000)),
        frame2(3, 0, 1, struct.pack(">I", 8)),
        frame2(9, 4, 1, rng.randbytes(9)),
        frame2(rng.randrange(256), rng.randrange(256), rng.randrange(4), rng.randbytes(rng.randrange(20))),
    ]
    for one in rng.sample(others, rng.choice([0, 0, 1, 3])):
        frames.insert(rng.randint(1, len(frames)), one)
    sound = b"".join(frames)
    return (PREFACE if rng.random() < 0.95 else mutated(rng, PREFACE)) + (mutated(rng, sound) if broken == 2 else sound)


# -- sending ------------------------------------------------------------------------------------------------------------


async def exchange(
    port: int, data: bytes, goodbye: bytes = b"", enough: Callable[[bytes], bool] | None = None
) -> bytes | None:
    """What comes back until the server closes, or falls silent and closes when we do; None: it hangs. enough: of a
    message that must be answered, whether it was; silence before that is waited out.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = b""
    try:
        with contextlib.suppress(OSError):
            writer.write(data)
            while enough is not None and not enough(found):
                piece = await asyncio.wait_for(reader.read(65536), PATIENCE_S)
                found += piece
                if not piece:
                    return found
            with contextlib.suppress(TimeoutError):
                while piece := await asyncio.wait_for(reader.read(65536), QUIET_S if not found else 0.005):
                    found += piece
            writer.write(goodbye)
            if goodbye:
                with contextlib.suppress(TimeoutError):
                    while piece := await asyncio.wait_for(reader.read(65536), 4 * QUIET_S):
                        found += piece
            writer.write_eof()
            while piece := await asyncio.wait_for(reader.read(65536), PATIENCE_S):
                found += piece
    except TimeoutError:
        return None
    finally:
        writer.transport.abort()
    return found


async def check_http(kind: str, index: object, data: bytes, target: Target, found: Findings) -> None:
    is_whole = kind == "binary"
    raw = await exchange(target.port, data, enough=(lambda came: b"\r\n\r\n" in came) if is_whole else None)
    if raw is None:
        found.problem(kind, index, "the connection hangs", data)
        return
    if not raw:
        found.seen["closed"] += 1
        if is_whole:
            found.problem(kind, index, "closed without an answer", data)
    while raw:
        top, mark, rest = raw.partition(b"\r\n\r\n")
        lines = top.split(b"\r\n")
        if not mark or not lines[0].startswith(b"HTTP/1.1 "):
            found.problem(kind, index, f"no answer: {raw[:200]!r}", data)
            return
        status = int(lines[0].split()[1])
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
        size = int(headers.get(b"content-length", b"0"))
        body, raw = rest[:size], rest[size:]
        found.seen[str(status)] += 1
        if status != 100:
            check_answer(kind, index, data, status, headers, body, found)


def check_answer(
    kind: str, index: object, data: bytes, status: int, headers: dict[bytes, bytes], body: bytes, found: Findings
) -> None:
    if status not in STATUSES:
        found.problem(kind, index, f"status {status} {body[:200]!r}", data)
    elif status != 200:
        try:
            said = json.loads(body)["error"] if body else ""
        except (ValueError, KeyError, TypeError):
            found.problem(kind, index, f"{status} is not typed: {body[:200]!r}", data)
            return
        code = headers.get(b"x-error-code", b"").decode()
        if code not in BY_CODE and not (status == 403 and not body):  # a refused handshake has no words
            found.problem(kind, index, f"{status} has no code: {body[:200]!r}", data)
        elif LEAKS.search(said):
            found.problem(kind, index, f"{status} tells insides: {said[:200]}", data)


async def check_websocket(kind: str, index: object, data: bytes, target: Target, found: Findings) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET /v2/models/{target.name}/stream HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", f"Authorization: Bearer {target.key}", "", "",
    ]  # fmt: skip
    goodbye = frame(struct.pack(">H", 1000), 8, bytes(4))
    # where a broken frame announced more than came, the goodbye is swallowed: then the end of the stream follows it
    expected = messages_in(data)
    enough = (lambda came: answers_in(came) >= expected or closes(came)) if expected else None
    raw = await exchange(target.port, "\r\n".join(lines).encode() + data, goodbye, enough)
    if raw is None:
        found.problem(kind, index, "the connection hangs", data)
        return
    top, _, rest = raw.partition(b"\r\n\r\n")
    if not top.startswith(b"HTTP/1.1 101"):
        found.problem(kind, index, f"no handshake: {raw[:200]!r}", data)
        return
    answered = answers_in(raw)
    if expected and answered != expected:
        found.problem(kind, index, f"{answered} answers to {expected} messages", data)
    for opcode, payload in frames_of(rest):
        problem = _frame_problem(opcode, payload, found)
        if problem:
            found.problem(kind, index, problem, data)


def _frame_problem(opcode: int, payload: bytes, found: Findings) -> str:
    if opcode == 8:
        code = struct.unpack(">H", payload[:2])[0] if len(payload) >= 2 else 1000
        found.seen[f"close {code}"] += 1
        return "" if code in CLOSE_CODES else f"closed with {code}"
    if opcode not in {1, 2}:
        return "" if opcode == 10 else f"opcode {opcode}"
    size = struct.unpack_from("<I", payload)[0] if opcode == 2 else len(payload)
    text = payload[4 : 4 + size] if opcode == 2 else payload
    try:
        answer = json.loads(text)
    except ValueError:
        return f"no JSON: {text[:200]!r}"
    if "outputs" in answer:
        found.seen["outputs"] += 1
        return ""
    found.seen[str(answer.get("code"))] += 1
    if answer.get("code") not in BY_CODE or answer["code"] == "internal" or LEAKS.search(answer["error"]):
        return f"not typed: {text[:200]!r}"
    return ""


# What a broken message may come to; INTERNAL is c-core's own word for bytes that are no protobuf.
GRPC_CODES = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "UNIMPLEMENTED",
    "UNAVAILABLE",
    "PERMISSION_DENIED",
    "DEADLINE_EXCEEDED",
}


async def check_grpc(kind: str, index: object, data: bytes, target: Target, found: Findings) -> None:
    import grpc.aio

    method = METHODS[data[0] % len(METHODS)]
    channel = _channels.get(target.grpc_port)
    if channel is None:
        channel = _channels[target.grpc_port] = grpc.aio.insecure_channel(f"127.0.0.1:{target.grpc_port}")
    call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    try:
        await call(data[1:], metadata=(("authorization", f"Bearer {target.key}"),), timeout=PATIENCE_S)
        code, said = "OK", ""
    except grpc.aio.AioRpcError as error:
        code, said = error.code().name, error.details() or ""
    found.seen[f"grpc {code}"] += 1
    if code not in GRPC_CODES or LEAKS.search(said):
        found.problem(kind, index, f"{method} {code} {said[:200]}", data)


async def check_http2(kind: str, index: object, data: bytes, target: Target, found: Findings) -> None:
    """What comes back is frames that a server may send, up to the end of the connection."""
    raw = await exchange(target.grpc_port, data)
    if raw is None:
        found.problem(kind, index, "the connection hangs", data)
        return
    for name in kinds_of(raw):
        found.seen[f"http2 {name}"] += 1
        if name == "unknown":
            found.problem(kind, index, f"no frames that a server sends: {raw[:200]!r}", data)
    found.seen["http2 closed"] += 1


_channels: dict[int, Any] = {}
CHECKS: dict[str, Callable[..., Awaitable[None]]] = {
    "binary": check_http, "head": check_http, "chunked": check_http, "websocket": check_websocket,
    "grpc": check_grpc, "http2": check_http2,
}  # fmt: skip
Maker = Callable[[random.Random, Target], bytes]
KINDS: dict[str, tuple[Maker, int]] = {
    "binary": (binary_message, 1),
    "head": (head_message, 1),
    "chunked": (chunked_message, 1),
    "websocket": (websocket_message, FRAMES),
    "grpc": (grpc_message, 1),
    "http2": (http2_message, 1),
}


async def check(kind: str, index: object, data: bytes, target: Target, found: Findings) -> None:
    await CHECKS[kind](kind, index, data, target, found)
    found.messages += KINDS[kind][1]


async def storm(target: Target, count: int, seed: int, *, workers: int = 32) -> Findings:
    """About `count` messages, as many of each kind, several connections at a time."""
    found = Findings()
    kinds = {kind: size for kind, (_, size) in KINDS.items() if target.grpc_port or kind not in {"grpc", "http2"}}
    work = [(kind, index) for kind, size in kinds.items() for index in range(max(1, count // len(kinds) // size))]
    random.Random(seed).shuffle(work)
    left = iter(work)

    async def one() -> None:
        for kind, index in left:
            data = KINDS[kind][0](random.Random(f"{seed}:{kind}:{index}"), target)
            await check(kind, f"seed {seed} index {index}", data, target, found)

    await asyncio.gather(*(one() for _ in range(workers)))
    while _channels:
        await _channels.popitem()[1].close()
    return found


async def replay(target: Target) -> Findings:
    """What broke something once."""
    found = Findings()
    for number, past in enumerate(json.loads(CORPUS.read_text())):
        data = base64.b64decode(past["data"]).replace(b"{key}", target.key.encode())
        await check(past["kind"], f"corpus {number} ({past['why']})", data, target, found)
    return found
