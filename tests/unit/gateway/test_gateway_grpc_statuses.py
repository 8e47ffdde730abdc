"""Every error has its status."""

from types import SimpleNamespace

import grpc
import pytest

from inference.errors import BY_CODE, InvalidInput, NotFound, Overloaded
from inference.gateway.grpc import heads, statuses


def test_every_code_has_a_status():
    assert statuses.STATUSES.keys() == BY_CODE.keys()


def test_an_error_says_when_to_come_back():
    assert statuses.trailers_of(Overloaded(retry_after_s=1.2)) == (("x-error-code", "overloaded"), ("retry-after", "2"))
    assert statuses.trailers_of(Overloaded()) == (("x-error-code", "overloaded"), ("retry-after", "1"))
    assert statuses.trailers_of(NotFound()) == (("x-error-code", "not_found"),)
    assert statuses.status_of(Overloaded()) is grpc.StatusCode.UNAVAILABLE
    assert len(statuses.detail_of(NotFound("x" * 9000))) == statuses.MAX_DETAIL_CHARS


@pytest.mark.parametrize(
    ("metadata", "credential"),
    [
        ([("authorization", "Bearer ser_a.b")], "ser_a.b"),
        ([("authorization", "bearer  ser_a.b ")], "ser_a.b"),
        ([("x-api-key", "k")], "k"),
        ([("x-api-key", "k"), ("authorization", "Bearer t")], "t"),
        ([("authorization-bin", b"x"), ("triton-grpc-protocol-infer", "k")], ""),
    ],
    ids=["bearer", "small", "api-key", "both", "others"],
)
def test_a_credential_is_found(metadata, credential):
    assert heads.read(metadata, None).credential == credential


def test_the_shorter_deadline_wins():
    given = [("x-request-timeout-ms", "250")]
    assert heads.read(given, None).timeout_ms == 250
    assert heads.read(given, 10.0).timeout_ms == 250
    assert heads.read(given, 0.1).timeout_ms == 100
    assert heads.read([], 0.00001).timeout_ms == 1
    assert heads.read([], 1e12).timeout_ms == heads.MAX_TIMEOUT_MS
    assert heads.read([], None).timeout_ms == 0
    for bad in ("", "0", "-1", "1.5", "9" * 10, "x"):
        with pytest.raises(InvalidInput):
            heads.read([("x-request-timeout-ms", bad)], None)


async def test_abort_hands_over_status_words_and_trailers():
    seen = []

    async def abort(*given):
        seen.append(given)
        raise RuntimeError("as grpc does")

    with pytest.raises(RuntimeError):
        await statuses.abort(SimpleNamespace(abort=abort), NotFound("gone"))
    assert seen == [(grpc.StatusCode.NOT_FOUND, "gone", (("x-error-code", "not_found"),))]
