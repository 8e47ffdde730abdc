"""Every error has its status."""

import grpc
import pytest
from hpack import Decoder

from inference.errors import BY_CODE, InvalidInput, NotFound, Overloaded
from inference.gateway.grpc import heads, spoken, statuses


def test_every_code_has_a_status():
    assert statuses.STATUSES.keys() == BY_CODE.keys()


def test_an_error_says_when_to_come_back():
    assert statuses.trailers_of(Overloaded(retry_after_s=1.2)) == (("x-error-code", "overloaded"), ("retry-after", "2"))
    assert statuses.trailers_of(Overloaded()) == (("x-error-code", "overloaded"), ("retry-after", "1"))
    assert statuses.trailers_of(NotFound()) == (("x-error-code", "not_found"),)
    assert statuses.status_of(Overloaded()).name == grpc.StatusCode.UNAVAILABLE.name
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


def test_trailers_are_read_by_their_receiver():
    error = NotFound("größer als 100 %\n")
    block = statuses.BEGIN + statuses.block(error)
    fields = dict(Decoder().decode(block))
    assert fields == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "5",
        "grpc-message": "gr%C3%B6%C3%9Fer als 100 %25%0A",
        "x-error-code": "not_found",
    }


def test_the_numbers_are_grpcs():
    assert {one.name: one.value for one in statuses.Status} == {one.name: one.value[0] for one in grpc.StatusCode}


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"30S", 30), (b"250m", 0.25), (b"9u", 9e-6), (b"99999999n", 0.1)],
)
def test_a_timeout_has_its_unit(given, seconds):
    assert spoken.timeout_s(given) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("given", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1s"])
def test_a_timeout_of_another_form_is_refused(given):
    with pytest.raises(InvalidInput):
        spoken.timeout_s(given)


def test_metadata_are_the_callers_own():
    fields = [(b"te", b"trailers"), (b"x-api-key", b"k"), (b"a-bin", b"AAE,/w"), (b"b", b"\xe9")]
    assert spoken.metadata(fields) == [("x-api-key", "k"), ("a-bin", b"\0\1"), ("a-bin", b"\xff"), ("b", "\xe9")]
