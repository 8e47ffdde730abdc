"""Deploying, splitting and removing, with rights, revisions and the audit trail."""

from __future__ import annotations

import pytest

from accounts.models import AuditEntry, Role
from endpoints import actions
from endpoints.models import Endpoint, Variant
from fleet.models import Deployment
from inference.errors import Conflict, Forbidden, InvalidInput
from tests.support.fleet_cast import person, ready_replica, team, version

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    from accounts import wakeups

    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)


@pytest.fixture
def dev():
    return person("dev", Role.DEVELOPER)


def test_the_first_version_gets_all_traffic_and_the_next_none(dev) -> None:
    endpoint = actions.deploy(version=version(), actor=dev)
    assert endpoint.name == "digits"
    assert endpoint.revision == 2
    actions.deploy(version=version(), actor=dev, replicas=2, device="cpu")
    assert actions.weights_of(endpoint) == {1: 10_000, 2: 0}
    assert list(endpoint.variants.values_list("role", flat=True)) == ["primary", "canary"]
    wish = Deployment.objects.get(version__number=2)
    assert (wish.replicas, wish.device) == (2, "cpu")


def test_a_weight_at_deployment_takes_from_the_others(dev) -> None:
    endpoint = actions.deploy(version=version(), actor=dev, endpoint_name="front")
    actions.deploy(version=version(), actor=dev, endpoint_name="front", weight_bp=1000)
    assert actions.weights_of(endpoint) == {1: 9000, 2: 1000}


def test_deploying_again_changes_the_wish_and_no_weight(dev) -> None:
    row = version()
    actions.deploy(version=row, actor=dev)
    actions.deploy(version=row, actor=dev, replicas=3)
    assert Deployment.objects.get().replicas == 3
    assert Variant.objects.get().weight_bp == 10_000


def test_weights_are_written_with_their_history(dev) -> None:
    endpoint = actions.deploy(version=version(), actor=dev)
    second = version()
    endpoint = actions.deploy(version=second, actor=dev)
    ready_replica(second)
    endpoint = actions.set_weights(
        endpoint=endpoint, weights={1: 9000, 2: 1000}, actor=dev, revision=endpoint.revision, reason="first look"
    )
    entry = AuditEntry.objects.first()
    assert entry.verb == "set_weights"
    assert entry.before == {"weights": {"1": 10_000, "2": 0}}
    assert entry.after == {"weights": {"1": 9000, "2": 1000}}
    assert (entry.reason, entry.actor, entry.team) == ("first look", "dev", team())


def test_whoever_takes_everything_is_the_primary(dev) -> None:
    endpoint = actions.deploy(version=version(), actor=dev)
    actions.deploy(version=version(), actor=dev)
    endpoint.refresh_from_db()
    actions.set_weights(endpoint=endpoint, weights={2: 10_000}, actor=dev, force=True)
    assert dict(endpoint.variants.values_list("version__number", "role")) == {1: "canary", 2: "primary"}
    assert actions.weights_of(endpoint) == {1: 0, 2: 10_000}


def test_traffic_for_a_version_that_cannot_answer_needs_force(dev) -> None:
    """Only where it rises from nothing: what has traffic already may lose its replicas and be split on."""
    endpoint = actions.deploy(version=version(), actor=dev)
    second = version()
    actions.deploy(version=second, actor=dev)
    replica = ready_replica(second)
    for change in ({"phase": "loading"}, {"phase": "ready", "wanted": "stop"}):
        type(replica).objects.update(**change)
        with pytest.raises(Conflict, match=r"version 2 has no ready replica.*force"):
            actions.set_weights(endpoint=endpoint, weights={1: 9000, 2: 1000}, actor=dev)
    assert actions.weights_of(endpoint) == {1: 10_000, 2: 0}
    type(replica).objects.update(phase="ready", wanted="run")
    actions.set_weights(endpoint=endpoint, weights={1: 9000, 2: 1000}, actor=dev)
    replica.delete()
    actions.set_weights(endpoint=endpoint, weights={1: 8000, 2: 2000}, actor=dev)
    actions.set_weights(endpoint=endpoint, weights={2: 10_000}, actor=dev)
    with pytest.raises(Conflict, match="version 1"):
        actions.set_weights(endpoint=endpoint, weights={1: 10_000}, actor=dev)
    actions.set_weights(endpoint=endpoint, weights={1: 10_000}, actor=dev, force=True)


