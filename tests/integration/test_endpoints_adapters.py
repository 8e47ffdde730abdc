"""LoRA adapters behind endpoints: what may be attached, what gateways and hosts are told, and what comes back."""

from __future__ import annotations

import pytest
from rest_framework.test import APIClient

from accounts.models import AuditEntry, Role
from endpoints import actions, adapters, publish
from endpoints.models import Adapter
from fleet import actions as fleet
from fleet.models import Deployment, Host, Replica
from inference.errors import Conflict, Forbidden, InvalidInput, NotFound
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import AdapterSeen, ReplicaSeen, Seen
from registry import versions
from tests.support.fleet_cast import person, team, version
from worker.specs import replica_specs

pytestmark = pytest.mark.django_db
ROOM = {"generation": {"max_adapters": 2}}


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> list:
    from accounts import wakeups

    found: list = []
    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: found.append(args))
    return found


@pytest.fixture
def dev():
    return person("dev", Role.DEVELOPER)


@pytest.fixture
def endpoint(dev):
    return actions.deploy(version=version("lm", settings=ROOM), actor=dev)


def lora(model: str = "fr", base: str = "lm:1", **more: object):
    return version(model, **({"format": "lora", "settings": {"parameters": {"base": base}}} | more))


def ready(host: str = "a", number: int = 1) -> Replica:
    place, _ = Host.objects.get_or_create(name=host)
    deployment = Deployment.objects.get(version__model__name="lm", version__number=number)
    return Replica.objects.create(
        deployment=deployment, host=place, wanted="run", phase="ready", route_address="unix:/r", route_generation=1
    )


def tell(row: Replica, **states: str) -> None:
    """The replica's host sees its adapters so; "failed" says why."""
    seen = [
        AdapterSeen(a.name, a.version.digest, states[a.name], "too large" if states[a.name] == "failed" else "")
        for a in Adapter.objects.filter(name__in=states)
    ]
    report = ReplicaSeen(str(row.id), row.generation, ReplicaPhase.READY, "unix:/r", adapters=seen)
    fleet.record_seen(row.host_id, Seen("b", 1, [report]))


def named() -> list[str]:
    return publish.build_table().endpoints[0].variants[0].adapters


def test_an_adapter_goes_where_its_base_runs_with_its_history(endpoint, dev, sent, django_capture_on_commit_callbacks):
    ready("a")
    with django_capture_on_commit_callbacks(execute=True):
        row = adapters.attach(endpoint=endpoint, version=lora(), actor=dev)
    assert str(row) == "lm:fr"
    assert ("worker.converge", "a") in sent
    entry = AuditEntry.objects.first()
    assert (entry.verb, entry.before, entry.after) == ("attach_adapter", {"adapters": {}}, {"adapters": {"fr": "fr:1"}})
    endpoint.refresh_from_db()
    adapters.detach(endpoint=endpoint, name="fr", actor=dev, revision=endpoint.revision)
    assert AuditEntry.objects.first().verb == "detach_adapter"
    assert not Adapter.objects.exists()
    with pytest.raises(NotFound, match="no adapter 'fr'"):
        adapters.detach(endpoint=endpoint, name="fr", actor=dev)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: version("digits"), InvalidInput, "is no LoRA adapter"),
        (lambda: lora(status="rejected"), Conflict, "only a ready adapter"),
        (lambda: lora(base="lm:2"), InvalidInput, "deploy lm:2 there first"),
        (lambda: lora(base="other:1"), InvalidInput, "changes other:1, which endpoint 'lm' does not run"),
        (lambda: lora(settings={}), InvalidInput, "does not say which version it changes"),
    ],
    ids=["format", "status", "number", "model", "unsaid"],
)
def test_what_does_not_belong_there_is_refused_with_what_to_do(endpoint, dev, make, error, words):
    with pytest.raises(error, match=words):
        adapters.attach(endpoint=endpoint, version=make(), actor=dev)
    assert not Adapter.objects.exists()


def test_a_base_without_room_says_which_setting_makes_it(dev):
    endpoint = actions.deploy(version=version("lm"), actor=dev)
    with pytest.raises(InvalidInput, match=r'generation=\{"max_adapters": 8\}'):
        adapters.attach(endpoint=endpoint, version=lora(), actor=dev)


