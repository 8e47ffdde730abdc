"""What a rollout does next: pure, from its plan, where it stands and what is seen. One transition at a time.

The laws:
1. A version never has more of the traffic than its ready replicas carry; what was promised to it and is not carried
   stays with the stable version. While both fit, the stable version keeps all its replicas until the last step is done.
2. The guards are armed in every phase that has traffic or copies, also while a person has paused it, an approval is
   awaited or the last step is being done.
3. Without surge, replicas are exchanged one by one, and the candidate's share is its part of those that are ready; an
   abort walks the same way back, unless the candidate carries nothing.
4. What cannot be decided is never passed and never failed: it holds, unless the plan says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inference.protocol.routes import WEIGHT_TOTAL_BP
from rollouts import plans
from rollouts.capacity import are, back, backward, carried, counted, exchange
from rollouts.facts import NOTHING, Decision, Facts, State
from rollouts.phases import ON_THE_WAY, Phase, Reason
from rollouts.plans import Analyze, Approve, Pause, Plan, SetScale, SetWeight, Traffic

DRAIN_S = 2.0
CRASHES_TO_FAIL_LOADING = 3
NO_REPLICA_S = 60.0
REPLAY_S = 900.0


def decide(plan: Plan, state: State, facts: Facts) -> Decision:
    """The next transition; NOTHING when there is none."""
    handler = _HANDLERS.get(state.phase)
    if handler is None:
        return NOTHING
    if state.phase not in {Phase.PENDING, Phase.ABORTING}:
        broken = _broken(plan, state, facts)
        if broken is not None:
            return broken
    return handler(plan, state, facts)


def _begin(plan: Plan, state: State, facts: Facts) -> Decision:
    if not plan.settings.surge:
        return Decision(Phase.LOADING, Reason.STARTED, "Room is made for the first replica of the candidate.")
    wanted = max(facts.canary_wanted, plans.first_replicas(plan, state.capacity))
    return Decision(
        Phase.LOADING, Reason.STARTED, f"{counted(wanted)} of the candidate {are(wanted)} being loaded.",
        canary_replicas=wanted,
    )  # fmt: skip


def _broken(plan: Plan, state: State, facts: Facts) -> Decision | None:
    """An abort, when the candidate is plainly broken or the judge is sure that it is worse."""
    if facts.load_error:
        return aborted(plan, state, facts, Reason.LOAD_FAILED, f"The candidate cannot be loaded: {facts.load_error}")
    if state.phase in {Phase.LOADING, Phase.SMOKE} and facts.crashes >= CRASHES_TO_FAIL_LOADING:
        words = f"The candidate's process ended {facts.crashes} times. {facts.canary_message}".strip()
        return aborted(plan, state, facts, Reason.LOAD_FAILED, words)
    verdict = facts.verdict
    if verdict.is_hard_stop:
        return aborted(plan, state, facts, Reason.HARD_STOP, verdict.words)
    if verdict.verdict == "fail":
        return aborted(plan, state, facts, Reason.GUARDRAIL, verdict.words)
    return None


def aborted(plan: Plan, state: State, facts: Facts, reason: Reason, words: str) -> Decision:
    """All traffic back to the stable version at once where it carries all, else as far as it does."""
    return Decision(
        Phase.ABORTING, reason, words, traffic=backward(plan, state, facts, reason), evidence=facts.verdict.evidence,
    )  # fmt: skip


def _load(plan: Plan, state: State, facts: Facts) -> Decision:
    wanted = state.capacity if state.is_rollback else plans.first_replicas(plan, state.capacity)
    if not plan.settings.surge:
        moved = exchange(state, facts, 1)
        if moved is not None:
            return moved
        wanted = 1
    if facts.canary_ready >= wanted:
        if state.is_rollback:
            return Decision(Phase.PROMOTING, Reason.STEP, "The version that served before is ready to serve again.")
        return Decision(
            Phase.SMOKE, Reason.SMOKE, f"{counted(facts.canary_ready)} of the candidate answered the warm-up."
        )
    if facts.now - state.phase_at > plan.settings.load_deadline_s:
        words = (
            f"{facts.canary_ready} of {counted(wanted)} were ready after {plans.spoken(facts.now - state.phase_at)}."
        )
        return aborted(plan, state, facts, Reason.LOAD_TIMEOUT, words)
    return NOTHING


def _smoke(plan: Plan, state: State, facts: Facts) -> Decision:
    if facts.smoke is None:
        longest = plan.settings.load_deadline_s + (REPLAY_S if plan.settings.replay else 0.0)
        if facts.now - state.phase_at <= longest:
            return Decision(ask_smoke=True)
        words = f"Nobody could ask it the golden inputs within {plans.spoken(longest)}."
        return aborted(plan, state, facts, Reason.LOAD_TIMEOUT, words)
    passed, words = facts.smoke
    if passed:
        return Decision(Phase.PROGRESSING, Reason.STEP, words, step=0)
    return aborted(plan, state, facts, Reason.SMOKE_FAILED, words)


def _promote(plan: Plan, state: State, facts: Facts) -> Decision:
    """All traffic to the candidate once it carries all of it: a flip of pointers, nothing is loaded."""
    settings = plan.settings
    if settings.surge and facts.canary_wanted < state.capacity:
        return Decision(canary_replicas=state.capacity)
    if facts.canary_ready >= _enough(plan, state):
        # Without surge the last one of the stable version makes room for the candidate's last only now.
        return Decision(
            Phase.SUCCEEDED, Reason.DONE, "The candidate is the stable version now.", traffic=Traffic(WEIGHT_TOTAL_BP),
            canary_replicas=None if settings.surge else state.capacity, stable_replicas=None if settings.surge else 0,
            evidence=facts.verdict.evidence,
        )  # fmt: skip
    if facts.now - state.phase_at > settings.load_deadline_s:
        words = f"{facts.canary_ready} of {counted(state.capacity)} were ready for all of the traffic."
        return aborted(plan, state, facts, Reason.LOAD_TIMEOUT, words)
    moved = None if settings.surge else exchange(state, facts, _enough(plan, state))
    return moved or carried(plan, state, facts, Traffic(WEIGHT_TOTAL_BP))


def _enough(plan: Plan, state: State) -> int:
    """Candidate replicas with which all traffic may go to it."""
    return state.capacity if plan.settings.surge else max(1, state.capacity - 1)


def _walk(plan: Plan, state: State, facts: Facts) -> Decision:
    """One transition within the plan's steps."""
    if state.step >= len(plan.steps):
        return _outcome(plan, state, facts)
    wanted = plans.traffic_at(plan, state.step)
    scaled = _scale(plan, state, facts)
    if scaled is not None:
        return scaled
    moved = carried(plan, state, facts, wanted)
    if not moved.is_nothing:
        return moved
    if state.held:
        return _rest(state, Phase.PAUSED, Reason.PERSON, "A person paused it; the guards stay armed.")
    if facts.now - state.step_at > NO_REPLICA_S and not facts.canary_ready:
        words = f"No replica of the candidate was ready for {plans.spoken(facts.now - state.step_at)}."
        return aborted(plan, state, facts, Reason.CAPACITY, words)
    return _finish_step(plan, state, facts, wanted)


