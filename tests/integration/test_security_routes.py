"""Every route, every method, every kind of caller: generated from the URL conf and tests.support.routes."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from accounts.models import AuditEntry, Membership, User
from accounts.permissions import MAY, Role
from endpoints import actions as endpoints
from fleet.models import Deployment, Host, Replica
from registry import actions as registry
from registry.golden import Golden
from rollouts import actions as rollouts
from rollouts.models import Rollout
from rollouts.plans import Approve, Plan, SetWeight
from rollouts.webhooks import create_webhook
from tests.support.batches import begin, line, upload
from tests.support.cast import Cast, make_cast
from tests.support.contents import ready_version
from tests.support.hygiene import LEAKS
from tests.support.rollouts import stage
from tests.support.routes import GOLDEN, PREFIXES, ROUTES, Call, Route, expected, fill, walk
from tests.support.shared_rows import bring_files, shared_rows

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
REFUSED = {401, 403, 404, 405}
ALL = sorted({route for route, _ in walk()})
KNOWN = sorted(route for route, entry in ROUTES.items() if not entry.public)
CALLS = [(route, method) for route in KNOWN for method in ROUTES[route].methods]


@dataclass(frozen=True)
class Caller:
    """Somebody at both doors: a key at the API, a session at the pages."""

    headers: dict[str, str]
    user: User | None = None


NOBODY = Caller({})


@dataclass
class World:
    """Team red owns one of everything."""

    cast: Cast
    values: dict[str, Any]

    def call(self, route: str, method: str, caller: Caller, body: dict[str, Any] | None = None) -> Any:
        entry, client = expected(route), Client(raise_request_exception=False)
        path = fill(route, self.here(route))
        if entry is None or not entry.page:
            data = json.dumps({} if body is None else body)
            return client.generic(method, path, data, content_type="application/json", headers=caller.headers)
        if caller.user is not None:
            client.force_login(caller.user, backend="accounts.login.LimitedBackend")
        if method == "POST" and route.endswith(("/try/", "/<name>/golden/")):
            return client.generic(method, path, json.dumps(body), content_type="application/json")
        if method == "POST":
            return client.post(path, body or {})
        return client.generic(method, path)

    def here(self, route: str) -> dict[str, Any]:
        """What stands in the places of this route: `name` and `pk` mean something else at each kind of thing."""
        values = dict(self.values)
        if "/hosts/" in route:
            values["name"] = values["host"]
        kind = route.removeprefix("/api/").partition("/")[0]
        values["pk"] = values[{"replicas": "replica", "rollouts": "rollout"}.get(kind, "deployment")]
        return values

    def person(self, name: str) -> Caller:
        return Caller(self.cast.bearer(name), getattr(self.cast, name))

    def in_role(self, role: str) -> Caller:
        """The teammate with this role in team red."""
        Membership.objects.filter(user=self.cast.teammate).update(role=role)
        return Caller(self.cast.bearer("teammate", role=role), self.cast.teammate)


@pytest.fixture(scope="module")
def furnished(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[World, Path]]:
    """The rows that every test here begins with, and the folder of their files: made once."""
    folder = tmp_path_factory.mktemp("world")
    with shared_rows(django_db_blocker, folder, lambda: made_world(make_cast())) as made:
        yield made, folder


@pytest.fixture
def world(furnished: tuple[World, Path], db: None, settings: Any) -> World:
    settings.MODEL_LOAD_TIMEOUT_S = 0.1  # no host here ever makes a replica ready
    found, folder = furnished
    bring_files(folder)
    return copy.deepcopy(found)


def made_world(cast: Cast) -> World:
    owner = cast.actor("owner")
    rollout = begun_rollout(cast)
    version = ready_version(owner, cast.red, alias="champion")
    endpoints.deploy(version=version, actor=owner)
    host = Host.objects.create(name="host-a")
    deployment = Deployment.objects.get(version=version)
    replica = Replica.objects.create(deployment=deployment, host=host)
    key = cast.key("developer")[4:16]
    golden = registry.save_golden(actor=owner, model=version.model, golden=Golden(GOLDEN["inputs"], GOLDEN["outputs"]))
    webhook, _ = create_webhook(actor=owner, team=cast.red, url="https://hooks.example.com/x")
    batch, file = begin(owner, [line(0)], team=cast.red), upload(owner, b"{}", cast.red)
    common = {
        "key_id": key,
        "team": "red",
        "username": "developer",
        "model": "digits",
        "number": 1,
        "alias": "champion",
        "key": key,
        "adapter": "fr",
        "golden": golden.pk,
        "webhook": webhook.pk,
        "job": batch.public_id,
        "batch_id": batch.public_id,
        "file_id": file.public_id,
        "rollout": rollout.pk,
    }
    return World(cast, {**common, "name": "digits", "pk": "", "host": host.name} | {
        "deployment": deployment.pk, "replica": replica.pk})  # fmt: skip


def begun_rollout(cast: Cast) -> Rollout:
    """One of another endpoint of team red, which waits for an approval."""
    endpoint, _, candidate = stage(cast.actor("owner"), name="moving", of=cast.red)
    plan = Plan("mine", [SetWeight(100), Approve("operator"), SetWeight(10_000)])
    begun = rollouts.start(endpoint=endpoint, version=candidate, plan=plan, actor=cast.actor("owner"))
    Rollout.objects.filter(pk=begun.pk).update(phase="awaiting_approval", step=1)
    return begun


def check_hygiene(response: Any) -> None:
    """An error says what, never where."""
    if response.status_code >= 400 and not response.streaming:
        assert not LEAKS.search(response.content.decode()), response.content[:500]


def test_every_route_has_an_entry_and_every_entry_a_route() -> None:
    missing = [route for route in ALL if expected(route) is None]
    assert missing == [], "add these to tests/support/routes.py"
    gone = [route for route in ROUTES if route not in ALL]
    assert gone == []


def test_nobody_unknown_gets_in(world: World) -> None:
    before = AuditEntry.objects.count()
    for route in (route for route in ALL if not route.startswith("/admin/")):
        entry = expected(route)
        assert entry is not None
        for method in METHODS:
            response = world.call(route, method, NOBODY, _body(entry, method))
            check_hygiene(response)
            if entry.public:
                assert response.status_code in {200, 403, 405}, f"{method} {route}"
            elif response.status_code == 302:
                assert entry.page, f"{method} {route}"
                assert "/login/" in response["Location"], f"{method} {route}"
            else:
                assert response.status_code in REFUSED, f"{method} {route}"
    assert AuditEntry.objects.count() == before


def _body(entry: Route, method: str) -> dict[str, Any] | None:
    call = entry.methods.get(method)
    return call.body if call else None


def test_only_the_methods_of_the_table_exist(world: World) -> None:
    caller = world.person("root")
    for route in KNOWN:
        entry = ROUTES[route]
        extra = {"OPTIONS"} | ({"HEAD"} if "GET" in entry.methods else set())
        for method in sorted(set(METHODS) - set(entry.methods) - extra):
            response = world.call(route, method, caller)
            assert response.status_code == 405, f"{method} {route}: {response.status_code}"
            check_hygiene(response)


def _may(call: Call, role: str) -> bool:
    return not call.superuser and (call.needs is None or call.needs in MAY[role])


REFUSABLE = [(route, method) for route, method in CALLS if not _may(ROUTES[route].methods[method], Role.VIEWER)]


@pytest.mark.parametrize(("route", "method"), REFUSABLE)
def test_a_key_without_the_right_is_refused(world: World, route: str, method: str) -> None:
    call = ROUTES[route].methods[method]
    for role in (role for role in Role.values if not _may(call, role)):
        caller = world.in_role(role)
        before = AuditEntry.objects.count()
        response = world.call(route, method, caller, call.body)
        assert response.status_code in {403, 404}, f"{role}: {method} {route}: {response.status_code}"
        assert AuditEntry.objects.count() == before
        check_hygiene(response)


@pytest.mark.parametrize(("route", "method"), CALLS)
def test_the_right_opens_the_door_and_every_change_is_audited(world: World, route: str, method: str) -> None:
    call = ROUTES[route].methods[method]
    before = AuditEntry.objects.count()
    response = world.call(route, method, world.person("root"), call.body)
    assert response.status_code not in {401, 403, 405}
    assert response.status_code < 500
    check_hygiene(response)
    # The cast's own key is the first of the new entries.
    changed = AuditEntry.objects.count() - before - 1
    if method in {"POST", "PUT", "PATCH", "DELETE"} and response.status_code < 400 and route not in UNCHANGED:
        assert changed >= 1, f"{method} {route} left no audit entry"
    if method == "GET":
        assert changed == 0


# A question asked by POST, wishes that are already so, and forms whose refusal is a message on the page they go back to.
UNCHANGED = {
    "/pipelines/check/",
    "/api/blobs/check/",
    "/api/deployments/<pk>/scale/",
    "/api/endpoints/<name>/weights/",
    "/api/hosts/<name>/undrain/",
    "/api/models/<model>/aliases/<alias>/",
    "/api/repository/",
    "/endpoints/<name>/adapters/",
    "/endpoints/<name>/try/",
    "/endpoints/<name>/weights/",
    "/logout/",
    "/endpoints/<name>/rollback/",
    "/endpoints/<name>/rollouts/preview/",
    "/rollouts/<rollout>/resume/",
    "/models/<name>/versions/<number>/approve/",
    "/models/<name>/versions/<number>/archive/",
    "/models/<name>/versions/<number>/convert/",
    "/models/<name>/versions/<number>/reject/",
    "/v2/repository/index",
}


def test_what_others_own_does_not_exist(world: World) -> None:
    caller = world.person("stranger")
    before = AuditEntry.objects.count()
    for route in (route for route in KNOWN if ROUTES[route].scoped):
        for method, call in ROUTES[route].methods.items():
            response = world.call(route, method, caller, call.body)
            assert response.status_code in {403, 404}, f"{method} {route}: {response.status_code}"
    assert AuditEntry.objects.count() == before


def test_lists_show_nothing_of_other_teams(world: World) -> None:
    caller = world.person("stranger")
    for route in (r for r in KNOWN if "GET" in ROUTES[r].methods and "<" not in r and not ROUTES[r].page):
        shown = world.call(route, "GET", caller).content.decode()
        for secret in ("digits", "developer", '"red"', world.values["key_id"]):
            described = route in {"/api/schema/", "/api/docs/"}  # they name roles and shapes, never rows
            assert described or secret not in shown, f"{route} shows {secret}"


def test_the_admin_is_for_superusers(world: World) -> None:
    paths = [route for route, _ in walk() if route.startswith("/admin/") and "<" not in route]
    assert len(paths) > 5
    owner = Client()
    owner.force_login(world.cast.owner)
    for path in paths:
        for client in (Client(), owner):
            response = client.get(path)
            if path in {"/admin/login/", "/admin/logout/", "/admin/jsi18n/"}:
                continue
            assert response.status_code in {301, 302, 403, 404, 405}, path
            assert response.get("Location", "/login").find("login") >= 0 or response.status_code != 302


def test_the_audit_trail_is_read_only_in_the_admin(world: World) -> None:
    client = Client()
    client.force_login(world.cast.root)
    entry = AuditEntry.objects.first()
    assert entry is not None
    assert client.get("/admin/accounts/auditentry/").status_code == 200
    names = re.findall(r'<a href="/admin/[a-z]+/[a-z]+/"[^>]*>([^<]+)</a>', client.get("/admin/").content.decode())
    assert {"Audit entries", "API keys", "Batches", "Replicas"} <= set(names)
    assert not [name for name in names if re.search(r"([^aeiou]y|ch|sh|s|x|z)s$", name)]
    for path in ("add/", f"{entry.pk}/delete/"):
        assert client.post(f"/admin/accounts/auditentry/{path}", {"post": "yes"}).status_code == 403
    assert client.post(f"/admin/accounts/auditentry/{entry.pk}/change/", {"actor": "x"}).status_code == 403


def test_prefixes_are_few() -> None:
    """A prefix entry is a hole in the table: each one has a test of its own."""
    assert set(PREFIXES) == {"/admin/"}


def test_a_session_changes_nothing_without_its_csrf_token(world: World) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(world.cast.owner)
    before = AuditEntry.objects.count()
    response = client.post("/api/keys/", {"name": "k"}, content_type="application/json")
    assert response.status_code == 403
    assert AuditEntry.objects.count() == before
