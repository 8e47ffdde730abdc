"""Conversion of a lone torch pickle: who may ask, what is kept, what a host's report can and cannot do."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest
from django.test import Client

from accounts.models import AuditEntry
from inference.errors import Conflict, Forbidden, NotFound
from inference.protocol.supervision import FileRef, TensorSeen
from registry import actions, validation
from registry.conversions import conversion_of
from registry.models import ValidationRun, Version, VersionFile, VersionStatus
from registry.storage import store
from tests.support.cast import Cast
from tests.support.contents import new_version, ready_version, seen, validated

DATA = b"converted weights"
DIGEST = hashlib.sha256(DATA).hexdigest()
MADE = FileRef("model.safetensors", len(DATA), DIGEST)
TENSORS = [TensorSeen("w", "F32", [2, 3])]


def pickled(cast: Cast) -> Version:
    """A version that validation refused as a torch pickle."""
    version = new_version(cast.actor("owner"), cast.red)
    return validated(version, "rejected", format="torch_pickle", reason="a torch pickle", remedy="convert it")


def stored() -> None:
    """The blob, as the supervisor leaves it in the store."""
    place = store().path(DIGEST)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(DATA)


def asked(cast: Cast, version: Version) -> ValidationRun:
    actions.convert_version(actor=cast.actor("developer"), version=version)
    (run,) = actions.claim_validations("host-a", 5)
    return run


def converted(cast: Cast, **changes: Any) -> Version:
    version = pickled(cast)
    run = asked(cast, version)
    stored()
    told = {"converted": [MADE], "tensors": TENSORS, "tensor_count": 1, "signature": None} | changes
    assert actions.finish_validation(run.id, run.lease, seen(run, **told))
    version.refresh_from_db()
    return version


def shown(version: Version) -> dict[str, Any]:
    found = conversion_of(version)
    assert found is not None
    return found


def test_a_refused_pickle_is_offered_and_nothing_else_is(cast: Cast) -> None:
    assert conversion_of(ready_version(cast.actor("owner"), cast.red, b"1")) is None
    assert shown(pickled(cast)) == {"state": "offered"}
    other = validated(new_version(cast.actor("owner"), cast.red, b"2"), "rejected", format="", reason="no")
    assert conversion_of(other) is None
    with pytest.raises(Conflict, match="nothing to convert"):
        actions.convert_version(actor=cast.actor("owner"), version=other)


def test_the_trip_of_a_conversion(cast: Cast) -> None:
    version = pickled(cast)
    actions.convert_version(actor=cast.actor("developer"), version=version)
    assert shown(version)["state"] == "wanted"
    (run,) = actions.claim_validations("host-a", 5)
    assert (run.purpose, run.version_id) == ("convert", version.pk)
    assert shown(version)["state"] == "running"
    with pytest.raises(Conflict, match="just being converted"):
        actions.convert_version(actor=cast.actor("developer"), version=version)
    stored()
    told = seen(run, converted=[MADE], tensors=TENSORS, tensor_count=1, signature=None)
    assert actions.finish_validation(run.id, run.lease, told)
    done = shown(version)
    assert (done["state"], done["file"]["sha256"]) == ("done", DIGEST)
    assert done["tensors"] == [{"name": "w", "dtype": "F32", "shape": [2, 3]}]
    assert len(done["next"]) == 2
    version.refresh_from_db()
    assert (version.status, version.reason, version.served_files) == (VersionStatus.REJECTED, "a torch pickle", None)
    assert VersionFile.objects.filter(version=version, blob_id=DIGEST).exists()
    trail = list(AuditEntry.objects.filter(verb="convert_version").order_by("pk").values_list("actor", flat=True))
    assert len(trail) == 2
    with pytest.raises(Conflict, match="already"):
        actions.convert_version(actor=cast.actor("developer"), version=version)


def test_what_was_made_becomes_the_next_version_by_its_digest(cast: Cast) -> None:
    converted(cast)
    files: Any = [{"path": "model.safetensors", "sha256": DIGEST}]
    made = actions.create_version(actor=cast.actor("developer"), model_name="digits", files=files)
    assert made.manifest["files"] == [{"path": "model.safetensors", "size_bytes": len(DATA), "sha256": DIGEST}]
    with pytest.raises(NotFound):
        actions.create_version(actor=cast.actor("stranger"), model_name="theirs", files=files)


def test_a_failed_conversion_says_why_and_may_be_tried_again(cast: Cast) -> None:
    version = pickled(cast)
    run = asked(cast, version)
    actions.finish_validation(run.id, run.lease, seen(run, "rejected", reason="no\0 tensors", remedy="save them"))
    found = shown(version)
    assert (found["state"], found["reason"]) == ("failed", "no\N{REPLACEMENT CHARACTER} tensors")
    assert not VersionFile.objects.filter(version=version, path__startswith="converted:").exists()
    assert asked(cast, version).pk != run.pk


@pytest.mark.parametrize("made", [[], [FileRef("../x", 3, DIGEST)], [FileRef("other.bin", 3, DIGEST)]], ids=len)
def test_a_report_without_the_file_is_a_failure(cast: Cast, made: list[FileRef]) -> None:
    version = converted(cast, converted=made)
    assert shown(version)["state"] == "failed"
    with pytest.raises(NotFound):
        actions.converted_file(actor=cast.actor("owner"), version=version)


def test_a_host_that_never_finishes_ends_it_with_a_reason(cast: Cast) -> None:
    version = pickled(cast)
    actions.convert_version(actor=cast.actor("developer"), version=version)
    for _ in range(validation.MAX_ATTEMPTS):
        (run,) = actions.claim_validations("host-a", 1)
        actions.finish_validation(run.id, run.lease, seen(run, "lost"))
    assert actions.claim_validations("host-a", 1) == []
    assert "3 attempts" in shown(version)["reason"]
    version.refresh_from_db()
    assert version.reason == "a torch pickle"


def test_who_may_ask_and_who_may_carry_the_weights_away(cast: Cast) -> None:
    version = pickled(cast)
    for name, refusal in {"teammate": Forbidden, "stranger": NotFound}.items():
        with pytest.raises(refusal):
            actions.convert_version(actor=cast.actor(name), version=version)
    run = asked(cast, version)
    stored()
    actions.finish_validation(run.id, run.lease, seen(run, converted=[MADE], signature=None))
    for name, refusal in {"teammate": Forbidden, "stranger": NotFound}.items():
        with pytest.raises(refusal):
            actions.converted_file(actor=cast.actor(name), version=version)
    assert actions.converted_file(actor=cast.actor("developer"), version=version).path.read_bytes() == DATA


def test_the_api_offers_converts_and_hands_out_the_file(cast: Cast) -> None:
    version = pickled(cast)
    place, headers = "/api/models/digits/versions/1/", cast.bearer("developer")
    assert Client().get(place, headers=headers).json()["conversion"] == {"state": "offered"}
    answer = Client().post(f"{place}convert/", "{}", content_type="application/json", headers=headers)
    assert (answer.status_code, answer.json()["conversion"]["state"]) == (202, "wanted")
    assert Client().get(f"{place}converted/", headers=headers).status_code == 404
    (run,) = actions.claim_validations("host-a", 5)
    stored()
    actions.finish_validation(run.id, run.lease, seen(run, converted=[MADE], tensors=TENSORS, signature=None))
    assert Client().get(f"{place}report/", headers=headers).json()["conversion"]["state"] == "done"
    assert Client().get(f"{place}converted/", headers=cast.bearer("teammate")).status_code == 403
    for url, client in {
        f"{place}converted/": Client(headers=headers),
        "/models/digits/versions/1/converted/": _of(cast),
    }.items():
        answer = client.get(url)
        assert answer["Content-Disposition"] == 'attachment; filename="model.safetensors"'
        assert (answer["Content-Type"], answer["Content-Length"]) == ("application/octet-stream", str(len(DATA)))
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert asyncio.run(_read(answer)) == DATA
    assert json.dumps(conversion_of(version))


def _of(cast: Cast) -> Client:
    client = Client()
    client.force_login(cast.developer, backend="accounts.login.LimitedBackend")
    return client


async def _read(answer: Any) -> bytes:
    return b"".join([piece async for piece in answer.streaming_content])


def test_the_page_shows_every_state(cast: Cast) -> None:
    version, page, client = pickled(cast), "/models/digits/versions/1/", _of(cast)
    assert ">Convert</button>" in client.get(page).content.decode()
    assert client.post(f"{page}convert/").status_code == 302
    assert "Waiting for a host" in client.get(page).content.decode()
    (run,) = actions.claim_validations("host-a", 5)
    actions.finish_validation(run.id, run.lease, seen(run, "rejected", reason="<i>bad</i>", remedy="save again"))
    text = client.get(page).content.decode()
    assert "&lt;i&gt;bad&lt;/i&gt;" in text
    assert ">Try again</button>" in text
    run = asked(cast, version)
    stored()
    actions.finish_validation(run.id, run.lease, seen(run, converted=[MADE], tensors=TENSORS, tensor_count=1))
    text = client.get(page).content.decode()
    assert "Download model.safetensors" in text
    assert "[2, 3]" in text
