import base64
import hmac
import json
from hashlib import sha256

import pytest

from inference.errors import Forbidden, Overloaded, Unauthenticated
from inference.gateway.admission import ALL, ANONYMOUS, Bucket, Keys, Queue, admit_caller
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
    queue = Queue()
    queue.enter(2)
    queue.enter(2)
    with pytest.raises(Overloaded, match="Exceeds maximum queue size") as caught:
        queue.enter(2)
    assert caught.value.retry_after_s == 1.0
    queue.leave()
    queue.enter(2)


def test_retries_are_a_tenth_of_requests_after_a_burst():
    bucket = Bucket()
    assert sum(bucket.take() for _ in range(100)) == 32
    taken = 0
    for _ in range(1000):
        bucket.earn()
        taken += bucket.take()
    assert 95 <= taken <= 100
