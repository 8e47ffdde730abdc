"""The client's half of HTTP/2 for tests, without a socket: it writes frames, good ones and bad ones, and reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpack import Decoder, Encoder

from inference.gateway.http2 import frames
from inference.gateway.http2.machine import Machine
from inference.gateway.http2.streams import Receiver, Stream

POST = [(":method", "POST"), (":scheme", "http"), (":path", "/s/M"), (":authority", "here")]
GRPC = [("content-type", "application/grpc"), ("te", "trailers")]
BEGIN = frames.PREFACE + frames.settings({})


@dataclass
class Frame:
    kind: int
    flags: int
    number: int
    payload: bytes


def read_frames(data: bytes) -> list[Frame]:
    """Whole frames only; anything else is an error of the test."""
    found, at = [], 0
    while at < len(data):
        high, low, kind, flags, number = frames.read_head(data, at)
        size = high << 8 | low
        assert at + 9 + size <= len(data)
        found.append(Frame(kind, flags, number, data[at + 9 : at + 9 + size]))
        at += 9 + size
    return found


def data(number: int, body: bytes = b"", *, ends: bool = False, padding: int = -1) -> bytes:
    flags = (frames.END_STREAM if ends else 0) | (frames.PADDED if padding >= 0 else 0)
    payload = bytes([padding]) + body + bytes(padding) if padding >= 0 else body
    return frames.head(len(payload), frames.DATA, flags, number) + payload


@dataclass
class Peer:
    """One client: its header table is its connection's."""

    encoder: Encoder = field(default_factory=Encoder)
    decoder: Decoder = field(default_factory=Decoder)

    def head(self, number: int, fields: list[tuple[str, str]] | None = None, *, ends: bool = False) -> bytes:
        block = self.encoder.encode(fields if fields is not None else POST + GRPC)
        return frames.headers(number, block, ends=ends, max_frame=frames.LEAST_MAX_FRAME)

    def request(self, number: int, body: bytes = b"", fields: list[tuple[str, str]] | None = None) -> bytes:
        return self.head(number, fields) + data(number, body, ends=True)

    def fields(self, frame: Frame) -> dict[str, str]:
        return dict(self.decoder.decode(frame.payload))


class Echo(Receiver):
    """Answers what it was told, when its stream's peer has said all; writes down what happened."""

    def __init__(self, log: list[tuple[object, ...]], machine: Machine, stream: Stream) -> None:
        self.log, self.machine, self.stream = log, machine, stream
        self.body = b""

    def data(self, part: bytes) -> None:
        self.body += part

    def ended(self) -> None:
        self.log.append(("ended", self.stream.number, self.body))
        self.machine.answer(self.stream, b"\x88", [self.body], b"\x88")

    def left(self) -> None:
        self.log.append(("left", self.stream.number))


class App:
    """receiver: what takes each stream."""

    def __init__(self, receiver: type[Echo] = Echo) -> None:
        self.log: list[tuple[object, ...]] = []
        self.receiver = receiver
        self.receivers: list[Echo] = []

    def opened(self, machine: Machine, stream: Stream) -> Receiver | None:
        self.log.append(("opened", stream.number, stream.head.method, stream.head.path, tuple(stream.head.fields)))
        self.receivers.append(self.receiver(self.log, machine, stream))
        return self.receivers[-1]


def begun(app: App | None = None, *, now: float = 1.0) -> tuple[Machine, App]:
    """A machine that has had its preface, and said its own."""
    app = app or App()
    machine = Machine(app, now)
    machine.receive(BEGIN, now)
    taken(machine)
    return machine, app


def taken(machine: Machine, limit: int = 1 << 30, now: float = 1.0) -> bytes:
    return b"".join(machine.outbox.take(limit, now))


def goaway_code(machine: Machine) -> int:
    """The code of the GOAWAY that the machine has said last; -1 without one."""
    found = [frame for frame in read_frames(taken(machine)) if frame.kind == frames.GOAWAY]
    return int.from_bytes(found[-1].payload[4:8], "big") if found else -1
