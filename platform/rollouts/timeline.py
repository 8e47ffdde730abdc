"""How long a plan will take: pure. The judge itself is asked, with the traffic of now and two versions that are alike.

So "about 14 min at 12 requests/s" is when the judge would be sure at that rate, no rule of thumb; a worse candidate ends
sooner, and one whose answers vary more takes longer. At each step `most_s` is what the plan allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.protocol.routes import WEIGHT_TOTAL_BP
from rollouts import plans
from rollouts.judge import Bin, JudgeSettings, judge
from rollouts.plans import Analyze, Approve, Pause, Plan, Traffic

GRID_S = 10
# How exactly a step's time is sought: people read "about 14 min".
EXACT = 0.05
MAX_BINS = 50
# The shape of a latency histogram: a hump with a tail. Where it stands does not matter, only how wide it is.
HUMP = (1, 4, 10, 18, 22, 18, 12, 7, 4, 2, 1, 1)
FIRST_BUCKET = 12


@dataclass(frozen=True, slots=True)
class StepTime:
    """words: the step's; starts_s, expected_s, most_s: when it begins, how long it takes if both versions are alike, and
    at most; waits_for: what it waits for beside time, "" for nothing.
    """

    words: str
    starts_s: float
    expected_s: float
    most_s: float
    waits_for: str = ""


@dataclass(frozen=True, slots=True)
class Duration:
    """expected_s, most_s: of all steps, people not counted."""

    expected_s: float
    most_s: float
    words: str
    steps: tuple[StepTime, ...]


@dataclass(slots=True)
class _Walk:
    """Where the walk through the plan stands, and what the judge would have read until then."""

    rate: float
    settings: JudgeSettings
    now_s: float = 0.0
    stable: list[Bin] = field(default_factory=list)
    live: list[Bin] = field(default_factory=list)
    copies: list[Bin] = field(default_factory=list)


def estimate(plan: Plan, *, rate_per_s: float, settings: JudgeSettings, load_s: float = 0.0) -> Duration:
    """The plan's timeline at `rate_per_s` requests for the endpoint. load_s: to load the candidate's replicas."""
    walk = _Walk(rate_per_s, settings, now_s=load_s)
    steps = tuple(_step(walk, plan, place) for place in range(len(plan.steps)))
    expected, most = (load_s + sum(getattr(step, name) for step in steps) for name in ("expected_s", "most_s"))
    return Duration(expected, most, _words(steps, rate_per_s, expected, most), steps)


def _step(walk: _Walk, plan: Plan, place: int) -> StepTime:
    step, traffic = plan.steps[place], plans.traffic_at(plan, place)
    begun, words, waits = walk.now_s, plans.words(step), ""
    expected = most = 0.0
    if isinstance(step, Pause):
        expected = most = step.duration_s or 0.0
        waits = "" if step.duration_s is not None else "a person"
    elif isinstance(step, Approve):
        waits = f"{step.n} approval{'s' if step.n > 1 else ''}"
    elif isinstance(step, Analyze):
        found, most = _analyze(walk, step, traffic), step.max_duration_s
        expected = most if found is None else found
        waits = "" if found is not None else _undecided(plan, step)
    _pass(walk, traffic, expected)
    return StepTime(words, begun, expected, most, waits)


def _undecided(plan: Plan, step: Analyze) -> str:
    """What happens when the judge is not sure in time."""
    what = step.on_inconclusive or plan.settings.on_inconclusive
    return {"hold": "more traffic or a person", "promote": "", "rollback": "more traffic, else it rolls back"}[what]


def _analyze(walk: _Walk, step: Analyze, traffic: Traffic) -> float | None:
    """The first moment of the step, on a grid, at which the judge would be sure; None when that is after its end."""
    least = max(step.min_duration_s, _seconds_for(step.min_requests, _candidate_rate(walk, step, traffic)))
    if least > step.max_duration_s or not _is_sure(walk, step, traffic, step.max_duration_s):
        return None
    low, high = 0.0, step.max_duration_s
    while high - low > max(GRID_S, EXACT * high):
        middle = (low + high) / 2
        low, high = (low, middle) if _is_sure(walk, step, traffic, middle) else (middle, high)
    return max(least, high)


def _candidate_rate(walk: _Walk, step: Analyze, traffic: Traffic) -> float:
    stable_share = 1 - traffic.weight_bp / WEIGHT_TOTAL_BP
    if step.of == "mirror":
        return walk.rate * stable_share * traffic.mirror_bp / WEIGHT_TOTAL_BP
    return walk.rate * traffic.weight_bp / WEIGHT_TOTAL_BP


def _seconds_for(requests: int, rate: float) -> float:
    if not requests:
        return 0.0
    return requests / rate if rate else float("inf")


def _is_sure(walk: _Walk, step: Analyze, traffic: Traffic, seconds: float) -> bool:
    stable, live, copies = _bins(walk, traffic, seconds)
    canary = copies if step.of == "mirror" else live
    if not any(one.requests for one in canary):
        return False
    found = judge(stable, canary, walk.settings, now_unix_s=walk.now_s + seconds, expected_share=None)
    unmet = {one.metric for one in found.findings if one.verdict not in {"pass", "no_data"}}
    return found.verdict == "pass" or (found.verdict == "hold" and bool(step.metrics) and not unmet & set(step.metrics))


def _pass(walk: _Walk, traffic: Traffic, seconds: float) -> None:
    """Time goes on by `seconds` with this traffic."""
    walk.stable, walk.live, walk.copies = _bins(walk, traffic, seconds)
    walk.now_s += seconds


def _bins(walk: _Walk, traffic: Traffic, seconds: float) -> tuple[list[Bin], list[Bin], list[Bin]]:
    """What the judge has read `seconds` later: the stable version's, the candidate's own and its copies."""
    share = traffic.weight_bp / WEIGHT_TOTAL_BP
    stable_rate = walk.rate * (1 - share)
    rates = stable_rate, walk.rate * share, stable_rate * traffic.mirror_bp / WEIGHT_TOTAL_BP
    held = walk.stable, walk.live, walk.copies
    return tuple(  # type: ignore[return-value]  # three, as given
        [*old, *_arm(rate, walk.now_s, seconds, unit_s=walk.settings.unit_s)]
        for old, rate in zip(held, rates, strict=True)
    )


def _arm(rate: float, from_s: float, seconds: float, *, unit_s: int) -> list[Bin]:
    """Requests at an even pace, with the hump's latencies in each bin as exactly as whole numbers can be."""
    if rate <= 0 or seconds <= 0:
        return []
    span = max(unit_s, int(seconds / MAX_BINS / unit_s + 1) * unit_s)
    found, done = [], 0
    for at in range(0, int(seconds), span):
        until = int(rate * min(at + span, seconds))
        if until > done:
            found.append(Bin(int(from_s) + at, requests=until - done, latency=_latencies(done, until)))
        done = until
    return found


