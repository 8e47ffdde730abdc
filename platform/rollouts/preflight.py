"""Before a rollout's first deed: is it allowed, is there room, how long will it take? Reads rows; changes nothing.

What is in `blockers` would fail or break clients, so a rollout is not started; `warnings` are worth a person's look.
`weighed` is pure: all that was read is in its facts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from endpoints.models import Endpoint
from fleet import whatif
from fleet.placement import DeploymentView
from inference.protocol.oip import Signature
from inference.protocol.routes import WEIGHT_TOTAL_BP
from inference.protocol.settings import RuntimeSettings
from registry.adapters import is_adapter
from registry.models import GoldenInput, Version, VersionStatus
from registry.pipelines import steps_of
from rollouts import plans
from rollouts.judging import settings_of
from rollouts.plans import Plan
from rollouts.signatures import Compatibility, compare_versions
from rollouts.timeline import Duration, estimate
from rollouts.watching import seen
from telemetry import queries

TRAFFIC_S = 300
# Arms whose requests the endpoint's callers sent.
LIVE = frozenset({"primary", "canary"})


@dataclass(frozen=True, slots=True)
class Capacity:
    """replicas: of the candidate that the plan needs at most; placed: of these, how many find room beside the stable
    version; first: how many it needs to begin. by_exchange: whether replicas could be exchanged one by one instead,
    None where that is not possible at all. short: which device misses how much.
    """

    replicas: int
    placed: int
    first: int
    by_exchange: bool | None
    short: str = ""
    short_by_exchange: str = ""

    @property
    def words(self) -> str:
        if self.placed >= self.replicas:
            return f"{_counted(self.replicas)} of the candidate fit beside the stable version."
        told = (
            f"{self.placed} of {_counted(self.replicas)} of the candidate fit beside the stable version: {self.short}."
        )
        if self.by_exchange:
            return f"{told} Without surge, replica by replica, it fits."
        if self.by_exchange is False:
            return f"{told} Nor does it fit replica by replica: {self.short_by_exchange}."
        return told


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read. troubles: why the version cannot be a candidate here at all; compatibility and capacity are None
    where that could not be told. rate_per_s: the endpoint's own requests; load_s: to load one replica, as validation saw.
    """

    troubles: tuple[str, ...]
    compatibility: Compatibility | None
    capacity: Capacity | None
    golden_inputs: int
    rate_per_s: float
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Preflight:
    """golden_inputs: how many are saved with the model."""

    compatibility: Compatibility | None
    capacity: Capacity | None
    duration: Duration
    golden_inputs: int
    warnings: tuple[str, ...]
    blockers: tuple[str, ...]

    @property
    def is_clear(self) -> bool:
        return not self.blockers

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        found: dict[str, Any] = msgspec.to_builtins(asdict(self))
        if self.capacity is not None:
            found["capacity"]["words"] = self.capacity.words
        return found


def preflight(endpoint: Endpoint, candidate: Version, plan: Plan, *, reason: str = "") -> Preflight:
    """What a rollout of `candidate` at `endpoint` by `plan` would meet. reason: why a breaking signature is meant."""
    stable = _stable_of(endpoint)
    troubles = tuple(_troubles(endpoint, stable, candidate))
    compatibility = capacity = None
    if stable is not None and not troubles:
        compatibility = _compatibility(stable, candidate)
        capacity = _capacity(stable, candidate, plan)
    facts = Facts(
        troubles=troubles,
        compatibility=compatibility,
        capacity=capacity,
        golden_inputs=GoldenInput.objects.filter(model=endpoint.model_id).count(),
        rate_per_s=rate_of(endpoint),
        load_s=_load_s(candidate),
    )
    return weighed(facts, plan, reason=reason)


def weighed(facts: Facts, plan: Plan, *, reason: str = "") -> Preflight:
    """Pure."""
    duration = estimate(plan, rate_per_s=facts.rate_per_s, settings=settings_of(plan), load_s=facts.load_s)
    blockers, warnings = list(facts.troubles), []
    for found in (_of_signature(facts, reason), _of_capacity(facts, plan), _of_traffic(facts, duration)):
        blockers += found[0]
        warnings += found[1]
    if not facts.golden_inputs:
        warnings.append(
            "No golden inputs are saved for this model, so before the traffic one made-up request is all that is asked."
        )
    return Preflight(
        facts.compatibility, facts.capacity, duration, facts.golden_inputs, tuple(warnings), tuple(blockers)
    )


_Found = tuple[list[str], list[str]]


def _of_signature(facts: Facts, reason: str) -> _Found:
    found = facts.compatibility
    if found is None or found.kind == "compatible":
        return [], []
    told = "; ".join(found.differences[:5])
    if not found.is_breaking:
        return [], [f"The signature grows: {told}."]
    if reason.strip():
        return [], [f"The signature breaks clients, and that is meant: {told}."]
    return [f"The signature breaks clients: {told}. Give a reason if that is meant."], []


