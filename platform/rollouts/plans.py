"""A rollout's plan as data: ordered steps and settings, read strictly, with the templates. Pure.

What a plan wants of the traffic at a step follows from the steps up to it (`traffic_at`), so a rollout need not
remember more than where it stands. Weights are basis points (1/100 of a percent), times are seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from inference.errors import InvalidInput
from inference.protocol.routes import WEIGHT_TOTAL_BP, Comparison, Match

MAX_STEPS = 64
DAY_S = 86_400.0
Seconds = Annotated[float, msgspec.Meta(ge=0, le=30 * DAY_S)]
Share = Annotated[int, msgspec.Meta(ge=0, le=WEIGHT_TOTAL_BP)]
METRICS = (
    "error_rate", "refusal_rate", "invalid_rate", "slow_p50", "slow_p95", "slow_p99", "first_token_p95",
    "next_token_p95", "queue_p95", "drift_rate", "drift", "score",
)  # fmt: skip
MATCH_SOURCES = ("header", "parameter", "key", "user")


class SetWeight(msgspec.Struct, tag="set_weight", tag_field="kind", frozen=True, forbid_unknown_fields=True):
    """The candidate gets this share of the traffic, as soon as enough of its replicas are ready."""

    weight_bp: Share


class Pause(msgspec.Struct, tag="pause", tag_field="kind", frozen=True, forbid_unknown_fields=True):
    """Waits so long; without a duration until a person promotes."""

    duration_s: Seconds | None = None


class SetScale(msgspec.Struct, tag="set_scale", tag_field="kind", frozen=True, forbid_unknown_fields=True):
    """The candidate has at least so many replicas, or this percentage of the stable version's."""

    replicas: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    percent: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None


class Mirror(msgspec.Struct, tag="mirror", tag_field="kind", frozen=True, forbid_unknown_fields=True):
    """This share of the stable version's requests is copied to the candidate; 0 ends it."""

    share_bp: Share


class Route(msgspec.Struct, tag="route", tag_field="kind", frozen=True, forbid_unknown_fields=True):
    """Callers that match go to the candidate whatever the shares say; an empty list ends that."""

    match: Annotated[list[Match], msgspec.Meta(max_length=16)]


class Analyze(msgspec.Struct, tag="analyze", tag_field="kind", frozen=True, forbid_unknown_fields=True):
    """Goes on when the judge says pass and `min_requests` of the candidate's came at this step. metrics: which
    guardrails must be met, none for all. of: what is judged, live traffic or the mirror's copies. on_inconclusive: what
    happens here when the longest time is over, None as the plan says.
    """

    max_duration_s: Seconds = 900.0
    min_duration_s: Seconds = 10.0
    min_requests: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 50
    metrics: Annotated[list[str], msgspec.Meta(max_length=len(METRICS))] = []
    of: Literal["live", "mirror"] = "live"
    on_inconclusive: Literal["hold", "promote", "rollback"] | None = None


class Approve(msgspec.Struct, tag="approve", tag_field="kind", frozen=True, forbid_unknown_fields=True):
    """Waits until `n` people of this role or more, other than who started it, approve."""

    role: Literal["developer", "operator", "admin"] = "operator"
    n: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1


Step = SetWeight | Pause | SetScale | Mirror | Route | Analyze | Approve


class GuardrailSetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A metric's practical margin (as a share, 0.002 is 0.2 percentage points). kind: a guardrail rolls back, a signal
    only holds.
    """

    metric: str
    margin: Annotated[float, msgspec.Meta(ge=0, le=1)]
    kind: Literal["guardrail", "signal"] = "guardrail"


class PlanSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """on_inconclusive: what happens when a step's longest time is over and the judge cannot tell. outcome: "promote"
    ends with the candidate as stable, "report" ends with the stable version and a report, "ask" leaves it to a person.
    load_deadline_s: how long replicas may take to be ready. keep_old_s, parked_s: how long the old version stays with
    all its replicas, then with one of them. surge: both versions fit at once; without, replicas are exchanged one by
    one. guardrails: None for the judge's own. unguarded: why there is no guardrail, where there is none. rescue: a
    request that the candidate fails is asked once more of the stable version. sticky: by what callers are assigned, see
    inference.protocol.routes.Steering. replay: recorded requests are replayed against the candidate first, and max_drift_share of
    the answers may differ. when_busy: what starting does while
    another rollout of the endpoint is active.
    """

    on_inconclusive: Literal["hold", "promote", "rollback"] = "hold"
    outcome: Literal["promote", "report", "ask"] = "promote"
    load_deadline_s: Seconds = 600.0
    keep_old_s: Seconds = 600.0
    parked_s: Seconds = 3600.0
    surge: bool = True
    alpha: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.05
    guardrails: Annotated[list[GuardrailSetting], msgspec.Meta(max_length=len(METRICS))] | None = None
    unguarded: Annotated[str, msgspec.Meta(max_length=500)] = ""
    rescue: bool = True
    sticky: Literal["session", "key"] = "session"
    mirror_inflight: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    comparison: Comparison = Comparison()
    when_busy: Literal["refuse", "supersede"] = "refuse"
    replay: bool = False
    max_drift_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rollout follows. Its first deeds, loading the candidate and asking it the golden inputs, come always."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    steps: Annotated[list[Step], msgspec.Meta(max_length=MAX_STEPS)]
    settings: PlanSettings = PlanSettings()
    description: Annotated[str, msgspec.Meta(max_length=500)] = ""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the plan wants at a step: the candidate's share and the mirror's in basis points, and who matches."""

    weight_bp: int = 0
    mirror_bp: int = 0
    match: tuple[Match, ...] = ()


