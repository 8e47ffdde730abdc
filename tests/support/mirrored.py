"""An endpoint with a stable version and a candidate on fake replicas, whose requests are copied."""

from __future__ import annotations

import msgspec

from inference.protocol import shadows
from inference.protocol.routes import DIFFS_STREAM, SAMPLES_STREAM, EndpointRoute, Steering, VariantRoute
from inference.protocol.samples import Sample
from inference.protocol.shadows import Diff
from tests.support.gateway_house import MLP, House, until

_sample = msgspec.msgpack.Decoder(Sample).decode


def mirrored(
    house: House,
    name: str,
    *,
    share_bp: int = 0,
    signature=MLP,
    stable: str = "r1",
    candidate: str = "r2",
    more: dict | None = None,
    **steering,
) -> str:
    """Publishes the endpoint `name` beside those that there are, and waits until the gateway has it."""
    told = {"mirror_bp": 10_000} | steering
    variants = [
        VariantRoute(1, "primary", 10_000 - share_bp, signature, [house.route(stable)]),
        VariantRoute(2, "canary", share_bp, signature, [house.route(candidate)] if candidate else []),
    ]
    settings = {"public": True, "timeout_ms": 5000, "queue_limit": 64} | (more or {})
    house.endpoints = [one for one in getattr(house, "endpoints", []) if one.name != name]
    house.endpoints.append(
        EndpointRoute(name, "m", "salt", variants=variants, steering=Steering("r", 1, 2, **told), **settings)
    )
    house.publish(house.table(endpoints=house.endpoints))
    gateway = house.gateways[0]
    until(lambda: f"generation {house.generation} " in gateway.log.read_text(), 10)
    gateway.wait_ready(name)
    if candidate:
        until(lambda: gateway.get(f"/v2/models/{name}/versions/2/ready").status_code == 200, 10)
    return name


def sums(house: House, endpoint: str, arm: str) -> Sample:
    """All samples of this endpoint and arm that have been sent, added up."""
    total = Sample("", 0, 0, endpoint, 0, arm)
    for _, fields in house.valkey.client.xrange(SAMPLES_STREAM):
        one = _sample(fields[b"s"])
        if (one.endpoint, one.arm) != (endpoint, arm):
            continue
        total.version = one.version
        for field in ("requests", "errors", "retries", "compared", "drifted", "drift_sum", "drift_sq", "dropped"):
            setattr(total, field, getattr(total, field) + getattr(one, field))
        for code, count in one.error_counts.items():
            total.error_counts[code] = total.error_counts.get(code, 0) + count
    return total


def until_sums(house: House, endpoint: str, true, arm: str = "shadow") -> Sample:
    """The sums once `true` says yes to them."""
    until(lambda: true(sums(house, endpoint, arm)), 10)
    return sums(house, endpoint, arm)


def diffs(house: House, endpoint: str) -> list[Diff]:
    found = [shadows.decode(fields[shadows.FIELD]) for _, fields in house.valkey.client.xrange(DIFFS_STREAM)]
    return [one for one in found if one.endpoint == endpoint]