@pytest.mark.parametrize(
    "weights", [{}, {1: 9999}, {1: 10_001}, {1: 5000, 2: 5000, 3: 0}, {1: 10_001, 2: -1}, {1: 20_000, 2: -10_000}]
)
def test_weights_that_are_no_split_are_refused(dev, weights) -> None:
    endpoint = actions.deploy(version=version(), actor=dev)
    endpoint = actions.deploy(version=version(), actor=dev)
    with pytest.raises(InvalidInput):
        actions.set_weights(endpoint=endpoint, weights=weights, actor=dev)
    assert actions.weights_of(endpoint) == {1: 10_000, 2: 0}


def test_an_old_revision_is_a_conflict(dev) -> None:
    endpoint = actions.deploy(version=version(), actor=dev)
    old = endpoint.revision
    actions.deploy(version=version(), actor=dev)
    with pytest.raises(Conflict, match="revision 3, not 2"):
        actions.set_weights(endpoint=endpoint, weights={1: 10_000}, actor=dev, revision=old)


def test_versions_of_another_model_do_not_share_an_endpoint(dev) -> None:
    actions.deploy(version=version("digits"), actor=dev)
    with pytest.raises(Conflict, match="another model"):
        actions.deploy(version=version("letters"), actor=dev, endpoint_name="digits")


@pytest.mark.parametrize("status", ["validating", "rejected", "archived", "awaiting_approval"])
def test_only_ready_versions_are_deployed(dev, status: str) -> None:
    with pytest.raises(Conflict):
        actions.deploy(version=version(status=status), actor=dev)
    assert not Endpoint.objects.exists()


@pytest.mark.parametrize("name", ["", ".", "a b", "-a", "a/b", "a\0", "ä", "x" * 65])
def test_bad_names_are_refused(dev, name: str) -> None:
    row = version()
    if not name:
        assert actions.deploy(version=row, actor=dev, endpoint_name=name).name == "digits"
        return
    with pytest.raises(InvalidInput):
        actions.deploy(version=row, actor=dev, endpoint_name=name)


def test_a_version_with_traffic_is_not_taken_away_beside_others(dev) -> None:
    endpoint = actions.deploy(version=version(), actor=dev)
    endpoint = actions.deploy(version=version(), actor=dev)
    with pytest.raises(Conflict, match=r"100 %"):
        actions.undeploy(endpoint=endpoint, number=1, actor=dev)
    actions.undeploy(endpoint=endpoint, number=2, actor=dev)
    assert Deployment.objects.get(version__number=2).replicas == 0
    actions.undeploy(endpoint=endpoint, number=1, actor=dev)
    assert actions.weights_of(endpoint) == {}
    again = actions.deploy(version=version(), actor=dev)
    assert actions.weights_of(again) == {3: 10_000}


def test_a_version_behind_two_names_keeps_its_replicas_when_one_goes(dev) -> None:
    row = version()
    actions.deploy(version=row, actor=dev, endpoint_name="one")
    two = actions.deploy(version=row, actor=dev, endpoint_name="two")
    actions.delete_endpoint(endpoint=two, actor=dev)
    assert Deployment.objects.get().replicas == 1
    actions.delete_endpoint(endpoint=Endpoint.objects.get(), actor=dev)
    assert Deployment.objects.get().replicas == 0
    assert AuditEntry.objects.filter(verb="delete", object_name="one").exists()


def test_access_is_an_operators_matter(dev) -> None:
    endpoint = actions.deploy(version=version(), actor=dev)
    with pytest.raises(Forbidden):
        actions.set_access(endpoint=endpoint, access="public", actor=dev)
    with pytest.raises(Forbidden):
        actions.deploy(version=version(), actor=dev, endpoint_name="open", access="public")
    opened = actions.set_access(endpoint=endpoint, access="public", actor=person("op", Role.OPERATOR))
    assert opened.access == "public"
    with pytest.raises(InvalidInput):
        actions.set_access(endpoint=endpoint, access="everyone", actor=person("op2", Role.OPERATOR))


@pytest.mark.parametrize("who", ["viewer", "stranger"])
def test_nobody_else_changes_an_endpoint(dev, who: str) -> None:
    actor = person("v", Role.VIEWER) if who == "viewer" else person("s", Role.ADMIN, team("crows"))
    endpoint = actions.deploy(version=version(), actor=dev)
    entries = AuditEntry.objects.count()
    for change in (
        lambda: actions.deploy(version=version(), actor=actor),
        lambda: actions.set_weights(endpoint=endpoint, weights={1: 10_000}, actor=actor),
        lambda: actions.undeploy(endpoint=endpoint, number=1, actor=actor),
        lambda: actions.set_access(endpoint=endpoint, access="public", actor=actor),
        lambda: actions.delete_endpoint(endpoint=endpoint, actor=actor),
    ):
        with pytest.raises(Forbidden):
            change()
    assert AuditEntry.objects.count() == entries
