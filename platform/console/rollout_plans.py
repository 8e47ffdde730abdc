"""Plans as pages show and read them: templates and teams' own, a form's wish, and a timeline as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accounts.models import Team
from accounts.permissions import Actor, visible
from inference.errors import InvalidInput, SerinusError
from rollouts import plans
from rollouts.actions import named_plan
from rollouts.models import SavedPlan
from rollouts.plans import Plan
from rollouts.timeline import Duration

OWN = "own"
MAX_PLAN_CHARS = 100_000
MAX_SAVED = 200
# A step that takes no time of its own, or a person's, still has to be seen; hundredths of the picture's width.
LEAST_WIDTH = 2.5
PERSON_WIDTH = 7.0
LEAST_HEIGHT = 8.0


@dataclass(frozen=True, slots=True)
class Known:
    """A plan in a list. team: None for a template."""

    plan: Plan
    number: int = 0
    team: str | None = None
    creator: str = ""

    @property
    def steps(self) -> list[str]:
        return [plans.words(step) for step in self.plan.steps]

    @property
    def json(self) -> str:
        return plan_json(self.plan)


def plan_json(plan: Plan) -> str:
    return json.dumps(plans.as_json(plan), indent=2)


def templates() -> list[Known]:
    return [Known(plan) for plan in plans.TEMPLATES.values()]


def saved_of(actor: Actor, team: Team | None = None) -> list[Known]:
    """The newest of each plan of the actor's teams, or of one of them."""
    rows = visible(actor, SavedPlan.objects.select_related("team").order_by("team_id", "name", "-number"))
    if team is not None:
        rows = rows.filter(team=team)
    newest = rows.distinct("team_id", "name")[:MAX_SAVED]
    return [Known(plans.read(row.plan), row.number, row.team.name, row.creator) for row in newest]


class PlanWrong(InvalidInput):
    """What is wrong with a plan that was written by hand."""


def read_json(text: str) -> Plan:
    """Raises PlanWrong that says where."""
    if len(text) > MAX_PLAN_CHARS:
        raise PlanWrong(f"a plan has up to {MAX_PLAN_CHARS:,} characters")
    try:
        return plans.read(json.loads(text))
    except json.JSONDecodeError as error:
        raise PlanWrong(f"this is no JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise PlanWrong("this is no JSON that can be read") from error
    except SerinusError as error:
        raise PlanWrong(error.message) from error


def asked(team: Team, name: str, own: str) -> tuple[Plan, int]:
    """The plan that a form asks for. Raises PlanWrong for one's own, NotFound for a name."""
    if name == OWN:
        return read_json(own), 0
    return named_plan(team, name.replace("\0", "") or plans.DEFAULT_PLAN)


@dataclass(frozen=True, slots=True)
class Span:
    """A step on the timeline. x, width, y, height: hundredths of the picture; kind: "live", "copies", "person"."""

    words: str
    x: float
    width: float
    y: float
    height: float
    kind: str
    starts_s: float
    expected_s: float
    most_s: float
    waits_for: str


def timeline(plan: Plan, duration: Duration) -> list[Span]:
    """Each step as wide as it is expected to last, as high as the candidate's share."""
    widths = _widths([(step.expected_s, bool(step.waits_for) and not step.expected_s) for step in duration.steps])
    found, x = [], 0.0
    for place, (step, width) in enumerate(zip(duration.steps, widths, strict=True)):
        traffic = plans.traffic_at(plan, place)
        share = traffic.weight_bp / 100
        height = max(LEAST_HEIGHT, share)
        person = bool(step.waits_for) and not step.expected_s
        kind = "person" if person else "copies" if traffic.mirror_bp and not traffic.weight_bp else "live"
        found.append(
            Span(step.words, round(x, 2), round(width, 2), round(100 - height, 2), round(height, 2), kind,
                 step.starts_s, step.expected_s, step.most_s, step.waits_for)
        )  # fmt: skip
        x += width
    return found


def _widths(steps: Sequence[tuple[float, bool]]) -> list[float]:
    """Hundredths: what has a least width first, the rest by its seconds."""
    least = [PERSON_WIDTH if is_person else LEAST_WIDTH for _, is_person in steps]
    if (total := sum(least)) > 100:
        return [one * 100 / total for one in least]
    seconds = sum(each for each, _ in steps)
    left = 100 - total
    if not seconds:
        return [one + left / len(steps) for one in least]
    return [one + left * each / seconds for one, (each, _) in zip(least, steps, strict=True)]


def numbers(plan: Plan) -> list[tuple[str, Any]]:
    """What of a plan's settings is worth a line."""
    settings = plan.settings
    outcomes = {
        "promote": "the candidate takes over",
        "report": "a report, no traffic moves",
        "ask": "a person decides",
    }
    undecided = {"hold": "it holds", "promote": "it goes on", "rollback": "it rolls back"}
    found = [
        ("At the end", outcomes[settings.outcome]),
        ("When the judge cannot tell", undecided[settings.on_inconclusive]),
        (
            "Old version stays",
            f"warm {plans.spoken(settings.keep_old_s)}, then parked {plans.spoken(settings.parked_s)}",
        ),
        ("False alarm", f"{settings.alpha * 100:g} % at most, over the whole rollout"),
    ]
    if settings.guardrails is not None:
        said = ", ".join(f"{one.metric} {one.margin:g}" for one in settings.guardrails)
        found.append(("Margins", said or f"none: {settings.unguarded}"))
    if not settings.surge:
        found.append(("Room", "replicas are exchanged one by one"))
    if settings.replay:
        found.append(("Before the traffic", "recorded requests are replayed"))
    return found