def _latencies(done: int, until: int) -> dict[int, int]:
    whole, found, below = sum(HUMP), {}, 0
    for place, part in enumerate(HUMP):
        # How many of the first n requests are in this bucket or below, for n = until and n = done.
        counts = [n * (below + part) // whole - n * below // whole for n in (done, until)]
        if counts[1] > counts[0]:
            found[FIRST_BUCKET + place] = counts[1] - counts[0]
        below += part
    return found


def _words(steps: Sequence[StepTime], rate: float, expected: float, most: float) -> str:
    longest = plans.spoken(most)
    analyzed = any(step.most_s and step.expected_s != step.most_s for step in steps) or any(
        step.waits_for.startswith("more traffic") for step in steps
    )
    if not rate:
        told = "no traffic in the last minutes: "
        told += f"each judgement waits for traffic, at most {longest} in all" if analyzed else f"about {longest}"
    else:
        told = f"about {plans.spoken(expected)} at {rate:.3g} requests/s"
        told += f", at most {longest}" if most > expected else ""
    slow = next((place for place, step in enumerate(steps, 1) if step.waits_for.startswith("more traffic")), 0)
    if slow and rate:
        told += f"; at step {slow} the judge needs more traffic than that to be sure in time"
    people = [step.waits_for for step in steps if step.waits_for and not step.waits_for.startswith("more traffic")]
    return told + (f"; and it waits for {' and '.join(dict.fromkeys(people))}" if people else "")
