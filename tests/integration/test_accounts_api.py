"""The accounts API as a client sees it: who sees whom, keys shown once, the trail by page and filter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts import actions
from accounts.models import ApiKey, AuditEntry, User
from accounts.permissions import SYSTEM
from endpoints.publish import build_table
from tests.support.cast import PASSWORD, Cast
from tests.support.contents import ready_version


class Api:
    """A client with one key."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers

    def __call__(self, method: str, path: str, body: Any = None, status: int = 200, **query: str) -> Any:
        data = {} if body is None and method != "GET" else body
        response = Client().generic(
            method, path, json.dumps(data) if data is not None else "", content_type="application/json",
            headers=self.headers, query_params=query or None,
        )  # fmt: skip
        assert response.status_code == status, response.content[:500]
        return response.json() if response.content else None


def of(cast: Cast, name: str, **options: Any) -> Api:
    return Api(cast.bearer(name, **options))


def test_me_tells_teams_and_rights(cast: Cast) -> None:
    me = of(cast, "teammate")("GET", "/api/me/")
    assert (me["kind"], me["superuser"], me["teams"], me["verbs"]) == (
        "key",
        False,
        {"red": "viewer"},
        {"red": ["view"]},
    )
    assert of(cast, "root")("GET", "/api/me/")["teams"] == {"blue": "admin", "red": "admin"}


def test_a_key_is_made_used_and_revoked(cast: Cast) -> None:
    owner = of(cast, "owner")
    made = owner("POST", "/api/keys/", {"name": "ci", "role": "viewer", "endpoints": ["b", "a"]}, 201)
    assert made["token"].startswith(f"ser_{made['id']}.")
    assert (made["endpoints"], made["team"], made["created_by"]) == (["a", "b"], "red", "owner")
    user = Api({"Authorization": f"Bearer {made['token']}"})
    assert user("GET", "/api/me/")["teams"] == {"red": "viewer"}
    shown = owner("GET", f"/api/keys/{made['id']}/")
    assert "token" not in shown
    assert "digest" not in shown
    revoked = owner("POST", f"/api/keys/{made['id']}/revoke/", {"reason": "leaked"})
    assert revoked["revoked_at"]
    user("GET", "/api/me/", status=401)
    assert AuditEntry.objects.get(verb="revoke_key").reason == "leaked"


def test_a_keys_rates_are_set_changed_and_published(cast: Cast) -> None:
    owner = of(cast, "owner")
    made = owner("POST", "/api/keys/", {"name": "ci", "requests_per_s": 5, "rows_per_s": 100.5}, 201)
    assert (made["requests_per_s"], made["rows_per_s"]) == (5.0, 100.5)
    changed = owner("PATCH", f"/api/keys/{made['id']}/", {"requests_per_s": 0})
    assert (changed["requests_per_s"], changed["rows_per_s"]) == (0.0, 100.5)
    entry = AuditEntry.objects.get(verb="set_key_rates")
    assert entry.before == {"requests_per_s": 5.0, "rows_per_s": 100.5}
    assert entry.after == {"requests_per_s": 0.0, "rows_per_s": 100.5}
    owner("PATCH", f"/api/keys/{made['id']}/", {"rows_per_s": 100.5})
    assert AuditEntry.objects.filter(verb="set_key_rates").count() == 1
    published = {key.id: key for key in build_table().keys}[made["id"]]
    assert (published.requests_per_s, published.rows_per_s) == (0.0, 100.5)
    of(cast, "teammate")("PATCH", f"/api/keys/{made['id']}/", {"rows_per_s": 1}, 403)
    owner("POST", f"/api/keys/{made['id']}/revoke/", {})
    owner("PATCH", f"/api/keys/{made['id']}/", {"rows_per_s": 1}, 409)


@pytest.mark.parametrize("rate", [-1, 1e-9, 1e9, "inf", "nan", "many"])
def test_what_is_no_rate_is_refused(cast: Cast, rate: object) -> None:
    of(cast, "owner")("POST", "/api/keys/", {"name": "ci", "rows_per_s": rate}, 400)
    assert not ApiKey.objects.filter(name="ci").exists()


def test_a_limited_key_gives_no_key_more_than_it_has(cast: Cast) -> None:
    made = of(cast, "owner")("POST", "/api/keys/", {"name": "ci", "role": "developer", "requests_per_s": 5}, 201)
    limited = Api({"Authorization": f"Bearer {made['token']}"})
    for wish in ({}, {"requests_per_s": 6}):
        limited("POST", "/api/keys/", {"name": "more", **wish}, 403)
    child = limited("POST", "/api/keys/", {"name": "less", "requests_per_s": 4}, 201)
    limited("PATCH", f"/api/keys/{child['id']}/", {"requests_per_s": 0}, 403)
    limited("PATCH", f"/api/keys/{made['id']}/", {"requests_per_s": 50}, 403)