def _of_capacity(facts: Facts, plan: Plan) -> _Found:
    found = facts.capacity
    if found is None:
        return [], []
    if not plan.settings.surge:
        if found.by_exchange is None:
            return ["Without surge replicas are exchanged one by one, which this version's replicas cannot be."], []
        if not found.by_exchange:
            return [f"Replicas cannot be exchanged one by one: {found.short_by_exchange}."], []
        return [], []
    if found.placed < found.first:
        hint = " Use a plan without surge." if found.by_exchange else ""
        return [f"{found.words}{hint}"], []
    return [], [] if found.placed >= found.replicas else [found.words]


def _of_traffic(facts: Facts, duration: Duration) -> _Found:
    late = [(place, step) for place, step in enumerate(duration.steps, 1) if step.waits_for.startswith("more traffic")]
    if not late:
        return [], []
    if not facts.rate_per_s:
        return [], ["There is no traffic now, so the judge has nothing to judge: the rollout waits for some."]
    place, step = late[0]
    waits = f"step {place} ({step.words}) would wait for {step.waits_for}"
    return [], [f"At {facts.rate_per_s:.3g} requests/s the judge is not sure in time: {waits}."]


def _stable_of(endpoint: Endpoint) -> Version | None:
    rows = endpoint.variants.filter(weight_bp=WEIGHT_TOTAL_BP).select_related("version__model__team")
    variant = rows.first()
    return variant.version if variant is not None else None


def _troubles(endpoint: Endpoint, stable: Version | None, candidate: Version) -> list[str]:
    found = []
    if stable is None:
        found.append(
            f"No version has all the traffic of '{endpoint.name}': give it to one, which is then the stable one."
        )
    if candidate.model_id != endpoint.model_id:
        found.append(f"{candidate} is a version of another model than '{endpoint.name}' serves.")
    if stable is not None and candidate.pk == stable.pk:
        found.append(f"{candidate} is the stable version already.")
    if candidate.status != VersionStatus.READY:
        found.append(f"{candidate} is {candidate.status.replace('_', ' ')}: only a ready version can be a candidate.")
    if is_adapter(candidate):
        found.append(f"{candidate} is an adapter, which has no traffic of its own: roll out a version that it changes.")
    return found


def _compatibility(stable: Version, candidate: Version) -> Compatibility:
    signatures = [msgspec.convert(one.signature, Signature) for one in (stable, candidate)]
    settings = [msgspec.convert(one.settings, RuntimeSettings) for one in (stable, candidate)]
    return compare_versions(signatures[0], settings[0], signatures[1], settings[1])


def _capacity(stable: Version, candidate: Version, plan: Plan) -> Capacity:
    """1. How many replicas the plan needs at most and to begin. 2. All of them beside the stable version's, each step of
    a pipeline in turn. 3. The exchange one by one, where both versions have replicas of their own.
    """
    device, needed = _device_of(stable), max(1, seen(stable).wanted)
    ends_with_all = plan.settings.outcome != "report"
    most = max(plans.scale_at(plan, place, needed) for place in range(len(plan.steps)))
    most = max(most, needed) if ends_with_all else most
    fleet, placed, short = whatif.standing(), most, ""
    after = fleet
    for part in steps_of(candidate) or [candidate]:
        answer = whatif.ask(after, _wish(part, most, device))
        after, placed, short = answer.after, min(placed, answer.placed), short or answer.short
    by_exchange, short_by_exchange = None, ""
    if needed > 1 and not steps_of(stable) and not steps_of(candidate):
        old, new = (whatif.wish_of(one, needed, device) for one in (stable, candidate))
        answer = whatif.exchanges(fleet, old, replace(new, replicas=0))
        by_exchange, short_by_exchange = answer.fits, answer.short
    return Capacity(most, placed, plans.first_replicas(plan, needed), by_exchange, short, short_by_exchange)


def _wish(version: Version, replicas: int, device: str) -> DeploymentView:
    """As many as wanted, or as it has already where that is more."""
    wish = getattr(version, "deployment", None)
    return whatif.wish_of(version, max(replicas, wish.replicas if wish is not None else 0), device)


def _device_of(version: Version) -> str:
    wish = getattr(version, "deployment", None)
    return wish.device if wish is not None else "any"


def rate_of(endpoint: Endpoint) -> float:
    """Requests per second that the endpoint's callers sent over the last minutes."""
    lines = queries.summary(endpoint.name, TRAFFIC_S)
    return sum(line["requests_per_s"] for line in lines if line["arm"] in LIVE)


def _load_s(version: Version) -> float:
    measured: dict[str, Any] = (version.report or {}).get("measurements") or {}
    return float(measured.get("load_ms") or 0.0) / 1e3


def _counted(count: int) -> str:
    return f"{count} replica{'' if count == 1 else 's'}"
