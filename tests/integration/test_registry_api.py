"""The registry API as a client sees it: the whole trip from content to an alias, and what is refused on the way."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from registry import actions
from tests.integration.test_accounts_api import of
from tests.support.cast import Cast
from tests.support.contents import new_version, ready_version, seen, sent, validated


def test_the_whole_trip(cast: Cast) -> None:
    developer = of(cast, "developer")
    upload = sent(cast.key_actor("developer"), cast.red, b'{"factor": 2}')
    body: dict[str, Any] = {
        "files": [{"path": "echo.json", "upload": str(upload.id)}],
        "runtime": {"max_batch_size": 4},
        "alias": "champion",
    }
    made = developer("POST", "/api/models/digits/versions/", body, 201)
    assert (made["number"], made["status"], made["settings"]["max_batch_size"]) == (1, "validating", 4)
    assert made["files"] == [{"path": "echo.json", "size_bytes": 13, "sha256": upload.sha256}]
    (run,) = actions.claim_validations("host-a", 1)
    actions.validation_progress(run.id, run.lease, seen(run).checks[:1])
    running = developer("GET", "/api/models/digits/versions/1/")
    assert [check["name"] for check in running["report"]["checks"]] == ["hashes"]
    actions.finish_validation(run.id, run.lease, seen(run))
    done = developer("GET", "/api/models/digits/versions/1/")
    assert (done["status"], done["aliases"], done["signature"]["inputs"][0]["name"]) == ("ready", ["champion"], "x")
    assert developer("GET", "/api/models/digits/versions/1/report")["status"] == "ready"
    (model,) = developer("GET", "/api/models/")["results"]
    assert (model["latest_version"], model["versions"], model["aliases"]) == (1, 1, {"champion": 1})
    assert developer("GET", "/api/models/digits/versions/", status=200)["results"][0]["number"] == 1


def test_aliases_by_the_api(cast: Cast) -> None:
    for data in (b"1", b"2"):
        ready_version(cast.actor("owner"), cast.red, data)
    developer = of(cast, "developer")
    for number in (1, 2):
        put = developer("PUT", "/api/models/digits/aliases/best/", {"version": number, "reason": f"r{number}"})
        assert put == {"name": "best", "version": number}
    assert developer("GET", "/api/models/digits/aliases/") == [{"name": "best", "version": 2}]
    developer("DELETE", "/api/models/digits/aliases/best/", status=204)
    developer("GET", "/api/models/digits/aliases/best/", status=404)
    history = developer("GET", "/api/models/digits/aliases/best/history/")["results"]
    assert [(row["from_version"], row["to_version"], row["reason"]) for row in history] == [
        (2, None, ""), (1, 2, "r2"), (None, 1, "r1")
    ]  # fmt: skip
    developer("PUT", "/api/models/digits/aliases/latest/", {"version": 1}, 400)
    developer("PUT", "/api/models/digits/aliases/best/", {"version": 9}, 404)


def test_approval_by_the_api(cast: Cast) -> None:
    validated(new_version(cast.actor("owner"), cast.red), "rejected", checks=[], tier="code", format="python")
    of(cast, "owner")("POST", "/api/models/digits/versions/1/approve/", {}, 403)
    done = of(cast, "root")("POST", "/api/models/digits/versions/1/approve/", {"reason": "read it"})
    assert (done["status"], done["approved_by"].split()[0]) == ("validating", "root's")


def test_what_content_is_here_is_told_to_its_own_team_only(cast: Cast) -> None:
    digest = hashlib.sha256(b"{}").hexdigest()
    body = {"sha256": [digest, "0" * 64]}
    assert of(cast, "developer")("POST", "/api/blobs/check/", body) == {"present": []}
    new_version(cast.actor("owner"), cast.red)
    assert of(cast, "developer")("POST", "/api/blobs/check/", body) == {"present": [digest]}
    assert of(cast, "stranger")("POST", "/api/blobs/check/", body) == {"present": []}
    of(cast, "developer")("POST", "/api/blobs/check/", {"sha256": ["../x"]}, 400)
    of(cast, "developer")("POST", "/api/blobs/check/", {"sha256": ["0" * 64] * 2001}, 400)


def test_a_rejection_carries_its_remedy(cast: Cast) -> None:
    upload = sent(cast.key_actor("developer"), cast.red, b"{}")
    body = {"files": [{"path": "../echo.json", "upload": str(upload.id)}]}
    error = of(cast, "developer")("POST", "/api/models/digits/versions/", body, 422)["error"]
    assert error["code"] == "rejected"
    assert error["remedy"]
    both = {"path": "a", "upload": str(upload.id), "sha256": "0" * 64}
    of(cast, "developer")("POST", "/api/models/digits/versions/", {"files": [both]}, 400)
    of(cast, "developer")("POST", "/api/models/digits/versions/", {"files": []}, 400)


@pytest.mark.parametrize("path", ["/api/models/", "/api/models/digits/versions/", "/api/models/digits/"])
def test_queries_do_not_grow_with_rows(cast: Cast, path: str) -> None:
    developer = of(cast, "developer")
    ready_version(cast.actor("owner"), cast.red, alias="a")

    def cost() -> int:
        with CaptureQueriesContext(connection) as taken:
            developer("GET", path)
        return len(taken)

    before = cost()
    for number in range(5):
        ready_version(cast.actor("owner"), cast.red, str(number).encode(), alias=f"a{number}")
        ready_version(cast.actor("owner"), cast.red, name=f"m{number}", alias="a")
    assert cost() == before
    assert before <= 8


def test_filters_are_an_allow_list(cast: Cast) -> None:
    ready_version(cast.actor("owner"), cast.red)
    developer = of(cast, "developer")
    assert len(developer("GET", "/api/models/", search="DIG")["results"]) == 1
    assert developer("GET", "/api/models/", search="nope")["results"] == []
    for bad in ("team__name", "created_by__password", "_connector", "pk"):
        developer("GET", "/api/models/", status=400, **{bad: "x"})
