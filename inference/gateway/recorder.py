"""Keeps a sampled share of real requests with their answers, where an endpoint's team has said so, to be replayed.

The laws: nothing that tells who asked is kept (see protocol.records); what is larger than the endpoint's bound is not
kept at all; no more than so much a second, whatever comes. Sequences, streams of tensors and requests in shared memory
are left out, and so are the platform's own tries.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

import msgspec
import redis.asyncio as redis

from inference.gateway.calls import Call
from inference.gateway.flights import Flight
from inference.gateway.keeping import Kept, asked_of, is_greedy, is_language
from inference.gateway.mirror import may_be_copied
from inference.gateway.outbox import Outbox
from inference.protocol import generation, records
from inference.protocol.messages import Answer, TensorHeader
from inference.protocol.records import Record
from inference.protocol.routes import RECORDS_STREAM, WEIGHT_TOTAL_BP

if TYPE_CHECKING:
    from inference.protocol.compare import Output

A_SECOND = 50
BYTES_A_SECOND = 2 << 20
WAITING = 200
WAITING_BYTES = 8 << 20


class Recorder:
    """source: names this process, as in its samples."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._sequence = 0
        self._random = random.Random()  # noqa: S311 (picks a sample, guards nothing)
        self._second, self._count, self._bytes = 0, 0, 0
        self.outbox = Outbox(
            RECORDS_STREAM, records.FIELD, maxlen=records.STREAM_MAXLEN, most=WAITING, most_bytes=WAITING_BYTES
        )

    def watch(self, flight: Flight) -> None:
        """Decides whether this request, just sent on its way, is kept once it is answered."""
        recording, variant = flight.endpoint.route.recording, flight.variant
        if recording is None or self._random.random() * WEIGHT_TOTAL_BP >= recording.share_bp:
            return
        if variant.key[2] != variant.route.arm or not may_be_copied(flight.call):
            return
        room = min(recording.max_bytes, records.MAX_RECORD_BYTES) - sum(map(len, flight.call.body))
        if room > 0:
            flight.watchers = (*flight.watchers, _Recorded(self, room))

    async def run(self, client: redis.Redis | None) -> None:
        """Sends what was kept, for ever."""
        await self.outbox.run(client)

    def keep(self, flight: Flight, kept: Kept) -> None:
        """The answer is written: one record, if there is room in this second."""
        speaks = is_language(flight.variant.route.signature)
        outputs = kept.outputs(is_language=speaks)
        asked = _asked(flight.call)
        if outputs is None or asked is None or not self._has_room(kept.size_bytes + len(asked[1])):
            return
        self._sequence += 1
        self.outbox.put(records.encode(self._record(flight, outputs, asked, speaks=speaks)))

    def _record(
        self, flight: Flight, outputs: list[Output], asked: tuple[list[TensorHeader], bytes], *, speaks: bool
    ) -> Record:
        call = flight.call
        is_asked = speaks and call.tensors[0].name == generation.REQUEST
        return Record(
            source=self._source,
            sequence=self._sequence,
            at_unix_s=int(time.time()),
            endpoint=flight.endpoint.route.name,
            version=flight.variant.route.version,
            kind=records.LANGUAGE if is_asked else records.INFER,
            latency_ms=round((time.monotonic() - flight.started) * 1e3, 3),
            is_repeatable=not speaks or is_greedy(call),
            tensors=asked[0],
            body=asked[1],
            outputs=[] if is_asked else call.outputs,
            parameters={name: value for name, value in call.parameters.items() if name not in call.forwarded},
            answer=[TensorHeader(one.name, one.datatype, list(one.shape), len(one.data)) for one in outputs],
            answer_body=b"".join(one.data for one in outputs),
        )

    def _has_room(self, size_bytes: int) -> bool:
        now = int(asyncio.get_running_loop().time())
        if now != self._second:
            self._second, self._count, self._bytes = now, 0, 0
        self._count += 1
        self._bytes += size_bytes
        return self._count <= A_SECOND and self._bytes <= BYTES_A_SECOND


class _Recorded:
    """Watches a request that is to be kept."""

    __slots__ = ("_kept", "_recorder")

    def __init__(self, recorder: Recorder, room: int) -> None:
        self._recorder = recorder
        self._kept = Kept(room)

    def part(self, flight: Flight, answer: Answer, body: memoryview) -> None:
        self._kept.add(answer, body)
        if answer.final and not flight.is_abandoned:
            self._recorder.keep(flight, self._kept)


def _asked(call: Call) -> tuple[list[TensorHeader], bytes] | None:
    """The request's tensors and bytes; of a language model's without what was its caller's. None for what is no
    request for an answer (counting tokens).
    """
    if call.tensors and call.tensors[0].name == generation.REQUEST:
        asked = asked_of(call)
        if not isinstance(asked, generation.Generate):
            return None
        plain = msgspec.structs.replace(asked, salt="", priority=0, stream=False)
        data = generation.encode_asked(plain)
        packed = len(data).to_bytes(4, "little") + data
        return [TensorHeader(generation.REQUEST, "BYTES", [1], len(packed))], packed
    return call.tensors, b"".join(call.body)
