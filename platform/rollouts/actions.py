"""What people may do to rollouts; beside the controller the only writer of this app's rows.

Each is one transaction under the rollout's lock: right, transition, event, traffic and audit entry together.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db import transaction

from accounts import audit
from accounts.models import Team
from accounts.permissions import Actor, Verb, require
from accounts.wakeups import send_on_commit
from endpoints import actions as endpoints
from endpoints.models import Endpoint
from endpoints.steering import steer
from inference.errors import Conflict, InvalidInput, NotFound
from inference.protocol.routes import WEIGHT_TOTAL_BP
from registry.adapters import is_adapter
from registry.models import Version, VersionStatus
from rollouts import plans
from rollouts.capacity import backward
from rollouts.controller import SMOKE_AGAIN, database_now, facts_of, state_of
from rollouts.models import Rollout, SavedPlan
from rollouts.phases import ACTIVE, ON_THE_WAY, Phase, Reason
from rollouts.plans import Approve, Plan, Traffic
from rollouts.preflight import preflight
from rollouts.watching import seen
from rollouts.writing import locked, move, plan_of, shares, steering_of

TICK = "rollouts.tasks.tick"
APPROVERS = {"developer": Verb.DEPLOY, "operator": Verb.OPERATE, "admin": Verb.APPROVE}
MAX_PLANS_PER_TEAM = 200


def named_plan(team: Team, name: str) -> tuple[Plan, int]:
    """A team's newest plan of this name, else the template, with its number (0 for a template). Raises NotFound."""
    saved = SavedPlan.objects.filter(team=team, name=name).order_by("-number").first()
    if saved is not None:
        return plans.read(saved.plan), saved.number
    found = plans.template(name)
    if found is None:
        raise NotFound(f"there is no plan '{name[:64]}': use one of {', '.join(plans.TEMPLATES)}, or save your own")
    return found, 0


def save_plan(*, team: Team, plan: Plan, actor: Actor) -> SavedPlan:
    """Keeps a team's own plan, as the next number of its name. Raises Conflict, Forbidden."""
    require(actor, Verb.DEPLOY, team)
    plans.checked(plan)
    if plans.template(plan.name) is not None:
        raise Conflict(f"'{plan.name}' is one of the templates: take another name")
    with transaction.atomic():
        Team.objects.select_for_update().get(pk=team.pk)
        if SavedPlan.objects.filter(team=team).count() >= MAX_PLANS_PER_TEAM:
            raise Conflict(f"a team keeps up to {MAX_PLANS_PER_TEAM} plans")
        newest = SavedPlan.objects.filter(team=team, name=plan.name).order_by("-number").first()
        number = newest.number + 1 if newest else 1
        saved = SavedPlan.objects.create(
            team=team, name=plan.name, number=number, plan=plans.as_json(plan), creator=actor.name
        )
        audit.record(actor, "save_plan", "plan", f"{plan.name} v{number}", team=team, after=plans.as_json(plan))
    return saved


@transaction.atomic
def start(
    *,
    endpoint: Endpoint,
    version: Version,
    plan: Plan,
    actor: Actor,
    plan_number: int = 0,
    reason: str = "",
    is_rollback: bool = False,
) -> Rollout:
    """Begins to move an endpoint's traffic to `version`. reason: why, and why a breaking signature is meant.

    Raises Conflict when another rollout is active (and the plan does not supersede it), the traffic is split by hand,
    the version cannot be a candidate here, or the preflight finds something that would break it or its clients.
    """
    require(actor, Verb.DEPLOY, endpoint)
    plans.checked(plan)
    endpoint = endpoints.locked(endpoint, None)
    _make_way(endpoint, plan, actor)
    stable = _stable_of(endpoint)
    _check_candidate(endpoint, stable, version)
    capacity = _capacity_of(stable, plan)
    found = None if is_rollback else preflight(endpoint, version, plan, reason=reason)
    if found is not None and not found.is_clear:
        raise Conflict(" ".join(found.blockers))
    now, before = database_now(), seen(version)
    endpoints.deploy(
        version=version, endpoint_name=endpoint.name, replicas=before.wanted, device=_device_of(stable), actor=actor
    )
    rollout = Rollout(
        endpoint=endpoint, endpoint_name=endpoint.name, team=endpoint.team, stable=stable, candidate=version,
        plan=plans.as_json(plan), plan_name=plan.name, plan_number=plan_number, step_at=now, phase_at=now,
        created_at=now, capacity=capacity, candidate_before=before.wanted, crashes_before=before.crashes,
        device=_device_of(stable), creator=actor.name, override=reason[:500], is_rollback=is_rollback,
        preflight=found.record() if found is not None else None,
    )  # fmt: skip
    rollout.save(force_insert=True)
    steer(
        endpoint=endpoint, weights=shares(rollout, 0), steering=steering_of(rollout, plan, Traffic()), actor=actor,
        verb="rollout", reason=reason, fresh_salt=True,
    )  # fmt: skip
    words = f"From version {stable.number} to {version.number} by the plan '{plan.name}'."
    move(rollout, actor=actor, now=now, kind="started", reason=Reason.STARTED, words=f"{words} {reason}".strip())
    _record(rollout, actor, "start_rollout", reason)
    send_on_commit(TICK)
    return rollout


