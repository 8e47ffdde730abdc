"""A pipeline behind an endpoint: its steps' versions run, shared with whoever else needs them, and are routed to."""

from __future__ import annotations

from typing import Any

import pytest

from accounts.models import Role
from endpoints import actions, publish
from endpoints.models import Variant
from fleet import actions as fleet
from fleet import standing
from fleet.models import Deployment, Replica
from inference.errors import Conflict
from inference.protocol.routes import decode, encode
from registry import actions as registry
from tests.support.fleet_cast import person, ready_replica, team, version
from tests.support.pipelines import chain, created, step, tensor

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    from accounts import wakeups

    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)


@pytest.fixture
def dev() -> Any:
    return person("dev", Role.DEVELOPER)


@pytest.fixture
def ab(dev: Any) -> tuple[Any, Any]:
    return version("a"), version("b")


def pipe(dev: Any, *names: str, name: str = "chain") -> Any:
    graph = chain(*names)
    inputs, outputs = [tensor("raw", [-1, 2])], [tensor("out", [-1, 2])]
    return created(dev, team(), type(graph)(inputs, outputs, graph.steps), name=name)


def wishes() -> dict[str, tuple[int, str]]:
    return {str(row.version): (row.replicas, row.device) for row in Deployment.objects.select_related("version__model")}


def test_its_steps_get_replicas_and_it_has_none(dev: Any, ab: Any) -> None:
    made = pipe(dev, "a", "b")
    endpoint = actions.deploy(version=made, actor=dev, replicas=2, device="cpu")
    assert endpoint.name == "chain"
    assert wishes() == {"a:1": (2, "cpu"), "b:1": (2, "cpu")}
    with pytest.raises(Conflict, match="chain:1 is a pipeline and has no replicas of its own"):
        fleet.scale_version(version=made, replicas=1, actor=dev)


def test_a_shared_step_keeps_the_larger_wish(dev: Any, ab: Any) -> None:
    actions.deploy(version=ab[0], actor=dev, replicas=3, device="cpu")
    actions.deploy(version=pipe(dev, "a", "b"), actor=dev)
    assert wishes() == {"a:1": (3, "cpu"), "b:1": (1, "any")}
    actions.deploy(version=pipe(dev, "b", "a", name="back"), actor=dev, replicas=4)
    assert wishes() == {"a:1": (4, "cpu"), "b:1": (4, "any")}


def test_what_nobody_needs_any_more_stops(dev: Any, ab: Any) -> None:
    version("c")
    first = actions.deploy(version=pipe(dev, "a", "b"), actor=dev)
    second = actions.deploy(version=pipe(dev, "b", "c", name="other"), actor=dev)
    own = actions.deploy(version=ab[0], actor=dev)
    actions.undeploy(endpoint=first, number=1, actor=dev)
    assert wishes() == {"a:1": (1, "any"), "b:1": (1, "any"), "c:1": (1, "any")}
    actions.delete_endpoint(endpoint=own, actor=dev)
    assert wishes() == {"a:1": (0, "any"), "b:1": (1, "any"), "c:1": (1, "any")}
    actions.delete_endpoint(endpoint=second, actor=dev)
    assert {name: wish[0] for name, wish in wishes().items()} == {"a:1": 0, "b:1": 0, "c:1": 0}


def test_an_endpoint_of_its_own_going_away_leaves_the_pipeline_its_step(dev: Any, ab: Any) -> None:
    own = actions.deploy(version=ab[0], actor=dev)
    actions.deploy(version=pipe(dev, "a", "b"), actor=dev)
    actions.delete_endpoint(endpoint=own, actor=dev)
    assert wishes()["a:1"] == (1, "any")


def test_a_step_scaled_to_nothing_keeps_its_wish_while_the_pipeline_is_deployed(dev: Any, ab: Any) -> None:
    endpoint = actions.deploy(version=pipe(dev, "a", "b"), actor=dev)
    pipe(dev, "a", name="idle")
    fleet.scale_version(version=ab[0], replicas=0, actor=dev)
    fleet.reconcile()
    assert wishes()["a:1"][0] == 0
    actions.delete_endpoint(endpoint=endpoint, actor=dev)
    Replica.objects.all().delete()
    fleet.reconcile()
    assert wishes() == {}