def read(data: object) -> Plan:
    """A plan from JSON values. Raises InvalidInput that says where it is wrong."""
    try:
        plan = msgspec.convert(data, Plan)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the plan is wrong: {error}") from error
    return checked(plan)


def checked(plan: Plan) -> Plan:
    """`plan` if it makes sense. Raises InvalidInput."""
    if not plan.steps:
        raise InvalidInput("the plan has no steps: say at least one set_weight, mirror or route")
    for place, step in enumerate(plan.steps, start=1):
        _check_step(place, step)
    weights = [step.weight_bp for step in plan.steps if isinstance(step, SetWeight)]
    if weights != sorted(weights):
        raise InvalidInput(
            "the plan's weights must rise: a share that falls again is an abort, and that comes by itself"
        )
    _check_guards(plan)
    return plan


def _check_step(place: int, step: Step) -> None:
    where = f"step {place} ({kind_of(step)})"
    if isinstance(step, SetScale) and (step.replicas is None) == (step.percent is None):
        raise InvalidInput(f"{where} needs either replicas or percent")
    if isinstance(step, Analyze):
        if unknown := [name for name in step.metrics if name not in METRICS]:
            raise InvalidInput(f"{where}: there is no metric '{unknown[0][:40]}': use {', '.join(METRICS)}")
        if step.min_duration_s > step.max_duration_s:
            raise InvalidInput(f"{where}: min_duration_s is above max_duration_s")
    if isinstance(step, Route):
        for match in step.match:
            if match.source not in MATCH_SOURCES:
                raise InvalidInput(f"{where}: source must be one of {', '.join(MATCH_SOURCES)}")
            if match.source in {"header", "parameter"} and not match.name:
                raise InvalidInput(f"{where}: a match on a {match.source} needs its name")
            if len(match.values) > 100 or any(len(value) > 200 for value in match.values):
                raise InvalidInput(f"{where}: up to 100 values of up to 200 characters")


def _check_guards(plan: Plan) -> None:
    held = plan.settings.guardrails
    for guard in held or ():
        if guard.metric not in METRICS:
            raise InvalidInput(f"there is no metric '{guard.metric[:40]}': use {', '.join(METRICS)}")
    no_guard = held is not None and not any(guard.kind == "guardrail" for guard in held)
    if no_guard and not plan.settings.unguarded:
        raise InvalidInput(
            "the plan has no guardrail, so it would promote anything: name one, or say in 'unguarded' why not"
        )


def kind_of(step: Step) -> str:
    """The step's name, as in a plan's JSON."""
    return str(step.__struct_config__.tag)


def traffic_at(plan: Plan, step: int) -> Traffic:
    """What the steps up to and including `step` make of the traffic."""
    weight, mirror = 0, 0
    match: tuple[Match, ...] = ()
    for one in plan.steps[: step + 1]:
        if isinstance(one, SetWeight):
            weight = one.weight_bp
        elif isinstance(one, Mirror):
            mirror = one.share_bp
        elif isinstance(one, Route):
            match = tuple(one.match)
    return Traffic(weight, mirror, match)


