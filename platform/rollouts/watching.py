"""What is seen of a rollout's two versions: their replicas, wanted and running. Reads rows; writes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.models import Deployment, Replica
from fleet.standing import ready_counts
from registry.models import Version
from registry.pipelines import steps_of

GIVEN_UP = "failed"


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one version; of a pipeline, the fewest of its steps. running: that have not stopped yet, ready or not. crashes:
    how often its processes ended by themselves; error: why all of its replicas were given up, "" otherwise; message:
    what one of its replicas says of itself, such as why its process ended last.
    """

    wanted: int = 0
    ready: int = 0
    running: int = 0
    crashes: int = 0
    error: str = ""
    message: str = ""


def seen(version: Version) -> Seen:
    parts = [_seen(step) for step in steps_of(version) or [version]]
    return Seen(
        wanted=min(part.wanted for part in parts),
        ready=ready_counts([version.pk]).get(version.pk, 0),
        running=min(part.running for part in parts),
        crashes=sum(part.crashes for part in parts),
        error=next((part.error for part in parts if part.error), ""),
        message=next((part.message for part in parts if part.message), ""),
    )


def _seen(version: Version) -> Seen:
    wish = Deployment.objects.filter(version=version).first()
    if wish is None:
        return Seen()
    rows = list(Replica.objects.filter(deployment=wish).values_list("wanted", "phase", "restarts", "message"))
    running = [row for row in rows if row[1] != "stopped" and not (row[0] == "stop" and row[1] == GIVEN_UP)]
    meant = [row for row in rows if row[0] == "run"]
    failed = [row for row in meant if row[1] == GIVEN_UP]
    error = (failed[0][3] or "its processes ended again and again") if failed and len(failed) == len(meant) else ""
    message = next((row[3] for row in meant if row[3]), "")
    return Seen(wish.replicas, 0, len(running), sum(row[2] for row in meant), error[:500], message[:500])
