"""How a rollout's row changes: one transition is one event, the endpoint's traffic and the row, all or nothing.

Both writers, the controller and people's actions, come through here, holding the row's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from accounts.permissions import Actor
from endpoints.actions import weights_of
from endpoints.models import Endpoint
from endpoints.steering import steer
from inference.errors import Conflict
from inference.protocol.routes import WEIGHT_TOTAL_BP, Steering
from rollouts import plans, webhooks
from rollouts.models import Rollout, RolloutEvent
from rollouts.phases import FINAL, MOVES, Phase, Reason
from rollouts.plans import Plan, Traffic

AUTOPILOT = Actor(kind="autopilot", name="serinus", roles={}, superuser=True)
WORDS_MAX = 1000


def locked(pk: Any) -> Rollout:
    """The rollout as it is now, its row locked. Raises Conflict when it is gone."""
    rows = Rollout.objects.select_for_update(of=("self",)).select_related(
        "endpoint__team", "team", "stable__model__team", "candidate__model__team"
    )
    found = rows.filter(pk=pk).first()
    if found is None:
        raise Conflict("this rollout is gone")
    return found


def move(
    rollout: Rollout,
    *,
    actor: Actor,
    now: datetime,
    kind: str,
    reason: Reason,
    words: str,
    phase: Phase | None = None,
    step: int | None = None,
    traffic: Traffic | None = None,
    evidence: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Rollout:
    """Writes one transition: phase, step, traffic, whatever else is in `fields`, and its event.

    Raises Conflict for a phase that does not follow from the one the rollout is in.
    """
    old, new = Phase(rollout.phase), phase or Phase(rollout.phase)
    _check_move(old, new)
    weights_before = _weights(rollout)
    change: dict[str, Any] = {"reason": reason, "words": words[:WORDS_MAX], **(fields or {})}
    if new is not old:
        change |= {"phase": new, "phase_at": now}
    if step is not None:
        change |= {"step": step, "step_at": now, "approvals": []}
    if new in FINAL:
        change |= {"finished_at": now, "held": False}
    if old is Phase.ABORTING and new is not old:
        # Why it was aborted is what people and scripts want to read of it.
        change = {name: value for name, value in change.items() if name not in {"reason", "words"}}
    if traffic is not None or new in FINAL:
        change |= _steer(rollout, traffic, actor=actor, now=now, is_final=new in FINAL, words=words)
    for name, value in change.items():
        setattr(rollout, name, value)
    rollout.revision += 1
    rollout.events_count += 1
    rollout.save(update_fields=[*change, "revision", "events_count"])
    event = RolloutEvent.objects.create(
        rollout=rollout, seq=rollout.events_count, at=now, actor_kind=actor.kind, actor=actor.name, kind=kind,
        reason=reason, words=words[:WORDS_MAX], phase_before=old, phase_after=new, step=rollout.step,
        weights_before=weights_before, weights_after=_weights(rollout), evidence=dict(evidence or {}),
    )  # fmt: skip
    webhooks.tell(event)
    return rollout


def _check_move(old: Phase, new: Phase) -> None:
    if new is not old and new not in MOVES[old]:
        raise Conflict(f"a rollout that is {old.replace('_', ' ')} cannot become {new.replace('_', ' ')}")


def plan_of(rollout: Rollout) -> Plan:
    return plans.read(rollout.plan)


def steering_of(rollout: Rollout, plan: Plan, traffic: Traffic) -> Steering:
    settings = plan.settings
    return Steering(
        rollout=str(rollout.pk),
        stable=rollout.stable.number,
        candidate=rollout.candidate.number,
        mirror_bp=traffic.mirror_bp,
        mirror_inflight=settings.mirror_inflight,
        rescue=settings.rescue,
        sticky=settings.sticky,
        match=list(traffic.match),
        comparison=settings.comparison,
    )


def shares(rollout: Rollout, weight_bp: int) -> dict[int, int]:
    """Version number -> basis points when the candidate has `weight_bp`."""
    return {rollout.stable.number: WEIGHT_TOTAL_BP - weight_bp, rollout.candidate.number: weight_bp}


def _steer(
    rollout: Rollout, traffic: Traffic | None, *, actor: Actor, now: datetime, is_final: bool, words: str
) -> dict[str, Any]:
    """Writes the endpoint; answers what changes on the rollout's row by it."""
    traffic = traffic or Traffic(rollout.weight_bp)
    change: dict[str, Any] = {"weight_bp": traffic.weight_bp, "mirror_bp": 0 if is_final else traffic.mirror_bp}
    if rollout.judged_from is None and (traffic.weight_bp or traffic.mirror_bp or traffic.match):
        change["judged_from"] = now
    endpoint = rollout.endpoint
    if endpoint is None:
        return change
    steering = None if is_final else steering_of(rollout, plan_of(rollout), traffic)
    steer(
        endpoint=endpoint, weights=_kept(endpoint, shares(rollout, traffic.weight_bp)), steering=steering, actor=actor,
        verb="rollout", reason=words,
    )  # fmt: skip
    return change


def _kept(endpoint: Endpoint, weights: dict[int, int]) -> dict[int, int]:
    """`weights` without versions that are not behind the endpoint and get nothing."""
    there = weights_of(endpoint)
    return {number: share for number, share in weights.items() if share or number in there}


def _weights(rollout: Rollout) -> dict[str, int]:
    named = {str(number): share for number, share in shares(rollout, rollout.weight_bp).items()}
    return {**named, "mirror": rollout.mirror_bp}