def _scale(plan: Plan, state: State, facts: Facts) -> Decision | None:
    """What is to be loaded first for the step's share, if anything is."""
    wanted = plans.scale_at(plan, state.step, state.capacity)
    if not plan.settings.surge:
        return exchange(state, facts, min(wanted, _enough(plan, state)))
    if facts.canary_wanted < wanted:
        return Decision(
            reason=Reason.WAITING_FOR_REPLICAS, words=f"{counted(wanted)} of the candidate are needed for this step.",
            canary_replicas=wanted,
        )  # fmt: skip
    return None


def _finish_step(plan: Plan, state: State, facts: Facts, wanted: Traffic) -> Decision:
    step = plan.steps[state.step]
    elapsed = facts.now - state.step_at
    match step:
        case SetWeight():
            return _finish_weight(plan, state, facts, wanted)
        case SetScale() if facts.canary_ready < plans.scale_at(plan, state.step, state.capacity):
            return _waiting_for_replicas(plan, state, facts)
        case Pause(duration_s) if duration_s is None or elapsed < duration_s:
            return _rest(state, Phase.PAUSED, Reason.WAITING, f"The plan says: {plans.words(step)}.")
        case Approve(n=n) if state.approvals < n:
            return _rest(state, Phase.AWAITING_APPROVAL, Reason.APPROVAL, f"It waits: {plans.words(step)}.")
        case Analyze():
            return _analyze(plan, state, facts, step)
        case _:
            return _next(plan, state, Reason.APPROVAL if isinstance(step, Approve) else Reason.STEP)


def _finish_weight(plan: Plan, state: State, facts: Facts, wanted: Traffic) -> Decision:
    is_last = state.step == len(plan.steps) - 1 and plan.settings.outcome == "promote"
    if wanted.weight_bp == WEIGHT_TOTAL_BP and is_last:
        return Decision(Phase.PROMOTING, Reason.STEP, "The last step: all traffic goes to the candidate.")
    if state.weight_bp >= wanted.weight_bp:
        return _next(plan, state, Reason.STEP)
    return _waiting_for_replicas(plan, state, facts)


def _waiting_for_replicas(plan: Plan, state: State, facts: Facts) -> Decision:
    if facts.now - state.step_at <= plan.settings.load_deadline_s:
        return NOTHING
    what = plans.words(plan.steps[state.step])
    words = f"Only {counted(facts.canary_ready)} of the candidate were ready in time for {what}."
    return aborted(plan, state, facts, Reason.LOAD_TIMEOUT, words)