def scale_at(plan: Plan, step: int, capacity: int) -> int:
    """Candidate replicas that the plan wants at `step` where the stable version needs `capacity`: at least one, and
    never fewer than its share of the traffic takes.
    """
    asked = 1
    for one in plan.steps[: step + 1]:
        if isinstance(one, SetScale):
            asked = one.replicas if one.replicas is not None else -(-(one.percent or 0) * capacity // 100)
    return max(1, asked, replicas_for(traffic_at(plan, step).weight_bp, capacity))


def replicas_for(weight_bp: int, capacity: int) -> int:
    """Replicas that carry `weight_bp` of what `capacity` replicas carry whole."""
    return -(-weight_bp * capacity // WEIGHT_TOTAL_BP)


def first_replicas(plan: Plan, capacity: int) -> int:
    """Candidate replicas with which a rollout begins: what its first step that needs any wants."""
    return scale_at(plan, 0, capacity)


def words(step: Step) -> str:  # noqa: PLR0911 (one line a kind)
    """The step in a few words."""
    match step:
        case SetWeight(weight_bp):
            return f"{weight_bp / 100:g} % of the traffic"
        case Pause(duration_s):
            return "wait for a person" if duration_s is None else f"wait {spoken(duration_s)}"
        case SetScale(replicas, percent):
            return f"{replicas} replicas" if replicas is not None else f"{percent} % of the stable replicas"
        case Mirror(share_bp):
            return f"copy {share_bp / 100:g} % of the requests" if share_bp else "stop copying requests"
        case Route(match):
            return f"route {len(match)} kinds of callers" if match else "stop routing callers"
        case Analyze(max_duration_s=longest, of=of):
            return f"judge {'the copies' if of == 'mirror' else 'both versions'}, up to {spoken(longest)}"
        case Approve(role, n):
            return f"approval by {n} {role}{'s' if n > 1 else ''}"


def spoken(seconds: float) -> str:
    """A duration as a person says it."""
    for unit, size in (("d", DAY_S), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{round(seconds, 1):g} s"


def _ramp(weights: Sequence[int], analyze: Analyze) -> list[Step]:
    steps: list[Step] = []
    for weight in weights:
        steps.append(SetWeight(weight))
        if weight < WEIGHT_TOTAL_BP:
            steps.append(analyze)
    return steps


_SHADOW = Analyze(max_duration_s=300.0, min_requests=50, of="mirror", on_inconclusive="promote")
TEMPLATES: dict[str, Plan] = {
    plan.name: plan
    for plan in (
        Plan(
            "standard",
            [Mirror(WEIGHT_TOTAL_BP), _SHADOW, Mirror(0), *_ramp((100, 500, 2500, 5000, 10_000), Analyze())],
            description="Copies first, then 1, 5, 25, 50 and 100 %; each step goes on as soon as the judge is sure.",
        ),
        Plan(
            "cautious",
            [
                Mirror(WEIGHT_TOTAL_BP), Analyze(max_duration_s=900.0, min_requests=200, of="mirror", on_inconclusive="promote"), Mirror(0),
                *_ramp((50, 100, 200, 500, 1000, 2500), Analyze(min_duration_s=120.0, max_duration_s=3600.0)),
                Approve("operator"),
                *_ramp((5000, 10_000), Analyze(min_duration_s=300.0, max_duration_s=3600.0)),
            ],
            PlanSettings(keep_old_s=3600.0, parked_s=DAY_S),
            description="Small steps with a shortest time each, and a person's approval before half of the traffic.",
        ),
        Plan(
            "fast",
            _ramp((1000, 5000, 10_000), Analyze(max_duration_s=300.0, min_duration_s=5.0, min_requests=30)),
            description="10, 50 and 100 %, without copies first.",
        ),
        Plan(
            "shadow-only",
            [Mirror(WEIGHT_TOTAL_BP), Analyze(max_duration_s=1800.0, min_requests=500, of="mirror")],
            PlanSettings(outcome="report"),
            description="Copies every request to the candidate, shows how its answers differ, and moves no traffic.",
        ),
        Plan(
            "ab",
            [
                SetWeight(5000),
                Analyze(max_duration_s=DAY_S, min_duration_s=DAY_S, min_requests=500),
            ],
            PlanSettings(outcome="ask", keep_old_s=3600.0),
            description="Half of the callers each for a day, by the business score that comes back; a person decides.",
        ),
        Plan(
            "at-once",
            [SetWeight(WEIGHT_TOTAL_BP)],
            description="All traffic at once, after loading and the golden inputs; what a rollback uses.",
        ),
    )
}  # fmt: skip
DEFAULT_PLAN = "standard"
# "A/B" as people say it
ALIASES = {"a/b": "ab", "default": DEFAULT_PLAN, "shadow": "shadow-only"}


def template(name: str) -> Plan | None:
    """The template of this name, None when there is none."""
    return TEMPLATES.get(ALIASES.get(name.lower(), name.lower()))


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values, which `read` reads."""
    found: dict[str, Any] = msgspec.to_builtins(plan)
    return found