def test_an_archived_or_rejected_pipeline_is_not_deployed(dev: Any, ab: Any) -> None:
    made = pipe(dev, "a", "b")
    registry.archive_version(actor=dev, version=made)
    with pytest.raises(Conflict, match="chain:1 is archived"):
        actions.deploy(version=made, actor=dev)
    with pytest.raises(Conflict, match="ghostly:1 is rejected"):
        actions.deploy(version=pipe(dev, "ghost", name="ghostly"), actor=dev)
    assert wishes() == {}
    assert not Variant.objects.exists()


def test_it_is_as_ready_as_its_weakest_step(dev: Any, ab: Any) -> None:
    first = pipe(dev, "a", "b")
    endpoint = actions.deploy(version=first, actor=dev)
    second = created(dev, team(), chain("a", batch=0), name="chain")
    assert second.status == "rejected"
    ready_replica(ab[0])
    assert standing.ready_counts([first.pk, ab[0].pk, ab[1].pk]) == {first.pk: 0, ab[0].pk: 1}
    third = pipe(dev, "b", "a")
    actions.deploy(version=third, actor=dev)
    with pytest.raises(Conflict, match=f"version {third.number} has no ready replica"):
        actions.set_weights(endpoint=endpoint, weights={third.number: 10_000}, actor=dev)
    ready_replica(ab[1])
    assert standing.ready_counts([first.pk])[first.pk] == 1
    actions.set_weights(endpoint=endpoint, weights={third.number: 10_000}, actor=dev)


def test_the_table_says_the_graph_and_where_its_steps_run(dev: Any, ab: Any) -> None:
    made = pipe(dev, "a", "b")
    actions.deploy(version=made, actor=dev)
    row = ready_replica(ab[0])
    Replica.objects.filter(pk=row.pk).update(route_address="unix:/run/a", route_generation=1)
    table = decode(encode(publish.build_table()))
    (variant,) = table.endpoints[0].variants
    assert variant.replicas == []
    assert variant.signature.inputs[0].name == "raw"
    assert variant.pipeline is not None
    one, two = variant.pipeline.steps
    assert (one.name, one.model, one.version, one.input_map, one.output_map) == ("a", "a", 1, {"x": "raw"}, {"y": "t1"})
    assert [replica.address for replica in one.replicas] == ["unix:/run/a"]
    assert (two.name, two.replicas, two.signature.max_batch_size) == ("b", [], 8)


def test_the_api_shows_it_as_any_other_endpoint(dev: Any, ab: Any, client: Any) -> None:
    from accounts.models import User

    made = pipe(dev, "a", "b")
    actions.deploy(version=made, actor=dev, replicas=2)
    Deployment.objects.filter(version=ab[1]).update(reason="no host has a TPU")
    ready_replica(ab[0])
    client.force_login(User.objects.get(username="dev"))
    (shown,) = client.get("/api/endpoints/chain/").json()["variants"]
    assert (shown["replicas"], shown["ready_replicas"], shown["reason"]) == (2, 0, "no host has a TPU")
    ready_replica(ab[1])
    (shown,) = client.get("/api/endpoints/chain/").json()["variants"]
    assert shown["ready_replicas"] == 1


def test_max_inflight_reaches_the_gateway(dev: Any, ab: Any) -> None:
    graph = chain("a")
    one = type(graph)([tensor("raw", [-1, 2])], [tensor("out", [-1, 2])], [step("a", "raw", "out", max_inflight=3)])
    actions.deploy(version=created(dev, team(), one), actor=dev)
    pipeline = publish.build_table().endpoints[0].variants[0].pipeline
    assert pipeline is not None
    assert pipeline.steps[0].max_inflight == 3
