"""Live updates: what a topic shows now. Who may see the same shares one poll (see hub.py).

A feed's data are facts (small values by key), `stamps` (a mark per fragment of the page, which the page asks for anew
when its mark changes) and, for charts, `points` of the last `window_s` seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.models import Max

from accounts.permissions import Actor, Verb, can, require, teams_where
from console import batches, rollouts
from console.health import judge
from console.logs import Tail
from console.reading import (
    endpoint_named,
    endpoint_states,
    facts_of,
    host_states,
    pending,
    replica_numbered,
    replicas_of,
    stamp,
    version_numbered,
)
from console.traffic import total, traffic_of
from endpoints.models import Endpoint
from fleet.models import Replica
from fleet.standing import ready_counts, step_ids
from inference.errors import Forbidden, NotFound
from registry.models import ValidationRun, Version
from telemetry.queries import Point, batch_sizes, series

CHART_S = 300
BATCHES_S = 60
Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Feed:
    """key: equal for all who see the same. read: makes the data; touches the database, so call it in a thread."""

    key: str
    read: Callable[[], Data]


def feed_of(actor: Actor, topic: str) -> Feed:
    """The feed behind a topic's name, if the actor may see it. Raises NotFound or Forbidden."""
    if not can(actor, Verb.VIEW):
        raise Forbidden("You have no role in any team yet: ask an admin for one.")
    kind, _, rest = topic.partition(":")
    if kind == "endpoint" and rest:
        endpoint = endpoint_named(actor, rest)
        return Feed(topic, lambda: endpoint_data(endpoint.pk))
    if kind == "logs":
        return logs_feed(actor, rest)
    if topic in LISTS:
        return Feed(f"{topic}/{batches.scope_of(actor)}", lambda: LISTS[topic](actor))
    if rest and (found := _one_feed(actor, topic)) is not None:
        return found
    raise NotFound(f"There is no topic “{topic[:80]}”.")


def _one_feed(actor: Actor, topic: str) -> Feed | None:
    """Of one job, rollout or version."""
    kind, _, rest = topic.partition(":")
    if kind == "job":
        job = batches.named(actor, rest).batch
        return Feed(topic, lambda: batches.job_data(job.pk))
    if kind == "rollout":
        rollout = rollouts.named(actor, rest)
        return Feed(topic, lambda: rollouts.rollout_data(rollout.pk))
    model, _, number = rest.rpartition(":")
    if kind == "version" and model and number.isascii() and number.isdigit() and len(number) < 10:
        version = version_numbered(actor, model, int(number))
        return Feed(topic, lambda: version_data(version.pk))
    return None


def logs_feed(actor: Actor, rest: str) -> Feed:
    """Of "replica:<id>" or "endpoint:<name>": for those who may deploy what runs there. Raises NotFound or Forbidden."""
    kind, _, name = rest.partition(":")
    if kind == "replica":
        replica = replica_numbered(actor, name)
        require(actor, Verb.DEPLOY, replica.deployment)
        return Feed(f"logs:replica:{replica.pk}", Tail(lambda: list(Replica.objects.filter(pk=replica.pk))).read)
    if kind != "endpoint" or not name:
        raise NotFound(f"There is no topic “logs:{rest[:80]}”.")
    endpoint = endpoint_named(actor, name)
    require(actor, Verb.DEPLOY, endpoint)
    # A pipeline's steps may be another team's, so those of one right alone share a poll.
    scope = "all" if actor.superuser else ",".join(str(team) for team in sorted(teams_where(actor, Verb.DEPLOY)))

    def replicas() -> list[Replica]:
        versions = list(endpoint.variants.values_list("version_id", flat=True))
        return [one for one in replicas_of([*versions, *step_ids(versions)]) if can(actor, Verb.DEPLOY, one.deployment)]

    return Feed(f"logs:endpoint:{endpoint.pk}/{scope}", Tail(replicas).read)


def endpoint_data(pk: int) -> Data:
    """Rates, quantiles, stages and batch sizes for the charts, KPIs, and stamps for variants and replicas."""
    endpoint = Endpoint.objects.filter(pk=pk).first()
    if endpoint is None:
        raise NotFound("This endpoint has been deleted.")
    versions = list(endpoint.variants.values_list("version_id", flat=True))
    replicas = replicas_of([*versions, *step_ids(versions)])
    serving = [replica for replica in replicas if replica.phase == "ready" and replica.wanted == "run"]
    marks = [
        (str(r.id), r.phase, r.wanted, r.message, r.restarts, r.host_id, r.generation, r.adapters) for r in replicas
    ]
    traffic = traffic_of([endpoint.name])[endpoint.name]
    return {
        **_figures(traffic),
        "ready": len(serving),
        "ready_of": dict(Counter(str(one.deployment.version.number) for one in serving if _is_own(one, versions))),
        "queue_depth": sum(replica.queue_depth for replica in replicas if replica.phase == "ready"),
        "batches": [list(one) for one in batch_sizes(endpoint.name, BATCHES_S)],
        "window_s": CHART_S,
        "points": _points(endpoint.name),
        "stamps": {
            "replicas": stamp(marks, endpoint.revision),
            "rollout": rollouts.endpoint_stamp(endpoint),
            "split": stamp(list(endpoint.variants.values_list("version_id", "weight_bp")), endpoint.steering is None),
        },
    }


