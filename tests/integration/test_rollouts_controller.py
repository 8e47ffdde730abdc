"""Rollouts in the database: transitions, leases and fences, kills at every point, what is put away, what people do."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import IntegrityError, InternalError, transaction
from django.db.models.functions import Now

from accounts.models import AuditEntry, Role
from accounts.permissions import SYSTEM
from endpoints import actions as endpoints
from endpoints.actions import weights_of
from endpoints.models import Endpoint
from endpoints.publish import build_table
from fleet.models import Deployment, Replica
from inference.errors import Conflict, Forbidden, NotFound
from inference.protocol.routes import WEIGHT_TOTAL_BP
from rollouts import actions, plans
from rollouts.controller import Controller
from rollouts.facts import Verdict
from rollouts.models import Rollout, RolloutEvent
from rollouts.phases import ACTIVE, Reason
from rollouts.plans import Analyze, Approve, Pause, Plan, PlanSettings, SetWeight
from tests.support.fleet_cast import person, version
from tests.support.rollouts import PASS, Clock, Word, drive, load, smoked, stage

pytestmark = pytest.mark.django_db
RAMP = Plan("ramp", [SetWeight(1000), Analyze(), SetWeight(5000), Analyze(), SetWeight(10_000)])
PAUSED = Plan("paused", [SetWeight(1000), Pause(None), SetWeight(5000), Pause(None), SetWeight(10_000)])


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from accounts import wakeups

    found: list[str] = []
    monkeypatch.setattr(wakeups, "send", lambda task, *args, **kwargs: found.append(task))
    return found


@pytest.fixture
def dev():
    return person("dev", Role.DEVELOPER)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def word() -> Word:
    return Word(PASS)


@pytest.fixture
def controller(word: Word, clock: Clock) -> Controller:
    return Controller(word, clock=clock)


def _to_first_share(rollout: Rollout, controller: Controller, clock: Clock) -> Rollout:
    for _ in range(4):
        controller.tick()
        load()
        rollout.refresh_from_db()
        if rollout.phase == "smoke":
            smoked(rollout)
        clock.pass_s(1)
    rollout.refresh_from_db()
    return rollout


def _kinds(rollout: Rollout) -> list[str]:
    return list(rollout.events.order_by("seq").values_list("kind", flat=True))


def test_a_candidate_that_passes_takes_over_and_every_transition_is_an_event(dev, controller, clock) -> None:
    endpoint, stable, candidate = stage(dev, replicas=2)
    rollout = drive(actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev), controller, clock)
    assert rollout.phase == "succeeded"
    assert weights_of(endpoint) == {stable.number: 0, candidate.number: WEIGHT_TOTAL_BP}
    endpoint.refresh_from_db()
    assert endpoint.steering is None
    events = list(rollout.events.order_by("seq"))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    phases = list(dict.fromkeys(event.phase_after for event in events))
    assert phases == ["pending", "loading", "smoke", "progressing", "promoting", "succeeded"]
    given = [event.weights_after["2"] for event in events]
    assert given == sorted(given)
    assert {event.actor for event in events} == {"dev", "serinus"}
    assert all(event.words for event in events)


def test_the_table_carries_the_steering_and_a_new_salt(dev, controller, clock) -> None:
    endpoint, _, candidate = stage(dev)
    salt = endpoint.salt
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=plans.TEMPLATES["standard"], actor=dev)
    _to_first_share(rollout, controller, clock)
    route = build_table().endpoints[0]
    assert route.salt != salt
    assert route.steering is not None
    assert (route.steering.rollout, route.steering.stable, route.steering.candidate) == (str(rollout.pk), 1, 2)
    assert route.steering.mirror_bp == WEIGHT_TOTAL_BP
    assert {variant.version: variant.weight_bp for variant in route.variants} == {1: WEIGHT_TOTAL_BP, 2: 0}


def test_the_judge_rolls_back_and_the_candidate_is_put_away(dev, controller, clock, word) -> None:
    endpoint, _, candidate = stage(dev)
    word.said = Verdict("hold", "not sure")
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev)
    rollout = _to_first_share(rollout, controller, clock)
    assert (rollout.phase, rollout.weight_bp) == ("progressing", 1000)
    word.said = Verdict("fail", "5 % errors against 0.5 %", evidence={"findings": [1]})
    controller.tick()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.reason, rollout.weight_bp) == ("aborting", Reason.GUARDRAIL, 0)
    assert weights_of(endpoint) == {1: WEIGHT_TOTAL_BP, 2: 0}
    event = rollout.events.get(kind="aborting")
    assert (event.words, event.evidence) == ("5 % errors against 0.5 %", {"findings": [1]})
    rollout = drive(rollout, controller, clock)
    assert rollout.phase == "rolled_back"
    assert Deployment.objects.get(version=candidate).replicas == 0
    audit = AuditEntry.objects.filter(verb="rollout", actor_kind="autopilot").order_by("id").last()
    assert audit is not None
    assert audit.object_name == "digits"


def test_a_candidate_that_crashes_while_it_loads_fails_without_a_request(dev, controller, clock) -> None:
    endpoint, _, candidate = stage(dev)
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev)
    controller.tick()
    wish = Deployment.objects.get(version=candidate)
    Replica.objects.create(deployment=wish, wanted="run", phase="failed", restarts=5, message="constructor raised")
    controller.tick()
    clock.pass_s(5)
    controller.tick()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.judged_from) == ("failed", None)
    assert any("constructor raised" in event.words for event in rollout.events.all())


@pytest.mark.parametrize("point", range(14))
def test_killed_at_any_transition_it_ends_as_if_nothing_had_happened(point, dev, clock, word, monkeypatch) -> None:
    """The kill comes after everything else of the transition has been written, before it is committed."""
    endpoint, _, candidate = stage(dev, replicas=2)
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev)
    create, left = RolloutEvent.objects.create, [point]

    class Killed(BaseException):
        pass

    def dying(**values):
        if left[0] == 0:
            left[0] = -1
            raise Killed
        left[0] -= 1
        return create(**values)

    monkeypatch.setattr(RolloutEvent.objects, "create", dying)
    for _ in range(60):
        try:
            with transaction.atomic():
                Controller(word, clock=clock, owner=f"life {left[0]}").tick()
        except Killed:
            pass
        rollout.refresh_from_db()
        if not rollout.is_active:
            break
        if rollout.phase == "smoke":
            smoked(rollout)
        clock.pass_s(15)
        load()
    assert rollout.phase == "succeeded"
    assert weights_of(endpoint) == {1: 0, 2: WEIGHT_TOTAL_BP}
    seqs = list(rollout.events.order_by("seq").values_list("seq", flat=True))
    assert seqs == list(range(1, len(seqs) + 1))
    shares = [event.weights_after["2"] for event in rollout.events.order_by("seq")]
    assert list(dict.fromkeys(shares)) == [0, 1000, 5000, WEIGHT_TOTAL_BP]


def test_a_held_lease_is_respected_and_a_lapsed_one_is_taken_under_a_higher_fence(dev, controller) -> None:
    endpoint, _, candidate = stage(dev)
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev)
    rows = Rollout.objects.filter(pk=rollout.pk)
    rows.update(lease_owner="other", fence=7, lease_until=Now() + timedelta(seconds=60))
    assert controller.tick() == 0
    rows.update(lease_until=Now() - timedelta(seconds=1))
    assert controller.tick() > 0
    rollout.refresh_from_db()
    assert rollout.fence == 8


def test_who_slept_through_its_lease_writes_nothing(dev, clock) -> None:
    endpoint, _, candidate = stage(dev)
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=PAUSED, actor=dev)

    class Sleeper(Word):
        """While it judges, somebody else takes the rollout over."""

        def __call__(self, *args):
            Rollout.objects.filter(pk=rollout.pk).update(fence=99, lease_until=Now() + timedelta(seconds=60))
            return self

    _to_first_share(rollout, Controller(Word(), clock=clock), clock)
    actions.promote(rollout=rollout, actor=dev)
    before = Rollout.objects.get(pk=rollout.pk)
    clock.pass_s(60)
    assert Controller(Sleeper(Verdict("fail", "worse")), clock=clock).tick() == 0
    after = Rollout.objects.get(pk=rollout.pk)
    assert (after.revision, after.phase, after.fence) == (before.revision, before.phase, 99)


def test_a_tick_with_nothing_to_do_writes_nothing(dev, controller, clock) -> None:
    endpoint, _, candidate = stage(dev)
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=PAUSED, actor=dev)
    _to_first_share(rollout, controller, clock)
    rollout.refresh_from_db()
    revision, events = rollout.revision, rollout.events.count()
    entries, endpoint_revision = AuditEntry.objects.count(), Endpoint.objects.get().revision
    assert [controller.tick() for _ in range(5)] == [0] * 5
    rollout.refresh_from_db()
    assert (rollout.revision, rollout.events.count()) == (revision, events)
    assert (AuditEntry.objects.count(), Endpoint.objects.get().revision) == (entries, endpoint_revision)


# -- the old version ----------------------------------------------------------------------------------------------------


def test_the_old_version_stays_warm_then_one_replica_then_none(dev, controller, clock) -> None:
    endpoint, stable, candidate = stage(dev, replicas=3)
    rollout = drive(actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev), controller, clock)
    wished = lambda: Deployment.objects.get(version=stable).replicas  # noqa: E731
    assert (rollout.old_stage, wished()) == ("warm", 3)
    clock.pass_s(601)
    controller.tick()
    rollout.refresh_from_db()
    assert (rollout.old_stage, wished()) == ("parked", 1)
    clock.pass_s(3601)
    controller.tick()
    rollout.refresh_from_db()
    assert (rollout.old_stage, wished()) == ("unloaded", 0)


def test_an_old_version_that_is_used_again_is_not_put_away(dev, controller, clock) -> None:
    endpoint, stable, candidate = stage(dev)
    rollout = drive(actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev), controller, clock)
    endpoints.set_weights(endpoint=endpoint, weights={1: 5000, 2: 5000}, actor=dev)
    clock.pass_s(601)
    controller.tick()
    rollout.refresh_from_db()
    assert (rollout.old_stage, Deployment.objects.get(version=stable).replicas) == ("", 1)


def test_one_click_goes_back_at_once_while_the_old_version_is_warm(dev, controller, clock) -> None:
    endpoint, _stable, candidate = stage(dev, replicas=2)
    drive(actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev), controller, clock)
    back = actions.rollback(endpoint=endpoint, actor=dev)
    assert back.is_rollback
    controller.tick()
    back.refresh_from_db()
    assert back.phase == "succeeded", "one tick: nothing has to be loaded"
    assert weights_of(endpoint) == {1: WEIGHT_TOTAL_BP, 2: 0}


def test_going_back_when_the_old_version_is_unloaded_waits_for_its_replicas(dev, controller, clock) -> None:
    endpoint, _stable, candidate = stage(dev, replicas=2)
    drive(actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev), controller, clock)
    for seconds in (601, 3601):
        clock.pass_s(seconds)
        controller.tick()
    load()
    back = actions.rollback(endpoint=endpoint, actor=dev)
    controller.tick()
    back.refresh_from_db()
    assert (back.phase, weights_of(endpoint)[1]) == ("loading", 0)
    load()
    controller.tick()
    assert weights_of(endpoint)[1] == WEIGHT_TOTAL_BP


def test_there_is_nothing_to_go_back_to_without_a_rollout(dev) -> None:
    endpoint, _, _ = stage(dev)
    with pytest.raises(Conflict, match="has replaced a version"):
        actions.rollback(endpoint=endpoint, actor=dev)


# -- what people do -----------------------------------------------------------------------------------------------------


def test_one_active_rollout_per_endpoint(dev, controller, clock) -> None:
    endpoint, _, candidate = stage(dev)
    first = actions.start(endpoint=endpoint, version=candidate, plan=PAUSED, actor=dev)
    newer = version()
    with pytest.raises(Conflict, match="promote or abort it first"):
        actions.start(endpoint=endpoint, version=newer, plan=PAUSED, actor=dev)
    _to_first_share(first, controller, clock)
    superseding = Plan("p", PAUSED.steps, PlanSettings(when_busy="supersede"))
    second = actions.start(endpoint=endpoint, version=newer, plan=superseding, actor=dev)
    first.refresh_from_db()
    assert (first.phase, first.reason, first.weight_bp) == ("rolled_back", Reason.SUPERSEDED, 0)
    assert Rollout.objects.filter(phase__in=ACTIVE).get() == second
    with pytest.raises(IntegrityError), transaction.atomic():
        Rollout.objects.filter(pk=first.pk).update(phase="loading")


def test_an_abort_moves_the_traffic_in_its_own_transaction(dev, controller, clock, sent) -> None:
    endpoint, _, candidate = stage(dev)
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=PAUSED, actor=dev)
    _to_first_share(rollout, controller, clock)
    assert weights_of(endpoint)[2] == 1000
    found = actions.abort(rollout=rollout, actor=dev, reason="looks odd")
    assert (found.phase, weights_of(endpoint)) == ("aborting", {1: WEIGHT_TOTAL_BP, 2: 0})
    assert found.words == "A person aborted it. looks odd"
    assert drive(found, controller, clock).phase == "rolled_back"


def test_an_abort_when_nothing_runs_changes_nothing(dev, controller, clock) -> None:
    endpoint, _, candidate = stage(dev)
    rollout = drive(actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev), controller, clock)
    before = (rollout.revision, weights_of(endpoint), AuditEntry.objects.count(), rollout.events.count())
    assert actions.abort(rollout=rollout, actor=dev).phase == "succeeded"
    rollout.refresh_from_db()
    assert (rollout.revision, weights_of(endpoint), AuditEntry.objects.count(), rollout.events.count()) == before


def test_promote_goes_one_step_and_fully_all_the_way(dev, controller, clock) -> None:
    endpoint, _, candidate = stage(dev)
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=PAUSED, actor=dev)
    with pytest.raises(Conflict, match="is pending cannot be promoted"):
        actions.promote(rollout=rollout, actor=dev)
    rollout = _to_first_share(rollout, controller, clock)
    assert (rollout.phase, rollout.step) == ("paused", 1)
    actions.promote(rollout=rollout, actor=dev)
    controller.tick()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.step, rollout.weight_bp) == ("paused", 3, 5000)
    actions.promote(rollout=rollout, actor=dev, full=True, reason="sure")
    controller.tick()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.weight_bp) == ("succeeded", WEIGHT_TOTAL_BP)


def test_a_paused_rollout_stays_until_it_is_resumed(dev, controller, clock, word) -> None:
    endpoint, _, candidate = stage(dev)
    word.said = Verdict("hold", "not sure")
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev)
    rollout = _to_first_share(rollout, controller, clock)
    actions.pause(rollout=rollout, actor=dev)
    word.said = PASS
    for _ in range(5):
        clock.pass_s(60)
        controller.tick()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.weight_bp) == ("paused", 1000)
    actions.resume(rollout=rollout, actor=dev)
    assert drive(rollout, controller, clock).phase == "succeeded"


def test_an_undecided_step_is_extended(dev, controller, clock, word) -> None:
    endpoint, _, candidate = stage(dev)
    word.said = Verdict("hold", "needs about 900 more requests")
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev)
    rollout = _to_first_share(rollout, controller, clock)
    clock.pass_s(901)
    controller.tick()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.reason) == ("inconclusive", Reason.UNDECIDED)
    assert "needs about 900 more" in rollout.words
    clock.now = Clock().now
    actions.extend(rollout=rollout, actor=dev)
    controller.tick()
    rollout.refresh_from_db()
    assert rollout.phase == "progressing"


def test_an_approval_takes_other_people_of_the_role(dev, controller, clock) -> None:
    endpoint, _, candidate = stage(dev)
    plan = Plan("p", [SetWeight(1000), Approve("operator", 2), SetWeight(10_000)])
    olga = person("olga", Role.OPERATOR)
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=plan, actor=olga)
    rollout = _to_first_share(rollout, controller, clock)
    assert rollout.phase == "awaiting_approval"
    ana, ben = person("ana", Role.OPERATOR), person("ben", Role.ADMIN)
    with pytest.raises(Forbidden):
        actions.approve(rollout=rollout, actor=dev)
    with pytest.raises(Conflict, match="cannot approve it"):
        actions.approve(rollout=rollout, actor=olga)
    actions.approve(rollout=rollout, actor=ana)
    with pytest.raises(Conflict, match="approved this step already"):
        actions.approve(rollout=rollout, actor=ana)
    controller.tick()
    assert Rollout.objects.get(pk=rollout.pk).phase == "awaiting_approval"
    actions.approve(rollout=rollout, actor=ben)
    assert drive(rollout, controller, clock).phase == "succeeded"


def test_while_a_rollout_is_active_nobody_else_moves_the_traffic(dev, controller, clock) -> None:
    endpoint, _, candidate = stage(dev)
    actions.start(endpoint=endpoint, version=candidate, plan=PAUSED, actor=dev)
    for forbidden in (
        lambda: endpoints.set_weights(endpoint=endpoint, weights={1: WEIGHT_TOTAL_BP}, actor=dev, force=True),
        lambda: endpoints.undeploy(endpoint=endpoint, number=2, actor=dev),
        lambda: endpoints.delete_endpoint(endpoint=endpoint, actor=dev),
        lambda: endpoints.deploy(version=version(), actor=dev, weight_bp=100),
    ):
        with pytest.raises(Conflict, match="serinus rollout abort digits"):
            forbidden()


@pytest.mark.parametrize("case", ["same", "other model", "rejected", "split", "stranger"])
def test_what_cannot_be_a_candidate_is_refused_in_words(case, dev) -> None:
    endpoint, stable, candidate = stage(dev)
    actor, error, said = dev, Conflict, ""
    if case == "same":
        candidate, said = stable, "is the stable version"
    elif case == "other model":
        candidate, said = version("others"), "serves another model"
    elif case == "rejected":
        candidate, said = version(status="rejected"), "only a ready version"
    elif case == "split":
        endpoints.deploy(version=candidate, actor=dev)
        endpoints.set_weights(endpoint=endpoint, weights={1: 6000, 2: 4000}, actor=dev, force=True)
        said = "split by hand"
    else:
        from tests.support.fleet_cast import team

        actor, error, said = person("stranger", Role.ADMIN, team("strangers")), Forbidden, "no right to deploy"
    with pytest.raises(error, match=said):
        actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=actor)
    assert not Rollout.objects.exists()
    assert not Endpoint.objects.get().steering


def test_without_surge_one_replica_cannot_be_exchanged(dev) -> None:
    endpoint, _, candidate = stage(dev)
    with pytest.raises(Conflict, match="at least two"):
        actions.start(
            endpoint=endpoint, version=candidate, plan=Plan("p", RAMP.steps, PlanSettings(surge=False)), actor=dev
        )


def test_without_surge_a_whole_rollout_never_wishes_for_more_replicas(dev, controller, clock) -> None:
    endpoint, _stable, candidate = stage(dev, replicas=3)
    plan = Plan("p", RAMP.steps, PlanSettings(surge=False))
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=plan, actor=dev)
    for _ in range(60):
        controller.tick()
        rollout.refresh_from_db()
        wished = sum(Deployment.objects.values_list("replicas", flat=True))
        assert wished <= 3
        if not rollout.is_active:
            break
        if rollout.phase == "smoke":
            smoked(rollout)
        clock.pass_s(15)
        load()
    assert (rollout.phase, Deployment.objects.get(version=candidate).replicas) == ("succeeded", 3)


def test_plans_are_saved_by_number_and_rollouts_keep_what_they_began_with(dev, controller, clock) -> None:
    endpoint, _, candidate = stage(dev)
    team = endpoint.team
    assert actions.save_plan(team=team, plan=Plan("ours", PAUSED.steps), actor=dev).number == 1
    assert actions.save_plan(team=team, plan=Plan("ours", RAMP.steps), actor=dev).number == 2
    plan, number = actions.named_plan(team, "ours")
    assert (plan.steps, number) == (RAMP.steps, 2)
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=plan, plan_number=number, actor=dev)
    actions.save_plan(team=team, plan=Plan("ours", PAUSED.steps), actor=dev)
    assert drive(rollout, controller, clock).phase == "succeeded"
    with pytest.raises(Conflict, match="one of the templates"):
        actions.save_plan(team=team, plan=Plan("standard", RAMP.steps), actor=dev)
    with pytest.raises(NotFound, match="no plan 'theirs'"):
        actions.named_plan(team, "theirs")


def test_the_database_refuses_to_rewrite_an_event(dev) -> None:
    endpoint, _, candidate = stage(dev)
    actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev)
    for change in (lambda: RolloutEvent.objects.update(words="nothing"), lambda: RolloutEvent.objects.all().delete()):
        with pytest.raises((IntegrityError, InternalError)), transaction.atomic():
            change()


def test_an_endpoint_that_is_gone_ends_its_rollout(dev, controller) -> None:
    endpoint, _, candidate = stage(dev)
    rollout = actions.start(endpoint=endpoint, version=candidate, plan=RAMP, actor=dev)
    Endpoint.objects.filter(pk=endpoint.pk).update(steering=None)
    endpoint.refresh_from_db()
    endpoints.delete_endpoint(endpoint=endpoint, actor=SYSTEM)
    controller.tick()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.reason) == ("failed", Reason.GONE)
