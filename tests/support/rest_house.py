"""A gateway with its REST door and fake replicas behind it."""

import contextlib

from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.gateway_house import BIG, HALF, MLP, TEXT, House


@contextlib.contextmanager
def rest_house():
    """The house with its gateway ready; it is closed afterwards."""
    found = House()
    for name, more in {"r1": {}, "r2": {"version": 2}, "slow": {"latency_s": 0.3}, "text": {}, "half": {}}.items():
        found.replica(name, **more)
    gateway = found.gateway(SERINUS_MAX_BODY_BYTES=str(1 << 20))

    def endpoint(name, signature, *, public=False, timeout_ms=5000, queue_limit=64, replica=""):
        variant = VariantRoute(1, "primary", 10_000, signature, [found.route(replica or name)])
        return EndpointRoute(name, name, "salt", public, timeout_ms, queue_limit, [variant])

    variants = [
        VariantRoute(1, "primary", 5000, MLP, [found.route()]),
        VariantRoute(2, "canary", 5000, MLP, [found.route("r2")]),
        VariantRoute(3, "canary", 0, MLP, []),
    ]
    others = [
        endpoint("slow", MLP, timeout_ms=600, queue_limit=2),
        endpoint("text", TEXT, public=True),
        endpoint("half", HALF),
        endpoint("big", BIG, replica="r1"),
        EndpointRoute("empty", "empty", "salt", False, 300, 5, [VariantRoute(1, "primary", 10_000, MLP, [])]),
    ]
    found.publish(found.table(variants, endpoints=others))
    gateway.wait_live()
    for name in ("mlp", "slow", "text", "half", "big"):
        gateway.wait_ready(name)
    yield found
    found.close()


def error(response, status, text=""):
    """Checks that it is a typed error of this status, with `text` in its words; the response."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    assert text in body["error"]
    assert response.headers["x-request-id"]
    return response