def _is_own(replica: Replica, versions: list[int]) -> bool:
    """Of one of the endpoint's versions, and not of a pipeline's step."""
    return replica.deployment.version_id in versions


def _figures(traffic: Any) -> Data:
    return {
        "rps": traffic.rps,
        "error_share": traffic.error_share,
        "p50_ms": traffic.quantile_ms(0.5),
        "p99_ms": traffic.quantile_ms(0.99),
    }


def _points(endpoint: str) -> list[Data]:
    """One per second: rows of [version, requests per second, p50 ms, p99 ms]; arms of a version are added up. stages:
    [queue, input, compute, output], mean ms of the answered requests of all versions.
    """
    by_time: dict[int, dict[int, list[float | None]]] = {}
    stages: dict[int, list[Point]] = {}
    for point in series(endpoint, CHART_S):
        at = int(point["at"].timestamp())
        stages.setdefault(at, []).append(point)
        row = by_time.setdefault(at, {})
        held = row.setdefault(point["version"], [0, None, None])
        held[0] = (held[0] or 0) + point["requests"]
        held[1], held[2] = _larger(held[1], point["p50_ms"]), _larger(held[2], point["p99_ms"])
    return [
        {
            "at": at,
            "rows": [[version, *values] for version, values in sorted(row.items())],
            "stages": _stages(stages[at]),
        }
        for at, row in sorted(by_time.items())
    ]


def _stages(points: list[Point]) -> list[float] | None:
    """Means over the points, by their requests; None without an answered request."""
    held = [point for point in points if point["compute_ms"] is not None]
    requests = sum(point["requests"] for point in held)
    if not requests:
        return None
    sums = [0.0] * 4
    for point in held:
        for place, mean in enumerate((point["queue_ms"], point["input_ms"], point["compute_ms"], point["output_ms"])):
            sums[place] += (mean or 0.0) * point["requests"]
    return [round(one / requests, 4) for one in sums]


def _larger(a: float | None, b: float | None) -> float | None:
    held = [value for value in (a, b) if value is not None]
    return round(max(held), 2) if held else None


def version_data(pk: int) -> Data:
    version = Version.objects.filter(pk=pk).first()
    if version is None:
        raise NotFound("This version is gone.")
    run = version.validation_runs.order_by("-created_at").values_list("state", "checks", "attempts").first()
    return {"status": version.status, "stamps": {"version": version_stamp(version, run)}}


def version_stamp(version: Version, run: Any = None) -> str:
    """Changes when the version's page would look different."""
    if run is None:
        run = version.validation_runs.order_by("-created_at").values_list("state", "checks", "attempts").first()
    used = list(version.variants.values_list("endpoint_id", "weight_bp"))
    aliases = list(version.aliases.values_list("name", flat=True))
    ready = ready_counts({version.pk}).get(version.pk, 0)
    return stamp(version.status, run, used, aliases, ready)


def dashboard_data(actor: Actor) -> Data:
    states = endpoint_states(actor)
    parts = traffic_of([state.endpoint.name for state in states])
    whole = total(parts)
    facts = facts_of(actor, states, whole.error_share)
    health = judge(facts)
    newest = Version.objects.aggregate(newest=Max("pk"))["newest"]
    shape = [(s.endpoint.name, s.word, s.shares, s.ready_total) for s in states]
    return {
        **_figures(whole),
        **{f"rps:{name}": part.rps for name, part in parts.items()},
        **{f"p99:{name}": part.quantile_ms(0.99) for name, part in parts.items()},
        "ready": sum(state.ready_total for state in states),
        "hosts": facts.hosts - len(facts.lost_hosts),
        "stamps": {
            "overview": stamp(
                health.tone,
                health.sentence,
                shape,
                facts.validating,
                newest,
                rollouts.list_stamp(rollouts.active_first(actor)),
            )
        },
    }


def fleet_data(actor: Actor) -> Data:
    hosts = host_states()
    marks = [
        (
            state.host.name,
            state.word,
            state.host.problem,
            [
                (device.device.name, device.used_bytes >> 24, _replica_marks(device.replicas))
                for device in state.devices
            ],
        )
        for state in hosts
    ]
    waiting = [(wish.pk, wish.reason) for wish in pending(actor)]
    return {"hosts": sum(state.alive for state in hosts), "stamps": {"fleet": stamp(marks, waiting)}}


def _replica_marks(replicas: list[Any]) -> list[Any]:
    return [(str(r.id), r.phase, r.wanted, r.restarts, r.message, r.memory_bytes >> 22) for r in replicas]


def running_checks(version: Version) -> list[Data]:
    """The checklist as far as it is known: the report when there is one, else what the running validation has sent."""
    if version.report:
        return list(version.report.get("checks", []))
    run = version.validation_runs.filter(purpose=ValidationRun.Purpose.VALIDATE).order_by("-created_at").first()
    return list(run.checks) if run else []


# Topics of what all one's teams have; who is in the same teams shares one poll.
LISTS: dict[str, Callable[[Actor], Data]] = {
    "dashboard": dashboard_data,
    "fleet": fleet_data,
    "jobs": batches.jobs_data,
    "rollouts": rollouts.list_data,
}
