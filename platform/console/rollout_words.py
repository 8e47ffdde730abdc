"""A rollout in the words and figures of its page: metrics, steps, who waits for what, what a button would do. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from inference.protocol.routes import WEIGHT_TOTAL_BP
from rollouts import plans
from rollouts.models import Rollout, RolloutEvent
from rollouts.phases import ON_THE_WAY, Phase
from rollouts.plans import Analyze, Approve, Pause, Plan

METRICS: dict[str, tuple[str, str]] = {
    "error_rate": ("Errors", "requests that failed"),
    "refusal_rate": ("Refused", "no room or no time for them"),
    "invalid_rate": ("Invalid answers", "NaN, infinite or of a wrong shape"),
    "slow_p50": ("Slower than the median", "of the stable version, which half of its own are"),
    "slow_p95": ("Slower than the p95", "of the stable version, which 5 % of its own are"),
    "slow_p99": ("Slower than the p99", "of the stable version, which 1 % of its own are"),
    "first_token_p95": ("First token late", "after the stable version's p95"),
    "next_token_p95": ("Next tokens late", "after the stable version's p95"),
    "queue_p95": ("Long in the queue", "beyond the stable version's p95"),
    "drift_rate": ("Answers that differ", "from the stable version's, in copied requests"),
    "drift": ("How far answers differ", "mean distance, 0 the same, 1 wholly other"),
    "score": ("Business score", "what clients report about answers"),
}
NO_SHARE = frozenset({"drift", "score"})
VERDICTS = {
    "pass": ("Passes", "good"),
    "fail": ("Fails", "bad"),
    "hold": ("Not sure yet", "info"),
    "no_data": ("No data", ""),
}
JUDGED = {**VERDICTS, "unhealthy": ("Unhealthy split", "bad"), "none": ("Nothing to judge yet", "")}
ENDS = {"promote": "the new stable version", "report": "the report", "ask": "a person's decision"}
# An interval's picture shows this many margins to each side of zero; wider ones are cut off at its edge.
MARGINS_SHOWN = 4.0


def metric_words(name: str) -> str:
    return METRICS.get(name, (name, ""))[0]


def value_words(metric: str, value: float | None, *, signed: bool = False) -> str:
    """0.0021 -> 0.21 %, of a score 0.0021."""
    if value is None:
        return "\N{EN DASH}"
    sign = "+" if signed else ""
    if metric in NO_SHARE:
        return f"{value:{sign}.3g}"
    percent = 100 * value
    digits = 1 if abs(percent) >= 10 else 2
    return f"{percent:{sign}.{digits}f} %"


@dataclass(frozen=True, slots=True)
class Guard:
    """A row of the guardrail table. The picture's places are hundredths of its width; None without data."""

    metric: str
    name: str
    what: str
    stable: str
    candidate: str
    difference: str
    interval: str
    margin: str
    verdict: str
    tone: str
    kind: str
    requests: int
    needs: str
    picture: dict[str, float] | None
    told: str


def guards(judgement: dict[str, Any] | None) -> list[Guard]:
    """Those with data, in the judge's order."""
    return [_guard(one) for one in _findings(judgement) if one["verdict"] != "no_data"]


def silent(judgement: dict[str, Any] | None) -> list[str]:
    """The names of metrics without data."""
    return [metric_words(one["metric"]) for one in _findings(judgement) if one["verdict"] == "no_data"]


