"""What is expected of every route of the console process. A route without an entry here fails the suite.

Add a line when you add a route: who may call which method with which rights, and a body that is valid, so that a
refusal is a refusal of the caller and not of the body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.contrib.admindocs.views import simplify_regex
from django.urls import URLPattern, URLResolver, get_resolver

from accounts.permissions import Verb

ANY = None  # whoever is known may


@dataclass(frozen=True)
class Call:
    """One method of a route. needs: the right in the thing's team (ANY: none); superuser: only they may.

    With the right, 4xx other than 401 and 403 may still follow from the state of things.
    """

    needs: Verb | None = ANY
    body: dict[str, Any] | None = None
    superuser: bool = False


@dataclass(frozen=True)
class Route:
    """methods: those that there are (HEAD and OPTIONS follow). scoped: what it names belongs to team `red`.

    public: no login needed. page: for sessions, with forms; anonymous callers are sent to the login page.
    """

    methods: dict[str, Call] = field(default_factory=dict)
    scoped: bool = False
    public: bool = False
    page: bool = False


def _post(needs: Verb, body: dict[str, Any] | None = None) -> Route:
    """A form of the console that changes something of team `red`."""
    return Route({"POST": Call(needs, body or {})}, scoped=True, page=True)


GET = {"GET": Call()}
REASON = {"reason": "because"}
WEBHOOK = {"url": "https://hooks.example.com/x", "team": "red"}
GOLDEN = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 1, 2, 3]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [0, 1, 2, 3]}],
}
PLAN = {"name": "mine", "steps": [{"kind": "set_weight", "weight_bp": 10_000}]}
ROLLOUT = {"endpoint": "digits", "version": 2, "plan": "fast"}
PREFIXES = {"/admin/": Route(page=True)}  # all below it is the superusers', checked as a whole
ROUTES: dict[str, Route] = {
    "/livez": Route(GET, public=True),
    "/readyz": Route(GET, public=True),
    "/api/schema/": Route(GET),
    "/api/docs/": Route(GET),
    # accounts
    "/api/me/": Route(GET),
    "/api/explain/": Route(GET),
    "/api/keys/": Route({**GET, "POST": Call(Verb.MANAGE_KEYS, {"name": "k", "team": "red"})}),
    "/api/keys/<key_id>/": Route(
        {**GET, "DELETE": Call(Verb.MANAGE_KEYS), "PATCH": Call(Verb.MANAGE_KEYS, {"rows_per_s": 9})}, scoped=True
    ),
    "/api/keys/<key_id>/revoke/": Route({"POST": Call(Verb.MANAGE_KEYS, REASON)}, scoped=True),
    "/api/teams/": Route({**GET, "POST": Call(body={"name": "green"}, superuser=True)}),
    "/api/teams/<team>/": Route(GET, scoped=True),
    "/api/teams/<team>/members/<username>/": Route(
        {"PUT": Call(Verb.MANAGE_PEOPLE, {"role": "viewer"}), "DELETE": Call(Verb.MANAGE_PEOPLE)}, scoped=True
    ),
    "/api/users/": Route(
        {**GET, "POST": Call(Verb.MANAGE_PEOPLE, {"username": "new", "password": "correct horse battery"})}
    ),
    "/api/users/<username>/": Route(GET, scoped=True),
    "/api/users/<username>/password/": Route(
        {"POST": Call(Verb.MANAGE_PEOPLE, {"password": "correct horse battery"})}, scoped=True
    ),
    "/api/users/<username>/deactivate/": Route({"POST": Call(Verb.MANAGE_PEOPLE, REASON)}, scoped=True),
    "/api/audit/": Route({"GET": Call(Verb.VIEW_AUDIT)}),
    # registry
    "/api/models/": Route({**GET, "POST": Call(Verb.UPLOAD, {"name": "new", "team": "red"})}),
    "/api/models/<model>/": Route({**GET, "PATCH": Call(Verb.UPLOAD, {"task": "t"})}, scoped=True),
    "/api/models/<model>/versions/": Route(
        {**GET, "POST": Call(Verb.UPLOAD, {"files": [{"path": "f", "sha256": "0" * 64}]})}, scoped=True
    ),
    "/api/models/<model>/versions/<number>/": Route(GET, scoped=True),
    "/api/models/<model>/versions/<number>/report/": Route(GET, scoped=True),
    "/api/models/<model>/versions/<number>/approve/": Route({"POST": Call(Verb.APPROVE, REASON)}, scoped=True),
    "/api/models/<model>/versions/<number>/reject/": Route({"POST": Call(Verb.APPROVE, REASON)}, scoped=True),
    "/api/models/<model>/versions/<number>/archive/": Route({"POST": Call(Verb.DEPLOY, REASON)}, scoped=True),
    "/api/models/<model>/versions/<number>/convert/": Route({"POST": Call(Verb.UPLOAD, {})}, scoped=True),
    "/api/models/<model>/versions/<number>/converted/": Route({"GET": Call(Verb.UPLOAD)}, scoped=True),
    "/api/models/<model>/aliases/": Route(GET, scoped=True),
    "/api/models/<model>/aliases/<alias>/": Route(
        {**GET, "PUT": Call(Verb.DEPLOY, {"version": 1}), "DELETE": Call(Verb.DEPLOY)}, scoped=True
    ),
    "/api/models/<model>/aliases/<alias>/history/": Route(GET, scoped=True),
    "/api/models/<model>/golden/": Route({**GET, "POST": Call(Verb.UPLOAD, GOLDEN)}, scoped=True),
    "/api/models/<model>/golden/<golden>/": Route({**GET, "DELETE": Call(Verb.UPLOAD)}, scoped=True),
    "/api/blobs/check/": Route({"POST": Call(Verb.UPLOAD, {"sha256": []})}),
    # fleet
    "/api/hosts/": Route(GET),
    "/api/hosts/<name>/": Route(GET),
    "/api/hosts/<name>/drain/": Route({"POST": Call(body={}, superuser=True)}),
    "/api/hosts/<name>/undrain/": Route({"POST": Call(body={}, superuser=True)}),
    "/api/replicas/": Route(GET),
    "/api/replicas/<pk>/": Route(GET, scoped=True),
    "/api/replicas/<pk>/restart/": Route({"POST": Call(Verb.OPERATE, {})}, scoped=True),
    "/api/deployments/": Route({**GET, "POST": Call(Verb.DEPLOY, {"model": "digits", "version": 1, "replicas": 2})}),
    "/api/deployments/<pk>/": Route(GET, scoped=True),
    "/api/deployments/<pk>/scale/": Route({"PUT": Call(Verb.DEPLOY, {"replicas": 1})}, scoped=True),
    # endpoints
    "/api/endpoints/": Route({**GET, "POST": Call(Verb.DEPLOY, {"model": "digits", "version": 1, "name": "other"})}),
    "/api/endpoints/<name>/": Route({**GET, "DELETE": Call(Verb.DEPLOY)}, scoped=True),
    "/api/endpoints/<name>/access/": Route({"PUT": Call(Verb.OPERATE, {"access": "public"})}, scoped=True),
    "/api/endpoints/<name>/adapters/": Route(
        {"POST": Call(Verb.DEPLOY, {"model": "digits", "version": 1})}, scoped=True
    ),
    "/api/endpoints/<name>/adapters/<adapter>/": Route({"DELETE": Call(Verb.DEPLOY)}, scoped=True),
    "/api/endpoints/<name>/deploy/": Route({"POST": Call(Verb.DEPLOY, {"version": 1})}, scoped=True),
    "/api/endpoints/<name>/metrics/": Route(GET, scoped=True),
    "/api/endpoints/<name>/recorded/": Route({**GET, "DELETE": Call(Verb.DEPLOY)}, scoped=True),
    "/api/endpoints/<name>/recording/": Route({"POST": Call(Verb.DEPLOY, {"share_bp": 0})}, scoped=True),
    "/api/endpoints/<name>/replays/": Route({**GET, "POST": Call(Verb.DEPLOY, {"version": 1})}, scoped=True),
    "/api/endpoints/<name>/undeploy/": Route({"POST": Call(Verb.DEPLOY, {"version": 1})}, scoped=True),
    "/api/endpoints/<name>/weights/": Route({"PUT": Call(Verb.DEPLOY, {"weights": {"1": 10_000}})}, scoped=True),
    "/api/repository/": Route({"PUT": Call(body={"models": []}, superuser=True)}),
    "/api/repository/<name>/answer/": Route({"POST": Call(body={"load": 1}, superuser=True)}),
    "/v2/repository/index": Route({"POST": Call(body={})}),
    "/v2/repository/models/<name>/load": Route({"POST": Call(Verb.OPERATE, {})}, scoped=True),
    "/v2/repository/models/<name>/unload": Route({"POST": Call(Verb.OPERATE, {})}, scoped=True),
    # rollouts
    "/api/endpoints/<name>/rollback/": Route({"POST": Call(Verb.DEPLOY, REASON)}, scoped=True),
    "/api/plans/": Route({**GET, "POST": Call(Verb.DEPLOY, {"plan": PLAN, "team": "red"})}),
    "/api/rollouts/": Route({**GET, "POST": Call(Verb.DEPLOY, ROLLOUT)}),
    "/api/rollouts/<pk>/": Route(GET, scoped=True),
    "/api/rollouts/<pk>/promote/": Route({"POST": Call(Verb.DEPLOY, REASON)}, scoped=True),
    "/api/rollouts/<pk>/promote_full/": Route({"POST": Call(Verb.DEPLOY, REASON)}, scoped=True),
    "/api/rollouts/<pk>/pause/": Route({"POST": Call(Verb.DEPLOY, REASON)}, scoped=True),
    "/api/rollouts/<pk>/resume/": Route({"POST": Call(Verb.DEPLOY, REASON)}, scoped=True),
    "/api/rollouts/<pk>/extend/": Route({"POST": Call(Verb.DEPLOY, REASON)}, scoped=True),
    "/api/rollouts/<pk>/approve/": Route({"POST": Call(Verb.OPERATE, REASON)}, scoped=True),
    "/api/rollouts/<pk>/abort/": Route({"POST": Call(Verb.DEPLOY, REASON)}, scoped=True),
    "/api/rollouts/<pk>/events/": Route(GET, scoped=True),
    "/api/rollouts/<pk>/guardrails/": Route(GET, scoped=True),
    "/api/rollouts/<pk>/readings/": Route(GET, scoped=True),
    "/api/webhooks/": Route({**GET, "POST": Call(Verb.OPERATE, WEBHOOK)}),
    "/api/webhooks/<webhook>/": Route(
        {"GET": Call(Verb.OPERATE), "PATCH": Call(Verb.OPERATE, {"enabled": False}), "DELETE": Call(Verb.OPERATE)},
        scoped=True,
    ),
    "/api/webhooks/<webhook>/test/": Route({"POST": Call(Verb.OPERATE, {})}, scoped=True),
    "/api/webhooks/<webhook>/deliveries/": Route({"GET": Call(Verb.OPERATE)}, scoped=True),
    # console
    "/login/": Route({"GET": Call(), "POST": Call(), "PUT": Call()}, public=True, page=True),
    "/logout/": Route({"POST": Call()}, page=True),
    "/": Route(GET, page=True),
    "/models/": Route(GET, page=True),
    "/models/<name>/": Route(GET, scoped=True, page=True),
    "/models/<name>/describe/": _post(Verb.UPLOAD, {"task": "t", "description": "d"}),
    "/models/<name>/aliases/": _post(Verb.DEPLOY, {"alias": "best", "version": "1"}),
    "/models/<name>/aliases/<alias>/delete/": _post(Verb.DEPLOY),
    "/models/<name>/golden/<golden>/remove/": _post(Verb.UPLOAD),
    "/models/<name>/versions/<number>/": Route(GET, scoped=True, page=True),
    "/models/<name>/versions/<number>/report.json": Route(GET, scoped=True, page=True),
    "/models/<name>/versions/<number>/deploy/": _post(Verb.DEPLOY, {"endpoint": "other", "replicas": "1"}),
    "/models/<name>/versions/<number>/approve/": _post(Verb.APPROVE, REASON),
    "/models/<name>/versions/<number>/reject/": _post(Verb.APPROVE, REASON),
    "/models/<name>/versions/<number>/archive/": _post(Verb.DEPLOY, REASON),
    "/models/<name>/versions/<number>/convert/": _post(Verb.UPLOAD),
    "/models/<name>/versions/<number>/converted/": Route({"GET": Call(Verb.UPLOAD)}, scoped=True, page=True),
    "/upload/": Route({"GET": Call(Verb.UPLOAD)}, page=True),
    "/pipelines/new/": Route({"GET": Call(Verb.UPLOAD)}, page=True),
    "/pipelines/check/": Route({"POST": Call(Verb.UPLOAD, {"definition": "{}"})}, page=True),
    "/pipelines/create/": Route({"POST": Call(Verb.UPLOAD, {"model": "new", "definition": "{}"})}, page=True),
    "/endpoints/": Route(GET, page=True),
    "/endpoints/<name>/": Route(GET, scoped=True, page=True),
    "/endpoints/<name>/weights/": _post(Verb.DEPLOY, {"percent_1": "100"}),
    "/endpoints/<name>/access/": _post(Verb.OPERATE, {"access": "public"}),
    "/endpoints/<name>/delete/": _post(Verb.DEPLOY),
    "/endpoints/<name>/adapters/": _post(Verb.DEPLOY, {"version": "digits:1"}),
    "/endpoints/<name>/adapters/<adapter>/remove/": _post(Verb.DEPLOY),
    "/endpoints/<name>/try/": Route({"POST": Call(Verb.VIEW, {"request": {"inputs": []}})}, scoped=True, page=True),
    "/endpoints/<name>/golden/": Route(
        {
            "POST": Call(
                Verb.UPLOAD, {"request": {"inputs": GOLDEN["inputs"]}, "response": {"outputs": GOLDEN["outputs"]}}
            )
        },
        scoped=True,
        page=True,
    ),
    "/endpoints/<name>/versions/<number>/undeploy/": _post(Verb.DEPLOY),
    "/endpoints/<name>/versions/<number>/scale/": _post(Verb.DEPLOY, {"replicas": "2"}),
    "/fleet/": Route(GET, page=True),
    "/fleet/hosts/<name>/drain/": Route({"POST": Call(body={"draining": "1"}, superuser=True)}, page=True),
    "/fleet/replicas/<replica>/": Route(GET, scoped=True, page=True),
    "/fleet/replicas/<replica>/restart/": _post(Verb.OPERATE),
    "/keys/": Route({"GET": Call(Verb.MANAGE_KEYS)}, page=True),
    "/keys/new/": Route({"POST": Call(Verb.MANAGE_KEYS, {"name": "k", "team": "red", "role": "viewer"})}, page=True),
    "/keys/<key>/rates/": _post(Verb.MANAGE_KEYS, {"requests_per_s": "5"}),
    "/keys/<key>/revoke/": _post(Verb.MANAGE_KEYS),
    "/people/": Route(GET, page=True),
    "/people/new/": Route(
        {"POST": Call(Verb.MANAGE_PEOPLE, {"username": "new", "password": "correct horse battery"})}, page=True
    ),
    "/people/teams/new/": Route({"POST": Call(body={"name": "green"}, superuser=True)}, page=True),
    "/people/why/": Route(GET, page=True),
    "/people/member/": _post(Verb.MANAGE_PEOPLE, {"username": "stranger", "team": "red", "role": "viewer"}),
    "/people/u/<username>/": Route(GET, scoped=True, page=True),
    "/people/u/<username>/role/": _post(Verb.MANAGE_PEOPLE, {"team": "red", "role": "operator"}),
    "/people/u/<username>/password/": _post(Verb.MANAGE_PEOPLE, {"password": "correct horse battery"}),
    "/people/u/<username>/deactivate/": _post(Verb.MANAGE_PEOPLE),
    "/audit/": Route({"GET": Call(Verb.VIEW_AUDIT)}, page=True),
    "/webhooks/": Route({"GET": Call(Verb.OPERATE)}, page=True),
    "/webhooks/new/": Route({"POST": Call(Verb.OPERATE, WEBHOOK)}, page=True),
    "/webhooks/<webhook>/": Route({"GET": Call(Verb.OPERATE)}, scoped=True, page=True),
    "/webhooks/<webhook>/test/": _post(Verb.OPERATE),
    "/webhooks/<webhook>/switch/": _post(Verb.OPERATE, {"enabled": "0"}),
    "/webhooks/<webhook>/delete/": _post(Verb.OPERATE),
    # jobs; POST /v1/files is a raw ASGI application (tests/integration/test_jobs_api.py)
    "/endpoints/<name>/rollouts/new/": Route({"GET": Call(Verb.DEPLOY)}, scoped=True, page=True),
    "/endpoints/<name>/rollouts/preview/": _post(Verb.DEPLOY, {"version": "2", "plan": "fast"}),
    "/endpoints/<name>/rollouts/start/": _post(Verb.DEPLOY, {"version": "2", "plan": "fast"}),
    "/plans/": Route(GET, page=True),
    "/plans/save/": Route({"POST": Call(Verb.DEPLOY, {"team": "red", "plan": json.dumps(PLAN)})}, page=True),
    "/endpoints/<name>/rollback/": _post(Verb.DEPLOY, REASON),
    "/rollouts/": Route(GET, page=True),
    "/rollouts/<rollout>/": Route(GET, scoped=True, page=True),
    "/rollouts/<rollout>/readings.json": Route(GET, scoped=True, page=True),
    "/rollouts/<rollout>/promote/": _post(Verb.DEPLOY, REASON),
    "/rollouts/<rollout>/promote_full/": _post(Verb.DEPLOY, REASON),
    "/rollouts/<rollout>/pause/": _post(Verb.DEPLOY, REASON),
    "/rollouts/<rollout>/resume/": _post(Verb.DEPLOY, REASON),
    "/rollouts/<rollout>/extend/": _post(Verb.DEPLOY, REASON),
    "/rollouts/<rollout>/approve/": _post(Verb.OPERATE, REASON),
    "/rollouts/<rollout>/abort/": _post(Verb.DEPLOY, REASON),
    "/playground/": Route(GET, page=True),
    "/jobs/": Route(GET, page=True),
    "/jobs/<job>/": Route(GET, scoped=True, page=True),
    "/jobs/<job>/cancel/": _post(Verb.DEPLOY),
    "/v1/files": Route(GET),
    "/v1/files/<file_id>": Route({**GET, "DELETE": Call(Verb.DEPLOY)}, scoped=True),
    "/v1/files/<file_id>/content": Route(GET, scoped=True),
    "/v1/batches": Route(
        {
            **GET,
            "POST": Call(body={"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}),
        }
    ),
    "/v1/batches/<batch_id>": Route(GET, scoped=True),
    "/v1/batches/<batch_id>/cancel": Route({"POST": Call(Verb.DEPLOY)}, scoped=True),
}


def walk(patterns: list[Any] | None = None, before: str = "") -> Iterator[tuple[str, URLPattern]]:
    """(simplified route, pattern) of every URL, as "/api/models/<model>/"."""
    for entry in get_resolver().url_patterns if patterns is None else patterns:
        route = before + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from walk(entry.url_patterns, route)
        else:
            yield simplified(route), entry


def simplified(route: str) -> str:
    """simplify_regex, for routes that mix include prefixes and regular expressions."""
    found: str = simplify_regex(route)
    found = re.sub(r"<\w+:(\w+)>", r"<\1>", found)
    return "/" + found.lstrip("/").replace("/?", "/").replace("\\Z", "")


def expected(route: str) -> Route | None:
    for prefix, entry in PREFIXES.items():
        if route.startswith(prefix):
            return entry
    return ROUTES.get(route)


def fill(route: str, values: dict[str, Any]) -> str:
    """The route's path with `values` in its places."""
    path = re.sub(r"<(\w+)>", lambda found: str(values[found.group(1)]), route)
    return path[:-1] if path == "/api/explain/" else path
