"""Replicas and shares: how much a version carries, and the exchange of replicas where both versions do not fit. Pure."""

from __future__ import annotations

from inference.protocol.routes import WEIGHT_TOTAL_BP
from rollouts.facts import NOTHING, Decision, Facts, State
from rollouts.phases import Reason
from rollouts.plans import Plan, Traffic


def carried_bp(ready: int, capacity: int) -> int:
    """The share of the traffic (basis points) that `ready` of the `capacity` replicas it takes carry."""
    return min(WEIGHT_TOTAL_BP, WEIGHT_TOTAL_BP * ready // max(1, capacity))


def backward(plan: Plan, state: State, facts: Facts, reason: Reason) -> Traffic:
    """The traffic with which an abort goes on: none for the candidate, unless its replicas stand where the stable
    version's stood, so that this one cannot carry all yet, and nothing is plainly broken about them.
    """
    missing = max(0, state.capacity - facts.stable_ready)
    is_urgent = plan.settings.surge or reason in {Reason.HARD_STOP, Reason.LOAD_FAILED}
    if is_urgent or not missing or not facts.canary_ready or not facts.stable_ready:
        return Traffic()
    kept = min(missing, facts.canary_ready)
    return Traffic(min(state.weight_bp, WEIGHT_TOTAL_BP * kept // (kept + facts.stable_ready)))


def carried(plan: Plan, state: State, facts: Facts, wanted: Traffic) -> Decision:
    """`wanted` as far as the candidate's replicas carry it, when that is not what is written already."""
    if plan.settings.surge:
        most = carried_bp(facts.canary_ready, state.capacity)
    else:
        most = WEIGHT_TOTAL_BP * facts.canary_ready // max(1, facts.canary_ready + facts.stable_ready)
    if not facts.stable_ready and facts.canary_ready and state.weight_bp:
        most = max(most, state.weight_bp)  # nobody else is there to carry it
    traffic = Traffic(min(wanted.weight_bp, most), wanted.mirror_bp if facts.canary_ready else 0, wanted.match)
    if traffic == Traffic(state.weight_bp, state.mirror_bp, state.match):
        return NOTHING
    if traffic.weight_bp < state.weight_bp:
        words = (
            f"{counted(facts.canary_ready)} of the candidate {are(facts.canary_ready)} ready, so its share falls to "
            f"{traffic.weight_bp / 100:g} %."
        )
        return Decision(reason=Reason.CAPACITY, words=words, traffic=traffic)
    words = f"The candidate gets {traffic.weight_bp / 100:g} % of the traffic." if traffic.weight_bp else ""
    if traffic.mirror_bp:
        words = f"{traffic.mirror_bp / 100:g} % of the requests are copied to the candidate."
    if traffic.mirror_bp < state.mirror_bp:
        words = "No more requests are copied."
    return Decision(words=words or "Who is routed to the candidate has changed.", traffic=traffic)


def exchange(state: State, facts: Facts, target: int) -> Decision | None:
    """One move of the exchange that gives the candidate `target` of the replicas; None when none is due."""
    if facts.canary_wanted >= target:
        return None
    if facts.canary_ready < facts.canary_wanted:
        return None  # the last one is still loading
    left = state.capacity - (facts.canary_wanted + 1)
    if facts.stable_wanted > left:
        # The candidate's share is already what it carries, so the rest of the stable version carries the remainder.
        return Decision(
            reason=Reason.CAPACITY, words="One replica of the stable version makes room.", stable_replicas=left
        )
    if facts.stable_running > left:
        return None
    return Decision(
        reason=Reason.CAPACITY, words="One more replica of the candidate is being loaded.",
        canary_replicas=facts.canary_wanted + 1,
    )  # fmt: skip


def back(state: State, facts: Facts) -> Decision | None:
    """One move of the exchange back: where both do not fit, a replica of the candidate makes room first."""
    if facts.canary_wanted + facts.stable_wanted < state.capacity or not facts.canary_wanted:
        return Decision(
            reason=Reason.CAPACITY, words="One more replica of the stable version is being loaded.",
            stable_replicas=facts.stable_wanted + 1 if facts.canary_wanted else state.capacity,
        )  # fmt: skip
    if facts.stable_ready < facts.stable_wanted and facts.canary_ready:
        return None  # the last one is still loading
    return Decision(
        reason=Reason.CAPACITY,
        words="One replica of the candidate makes room.",
        canary_replicas=facts.canary_wanted - 1,
    )


def counted(count: int) -> str:
    return f"{count} replica{'' if count == 1 else 's'}"


def are(count: int) -> str:
    return "is" if count == 1 else "are"