def _analyze(plan: Plan, state: State, facts: Facts, step: Analyze) -> Decision:
    verdict, elapsed = facts.verdict, facts.now - state.step_at
    unmet = [name for name in verdict.unmet if name in step.metrics]
    is_sure = verdict.verdict == "pass" or (verdict.verdict == "hold" and bool(step.metrics) and not unmet)
    if is_sure and elapsed >= step.min_duration_s and verdict.requests >= step.min_requests:
        return _next(plan, state, Reason.JUDGE_PASSED, verdict.words, verdict.evidence)
    if verdict.verdict == "unhealthy":
        return _rest(state, Phase.INCONCLUSIVE, Reason.UNHEALTHY, verdict.words, verdict.evidence)
    if elapsed < step.max_duration_s:
        return _rest(state, Phase.PROGRESSING, Reason.STEP, "The judge goes on.")
    return _undecided(plan, state, facts, step)


def _undecided(plan: Plan, state: State, facts: Facts, step: Analyze) -> Decision:
    """The step's longest time is over."""
    verdict = facts.verdict
    what = step.on_inconclusive or plan.settings.on_inconclusive
    words = f"The judge could not tell within {plans.spoken(step.max_duration_s)}. {verdict.words}".strip()
    if what == "promote":
        return _next(plan, state, Reason.UNDECIDED, words, verdict.evidence)
    if what == "rollback":
        return aborted(plan, state, facts, Reason.UNDECIDED, words)
    return _rest(state, Phase.INCONCLUSIVE, Reason.UNDECIDED, words, verdict.evidence)


def _next(
    plan: Plan, state: State, reason: Reason, words: str = "", evidence: dict[str, Any] | None = None
) -> Decision:
    """On to the next step of the plan, or to its outcome."""
    following = state.step + 1
    told = words or f"Done: {plans.words(plan.steps[state.step])}."
    if following >= len(plan.steps) and plan.settings.outcome == "promote":
        return Decision(Phase.PROMOTING, reason, told, step=following, evidence=evidence or {})
    phase = None if state.phase is Phase.PROGRESSING else Phase.PROGRESSING
    return Decision(phase, reason, told, step=following, evidence=evidence or {})


def _outcome(plan: Plan, state: State, facts: Facts) -> Decision:
    """The plan's steps are done, and it does not end by promoting."""
    if plan.settings.outcome == "report":
        return Decision(
            Phase.SUCCEEDED, Reason.DONE, f"The plan is done; no traffic was moved. {facts.verdict.words}".strip(),
            traffic=Traffic(), evidence=facts.verdict.evidence,
        )  # fmt: skip
    scaled = carried(plan, state, facts, plans.traffic_at(plan, state.step))
    if not scaled.is_nothing:
        return scaled
    words = f"The plan is done: promote or abort. {facts.verdict.words}".strip()
    return _rest(state, Phase.AWAITING_APPROVAL, Reason.DECISION, words, facts.verdict.evidence)


def _rest(state: State, phase: Phase, reason: Reason, words: str, evidence: dict[str, Any] | None = None) -> Decision:
    """Stays in `phase`: one event when it gets there, none while it is there."""
    return NOTHING if state.phase is phase else Decision(phase, reason, words, evidence=evidence or {})


def _abort(plan: Plan, state: State, facts: Facts) -> Decision:
    """Back to the stable version, with as many replicas as it had, then the candidate's go."""
    if not plan.settings.surge and facts.stable_wanted < state.capacity:
        moved = back(state, facts)
        if moved is not None:
            return moved
    left = backward(plan, state, facts, state.reason)
    if left != Traffic(state.weight_bp, state.mirror_bp, state.match):
        return Decision(reason=Reason.STEP, words="More of the traffic is back with the stable version.", traffic=left)
    if left.weight_bp or (not plan.settings.surge and facts.stable_wanted < state.capacity):
        return NOTHING
    if facts.now - state.phase_at < DRAIN_S:
        return NOTHING
    end = Phase.ROLLED_BACK if state.has_had_traffic else Phase.FAILED
    kept = min(state.candidate_before, facts.canary_wanted)
    return Decision(
        end, Reason.DONE, "All traffic is with the stable version; the candidate is put away.", canary_replicas=kept
    )


_HANDLERS: dict[Phase, Callable[[Plan, State, Facts], Decision]] = {
    Phase.PENDING: _begin,
    Phase.LOADING: _load,
    Phase.SMOKE: _smoke,
    **dict.fromkeys(ON_THE_WAY, _walk),
    Phase.PROMOTING: _promote,
    Phase.ABORTING: _abort,
}
