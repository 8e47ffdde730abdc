"""What somebody could reach by way of what they rightly have: a second team, a narrow key, a known digest, a question."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts import actions as accounts
from accounts.audit import record
from accounts.models import ApiKey, AuditEntry, Membership
from accounts.permissions import SYSTEM
from endpoints import actions as endpoints
from inference.errors import Conflict, Forbidden, NotFound
from registry import actions
from tests.support.cast import Cast
from tests.support.contents import new_version, ready_version, sent


def ask(headers: dict[str, str], method: str, path: str, body: Any = None) -> Any:
    client = Client(raise_request_exception=False)
    return client.generic(method, path, json.dumps(body or {}), content_type="application/json", headers=headers)


@pytest.fixture
def both(cast: Cast) -> Cast:
    """The teammate is a viewer in team red and an admin in team blue."""
    Membership.objects.create(user=cast.teammate, team=cast.blue, role="admin")
    return cast


# --- content: who may look at a model must not carry its weights away --------------------------------------------------


def test_a_viewer_takes_no_content_to_another_team(both: Cast) -> None:
    new_version(both.actor("owner"), both.red, b"{}")
    digest, actor = hashlib.sha256(b"{}").hexdigest(), both.actor("teammate")
    with pytest.raises(NotFound, match="not known here"):
        actions.create_version(
            actor=actor, model_name="mine", team=both.blue, files=[{"path": "echo.json", "sha256": digest}]
        )
    upload = sent(both.actor("owner"), both.red, b"weights")
    with pytest.raises(NotFound, match="no upload"):
        actions.create_version(
            actor=actor, model_name="mine", team=both.blue, files=[{"path": "f", "upload": str(upload.id)}]
        )


def test_who_may_upload_in_both_teams_may(both: Cast) -> None:
    Membership.objects.filter(user=both.teammate, team=both.red).update(role="developer")
    new_version(both.actor("owner"), both.red, b"{}")
    files: Any = [{"path": "echo.json", "sha256": hashlib.sha256(b"{}").hexdigest()}]
    assert actions.create_version(actor=both.actor("teammate"), model_name="mine", team=both.blue, files=files)


@pytest.mark.parametrize("name", ["stranger", "teammate"])
def test_a_digest_tells_nobody_what_others_have(both: Cast, name: str) -> None:
    new_version(both.actor("owner"), both.red, b"{}")
    known, unknown = hashlib.sha256(b"{}").hexdigest(), "0" * 64
    headers = both.bearer(name, team=both.blue, role="admin")
    answers = [ask(headers, "POST", "/api/blobs/check/", {"sha256": [digest]}) for digest in (known, unknown)]
    assert [answer.json() for answer in answers] == [{"present": []}] * 2
    bodies = [{"files": [{"path": "f", "sha256": digest}]} for digest in (known, unknown)]
    told = [ask(headers, "POST", "/api/models/mine/versions/", body) for body in bodies]
    assert {answer.status_code for answer in told} == {404}
    said = [answer.json()["error"]["message"] for answer in told]
    assert said[0].replace(known[:12], unknown[:12]) == said[1]


# --- versions and names of others ---------------------------------------------------------------------------------------


def test_a_version_of_another_team_goes_behind_no_endpoint_of_mine(both: Cast) -> None:
    theirs = ready_version(both.actor("owner"), both.red)
    mine = ready_version(both.actor("stranger"), both.blue, name="mine")
    endpoints.deploy(version=mine, actor=both.actor("stranger"), endpoint_name="front")
    for name in ("stranger", "teammate"):
        with pytest.raises(Forbidden):
            endpoints.deploy(version=theirs, actor=both.actor(name), endpoint_name="front")
    with pytest.raises(Conflict):
        endpoints.deploy(version=theirs, actor=both.actor("owner"), endpoint_name="front")
    headers = both.bearer("stranger")
    body = {"model": "digits", "version": 1, "name": "front"}
    assert ask(headers, "POST", "/api/endpoints/", body).status_code == 404
    assert (
        ask(headers, "POST", "/api/endpoints/front/deploy/", {"version": 1, "model": "digits"}).json()["model"]
        == "mine"
    )
    assert ask(headers, "PUT", "/api/models/mine/aliases/best/", {"version": 99}).status_code == 404
    assert (
        ask(headers, "POST", "/api/deployments/", {"model": "digits", "version": 1, "replicas": 9}).status_code == 404
    )


def test_the_trail_of_a_team_where_one_only_looks_stays_closed(both: Cast) -> None:
    for team in (both.red, both.blue):
        record(SYSTEM, "set_weights", "endpoint", f"of-{team.name}", team=team)
    client = Client()
    client.force_login(both.teammate, backend="accounts.login.LimitedBackend")
    for path in ("/", "/?part=overview", "/audit/"):
        page = client.get(path).content.decode()
        assert "of-blue" in page, path
        assert "of-red" not in page, path
    Membership.objects.filter(user=both.teammate, team=both.blue).delete()
    assert "of-red" not in client.get("/").content.decode()


# --- keys that make keys ------------------------------------------------------------------------------------------------


def test_a_viewers_key_makes_no_key(cast: Cast) -> None:
    for role in ("viewer",):
        answer = ask(cast.bearer("teammate", role=role), "POST", "/api/keys/", {"name": "k", "team": "red"})
        assert answer.status_code == 403


@pytest.mark.parametrize("wish", [{}, {"endpoints": ["*"]}, {"endpoints": ["a", "b"]}, {"endpoints": ["b"]}], ids=str)
def test_a_key_makes_no_key_that_reaches_further(cast: Cast, wish: dict[str, Any]) -> None:
    headers = cast.bearer("developer", endpoints=["a"])
    before = ApiKey.objects.count()
    assert ask(headers, "POST", "/api/keys/", {"name": "k", **wish}).status_code == 403
    assert ApiKey.objects.count() == before
    assert ask(headers, "POST", "/api/keys/", {"name": "k", "endpoints": ["a"]}).status_code == 201
    assert ask(headers, "POST", "/api/keys/", {"name": "k", "endpoints": []}).status_code == 201


def test_a_key_makes_no_key_that_lives_longer(cast: Cast) -> None:
    soon = timezone.now() + timedelta(hours=1)
    actor = cast.key_actor("developer", expires_at=soon)
    for expires_at in (None, soon + timedelta(seconds=1)):
        with pytest.raises(Forbidden, match="longer"):
            accounts.create_key(actor=actor, name="k", team=cast.red, expires_at=expires_at)
    accounts.create_key(actor=actor, name="k", team=cast.red, expires_at=soon)


# --- questions ----------------------------------------------------------------------------------------------------------


def test_the_explainer_names_no_key_and_no_role_of_another_team(cast: Cast) -> None:
    key_id = cast.key("developer")[4:16]
    headers = cast.bearer("stranger")
    for query in (f"actor=key:{key_id}&verb=view&object=team:blue", "actor=user:owner&verb=approve"):
        answer = ask(headers, "GET", f"/api/explain/?{query}")
        assert answer.status_code in {400, 404}
        assert "developer" not in answer.content.decode()
        assert "admin" not in answer.content.decode().replace("admin of", "")
    assert (
        ask(cast.bearer("owner"), "GET", f"/api/explain/?actor=key:{key_id}&verb=view&object=team:red").status_code
        == 200
    )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/endpoints/", {"model": "digits", "version": 1, "acess": "public"}),
        ("POST", "/api/endpoints/digits/deploy/", {"version": 1, "replica": 3}),
        ("PUT", "/api/endpoints/digits/weights/", {"weights": {"1": 10_000}, "forced": True}),
        ("PUT", "/api/endpoints/digits/access/", {"access": "key", "team": "blue"}),
        ("POST", "/api/endpoints/digits/undeploy/", {"version": 1, "versions": [2]}),
        ("POST", "/api/deployments/", {"model": "digits", "version": 1, "replicas": 1, "min": 4}),
    ],
)
def test_a_field_that_nobody_knows_is_refused_by_name(cast: Cast, method: str, path: str, body: dict[str, Any]) -> None:
    endpoints.deploy(version=ready_version(cast.actor("owner"), cast.red), actor=cast.actor("owner"))
    before = AuditEntry.objects.count()
    answer = ask(cast.bearer("root"), method, path, body)
    assert answer.status_code == 400
    assert list(answer.json()["error"]["fields"].values()) == [["There is no such field."]]
    assert AuditEntry.objects.count() == before + 1, "the key of this test alone"


@pytest.mark.parametrize("seconds", ["0", "-1", "1e3", "86401", "000000300" + "9" * 5000, "²", ""])
def test_a_span_that_is_none_is_refused(cast: Cast, seconds: str) -> None:
    endpoints.deploy(version=ready_version(cast.actor("owner"), cast.red), actor=cast.actor("owner"))
    answer = ask(cast.bearer("owner"), "GET", f"/api/endpoints/digits/metrics/?seconds={seconds}")
    assert answer.status_code == 400


def test_a_form_of_lists_without_end_is_a_typed_refusal(cast: Cast) -> None:
    endpoints.deploy(version=ready_version(cast.actor("owner"), cast.red), actor=cast.actor("owner"))
    client = Client(raise_request_exception=False)
    client.force_login(cast.owner, backend="accounts.login.LimitedBackend")
    deep = "[" * 100_000
    for body in (deep, '{"request": {"inputs": ' + deep):
        answer = client.generic("POST", "/endpoints/digits/try/", body, content_type="application/json")
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "malformed"