@transaction.atomic
def promote(*, rollout: Rollout, actor: Actor, full: bool = False, reason: str = "") -> Rollout:
    """On to the next step whatever the judge says; `full`: to all of the traffic. Raises Conflict before the steps."""
    rollout = _begun(rollout, actor, "promoted")
    plan, following = plan_of(rollout), rollout.step + 1
    is_end = full or following >= len(plan.steps)
    if is_end and not full and plan.settings.outcome == "report":
        move(
            rollout, actor=actor, now=database_now(), kind="promote", reason=Reason.PERSON, step=len(plan.steps),
            words=_said("A person ended the plan.", reason), fields={"held": False},
        )  # fmt: skip
    else:
        phase = Phase.PROMOTING if is_end else Phase.PROGRESSING
        step = len(plan.steps) if is_end else following
        what = (
            "A person promoted it fully." if is_end else f"A person went on to: {plans.words(plan.steps[following])}."
        )
        move(
            rollout, actor=actor, now=database_now(), kind="promote", reason=Reason.PERSON, phase=phase, step=step,
            words=_said(what, reason), fields={"held": False},
        )  # fmt: skip
    return _done(rollout, actor, "promote_rollout", reason)


@transaction.atomic
def pause(*, rollout: Rollout, actor: Actor, reason: str = "") -> Rollout:
    """Stays where it is until somebody resumes, promotes or aborts; the guards stay armed."""
    rollout = _begun(rollout, actor, "paused")
    if rollout.held:
        return rollout
    move(
        rollout, actor=actor, now=database_now(), kind="pause", reason=Reason.PERSON, phase=Phase.PAUSED,
        words=_said("A person paused it; the guards stay armed.", reason), fields={"held": True},
    )  # fmt: skip
    return _done(rollout, actor, "pause_rollout", reason)


@transaction.atomic
def resume(*, rollout: Rollout, actor: Actor, reason: str = "") -> Rollout:
    """Goes on after a pause; the step's time begins anew."""
    rollout = _begun(rollout, actor, "resumed")
    if not rollout.held:
        raise Conflict("nobody paused this rollout: it waits as its plan says, so promote it to go on")
    now = database_now()
    move(
        rollout, actor=actor, now=now, kind="resume", reason=Reason.PERSON, phase=Phase.PROGRESSING,
        words=_said("A person resumed it.", reason), fields={"held": False, "step_at": now},
    )  # fmt: skip
    return _done(rollout, actor, "resume_rollout", reason)


@transaction.atomic
def extend(*, rollout: Rollout, actor: Actor, reason: str = "") -> Rollout:
    """Gives the step its whole time again."""
    rollout = _begun(rollout, actor, "extended")
    now = database_now()
    phase = Phase.PROGRESSING if rollout.phase == Phase.INCONCLUSIVE else None
    move(
        rollout, actor=actor, now=now, kind="extend", reason=Reason.PERSON, phase=phase,
        words=_said("A person gave the step its whole time again.", reason), fields={"step_at": now},
    )  # fmt: skip
    return _done(rollout, actor, "extend_rollout", reason)


