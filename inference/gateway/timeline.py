"""Where one answered request's time went, as its answer tells it when the request has the parameter `timeline: true`.

The gateway's own part runs from the arrival of the whole request until it was sent to a replica (reading, admission,
routing, waiting for a replica); the replica's parts are those that its answer told; what is left of the time until the
answer was back is the way to the replica and back, with the waiting in sockets. Writing the answer is in none of them.
"""

from __future__ import annotations

from inference.gateway.parameters import Scalar
from inference.protocol.messages import Answer

PARTS = ("gateway", "network", "queue", "input", "compute", "output")


def timeline(started: float, sent: float, ended: float, answer: Answer) -> dict[str, Scalar]:
    """`timeline_<part>_us` for each of PARTS, whole microseconds. The clock readings are seconds of one clock."""
    replica_ns = answer.queue_ns + answer.input_ns + answer.compute_ns + answer.output_ns
    gateway_ns = max(0.0, (sent or ended) - started) * 1e9
    network_ns = max(0.0, (ended - started) * 1e9 - gateway_ns - replica_ns)
    found = (gateway_ns, network_ns, answer.queue_ns, answer.input_ns, answer.compute_ns, answer.output_ns)
    return {f"timeline_{part}_us": round(ns / 1e3) for part, ns in zip(PARTS, found, strict=True)}