def test_names_and_slots_are_those_of_all_endpoints_of_the_base(endpoint, dev):
    other = actions.deploy(version=endpoint.variants.get().version, actor=dev, endpoint_name="twin")
    first = lora()
    adapters.attach(endpoint=endpoint, version=first, actor=dev)
    with pytest.raises(Conflict, match="is already 'lm:fr'"):
        adapters.attach(endpoint=endpoint, version=first, actor=dev)
    with pytest.raises(Conflict, match="give this one another name"):
        adapters.attach(endpoint=other, version=lora(), actor=dev, name="fr")
    adapters.attach(endpoint=other, version=first, actor=dev)
    adapters.attach(endpoint=other, version=lora(), actor=dev, name="fr-2")
    with pytest.raises(Conflict, match="2 adapters at most"):
        adapters.attach(endpoint=endpoint, version=lora("de"), actor=dev)
    (held,) = adapters.adapters_for([endpoint.variants.get().version_id]).values()
    assert [row.name for row in held] == ["fr", "fr-2"]


def test_it_needs_the_right_to_deploy_in_the_team(endpoint, dev):
    viewer = person("viewer", Role.VIEWER)
    stranger = person("stranger", Role.ADMIN, team("others"))
    for actor in (viewer, stranger):
        with pytest.raises((Forbidden, NotFound)):
            adapters.attach(endpoint=endpoint, version=lora(), actor=actor)
    root = person("root", superuser=True)
    with pytest.raises(InvalidInput, match="different teams"):
        adapters.attach(endpoint=endpoint, version=lora("foreign", of=team("others")), actor=root)


def test_an_adapter_is_no_endpoint_of_its_own_and_stays_while_it_is_used(endpoint, dev):
    row = lora()
    with pytest.raises(InvalidInput, match="serinus adapter add"):
        actions.deploy(version=row, actor=dev)
    adapters.attach(endpoint=endpoint, version=row, actor=dev)
    with pytest.raises(Conflict, match="in use by an endpoint"):
        versions.archive_version(actor=dev, version=row)


def test_a_host_is_told_names_digests_and_files(endpoint, dev):
    replica = ready()
    row = lora()
    assert replica_specs("a")[0].adapters == []
    adapters.attach(endpoint=endpoint, version=row, actor=dev, name="french")
    (spec,) = replica_specs("a")
    assert spec.generation == replica.generation
    (told,) = spec.adapters
    assert (told.name, told.label, told.digest, told.files[0].path) == ("french", "fr:1", row.digest, "echo.json")


def test_gateways_name_an_adapter_once_every_ready_replica_has_it(endpoint, dev):
    first, second = ready("a"), ready("b")
    adapters.attach(endpoint=endpoint, version=lora(), actor=dev)
    assert named() == []
    tell(first, fr="loaded")
    assert named() == []
    tell(second, fr="waiting")
    assert named() == []
    tell(second, fr="loaded")
    assert named() == ["fr"]
    tell(second, fr="failed")
    assert named() == ["fr"]
    tell(first, fr="failed")
    assert named() == []
    Replica.objects.update(phase="backoff")
    assert named() == ["fr"]  # whoever starts has it before it is ready


def test_a_change_of_adapters_alone_publishes(endpoint, dev, sent, django_capture_on_commit_callbacks):
    row = ready()
    adapters.attach(endpoint=endpoint, version=lora(), actor=dev)
    tell(row, fr="waiting")
    for state, published in (("loaded", True), ("loaded", False)):
        with django_capture_on_commit_callbacks(execute=True):
            sent.clear()
            tell(row, fr=state)
        assert (("endpoints.tasks.publish",) in sent) is published


def test_the_api_attaches_shows_and_detaches(dev):
    client = APIClient()
    client.force_login(dev.user)
    actions.deploy(version=version("lm", settings=ROOM), actor=dev)
    row = ready()
    lora()
    made = client.post("/api/endpoints/lm/adapters/", {"model": "fr", "version": 1}, format="json")
    assert made.status_code == 201, made.content
    shown = {"name": "fr", "model": "fr", "version": 1, "base": 1, "replicas": 1}
    assert made.json()["adapters"] == [shown | {"state": "waiting", "loaded": 0, "reason": ""}]
    tell(row, fr="failed")
    found = client.get("/api/endpoints/lm/").json()["adapters"]
    assert found == [shown | {"state": "failed", "loaded": 0, "reason": "too large"}]
    missing = client.post("/api/endpoints/lm/adapters/", {"model": "fr", "version": 7}, format="json")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert client.delete("/api/endpoints/lm/adapters/fr/").json()["adapters"] == []
    assert client.delete("/api/endpoints/lm/adapters/fr/").status_code == 404