@transaction.atomic
def approve(*, rollout: Rollout, actor: Actor, reason: str = "") -> Rollout:
    """One approval of the step that asks for some. Nobody approves twice, nor what they started, unless a superuser."""
    require(actor, Verb.DEPLOY, rollout)
    found = locked(rollout.pk)
    plan = plan_of(found)
    step = plan.steps[found.step] if found.step < len(plan.steps) else None
    if not isinstance(step, Approve) or found.phase not in ON_THE_WAY:
        raise Conflict("this rollout does not wait for an approval")
    require(actor, APPROVERS[step.role], found)
    if actor.name == found.creator and not actor.superuser:
        raise Conflict("who started a rollout cannot approve it: ask a colleague")
    if any(one["by"] == actor.name for one in found.approvals):
        raise Conflict("you have approved this step already")
    now = database_now()
    held = [*found.approvals, {"by": actor.name, "at": now.isoformat()}]
    words = _said(f"Approved by {actor.name} ({len(held)} of {step.n}).", reason)
    move(found, actor=actor, now=now, kind="approve", reason=Reason.APPROVAL, words=words, fields={"approvals": held})
    return _done(found, actor, "approve_rollout", reason)


@transaction.atomic
def abort(*, rollout: Rollout, actor: Actor, reason: str = "", why: Reason = Reason.PERSON) -> Rollout:
    """All traffic back to the stable version, in this transaction. One that has ended stays as it is."""
    require(actor, Verb.DEPLOY, rollout)
    found = locked(rollout.pk)
    if Phase(found.phase) not in ACTIVE - {Phase.ABORTING}:
        return found
    now, plan = database_now(), plan_of(found)
    facts = facts_of(found, plan, None, now)
    words = _said("A person aborted it." if why is Reason.PERSON else "A newer candidate has been started.", reason)
    move(
        found, actor=actor, now=now, kind="abort", reason=why, phase=Phase.ABORTING, words=words,
        traffic=backward(plan, state_of(found), facts, why),
    )  # fmt: skip
    return _done(found, actor, "abort_rollout", reason)


def to_be_smoked(pk: str) -> Rollout | None:
    """The rollout, when its candidate is to be asked the golden inputs."""
    rows = Rollout.objects.select_related("endpoint", "candidate__model")
    return rows.filter(pk=pk, phase=Phase.SMOKE, smoke__isnull=True).first()


def record_smoke(pk: str, record: dict[str, Any]) -> None:
    """Keeps the report of the golden inputs; the controller decides by it. A second one changes nothing."""
    Rollout.objects.filter(pk=pk, phase=Phase.SMOKE, smoke__isnull=True).update(smoke=record)


def ask_smoke_again(pk: str, in_s: float = 3.0) -> None:
    """A replay still goes on: the controller asks anew in a moment."""
    at = database_now() - SMOKE_AGAIN + timedelta(seconds=in_s)
    Rollout.objects.filter(pk=pk, phase=Phase.SMOKE, smoke__isnull=True).update(smoke_asked_at=at)


def rollback(*, endpoint: Endpoint, actor: Actor, reason: str = "") -> Rollout:
    """Back to the version that the newest successful rollout replaced: at once while its replicas are still there.

    Aborts an active rollout instead, when there is one. Raises Conflict when there is nothing to go back to.
    """
    require(actor, Verb.DEPLOY, endpoint)
    active = active_of(endpoint)
    if active is not None:
        return abort(rollout=active, actor=actor, reason=reason)
    rows = Rollout.objects.filter(endpoint=endpoint, phase=Phase.SUCCEEDED).exclude(old_stage="")
    last = rows.select_related("stable__model", "candidate").order_by("-created_at").first()
    now_stable = _stable_of(endpoint)
    if last is None or last.candidate_id != now_stable.pk:
        raise Conflict(f"no rollout of endpoint '{endpoint.name}' has replaced a version that could come back")
    plan = plans.TEMPLATES["at-once"]
    return start(
        endpoint=endpoint, version=last.stable, plan=plan, actor=actor, reason=reason or "rollback", is_rollback=True
    )


def active_of(endpoint: Endpoint) -> Rollout | None:
    """The endpoint's rollout that has not ended, None when there is none."""
    rows = Rollout.objects.select_related("endpoint", "team", "stable__model", "candidate__model")
    return rows.filter(endpoint=endpoint, phase__in=ACTIVE).first()


