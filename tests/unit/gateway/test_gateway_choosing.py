"""Choosing between stable and candidate, and who may be rescued, over values alone."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import Forbidden, InvalidInput, NotReady
from inference.gateway import choosing
from inference.gateway.admission import Caller, Queue
from inference.gateway.calls import Call
from inference.gateway.choosing import Asked
from inference.gateway.rescue import refit
from inference.gateway.steering import Rules
from inference.gateway.table import Endpoint, Variant
from inference.protocol.messages import TensorHeader
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, Match, Steering, VariantRoute

NONE = Signature(inputs=[], outputs=[])
keys = st.text(max_size=12)
weights = st.integers(0, 10_000)


class Stood:
    """A link that is ready or not."""

    def __init__(self, ready):
        self.ready = ready


def endpoint(candidate_bp, *match, ready=(True, True), steers=True, salt="salt"):
    """As the table builds it, with links that a test can read."""
    shares = (10_000 - candidate_bp, candidate_bp)
    routes = [VariantRoute(n + 1, ("primary", "canary")[n], shares[n], NONE) for n in range(2)]
    variants = {
        route.version: Variant(route, [Stood(one)], str(route.version), ("e", route.version, route.arm), [], b"", None)
        for route, one in zip(routes, ready, strict=True)
    }
    steering = Steering("r", 1, 2, match=list(match)) if steers else None
    rules = Rules(steering, salt) if steering and match else None
    own = EndpointRoute("e", "m", salt, False, 1000, 10, routes, steering=steering)
    held = (variants[1], variants[2]) if steers else (None, None)
    return Endpoint(own, variants, Queue(), None, *held, rules)


def asked(where, *, key="k", headers=None, version=None, sticky="", user="", source=""):
    caller = Caller(key, frozenset({"*"}), user=user, source=source)
    return Asked(caller, where, version, sticky or key, headers=headers or {})


def version_of(where, **more):
    one = asked(where, **more)
    return choosing.chosen(one, one.sticky).route.version


@given(weights, weights, keys, st.sampled_from([(), (Match("header", "x-a", share_bp=3000),)]))
def test_a_key_never_goes_back_from_the_candidate_when_its_weight_rises(one, two, key, match):
    low, high = sorted((one, two))
    before = version_of(endpoint(low, *match), key=key, headers={b"x-a": key.encode()})
    after = version_of(endpoint(high, *match), key=key, headers={b"x-a": key.encode()})
    assert (before, after) != (2, 1)


@given(weights, weights, keys)
def test_a_matched_share_that_rises_lets_nobody_go(one, two, value):
    low, high = sorted((one, two))
    told = {b"x-a": value.encode("utf-8", "replace")}
    before, after = (version_of(endpoint(0, Match("header", "X-A", share_bp=bp)), headers=told) for bp in (low, high))
    assert (before, after) != (2, 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(50, 9950), st.text(max_size=6))
def test_shares_are_those_of_a_fair_draw(candidate_bp, salt):
    """Within five standard deviations of the binomial distribution, over 3,000 keys."""
    where, share, count = endpoint(candidate_bp, salt=salt), candidate_bp / 10_000, 3000
    found = sum(version_of(where, key=f"key-{number}") == 2 for number in range(count))
    assert abs(found - share * count) <= 5 * (count * share * (1 - share)) ** 0.5 + 1


@given(weights, keys, st.booleans(), st.booleans())
def test_nobody_is_sent_where_no_replica_is_while_another_has_one(candidate_bp, key, stable, candidate):
    where = endpoint(candidate_bp, Match("header", "x-a"), ready=(stable, candidate))
    for headers in ({}, {b"x-a": b"1"}):
        found = version_of(where, key=key, headers=headers)
        if stable != candidate and (candidate_bp or stable):
            assert found == (1 if stable else 2)


@given(weights, keys)
def test_whoever_comes_back_finds_its_version_again(candidate_bp, key):
    both = version_of(endpoint(candidate_bp), key=key)
    assert version_of(endpoint(candidate_bp, ready=(True, False)), key=key) == 1
    assert version_of(endpoint(candidate_bp), key=key) == both


@given(weights, keys)
def test_a_split_without_a_rollout_goes_on_with_those_that_are_ready(candidate_bp, key):
    where = endpoint(candidate_bp, ready=(False, True), steers=False)
    assert version_of(where, key=key) == (2 if candidate_bp else 1)  # with no share it waits for its own


@pytest.mark.parametrize(
    ("match", "more", "matches"),
    [
        (Match("header", "X-Team", values=["a"]), {"headers": {b"x-team": b"a"}}, True),
        (Match("header", "X-Team", values=["a"]), {"headers": {b"x-team": b"ab"}}, False),
        (Match("header", "X-Team", prefix="a"), {"headers": {b"x-team": b"ab"}}, True),
        (Match("header", "X-Team", values=["z"], prefix="a"), {"headers": {b"x-team": b"z"}}, True),
        (Match("header", "X-Team"), {"headers": {b"x-team": b""}}, True),
        (Match("header", "X-Team"), {}, False),
        (Match("header", "X-Team", share_bp=0), {"headers": {b"x-team": b"a"}}, False),
        (Match("key", values=["k"]), {}, True),
        (Match("key", values=["k"]), {"key": "k2"}, False),
        (Match("key"), {"key": "", "sticky": "s"}, False),
        (Match("key", values=["user:7"]), {"key": "user:7", "user": "7"}, False),
        (Match("user", values=["7"]), {"key": "user:7", "user": "7"}, True),
        (Match("user", prefix="7"), {"key": "7"}, False),
        (Match("moon", values=["full"]), {"headers": {b"": b"full"}}, False),
    ],
)
def test_what_matches(match, more, matches):
    assert version_of(endpoint(0, match), **more) == (2 if matches else 1)


@pytest.mark.parametrize(
    ("value", "text"), [("gold", "gold"), (7, "7"), (True, "true"), (False, "false"), (0.5, "0.5"), (3.0, "3")]
)
def test_parameters_are_matched_by_what_they_say(value, text):
    where = endpoint(0, Match("parameter", "tier", values=[text]))
    one = asked(where)
    stable = choosing.chosen(one, "s")
    assert stable.route.version == 1
    assert choosing.by_parameters(one, stable, {"tier": value}) is where.candidate
    assert choosing.by_parameters(one, stable, {"tier": "lead"}) is None
    assert choosing.by_parameters(one, where.candidate, {"tier": value}) is None
    assert choosing.by_parameters(asked(where, version=1), stable, {"tier": value}) is None
    away = endpoint(0, Match("parameter", "tier"), ready=(True, False))
    assert choosing.by_parameters(asked(away), away.variants[1], {"tier": value}) is None


def test_pins_and_the_playground_are_apart_and_keep_their_role():
    where = endpoint(0, Match("header", "x-a"))
    for more, arm, version in (
        ({"version": 2}, "pinned", 2),
        ({"version": 2, "source": "playground"}, "playground", 2),
        ({"source": "playground"}, "playground", 1),
        ({"source": "playground", "headers": {b"x-a": b""}}, "playground", 2),
        ({"source": "batch"}, "primary", 1),
    ):
        one = asked(where, **more)
        found = choosing.chosen(one, "s")
        assert found.key == ("e", version, arm)
        assert found.route is where.variants[version].route
        assert choosing.chosen(one, "s") is found
        assert found.apart == (arm if arm != "primary" else "")
        assert found.counted("") is found


def test_no_share_is_not_ready():
    where = endpoint(0)
    bare = dataclasses.replace(where, route=EndpointRoute("e", "m", "s", False, 1, 1))
    with pytest.raises(NotReady):
        version_of(bare)


def route(*, may_pin=True):
    return EndpointRoute("e", "m", "s", False, 1, 1, may_pin=may_pin)


def test_a_pin_by_header():
    assert choosing.pin(route(), None, None) is None
    assert choosing.pin(route(may_pin=False), 3, None) == 3
    assert choosing.pin(route(), None, b"7") == choosing.pin(route(), None, "7") == choosing.pin(route(), 7, b"7") == 7
    with pytest.raises(Forbidden, match="may_pin"):
        choosing.pin(route(may_pin=False), None, b"7")
    for text in (b"", b"-1", b"1e3", b"\xb2", b"1234567890", "²"):
        with pytest.raises(InvalidInput):
            choosing.pin(route(), None, text)
    with pytest.raises(InvalidInput, match="send one of them"):
        choosing.pin(route(), 6, b"7")


# -- what may be asked of the stable version


def signature(*inputs, outputs=(("y", "FP32"),), rows=8, labels=()):
    return Signature(
        [TensorSpec(name, datatype, [-1, *shape]) for name, datatype, *shape in inputs],
        [TensorSpec(name, datatype, [-1, 4]) for name, datatype in outputs],
        rows,
        labels=list(labels),
    )


def call(*inputs, rows=2, **more):
    tensors = [TensorHeader(name, datatype, [rows, *shape], 0) for name, datatype, *shape in inputs]
    return Call("", tensors, [name.encode() for name, *_ in inputs], rows=rows, **more)


X, Z = ("x", "FP32", 4), ("z", "INT32", 1)
BEFORE = signature(X, Z)


@pytest.mark.parametrize(
    ("other", "more", "fits"),
    [
        (signature(X, Z), {}, True),
        (signature(Z, X), {}, True),
        (signature(("x", "FP32", -1), Z), {}, True),
        (signature(X), {}, False),
        (signature(X, Z, ("w", "FP32", 1)), {}, False),
        (signature(("x", "FP64", 4), Z), {}, False),
        (signature(("x", "FP32", 5), Z), {}, False),
        (signature(X, Z, rows=1), {}, False),
        (signature(X, Z, outputs=[("other", "FP32")]), {}, True),
        (signature(X, Z, outputs=[("other", "FP32")]), {"outputs": ["y"]}, False),
        (signature(X, Z, outputs=[("y", "FP32"), ("more", "FP16")]), {"outputs": ["y"]}, True),
        (signature(X, Z, outputs=[("y", "FP16")]), {"outputs": ["y"]}, False),
        (signature(X, Z, outputs=[("y", "FP16")]), {}, False),
        (signature(X, Z, outputs=[("y", "FP16")]), {"binary": None}, True),
        (signature(X, Z, labels=["cat"]), {"outputs": ["y"], "special": {"y": None}}, False),
        (signature(X, Z, labels=["cat"]), {"outputs": ["y"]}, True),
    ],
)
def test_a_call_fits_another_version_or_does_not(other, more, fits):
    one = call(X, Z, **more)
    assert refit(one, BEFORE, other) is fits
    names = [spec.name for spec in other.inputs] if fits else ["x", "z"]
    assert [tensor.name for tensor in one.tensors] == names
    assert one.body == [name.encode() for name in names]
