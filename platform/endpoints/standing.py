"""How an endpoint's versions stand, in the words of the repository calls. Reads rows and decides; writes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from endpoints.models import Variant
from fleet.models import Deployment, Replica
from registry.models import Version
from registry.pipelines import steps_of

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"
UNLOADED = "unloaded"
GIVEN_UP = "failed"


@dataclass(frozen=True, slots=True)
class Standing:
    """state: one of the four; reason: why it is not READY, "" otherwise."""

    state: str
    reason: str = ""


def standing_of(wanted: int, phases: list[tuple[str, str, str]], reason: str = "") -> Standing:
    """wanted: replicas that are wished for; phases: (wanted, phase, message) of each that there is."""
    running = [(phase, message) for wish, phase, message in phases if wish == "run"]
    if wanted:
        if any(phase == "ready" for phase, _ in running):
            return Standing(READY)
        failed = [message for phase, message in running if phase == GIVEN_UP]
        if failed and len(failed) == len(running):
            return Standing(UNAVAILABLE, failed[0] or "its replicas failed")
        return Standing(LOADING, reason)
    if any(phase not in {"stopped", GIVEN_UP} for _, phase, _ in phases):
        return Standing(UNLOADING)
    return Standing(UNAVAILABLE, UNLOADED)


def standing(variant: Variant) -> Standing:
    """Of one version behind an endpoint; of a pipeline, its first step that is not ready."""
    seen = [_of_version(version) for version in steps_of(variant.version) or [variant.version]]
    return next((one for one in seen if one.state != READY), seen[0])


def _of_version(version: Version) -> Standing:
    wish = Deployment.objects.filter(version=version).first()
    if wish is None:
        return Standing(UNAVAILABLE, UNLOADED)
    rows = Replica.objects.filter(deployment=wish).values_list("wanted", "phase", "message")
    return standing_of(wish.replicas, [(str(a), str(b), str(c)) for a, b, c in rows], wish.reason)