def _make_way(endpoint: Endpoint, plan: Plan, actor: Actor) -> None:
    """Raises Conflict while another rollout is active, unless the plan supersedes it and it has come to its end."""
    active = active_of(endpoint)
    if active is None:
        return
    where = f"a rollout to version {active.candidate.number} of endpoint '{endpoint.name}' is {active.phase.replace('_', ' ')}"
    if plan.settings.when_busy == "refuse":
        raise Conflict(f"{where}: promote or abort it first, or start with a plan that supersedes")
    abort(rollout=active, actor=actor, why=Reason.SUPERSEDED)
    ended = locked(active.pk)
    # The old candidate's traffic is back already; its replicas are put away here, so that the new one may begin now.
    if ended.weight_bp:
        raise Conflict(f"{where} and walks back replica by replica: start again when it has ended")
    end = Phase.ROLLED_BACK if ended.judged_from else Phase.FAILED
    endpoints.want_replicas(ended.candidate, min(ended.candidate_before, seen(ended.candidate).wanted), ended.device)
    move(
        ended, actor=actor, now=database_now(), kind=str(end), reason=Reason.SUPERSEDED, phase=end, traffic=Traffic(),
        words="A newer candidate takes its place.",
    )  # fmt: skip


def _stable_of(endpoint: Endpoint) -> Version:
    """The version that has all the traffic. Raises Conflict when none has."""
    rows = endpoint.variants.filter(weight_bp=WEIGHT_TOTAL_BP).select_related("version__model__team")
    variant = rows.first()
    if variant is None:
        raise Conflict(
            f"the traffic of endpoint '{endpoint.name}' is split by hand: give all of it to one version first, which is "
            "then the stable one"
        )
    return variant.version


def _check_candidate(endpoint: Endpoint, stable: Version, version: Version) -> None:
    if version.model_id != endpoint.model_id:
        raise Conflict(f"endpoint '{endpoint.name}' serves another model: a candidate is a version of the same model")
    if version.pk == stable.pk:
        raise Conflict(f"version {version.number} is the stable version of endpoint '{endpoint.name}' already")
    if version.status != VersionStatus.READY:
        raise Conflict(f"{version} is {version.status.replace('_', ' ')}: only a ready version can be a candidate")
    if is_adapter(version):
        raise InvalidInput(f"{version} is an adapter and has no traffic of its own: roll out a version that it changes")


def _capacity_of(stable: Version, plan: Plan) -> int:
    """Replicas that carry all of the traffic. Raises Conflict where these cannot be exchanged one by one."""
    capacity = max(1, seen(stable).wanted)
    if not plan.settings.surge and capacity < 2:
        raise Conflict(
            "without surge the replicas are exchanged one by one, which needs at least two of the stable version: scale "
            "it to two, or leave surge on"
        )
    return capacity


def _device_of(version: Version) -> str:
    wish = getattr(version, "deployment", None)
    return wish.device if wish is not None else "any"


def _begun(rollout: Rollout, actor: Actor, what: str) -> Rollout:
    """The rollout, locked, when it walks its steps. Raises Conflict, Forbidden."""
    require(actor, Verb.DEPLOY, rollout)
    found = locked(rollout.pk)
    phase = Phase(found.phase)
    if phase not in ON_THE_WAY:
        when = "has ended" if phase not in ACTIVE else f"is {phase.replace('_', ' ')}"
        raise Conflict(f"a rollout that {when} cannot be {what}")
    return found


def _done(rollout: Rollout, actor: Actor, verb: str, reason: str) -> Rollout:
    _record(rollout, actor, verb, reason)
    send_on_commit(TICK)
    return rollout


def _record(rollout: Rollout, actor: Actor, verb: str, reason: str) -> None:
    after = {"rollout": str(rollout.pk), "phase": rollout.phase, "step": rollout.step, "weight_bp": rollout.weight_bp}
    audit.record(actor, verb, "endpoint", rollout.endpoint_name, team=rollout.team, after=after, reason=reason)


def _said(words: str, reason: str) -> str:
    return f"{words} {reason}".strip()
