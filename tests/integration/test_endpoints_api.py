"""The control API of endpoints, hosts, replicas and deployments, as owner, teammate, stranger and nobody."""

from __future__ import annotations

import pytest
from rest_framework.test import APIClient

from accounts import keys
from accounts.models import ApiKey, Role, Team
from endpoints.models import Endpoint
from endpoints.publish import build_table
from fleet import actions as fleet
from fleet.models import Host, Replica
from inference.protocol.supervision import Seen
from telemetry.models import StoredSample
from tests.support.fleet_cast import devices, team, version

pytestmark = [pytest.mark.django_db]


@pytest.fixture(autouse=True)
def _lean(monkeypatch: pytest.MonkeyPatch, settings) -> None:
    """No broker, and no static files, whose folder is collected by `serinus up` only."""
    from accounts import wakeups

    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "whitenoise" not in name]
    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)


def caller(role: str = Role.DEVELOPER, of: Team | None = None, **more: object) -> APIClient:
    key_id, secret = keys.new_key()
    ApiKey.objects.create(id=key_id, digest=keys.digest(secret), name="t", team=of or team(), role=role, **more)
    found = APIClient()
    found.credentials(HTTP_AUTHORIZATION=f"Bearer {keys.token(key_id, secret)}")
    return found


def deployed(by: APIClient, number: int = 1, **more: object):
    return by.post("/api/endpoints/", {"name": "front", "model": "digits", "version": number} | more, format="json")


@pytest.fixture
def dev() -> APIClient:
    version()
    version()
    return caller()


def test_deploy_split_and_remove(dev: APIClient) -> None:
    answer = deployed(dev, 1, replicas=2, device="cpu")
    assert answer.status_code == 201, answer.json()
    body = answer.json()
    assert (body["name"], body["model"], body["team"], body["access"]) == ("front", "digits", "canaries", "key")
    assert body["variants"] == [
        {
            "version": 1, "weight_bp": 10_000, "role": "primary", "replicas": 2, "ready_replicas": 0, "device": "cpu",
            "reason": "",
        }
    ]  # fmt: skip
    revision = deployed(dev, 2).json()["revision"]
    split = {"weights": {"1": 9000, "2": 1000}, "revision": revision}
    refused = dev.put("/api/endpoints/front/weights/", split, format="json")
    assert refused.status_code == 409
    assert "no ready replica" in refused.json()["error"]["message"]
    split["force"] = True
    answer = dev.put("/api/endpoints/front/weights/", split, format="json")
    assert [v["weight_bp"] for v in answer.json()["variants"]] == [9000, 1000]
    again = dev.put("/api/endpoints/front/weights/", split, format="json")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
    assert dev.post("/api/endpoints/front/undeploy/", {"version": 2}, format="json").status_code == 409
    dev.put("/api/endpoints/front/weights/", {"weights": {"1": 10_000}}, format="json")
    gone = dev.post("/api/endpoints/front/undeploy/", {"version": 2}, format="json")
    assert len(gone.json()["variants"]) == 1
    assert dev.delete("/api/endpoints/front/").status_code == 204
    assert dev.get("/api/endpoints/front/").status_code == 404


def test_deploying_behind_a_named_endpoint(dev: APIClient) -> None:
    deployed(dev)
    answer = dev.post("/api/endpoints/front/deploy/", {"version": 2, "weight_bp": 2500}, format="json")
    assert [v["weight_bp"] for v in answer.json()["variants"]] == [7500, 2500]


def test_access(dev: APIClient) -> None:
    deployed(dev)
    assert dev.put("/api/endpoints/front/access/", {"access": "public"}, format="json").status_code == 403
    operator = caller(Role.OPERATOR)
    closed = operator.put("/api/endpoints/front/access/", {"access": "key", "may_pin": False}, format="json")
    assert (closed.json()["access"], closed.json()["may_pin"]) == ("key", False)
    assert build_table().endpoints[0].may_pin is False
    answer = operator.put("/api/endpoints/front/access/", {"access": "public"}, format="json")
    assert (answer.json()["access"], answer.json()["may_pin"]) == ("public", False)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("get", "/api/endpoints/front/", None),
        ("put", "/api/endpoints/front/weights/", {"weights": {"1": 10_000}}),
        ("put", "/api/endpoints/front/access/", {"access": "public"}),
        ("post", "/api/endpoints/front/deploy/", {"version": 1}),
        ("get", "/api/endpoints/front/metrics/", None),
        ("post", "/api/endpoints/front/undeploy/", {"version": 1}),
        ("delete", "/api/endpoints/front/", None),
    ],
)
def test_a_stranger_sees_nothing_and_a_viewer_only_looks(dev: APIClient, method: str, path: str, body) -> None:
    deployed(dev)
    stranger, viewer = caller(Role.ADMIN, Team.objects.create(name="crows")), caller(Role.VIEWER)
    assert getattr(stranger, method)(path, body, format="json").status_code == 404
    assert getattr(viewer, method)(path, body, format="json").status_code == (200 if method == "get" else 403)
    assert getattr(APIClient(), method)(path, body, format="json").status_code == 401
    assert Endpoint.objects.get().access == "key"


def test_lists_hold_only_ones_own(dev: APIClient) -> None:
    deployed(dev)
    fleet.heartbeat_host("a", Seen("b", 1, [], [], devices()))
    fleet.reconcile()
    stranger = caller(Role.ADMIN, Team.objects.create(name="crows"))
    for path, count in (("endpoints", 1), ("replicas", 1), ("deployments", 1)):
        assert len(dev.get(f"/api/{path}/").json()["results"]) == count, path
        assert stranger.get(f"/api/{path}/").json()["results"] == [], path
    assert dev.get("/api/hosts/").json()["results"][0]["alive"] is True
    assert dev.get("/api/hosts/a/").json()["devices"][0]["name"] == "cpu"