def _findings(judgement: dict[str, Any] | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (judgement or {}).get("findings", [])
    return found


def _guard(one: dict[str, Any]) -> Guard:
    metric, known = str(one["metric"]), one["difference"] is not None
    name, what = METRICS.get(metric, (metric, ""))
    verdict, tone = VERDICTS.get(one["verdict"], (one["verdict"], ""))
    margin = -one["margin"] if one.get("direction") == "decrease" else one["margin"]
    low, high = (value_words(metric, one[key], signed=True) for key in ("lower", "upper"))
    return Guard(
        metric=metric,
        name=name,
        what=what,
        stable=value_words(metric, one["stable"]),
        candidate=value_words(metric, one["canary"]),
        difference=value_words(metric, one["difference"], signed=True),
        interval=f"{low} to {high}" if known else "",
        margin=value_words(metric, margin, signed=True),
        verdict=verdict,
        tone=tone,
        kind=str(one.get("kind", "guardrail")),
        requests=int(one["n_requests"]),
        needs=needs(one),
        picture=_picture(one, margin) if known else None,
        told=f"{name}: between {low} and {high}, margin {value_words(metric, margin, signed=True)}: {verdict}",
    )


def needs(one: dict[str, Any]) -> str:
    """How many more requests decide a finding that is not decided."""
    if one["verdict"] != "hold":
        return ""
    more, eta_s = one.get("needed_requests"), one.get("eta_s")
    if more is None:
        return "cannot be said yet"
    told = f"about {more:,} more request{'s' * (more != 1)}"
    return told if eta_s is None else f"{told} (~{plans.spoken(eta_s)})"


def _picture(one: dict[str, Any], margin: float) -> dict[str, float]:
    reach = MARGINS_SHOWN * max(abs(margin), 1e-9)

    def place(value: float | None, otherwise: float) -> float:
        at = otherwise if value is None else value
        return round(50 + 50 * max(-1.0, min(1.0, at / reach)), 1)

    low, high = place(one["lower"], -reach), place(one["upper"], reach)
    return {
        "low": low,
        "width": round(max(1.0, high - low), 1),
        "at": place(one["difference"], 0.0),
        "margin": place(margin, 0.0),
    }


@dataclass(frozen=True, slots=True)
class Stage:
    """A stop on the step track. state: "done", "now", "next" or "failed"; took_s: None while it has not ended."""

    name: str
    state: str
    at: datetime | None = None
    took_s: float | None = None
    note: str = ""


def track(rollout: Rollout, plan: Plan, events: Sequence[RolloutEvent], now: datetime) -> list[Stage]:
    """Loading, the golden inputs, every step of the plan, and how it ends."""
    begun = _begun(events)
    here = _here(rollout, plan)
    names = ["Load the candidate", "Golden inputs", *(plans.words(step).capitalize() for step in plan.steps)]
    names.append(f"End: {ENDS[plan.settings.outcome]}")
    over = {Phase.SUCCEEDED: "done", Phase.ROLLED_BACK: "failed", Phase.FAILED: "failed", Phase.ABORTING: "failed"}
    stages = []
    for place, name in enumerate(names):
        at = begun.get(place)
        after = min((begun[later] for later in begun if later > place), default=rollout.finished_at)
        state = "done" if place < here else "next" if place > here else over.get(Phase(rollout.phase), "now")
        is_now = state == "now"
        ended = now if is_now else after
        took_s = max(0.0, (ended - at).total_seconds()) if at is not None and ended is not None else None
        stages.append(Stage(name, state, at, took_s if state != "next" else None))
    return stages


def _here(rollout: Rollout, plan: Plan) -> int:
    """Where it stands, or stood when it ended, on the track."""
    phase, last = Phase(rollout.phase), len(plan.steps) + 2
    fixed = {Phase.SUCCEEDED: last, Phase.PROMOTING: last, Phase.PENDING: 0, Phase.LOADING: 0, Phase.SMOKE: 1}
    if phase in fixed:
        return fixed[phase]
    if phase not in ON_THE_WAY and rollout.judged_from is None:
        return 1 if rollout.smoke is not None else 0
    return min(last, rollout.step + 2)


def _begun(events: Sequence[RolloutEvent]) -> dict[int, datetime]:
    """Place on the track -> when it began first."""
    found: dict[int, datetime] = {}
    for event in events:
        phase = Phase(event.phase_after)
        if phase in {Phase.PENDING, Phase.LOADING}:
            found.setdefault(0, event.at)
        elif phase is Phase.SMOKE:
            found.setdefault(1, event.at)
        elif phase in ON_THE_WAY:
            found.setdefault(event.step + 2, event.at)
    return found


def waits_for(rollout: Rollout, plan: Plan, now: datetime) -> str:
    """What has to come before it goes on, in a sentence; "" when it has ended."""
    phase = Phase(rollout.phase)
    fixed = {
        Phase.PENDING: "The controller takes it up within seconds.",
        Phase.LOADING: "It waits for replicas of the candidate to be ready.",
        Phase.SMOKE: "It waits for the candidate's answers to the golden inputs.",
        Phase.PROMOTING: "It waits for enough replicas of the candidate to carry all of the traffic.",
        Phase.ABORTING: "The traffic goes back to the stable version.",
        Phase.PAUSED: "It stays here until somebody resumes, promotes or aborts it. The guards stay armed.",
        Phase.INCONCLUSIVE: "The judge could not tell in time: promote it, give it more time, or abort it.",
    }
    if phase in fixed:
        return fixed[phase]
    if phase not in ON_THE_WAY:
        return ""
    step = plan.steps[rollout.step] if rollout.step < len(plan.steps) else None
    return _waits_at(step, rollout, now)


def _waits_at(step: Any, rollout: Rollout, now: datetime) -> str:
    spent_s = max(0.0, (now - rollout.step_at).total_seconds())
    if isinstance(step, Approve):
        return f"It waits for approvals: {len(rollout.approvals)} of {step.n}, by {step.role}s other than {rollout.creator}."
    if isinstance(step, Pause):
        if step.duration_s is None:
            return "It waits for a person to promote it."
        return f"It waits {plans.spoken(max(0.0, step.duration_s - spent_s))} more."
    if isinstance(step, Analyze):
        left = plans.spoken(max(0.0, step.max_duration_s - spent_s))
        return f"It waits for the judge, at most {left} more. {_slowest(rollout)}".strip()
    if step is None:
        return "The plan is done: promote it fully, or abort it."
    return "It waits for enough replicas of the candidate."


def _slowest(rollout: Rollout) -> str:
    open_ones = [one for one in (rollout.judgement or {}).get("findings", []) if one["verdict"] == "hold"]
    timed = [one for one in open_ones if one.get("eta_s") is not None]
    if not timed:
        return ""
    last = max(timed, key=lambda one: float(one["eta_s"]))
    return f"{metric_words(last['metric'])} decides last: {needs(last)}."


@dataclass(frozen=True, slots=True)
class Deed:
    """A button. says: the question's text, in which {rate} stands for how many requests moves_bp of the traffic are."""

    verb: str
    name: str
    title: str
    says: str
    moves_bp: int = 0
    is_danger: bool = False
    is_main: bool = False

    def asks(self, rate_per_s: float) -> str:
        return self.says.replace("{rate}", rate_words(self.moves_bp, rate_per_s))


def rate_words(share_bp: int, rate_per_s: float) -> str:
    """25 % = about 12 requests/s."""
    told = f"{share_bp / 100:g} %"
    return f"{told} = about {rate_per_s * share_bp / WEIGHT_TOTAL_BP:.3g} requests/s" if rate_per_s else told


def deeds(rollout: Rollout, plan: Plan, *, may_deploy: bool, may_approve: bool) -> list[Deed]:
    """What this person may do now."""
    phase, found = Phase(rollout.phase), []
    step = plan.steps[rollout.step] if rollout.step < len(plan.steps) else None
    if phase in ON_THE_WAY and isinstance(step, Approve) and may_approve:
        found.append(_approval(rollout, step))
    if not may_deploy:
        return found
    if phase in ON_THE_WAY:
        found += _on_the_way(rollout, plan, step)
    if rollout.is_active and phase is not Phase.ABORTING:
        stable, candidate = rollout.stable.number, rollout.candidate.number
        says = f"Moves {{rate}} back to version {stable}, within a second. Version {candidate} gets no more requests."
        if not rollout.weight_bp:
            says = f"Version {stable} has all of the traffic and keeps it. Version {candidate} is put away."
        found.append(Deed("abort", "Abort now", "Abort this rollout?", says, rollout.weight_bp, is_danger=True))
    return found


def _approval(rollout: Rollout, step: Approve) -> Deed:
    left = step.n - len(rollout.approvals) - 1
    says = (
        f"{left} more approval{'s' * (left != 1)} would be needed."
        if left > 0
        else "The rollout then goes on by itself."
    )
    return Deed("approve", "Approve", f"Approve version {rollout.candidate.number}?", says, is_main=True)


def _on_the_way(rollout: Rollout, plan: Plan, step: Any) -> list[Deed]:
    candidate, weight = rollout.candidate.number, rollout.weight_bp
    keeps = f"Version {candidate} keeps {{rate}}"
    found = []
    following = rollout.step + 1
    if following < len(plan.steps):
        found.append(_next_step(rollout, plan, following))
    if rollout.held:
        says = f"{keeps}, and the step's time begins anew."
        found.append(Deed("resume", "Resume", "Resume this rollout?", says, weight, is_main=True))
    else:
        says = f"{keeps} until somebody resumes it. The guards stay armed: it still rolls back by itself."
        found.append(Deed("pause", "Pause", "Pause this rollout?", says, weight))
    longest = getattr(step, "max_duration_s", None) or getattr(step, "duration_s", None)
    if longest:
        says = f"{keeps}, and this step has its whole {plans.spoken(longest)} again."
        found.append(Deed("extend", "Extend", "Give this step more time?", says, weight))
    says = (
        f"Moves {{rate}} more to version {candidate}, whatever the judge says, as soon as its replicas carry all of it."
    )
    found.append(
        Deed(
            "promote_full",
            "Promote fully",
            f"Give version {candidate} all of the traffic?",
            says,
            WEIGHT_TOTAL_BP - weight,
        )
    )
    return found


def _next_step(rollout: Rollout, plan: Plan, following: int) -> Deed:
    more = plans.traffic_at(plan, following).weight_bp - rollout.weight_bp
    name = plans.words(plan.steps[following])
    candidate = rollout.candidate.number
    moved = f"Moves {{rate}} more to version {candidate}." if more > 0 else f"Version {candidate} keeps its share."
    says = f"Goes on to “{name}”, whatever the judge says. {moved}"
    return Deed("promote", "Promote step", "On to the next step?", says, max(0, more))


def evidence_lines(evidence: dict[str, Any]) -> list[str]:
    """An event's figures, a line each."""
    found = []
    for key, value in evidence.items():
        if key == "findings" and isinstance(value, list):
            found += [_finding_line(one) for one in value if isinstance(one, dict) and one.get("verdict") != "no_data"]
        elif isinstance(value, str | int | float | bool) and value != "":
            found.append(f"{key.replace('_', ' ')}: {value}")
    return found[:40]


def _finding_line(one: dict[str, Any]) -> str:
    metric = str(one.get("metric", ""))
    stable, canary, low, high = (value_words(metric, one.get(key)) for key in ("stable", "canary", "lower", "upper"))
    verdict = VERDICTS.get(str(one.get("verdict")), (str(one.get("verdict")), ""))[0]
    return f"{metric_words(metric)}: stable {stable}, candidate {canary}, difference {low} to {high}: {verdict.lower()}"