def test_people_see_their_teams_and_no_others(cast: Cast) -> None:
    names = {row["username"] for row in of(cast, "teammate")("GET", "/api/users/")["results"]}
    assert names == {"owner", "developer", "teammate"}
    names = {row["username"] for row in of(cast, "root")("GET", "/api/users/")["results"]}
    assert names == {"root", "owner", "developer", "teammate", "stranger"}
    actions.set_role(actor=SYSTEM, user=cast.developer, team=cast.blue, role="viewer")
    shown = of(cast, "teammate")("GET", "/api/users/developer/")
    assert shown["teams"] == [{"team": "red", "role": "developer"}]


def test_ones_own_password_needs_the_current_one(cast: Cast) -> None:
    cast.owner.set_password(PASSWORD)
    cast.owner.save()
    client = Client()
    client.force_login(cast.owner)

    def change(current: str) -> int:
        body = {"password": "another horse battery", "current": current}
        return client.post("/api/users/owner/password/", body, content_type="application/json").status_code

    assert change("wrong") == 403
    assert change(PASSWORD) == 204
    assert client.get("/api/me/").status_code == 200, "the session that changed it lives on"
    assert User.objects.get(username="owner").check_password("another horse battery")


def test_a_deactivated_person_is_out_at_once(cast: Cast) -> None:
    client = Client()
    client.force_login(cast.developer)
    assert client.get("/api/me/").status_code == 200
    of(cast, "owner")("POST", "/api/users/developer/deactivate/", {"reason": "left"}, 204)
    assert client.get("/api/me/").status_code == 401


def test_members_come_and_go(cast: Cast) -> None:
    owner = of(cast, "owner")
    team = owner("PUT", "/api/teams/red/members/stranger/", {"role": "operator"})
    assert {"username": "stranger", "role": "operator"} in team["members"]
    team = owner("DELETE", "/api/teams/red/members/stranger/")
    assert "stranger" not in {member["username"] for member in team["members"]}
    owner("PUT", "/api/teams/red/members/nobody/", {"role": "viewer"}, 404)
    owner("PUT", "/api/teams/red/members/stranger/", {"role": "god"}, 400)


def test_the_trail_is_read_by_page_and_filter_and_team(cast: Cast) -> None:
    for number in range(5):
        actions.create_key(actor=SYSTEM, name=f"k{number}", team=cast.red)
    actions.create_key(actor=SYSTEM, name="theirs", team=cast.blue)
    owner = of(cast, "owner")
    first = owner("GET", "/api/audit/", verb="create_key", page_size="4")
    assert len(first["results"]) == 4
    second = owner("GET", first["next"].removeprefix("http://testserver"))
    ids = [row["id"] for row in first["results"] + second["results"]]
    assert ids == sorted(ids, reverse=True)
    assert len(ids) == 6, "five and the caller's own"
    assert {row["team"] for row in first["results"] + second["results"]} == {"red"}
    assert owner("GET", "/api/audit/", verb="revoke_key")["results"] == []
    assert owner("GET", "/api/audit/", team="blue")["results"] == []
    owner("GET", "/api/audit/", status=400, nope="1")
    owner("GET", "/api/audit/", status=400, since="yesterday")
    of(cast, "developer")("GET", "/api/audit/", status=403)


def test_explain_says_why(cast: Cast) -> None:
    ready_version(cast.actor("owner"), cast.red)
    viewer = of(cast, "teammate")
    told = viewer("GET", "/api/explain", verb="deploy", object="model:digits")
    assert told["allowed"] is False
    assert "is viewer in team 'red'; deploy needs developer" in told["because"]
    assert viewer("GET", "/api/explain", verb="view", object="version:digits:1")["allowed"] is True
    viewer("GET", "/api/explain", verb="view", object="endpoint:nothing", status=404)
    asked = of(cast, "owner")("GET", "/api/explain", actor="user:developer", verb="deploy", object="team:red")
    assert asked["allowed"] is True
    viewer("GET", "/api/explain", actor="user:owner", verb="deploy", object="team:red", status=403)
    viewer("GET", "/api/explain", verb="deploy", object="team:blue", status=404)
    viewer("GET", "/api/explain", verb="fly", status=400)
    viewer("GET", "/api/explain", verb="view", object="planet:mars", status=400)


@pytest.mark.parametrize("path", ["/api/keys/", "/api/users/", "/api/teams/", "/api/audit/"])
def test_queries_do_not_grow_with_rows(cast: Cast, path: str) -> None:
    owner = of(cast, "owner")

    def cost() -> int:
        with CaptureQueriesContext(connection) as taken:
            owner("GET", path)
        return len(taken)

    before = cost()
    for number in range(10):
        user = User.objects.create(username=f"u{number}", password="!")
        actions.set_role(actor=SYSTEM, user=user, team=cast.red, role="viewer")
        actions.create_key(actor=SYSTEM, name=f"k{number}", team=cast.red)
    assert cost() == before
    assert before <= 8


def test_the_schema_describes_every_resource(cast: Cast) -> None:
    response = Client().get("/api/schema/?format=json", headers=cast.bearer("teammate"))
    paths = set(response.json()["paths"])
    for wanted in ("/api/models/{model}/versions/", "/api/keys/", "/api/audit/", "/api/endpoints/", "/api/hosts/"):
        assert wanted in paths
    assert not ApiKey.objects.filter(revoked_at__isnull=False).exists()
