import base64
import hmac
import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import Forbidden, Overloaded, RateLimited, Unauthenticated
from inference.gateway.admission import ALL, ANONYMOUS, Bucket, Caller, Keys, Limiter, Queue, admit_caller, has_room
from inference.protocol.routes import EndpointRoute, KeyRoute, RoutingTable

NOW = 1_000_000.0


def key(name, secret, endpoints=("e",), expires=None):
    return KeyRoute(name, sha256(secret.encode()).hexdigest(), list(endpoints), expires)


def token(secret=b"hush", **claims):
    payload = base64.urlsafe_b64encode(
        json.dumps({"u": 7, "e": "e", "exp": NOW + 60, "s": "playground"} | claims).encode()
    )
    text = payload.decode().rstrip("=")
    return f"ser_tok.{text}.{hmac.new(secret, text.encode(), sha256).hexdigest()}"


TABLE = RoutingTable(
    generation=1,
    keys=[key("one", "s1"), key("all", "s2", ["*"]), key("old", "s3", expires=NOW), key("soon", "s4", expires=NOW + 1)],
    token_secret="hush",
)
KEYS = Keys(TABLE, now=lambda: NOW)
CLOSED = EndpointRoute("e", "m", "s", False, 1000, 10)
PUBLIC = EndpointRoute("e", "m", "s", True, 1000, 10)


def admit(credential, name="e", endpoint=CLOSED, insecure=False):
    return admit_caller(KEYS, credential, name, endpoint, insecure=insecure)


@pytest.mark.parametrize(
    "credential",
    [
        "ser_one.wrong", "ser_gone.s1", "ser_old.s3", "ser_one", "one.s1", "ser_.s1", "", "ser_one.s1 ", "x" * 5000,
        "ser_one.\ud800", "ser_tok.", "ser_tok.a.b", "ser_tok.é.b", token(b"other"), token(exp=NOW), token() + "0",
        token(exp="soon"),
    ],
)  # fmt: skip
def test_every_bad_credential_gets_the_same_words(credential):
    with pytest.raises(Unauthenticated) as caught:
        admit(credential)
    assert caught.value.message == Unauthenticated().message


def test_only_a_key_that_opens_a_door_is_said_to_be_used():
    used = set()
    keys = Keys(TABLE, now=lambda: NOW, used=used)
    for credential in ("ser_one.wrong", "ser_old.s3", "ser_gone.s1", token()):
        try:
            keys.caller(credential)
        except Unauthenticated:
            continue
    assert used == set()
    keys.caller("ser_all.s2")
    assert used == {"all"}


def test_a_key_opens_its_endpoints_only():
    assert admit("ser_one.s1").id == "one"
    assert admit("ser_soon.s4").id == "soon"
    assert admit("ser_all.s2", "other").id == "all"
    with pytest.raises(Forbidden):
        admit("ser_one.s1", "other")


def test_a_scoped_key_cannot_tell_what_exists():
    for endpoint in (None, EndpointRoute("other", "m", "s", False, 1, 1)):
        with pytest.raises(Forbidden, match="This key may not use 'other'"):
            admit("ser_one.s1", "other", endpoint)


def test_a_public_endpoint_needs_no_key():
    assert admit("", endpoint=PUBLIC) is ANONYMOUS
    with pytest.raises(Unauthenticated):
        admit("ser_one.wrong", endpoint=PUBLIC)


def test_insecure_mode_needs_no_key_and_forgives_a_wrong_one():
    assert admit("", insecure=True).may(ALL)
    assert admit("ser_x.y", insecure=True).may("anything")


def test_a_playground_token_opens_one_endpoint():
    caller = admit(token())
    assert (caller.id, caller.endpoints) == ("user:7", frozenset({"e"}))
    with pytest.raises(Forbidden):
        admit(token(), "other")


def test_without_a_secret_no_token_is_good():
    keys = Keys(RoutingTable(generation=1), now=lambda: NOW)
    with pytest.raises(Unauthenticated):
        keys.caller(token(b""))


def test_a_full_queue_refuses_at_once():
    clock = Clock()
    queue = Queue(clock)
    queue.enter(2)
    queue.enter(2)
    with pytest.raises(Overloaded, match="Exceeds maximum queue size") as caught:
        queue.enter(2)
    assert caught.value.retry_after_s in {1.0, 2.0}
    clock.now += 4.0
    queue.leave()
    queue.enter(2)
    with pytest.raises(Overloaded) as caught:
        queue.enter(2)
    assert caught.value.retry_after_s in {8.0, 9.0, 10.0}  # two, of which one took four seconds


def test_retries_are_a_tenth_of_requests_after_a_burst():
    bucket = Bucket()
    assert sum(bucket.take() for _ in range(100)) == 32
    taken = 0
    for _ in range(1000):
        bucket.earn()
        taken += bucket.take()
    assert 95 <= taken <= 100


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def passes(act) -> bool:
    try:
        act()
    except RateLimited:
        return False
    return True


