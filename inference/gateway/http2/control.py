"""What a peer's frames about the connection do, and those about a stream that are neither headers nor data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from inference.gateway.http2 import draining, frames
from inference.gateway.http2.frames import Code, ConnectionFault, Setting, StreamFault
from inference.gateway.http2.streams import leave

if TYPE_CHECKING:
    from inference.gateway.http2.machine import Machine

RAPID_S = 0.02


def priority(machine: Machine, _flags: int, number: int, payload: bytes) -> None:
    machine.budgets.idle.spend(machine.now)
    if not number:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "a priority belongs to a stream")
    if len(payload) != 5:
        raise StreamFault(Code.FRAME_SIZE_ERROR, "a priority has 5 bytes")


def rst_stream(machine: Machine, _flags: int, number: int, payload: bytes) -> None:
    if len(payload) != 4:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a reset has 4 bytes")
    if not number or number > machine.last:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "a reset of a stream that was not begun")
    stream = machine.streams.get(number)
    if stream is None or machine.now - stream.opened_at < RAPID_S:
        # others are callers who gave up, and had their place while they waited
        machine.budgets.resets.spend(machine.now)
    if stream is not None:
        del machine.streams[number]
        stream.is_closed_in = True
        machine.outbox.forget(stream)
        leave(stream)


def settings(machine: Machine, flags: int, number: int, payload: bytes) -> None:
    if number:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "settings belong to the connection")
    if len(payload) % 6 or (flags & frames.ACK and payload):
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "settings have 6 bytes each")
    machine.budgets.settings.spend(machine.now)
    if flags & frames.ACK:
        return
    values = list(frames.read_settings(payload))
    for name, value in values:
        _check(name, value)
    said = dict(values)  # the last of a name counts
    machine.outbox.max_frame = said.get(Setting.MAX_FRAME_SIZE, machine.outbox.max_frame)
    if Setting.INITIAL_WINDOW_SIZE in said:
        _resize(machine, said[Setting.INITIAL_WINDOW_SIZE])
    machine.outbox.put(frames.SETTINGS_ACK)


def _check(name: int, value: int) -> None:
    if name == Setting.ENABLE_PUSH and value > 1:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
    if name == Setting.MAX_FRAME_SIZE and not frames.LEAST_MAX_FRAME <= value <= frames.MOST_MAX_FRAME:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
    if name == Setting.INITIAL_WINDOW_SIZE and value > frames.MOST_WINDOW:
        raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is out of range")


def _resize(machine: Machine, window: int) -> None:
    more = window - machine.outbox.initial_window
    machine.outbox.initial_window = window
    for stream in machine.streams.values():
        stream.out_window += more
        if stream.out_window > frames.MOST_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a stream's window grew too large")


def push_promise(_machine: Machine, _flags: int, _number: int, _payload: bytes) -> None:
    raise ConnectionFault(Code.PROTOCOL_ERROR, "clients push nothing")


def ping(machine: Machine, flags: int, number: int, payload: bytes) -> None:
    if number:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "a ping belongs to the connection")
    if len(payload) != 8:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a ping has 8 bytes")
    machine.budgets.pings.spend(machine.now)
    if flags & frames.ACK:
        if payload == draining.PING:  # whatever it began before it knew has come before this
            machine.drained()
    else:
        machine.outbox.put(frames.ping(payload, is_ack=True))


def goaway(machine: Machine, _flags: int, number: int, payload: bytes) -> None:
    if number:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "a goaway belongs to the connection")
    if len(payload) < 8:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a goaway has 8 bytes")
    machine.budgets.idle.spend(machine.now)


def window_update(machine: Machine, _flags: int, number: int, payload: bytes) -> None:
    if len(payload) != 4:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a window update has 4 bytes")
    more = int.from_bytes(payload, "big") & frames.MOST_WINDOW
    if not number:
        if not more:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a window grows by something")
        machine.outbox.grow(more)
        return
    if number > machine.last or not number & 1:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "a window of a stream that was not begun")
    if not more:
        raise StreamFault(Code.PROTOCOL_ERROR, "a window grows by something")
    stream = machine.streams.get(number)
    if stream is None:
        return
    stream.out_window += more
    if stream.out_window > frames.MOST_WINDOW:
        raise StreamFault(Code.FLOW_CONTROL_ERROR, "a stream's window grew too large")


KINDS: dict[int, Callable[[Machine, int, int, bytes], None]] = {
    frames.PRIORITY: priority,
    frames.RST_STREAM: rst_stream,
    frames.SETTINGS: settings,
    frames.PUSH_PROMISE: push_promise,
    frames.PING: ping,
    frames.GOAWAY: goaway,
    frames.WINDOW_UPDATE: window_update,
}