def test_a_stranger_can_deploy_no_version_of_others(dev: APIClient) -> None:
    stranger = caller(Role.ADMIN, Team.objects.create(name="crows"))
    assert deployed(stranger).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {}, {"model": "digits"}, {"model": "digits", "version": "x"}, {"model": "digits", "version": 0},
        {"model": "digits", "version": 1, "replicas": -1}, {"model": "digits", "version": 1, "replicas": 1000},
        {"model": "digits", "version": 1, "device": "gpu"}, {"model": "digits", "version": 1, "access": "all"},
        {"model": "digits", "version": 1, "name": "../x"}, {"model": "digits", "version": 10**30},
        {"model": ["digits"], "version": 1}, {"model": "digits", "version": 1, "weight_bp": 10_001},
    ],
)  # fmt: skip
def test_bad_deployments_are_typed_errors(dev: APIClient, body: dict) -> None:
    answer = dev.post("/api/endpoints/", body, format="json")
    assert answer.status_code == 400, answer.content
    assert answer.json()["error"]["code"]
    assert not Endpoint.objects.exists()


@pytest.mark.parametrize(
    "body", [[], "x", {"weights": []}, {"weights": {}}, {"weights": {"a": 10_000}}, {"weights": {"1": "x"}}, {}]
)
def test_bad_weights_are_typed_errors(dev: APIClient, body) -> None:
    deployed(dev)
    answer = dev.put("/api/endpoints/front/weights/", body, format="json")
    assert (answer.status_code, "error" in answer.json()) == (400, True)


@pytest.mark.parametrize("body", [[], "x", 3, None])
def test_a_body_that_is_no_object_is_a_typed_error(dev: APIClient, body) -> None:
    deployed(dev)
    for path in ("/api/endpoints/", "/api/endpoints/front/deploy/"):
        assert dev.post(path, body, format="json").status_code == 400


def test_metrics(dev: APIClient) -> None:
    from django.utils import timezone

    deployed(dev)
    StoredSample.objects.create(
        source="g", sequence=1, at=timezone.now(), endpoint="front", version=1, arm="primary", requests=4,
        latency_counts={"8": 4},
    )  # fmt: skip
    body = dev.get("/api/endpoints/front/metrics/?seconds=60").json()
    assert body["series"][0]["requests"] == body["summary"][0]["requests"] == 4
    assert body["series"][0]["p99_ms"] > 0
    for bad in ("0", "-1", "x", "86401", "9" * 400, "\u0663"):
        assert dev.get("/api/endpoints/front/metrics/", {"seconds": bad}).status_code == 400


def test_hosts_are_drained_by_the_platforms_admin(dev: APIClient) -> None:
    fleet.heartbeat_host("a", Seen("b", 1, [], [], devices()))
    assert caller(Role.ADMIN).post("/api/hosts/a/drain/").status_code == 403
    root = caller(Role.ADMIN, platform_admin=True)
    assert root.post("/api/hosts/a/drain/").json()["draining"] is True
    assert root.post("/api/hosts/a/undrain/").json()["draining"] is False
    assert root.post("/api/hosts/nowhere/drain/").status_code == 404
    assert Host.objects.count() == 1


def test_replicas_restart_and_deployments_scale(dev: APIClient) -> None:
    deployed(dev)
    fleet.heartbeat_host("a", Seen("b", 1, [], [], devices()))
    fleet.reconcile()
    row = Replica.objects.get()
    path = f"/api/replicas/{row.id}/restart/"
    assert dev.post(path).status_code == 403
    assert caller(Role.OPERATOR).post(path).json()["generation"] == 2
    wish = row.deployment_id
    answer = dev.put(f"/api/deployments/{wish}/scale/", {"replicas": 3}, format="json")
    assert (answer.json()["replicas"], answer.json()["ready"]) == (3, 0)
    again = {"model": "digits", "version": 1, "replicas": 2}
    assert dev.post("/api/deployments/", again, format="json").json()["id"] == wish
    assert dev.post("/api/deployments/", again | {"version": 9}, format="json").status_code == 404
    stranger = caller(Role.ADMIN, Team.objects.create(name="crows"))
    assert stranger.post("/api/deployments/", again, format="json").status_code == 404
    assert caller(Role.VIEWER).post("/api/deployments/", again, format="json").status_code == 403
    assert dev.put(f"/api/deployments/{wish}/scale/", {"replicas": -1}, format="json").status_code == 400


def test_lists_take_a_fixed_number_of_queries(dev: APIClient, django_assert_max_num_queries) -> None:
    for name in ("one", "two", "three"):
        version(name)
        dev.post("/api/endpoints/", {"model": name, "version": 1}, format="json")
    with django_assert_max_num_queries(9):  # the key's last use is one of them
        assert len(dev.get("/api/endpoints/").json()["results"]) == 3


@pytest.mark.parametrize(
    "table",
    ["fleet/host", "fleet/device", "fleet/deployment", "fleet/replica", "endpoints/endpoint", "endpoints/variant"],
)
def test_superusers_look_at_the_rows_and_change_none(dev: APIClient, client, admin_user, table: str) -> None:
    deployed(dev)
    fleet.heartbeat_host("a", Seen("b", 1, [], [], devices()))
    fleet.reconcile()
    client.force_login(admin_user)
    assert client.get(f"/admin/{table}/").status_code == 200
    assert client.get(f"/admin/{table}/add/").status_code == 403