rates = st.floats(0.1, 1000)
gaps = st.lists(st.floats(0, 3), min_size=1, max_size=80)


@given(rates, gaps)
def test_no_more_requests_pass_than_the_rate_and_one_burst_allow(rate, waits):
    clock = Clock()
    limiter = Limiter(clock).set(rate, 0)
    passed = 0
    for wait in waits:
        clock.now += wait
        passed += passes(limiter.request)
    assert passed <= rate * sum(waits) + max(1, rate) + 1e-6


@given(rates, st.lists(st.tuples(st.floats(0, 3), st.integers(1, 300)), min_size=1, max_size=60))
def test_no_more_rows_pass_than_the_rate_one_burst_and_the_last_request_allow(rate, asked):
    clock = Clock()
    limiter = Limiter(clock).set(0, rate)
    passed, largest = 0, 0
    for wait, rows in asked:
        clock.now += wait
        if passes(lambda rows=rows: limiter.rows(rows)):
            passed += rows
            largest = max(largest, rows)
    assert passed <= rate * sum(wait for wait, _ in asked) + max(rate, largest) + 1e-6


@given(rates, st.integers(1, 300), st.integers(1, 50))
def test_the_first_comes_through_and_who_waits_as_long_as_told_does_too(rate, rows, more):
    """Requests as well as rows, one that is larger than a second's worth too."""
    clock = Clock()
    limiter = Limiter(clock).set(rate, rate)
    for take in (limiter.request, lambda: limiter.rows(rows)):
        take()
        for _ in range(more):
            wait = refusal(take)
            if wait is not None:
                clock.now += wait
                take()


few = st.floats(0.1, 3)


@given(few, few, st.lists(st.tuples(st.floats(0, 3), st.integers(1, 9)), min_size=1, max_size=40))
def test_who_its_rows_held_back_passes_both_bounds_after_the_time_it_was_told(requests_per_s, rows_per_s, asked):
    """A request that its rows hold back costs no place among the requests, so its time to come back is true."""
    clock = Clock()
    limiter = Limiter(clock).set(requests_per_s, rows_per_s)
    for wait, rows in asked:
        clock.now += wait
        if refusal(limiter.request) is not None:
            continue
        wait_s = refusal(lambda rows=rows: limiter.rows(rows))
        if wait_s is not None:
            clock.now += wait_s
            limiter.request()
            limiter.rows(rows)


def refusal(act) -> float | None:
    try:
        act()
    except RateLimited as refused:
        return refused.retry_after_s
    return None


def test_a_key_without_bounds_is_never_limited():
    limiter = Limiter(Clock())
    for _ in range(1000):
        limiter.request()
        limiter.rows(10_000)


def test_a_limiter_outlives_the_table_and_follows_its_rates():
    limiters: dict[str, Limiter] = {}

    def caller(rate: float) -> Caller:
        route = KeyRoute("one", sha256(b"s1").hexdigest(), ["e"], None, requests_per_s=rate)
        return Keys(RoutingTable(generation=1, keys=[route]), now=lambda: NOW, limiters=limiters).caller("ser_one.s1")

    first = caller(2).limiter
    assert [passes(first.request) for _ in range(4)] == [True, True, False, False]
    assert caller(2).limiter is first
    assert not passes(caller(2).limiter.request)
    assert caller(0).limiter is None


@given(st.integers(1, 500), st.integers(0, 600), st.integers(0, 600), st.integers(1, 50))
def test_room_is_never_given_beyond_the_limit(limit, total, mine, keys):
    assert not (has_room(total, limit, mine, keys) and total >= limit)
    if total < limit // 2:
        assert has_room(total, limit, mine, keys)


@given(st.integers(16, 400), st.integers(1, 1000))
def test_a_flood_of_one_key_leaves_room_for_another(limit, tries):
    """Also when the other comes last of all, and the flood goes on in between."""
    queue = Queue()
    flood, other = Caller("flood", frozenset()), Caller("other", frozenset())

    def enters(caller: Caller) -> bool:
        try:
            queue.enter(limit, caller)
        except Overloaded:
            return False
        return True

    took = sum(enters(flood) for _ in range(limit + tries))
    assert took >= limit - limit // 16 - 1
    assert enters(other)
    shed = [enters(flood) for _ in range(tries)]
    assert not any(shed)
    # what the flood gives back is the other's to take, up to its half
    for _ in range(took):
        queue.leave("flood")
        assert enters(other) or queue.in_flight >= limit // 2


@given(st.integers(1, 300), st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=300))
def test_the_queue_counts_right_whatever_comes_and_goes(limit, steps):
    queue = Queue()
    inside: list[str] = []
    for name, comes in steps:
        if comes:
            try:
                queue.enter(limit, Caller(name, frozenset()))
            except Overloaded:
                continue
            inside.append(name)
        elif name in inside:
            inside.remove(name)
            queue.leave(name)
        assert queue.in_flight == len(inside) <= limit
