"""What people do on pages reaches the actions: rights, effects, audit, and clear words when refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from django.test import Client

from accounts.models import ApiKey, AuditEntry, Membership, User
from endpoints.models import Endpoint, Variant
from fleet.models import Deployment, Host, Replica
from inference.errors import NotReady
from registry.models import Alias, Version
from tests.support.showroom import furnish

pytestmark = pytest.mark.django_db
PASSWORD = "a long password of mine"


@pytest.fixture
def console(cast: Any) -> Any:
    furnish(cast, traffic=False)
    return cast


def client_of(person: Any) -> Client:
    client = Client()
    client.force_login(person, backend="accounts.login.LimitedBackend")
    return client


def said(response: Any) -> str:
    return response.content.decode()


def weights() -> dict[int, int]:
    rows = Variant.objects.filter(endpoint__name="digits")
    return dict(rows.values_list("version__number", "weight_bp"))


def test_the_split_is_moved_in_percent_and_audited(console: Any) -> None:
    data = {"percent_1": "50.25", "percent_2": "49,75", "revision": "1"}
    response = client_of(console.developer).post("/endpoints/digits/weights/", data, follow=True)
    assert "The traffic is moved" in said(response)
    assert weights() == {1: 5025, 2: 4975}
    entry = AuditEntry.objects.filter(verb="set_weights").first()
    assert entry is not None
    assert entry.actor == "developer"


@pytest.mark.parametrize(
    "data",
    [
        {"percent_1": "50", "percent_2": "49"},
        {"percent_1": "nan", "percent_2": "0"},
        {"percent_1": "1e999", "percent_2": "0"},
        {"percent_1": "100", "percent_2": "0", "revision": "77"},
        {"percent_1": "50", "percent_9": "50"},
        {"percent_1": "50.001", "percent_2": "49.999"},
    ],
)
def test_a_wrong_split_changes_nothing_and_says_why(console: Any, data: dict[str, str]) -> None:
    response = client_of(console.owner).post("/endpoints/digits/weights/", data, follow=True)
    assert response.status_code == 200
    assert "toast error" in said(response)
    assert weights() == {1: 9000, 2: 1000}


POSTS = [
    ("/endpoints/digits/weights/", {"percent_1": "50", "percent_2": "50"}),
    ("/endpoints/digits/access/", {"access": "public"}),
    ("/endpoints/digits/delete/", {}),
    ("/endpoints/digits/versions/2/undeploy/", {}),
    ("/endpoints/digits/versions/1/scale/", {"replicas": "3"}),
    ("/models/digits/aliases/", {"alias": "next", "version": "2"}),
    ("/models/digits/aliases/champion/delete/", {}),
    ("/models/digits/describe/", {"description": "x"}),
    ("/models/digits/versions/1/deploy/", {"endpoint": "other", "replicas": "1"}),
    ("/models/digits/versions/5/approve/", {}),
    ("/models/digits/versions/5/reject/", {"reason": "no"}),
    ("/models/digits/versions/3/archive/", {}),
    ("/keys/new/", {"name": "k", "team": "red", "role": "viewer"}),
    ("/people/new/", {"username": "new", "password": PASSWORD}),
    ("/people/teams/new/", {"name": "green"}),
    ("/people/member/", {"username": "stranger", "team": "red", "role": "viewer"}),
    ("/people/u/owner/role/", {"team": "red", "role": "viewer"}),
    ("/people/u/owner/password/", {"password": PASSWORD}),
    ("/people/u/owner/deactivate/", {}),
    ("/fleet/hosts/atlas/drain/", {"draining": "1"}),
]


def snapshot() -> list[Any]:
    return [
        weights(),
        list(Endpoint.objects.order_by("pk").values_list("name", "access")),
        list(Alias.objects.order_by("pk").values_list("name", "version_id")),
        list(Version.objects.order_by("pk").values_list("status", flat=True)),
        list(Deployment.objects.order_by("pk").values_list("replicas", flat=True)),
        list(User.objects.order_by("pk").values_list("username", "password", "is_active")),
        list(Membership.objects.order_by("pk").values_list("role", flat=True)),
        list(Host.objects.order_by("pk").values_list("draining", flat=True)),
        ApiKey.objects.count(),
        AuditEntry.objects.count(),
    ]


@pytest.mark.parametrize("who", ["teammate", "stranger"])
def test_who_may_not_changes_nothing(console: Any, who: str) -> None:
    if who == "stranger":
        Membership.objects.filter(user=console.stranger).update(role="developer")
    before = snapshot()
    client = client_of(getattr(console, who))
    for path, data in POSTS:
        response = client.post(path, data)
        assert response.status_code in {302, 403, 404}, path
    assert snapshot() == before


def test_nothing_changes_by_get_or_without_the_form_token(console: Any) -> None:
    before = snapshot()
    client = Client(enforce_csrf_checks=True)
    client.force_login(console.root, backend="accounts.login.LimitedBackend")
    for path, data in POSTS:
        assert client.get(path).status_code == 405, path
        refused = client.post(path, data)
        assert refused.status_code == 403, path
        assert "The form has expired" in said(refused)
    assert snapshot() == before


def test_a_version_is_deployed_scaled_and_taken_away(console: Any) -> None:
    client = client_of(console.owner)
    data = {"endpoint": "fresh", "replicas": "2", "device": "any", "percent": "", "access": "key"}
    assert "on its way" in said(client.post("/models/digits/versions/2/deploy/", data, follow=True))
    assert Variant.objects.get(endpoint__name="fresh").weight_bp == 10_000
    client.post("/endpoints/fresh/versions/2/scale/", {"replicas": "3"})
    assert Deployment.objects.get(version__number=2, version__model__name="digits").replicas == 3
    client.post("/endpoints/fresh/delete/")
    assert not Endpoint.objects.filter(name="fresh").exists()


def test_a_version_that_is_not_ready_is_refused_in_words(console: Any) -> None:
    response = client_of(console.owner).post(
        "/models/digits/versions/3/deploy/", {"endpoint": "digits", "replicas": "1"}, follow=True
    )
    assert "only a ready version can be deployed" in said(response)


def test_a_wrong_form_is_refused_in_words(console: Any) -> None:
    response = client_of(console.owner).post("/models/digits/versions/1/deploy/", {"replicas": "many"}, follow=True)
    assert "replicas:" in said(response)


def test_aliases_move_with_their_history(console: Any) -> None:
    client = client_of(console.owner)
    client.post("/models/digits/aliases/", {"alias": "champion", "version": "2", "reason": "faster"})
    assert Alias.objects.get(name="champion").version.number == 2
    body = said(client.get("/models/digits/"))
    assert "faster" in body
    client.post("/models/digits/aliases/champion/delete/")
    assert not Alias.objects.exists()


def test_code_is_approved_by_a_second_person(console: Any) -> None:
    response = client_of(console.owner).post("/models/digits/versions/5/approve/", {"reason": "I read it"}, follow=True)
    assert "Approved" in said(response)
    assert Version.objects.get(number=5, model__name="digits").approved_by == "owner"


def test_a_key_is_shown_once_and_never_cached(console: Any) -> None:
    client = client_of(console.developer)
    made = client.post(
        "/keys/new/", {"name": "robot", "team": "red", "role": "viewer", "days": "30", "endpoints": ["digits"]}
    )
    key = ApiKey.objects.get(name="robot")
    assert f"ser_{key.pk}." in said(made)
    assert "no-store" in made["Cache-Control"]
    assert key.endpoints == ["digits"]
    assert f"ser_{key.pk}." not in said(client.get("/keys/"))
    client.post(f"/keys/{key.pk}/revoke/")
    key.refresh_from_db()
    assert key.revoked_at is not None


def test_a_keys_limits_are_set_on_its_page(console: Any) -> None:
    client = client_of(console.developer)
    wish = {"name": "robot", "team": "red", "role": "viewer", "requests_per_s": "2.5", "rows_per_s": ""}
    client.post("/keys/new/", wish)
    key = ApiKey.objects.get(name="robot")
    assert (key.requests_per_s, key.rows_per_s) == (2.5, 0.0)
    assert "2.5 requests/s" in said(client.get("/keys/"))
    told = client.post(f"/keys/{key.pk}/rates/", {"requests_per_s": "", "rows_per_s": "300"}, follow=True)
    assert "The limits of “robot” are set" in said(told)
    assert "300 rows/s" in said(told)
    key.refresh_from_db()
    assert (key.requests_per_s, key.rows_per_s) == (0.0, 300.0)
    assert "rows_per_s" in said(client.post(f"/keys/{key.pk}/rates/", {"rows_per_s": "-1"}, follow=True))
    assert "must be 0 for no bound" in said(client.post(f"/keys/{key.pk}/rates/", {"rows_per_s": "1e12"}, follow=True))
    assert client_of(console.teammate).post(f"/keys/{key.pk}/rates/", {"rows_per_s": "1"}).status_code == 403
    assert client_of(console.stranger).post(f"/keys/{key.pk}/rates/", {"rows_per_s": "1"}).status_code == 404
    key.refresh_from_db()
    assert key.rows_per_s == 300.0


def test_a_key_with_more_rights_than_its_maker_is_refused(console: Any) -> None:
    response = client_of(console.developer).post("/keys/new/", {"name": "k", "team": "red", "role": "admin"})
    assert response.status_code == 403


def test_people_are_made_given_roles_and_deactivated(console: Any) -> None:
    client = client_of(console.owner)
    data = {"username": "nina", "password": PASSWORD, "team": "red", "role": "developer"}
    assert "nina can log in now" in said(client.post("/people/new/", data, follow=True))
    assert Membership.objects.get(user__username="nina").role == "developer"
    client.post("/people/u/nina/role/", {"team": "red", "role": "operator"})
    assert Membership.objects.get(user__username="nina").role == "operator"
    client.post("/people/u/nina/deactivate/")
    assert not User.objects.get(username="nina").is_active


def test_an_admin_sees_the_people_of_shared_teams_and_takes_others_in_by_name(console: Any) -> None:
    client = client_of(console.stranger)
    assert 'href="/people/u/teammate/"' not in client.get("/people/").content.decode()
    assert client.get("/people/u/teammate/").status_code == 404
    wish = {"username": "teammate", "team": "blue", "role": "viewer"}
    assert "teammate is viewer of" in said(client.post("/people/member/", wish, follow=True))
    assert 'href="/people/u/teammate/"' in client.get("/people/").content.decode()
    assert "nobody named" in said(client.post("/people/member/", {**wish, "username": "nobody"}, follow=True))
    assert client.post("/people/member/", {**wish, "team": "red"}).status_code == 404
    assert client_of(console.teammate).post("/people/member/", {**wish, "role": "admin"}).status_code == 403


def test_a_person_is_made_with_the_role_or_not_at_all(console: Any) -> None:
    data = {"username": "nina", "password": PASSWORD, "team": "blue", "role": "admin"}
    assert client_of(console.owner).post("/people/new/", data).status_code == 404
    assert not User.objects.filter(username="nina").exists()


def test_a_weak_password_is_refused_in_words(console: Any) -> None:
    response = client_of(console.owner).post("/people/new/", {"username": "n", "password": "short"}, follow=True)
    assert "too short" in said(response)


def test_changing_ones_own_password_keeps_the_session(console: Any) -> None:
    client = client_of(console.owner)
    client.post("/people/u/owner/password/", {"password": PASSWORD})
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("user", "verb", "words"),
    [
        ("teammate", "view", "teammate may see"),
        ("teammate", "deploy", "teammate may not deploy"),
        ("root", "approve", "superuser"),
    ],
)
def test_the_explainer_gives_the_reason(console: Any, user: str, verb: str, words: str) -> None:
    response = client_of(console.root).get(f"/people/why/?user={user}&team=red&verb={verb}")
    assert words in said(response)


def test_a_replica_is_restarted_by_an_operator_only(console: Any) -> None:
    replica = Replica.objects.filter(phase="ready").first()
    assert replica is not None
    assert client_of(console.developer).post(f"/fleet/replicas/{replica.pk}/restart/").status_code == 403
    assert client_of(console.stranger).post(f"/fleet/replicas/{replica.pk}/restart/").status_code == 404
    client_of(console.owner).post(f"/fleet/replicas/{replica.pk}/restart/")
    replica.refresh_from_db()
    assert replica.generation == 2


def test_a_host_is_drained_by_a_superuser_only(console: Any) -> None:
    assert client_of(console.owner).post("/fleet/hosts/atlas/drain/", {"draining": "1"}).status_code == 403
    client_of(console.root).post("/fleet/hosts/atlas/drain/", {"draining": "1"})
    assert Host.objects.get(name="atlas").draining


class FakeGateway:
    """Stands where the gateway does: what was sent is kept, the answer is set."""

    def __init__(self) -> None:
        self.calls: list[httpx.Request] = []
        self.answer = httpx.Response(200)

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(request)
        return self.answer


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    fake = FakeGateway()
    real = httpx.Client
    monkeypatch.setattr(
        "inference.client.httpx.Client", lambda **options: real(transport=httpx.MockTransport(fake.handle), **options)
    )
    return fake


def test_try_it_goes_through_the_gateway_with_a_short_lived_token(console: Any, gateway: FakeGateway) -> None:
    tensors = [{"name": "pixels", "datatype": "FP32", "shape": [1, 1], "data": [1]}]
    outputs = [{"name": "scores", "datatype": "FP32", "shape": [1, 1], "data": [0.5]}]
    times = {"timeline_gateway_us": 50, "timeline_network_us": 200, "timeline_queue_us": 1500, "timeline_input_us": 0,
             "timeline_compute_us": 2000, "timeline_output_us": 10}  # fmt: skip
    told = {"model_name": "digits", "model_version": "2", "outputs": outputs, "parameters": {"own": 1, **times}}
    content = iter([json.dumps(told).encode()])  # a stream, as from a socket
    gateway.answer = httpx.Response(200, content=content, headers={"X-Rollout-Arm": "canary"})
    client = client_of(console.teammate)
    response = client.post(
        "/endpoints/digits/try/", {"request": {"inputs": tensors}, "version": 2}, content_type="application/json"
    )
    told = response.json()
    assert told["response"]["outputs"] == outputs
    assert (told["version"], told["arm"]) == ("2", "canary")
    assert told["response"]["parameters"] == {"own": 1}
    parts = [(one["part"], one["ms"]) for one in told["timeline"]]
    assert parts[0][0] == "console"
    assert parts[1:4] == [("gateway", 0.05), ("network", 0.2), ("queue", 1.5)]
    assert parts[4:] == [("input", 0.0), ("compute", 2.0), ("output", 0.01)]
    call = gateway.calls[0]
    assert json.loads(call.content)["parameters"] == {"timeline": True}
    assert call.url.path == "/v2/models/digits/versions/2/infer"
    assert call.headers["authorization"].startswith("Bearer ser_tok.")


def test_try_it_tells_what_went_wrong(console: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotReady

    monkeypatch.setattr("inference.client.Client.infer", refuse)
    client = client_of(console.owner)
    told = client.post("/endpoints/digits/try/", {"request": {"inputs": []}}, content_type="application/json").json()
    assert told["error"]["code"] == "not_ready"
    for wrong in (
        "nonsense",
        '{"request": []}',
        '{"request": {"inputs": [1]}}',
        '{"request": {"inputs": []}, "version": "x"}',
        '{"request": {"inputs": [], "parameters": [1]}}',
    ):
        response = client.post("/endpoints/digits/try/", wrong, content_type="application/json")
        assert response.status_code == 400, wrong
        assert response.json()["error"]["code"] == "malformed"


def test_a_stranger_cannot_try_it(console: Any, gateway: FakeGateway) -> None:
    response = client_of(console.stranger).post("/endpoints/digits/try/", {}, content_type="application/json")
    assert response.status_code == 404
    assert gateway.calls == []
