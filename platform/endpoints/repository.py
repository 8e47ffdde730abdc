"""Load and unload, as Triton's clients ask for them: wishes of replicas, and of a folder's models to be imported.

Writes go through here only: transaction, audit entry, on_commit. Loading a version that was unloaded wishes as many
replicas as it had. A model that lies in the folder of `serinus up --model-repository` is imported by the process that
reads the folder: it finds the wish at the control API and answers it there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from threading import BoundedSemaphore
from typing import TypeVar

from django.conf import settings
from django.db import transaction
from django.db.models import F

from accounts import audit
from accounts.models import Team
from accounts.permissions import Actor, Verb, require, visible
from accounts.wakeups import send_on_commit
from endpoints.models import Endpoint, RepositoryModel, Variant
from endpoints.standing import LOADING, READY, UNAVAILABLE, UNLOADED, Standing, standing
from fleet import actions as fleet
from fleet import messages
from fleet.models import Deployment
from inference.errors import Conflict, InvalidInput, NotFound, NotReady, Overloaded
from registry.models import Version
from registry.pipelines import steps_of

EXPLICIT = "explicit"
NOT_EXPLICIT = "explicit model load / unload is not allowed if polling is enabled"
NO_FOLDER = (
    "parameter 'config' changes a model in the folder of `serinus up --model-repository`, and '{name}' is none: "
    "upload a version with other settings instead"
)
POLL_S = 0.2
MAX_WAITING = 16
MAX_LISTED = 1000
M = TypeVar("M", Endpoint, RepositoryModel)
_waiting = BoundedSemaphore(MAX_WAITING)


def index(actor: Actor, *, ready_only: bool = False) -> list[dict[str, str]]:
    """Every version behind the endpoints that the actor may see, and the folder's models that are not loaded."""
    found = []
    rows = visible(actor, Variant.objects.select_related("endpoint", "version"), "endpoint__team")
    for variant in rows.order_by("endpoint__name", "version__number"):
        if not _in_scope(actor, variant.endpoint.name):
            continue
        seen = standing(variant)
        found.append(_line(variant.endpoint.name, str(variant.version.number), seen))
    named = {line["name"] for line in found}
    found += [
        _line(row.name, "", Standing(UNAVAILABLE, row.reason or UNLOADED))
        for row in visible(actor, RepositoryModel.objects.order_by("name"))
        if row.name not in named and _in_scope(actor, row.name)
    ]
    return [line for line in found if line["state"] == READY or not ready_only]


def load(actor: Actor, name: str, *, config: str = "", timeout_s: float | None = None) -> None:
    """1. Is it there, and may they? 2. The folder's process imports it, where it lies there. 3. Wishes replicas. 4. Waits
    until a replica of every version with traffic is ready.

    config: JSON of a ModelConfig that takes the place of the folder's config.pbtxt, until the model is unloaded.

    Raises NotFound, Forbidden, Conflict with why it failed, Overloaded when too many wait, NotReady unless the control
    mode is explicit, InvalidInput for a config of what lies in no folder.
    """
    _require_explicit()
    end = time.monotonic() + (settings.MODEL_LOAD_TIMEOUT_S if timeout_s is None else timeout_s)
    listed = _seen(actor, RepositoryModel, name)
    endpoint = _seen(actor, Endpoint, name)
    if listed is None and endpoint is None:
        raise NotFound(f"failed to load '{name}', failed to poll from model repository")
    for row in (listed, endpoint):
        if row is not None:
            require(actor, Verb.OPERATE, row)
    if config and listed is None:
        raise InvalidInput(NO_FOLDER.format(name=name))
    if not _waiting.acquire(blocking=False):
        raise Overloaded(f"failed to load '{name}', {MAX_WAITING} other loads are under way: try again later")
    try:
        if listed is not None:
            _imported(actor, listed, config, end)
            endpoint = _seen(actor, Endpoint, name)
        if endpoint is not None:
            wish_loaded(actor, endpoint)
            _until(end, name, lambda: _is_loaded(endpoint))
    finally:
        _waiting.release()


def unload(actor: Actor, name: str) -> None:
    """Stops the endpoint's replicas once what is under way is answered. Raises NotFound, Forbidden, Conflict, NotReady."""
    _require_explicit()
    endpoint = _seen(actor, Endpoint, name)
    listed = _seen(actor, RepositoryModel, name)
    if endpoint is None:
        if listed is None:
            raise NotFound(f"failed to unload '{name}', there is no such model")
        require(actor, Verb.OPERATE, listed)
        return
    require(actor, Verb.OPERATE, endpoint)
    wish_unloaded(actor, endpoint)
    if listed is not None:
        RepositoryModel.objects.filter(pk=listed.pk).update(
            config=""
        )  # what a load gave is forgotten, as Triton has it


@transaction.atomic
def wish_loaded(actor: Actor, endpoint: Endpoint) -> None:
    """At least one replica for every version that has traffic; what an unload stopped, as it was before it."""
    changed = {}
    for variant in _variants(endpoint):
        for version in steps_of(variant.version) or [variant.version]:
            had = _wished(version)
            wanted = max(had, variant.resting_replicas, 1 if variant.weight_bp else 0)
            if wanted > had:
                fleet.want(version=version, replicas=wanted)
                changed[str(version)] = wanted
    endpoint.variants.update(resting_replicas=0)
    audit.record(actor, "load", "endpoint", endpoint.name, team=endpoint.team, after={"replicas": changed})
    send_on_commit(messages.PUBLISH)


@transaction.atomic
def wish_unloaded(actor: Actor, endpoint: Endpoint) -> None:
    """No replica for any version; how many there were is kept for the next load. Raises Conflict for a shared version."""
    changed = {}
    for variant in _variants(endpoint):
        if steps_of(variant.version):
            raise Conflict(f"failed to unload '{endpoint.name}', it is a pipeline: unload its steps instead")
        others = Variant.objects.filter(version=variant.version).exclude(endpoint=endpoint)
        if (other := others.select_related("endpoint").first()) is not None:
            raise Conflict(
                f"failed to unload '{endpoint.name}', version {variant.version.number} serves endpoint "
                f"'{other.endpoint.name}' too"
            )
        had = _wished(variant.version)
        if had:
            fleet.want(version=variant.version, replicas=0)
            endpoint.variants.filter(pk=variant.pk).update(resting_replicas=had)
            changed[str(variant.version.number)] = had
    audit.record(actor, "unload", "endpoint", endpoint.name, team=endpoint.team, before={"replicas": changed})
    send_on_commit(messages.PUBLISH)


# The folder's process


@transaction.atomic
def list_folder(actor: Actor, team: Team, names: Iterable[str]) -> list[RepositoryModel]:
    """What lies in the folder now; wishes for what is still there stay. Superusers only."""
    _require_superuser(actor)
    wanted = list(dict.fromkeys(names))
    if len(wanted) > MAX_LISTED:
        raise InvalidInput(f"a repository holds at most {MAX_LISTED} models")
    before = set(RepositoryModel.objects.values_list("name", flat=True))
    RepositoryModel.objects.exclude(name__in=wanted).delete()
    new = [name for name in wanted if name not in before]
    RepositoryModel.objects.bulk_create([RepositoryModel(name=name, team=team) for name in new], ignore_conflicts=True)
    if new or before - set(wanted):
        after = {"models": wanted[:100]}
        audit.record(actor, "list_repository", "repository", "models", team=team, after=after)
    return list(RepositoryModel.objects.order_by("name"))


@transaction.atomic
def answer_wish(actor: Actor, name: str, number: int, reason: str) -> RepositoryModel:
    """The load that was asked for as `number` has ended; `reason`: why it failed, "" when it did not."""
    _require_superuser(actor)
    row = RepositoryModel.objects.select_for_update().filter(name=name).first()
    if row is None:
        raise NotFound(f"there is no model '{name}' in the repository")
    if not row.done < number <= row.asked:
        raise Conflict(f"load {number} of '{name}' is not asked for, or answered")
    row.done, row.reason = number, reason[:1000]
    row.save(update_fields=["done", "reason"])
    after = {"load": number, "reason": row.reason}
    audit.record(actor, "answer_load", "repository", name, team=row.team, after=after)
    return row


def _imported(actor: Actor, listed: RepositoryModel, config: str, end: float) -> None:
    """A configuration that cannot be loaded leaves the one before it in force."""
    row = RepositoryModel.objects.filter(pk=listed.pk)
    with transaction.atomic():
        row.update(asked=F("asked") + 1, config=config or F("config"))
        number = row.values_list("asked", flat=True).get()
        after = {"load": number} | ({"config": config[:1000]} if config else {})
        audit.record(actor, "ask_load", "repository", listed.name, team=listed.team, after=after)

    def answered() -> Standing:
        row = RepositoryModel.objects.filter(pk=listed.pk).first()
        if row is None:
            return Standing(UNAVAILABLE, "it is no longer in the model repository")
        if row.done < number:
            return Standing(LOADING, "the model repository's process has not answered")
        return Standing(UNAVAILABLE, row.reason) if row.reason else Standing(READY)

    try:
        _until(end, listed.name, answered)
    except Conflict:
        row.filter(asked=number).update(config=listed.config)
        raise


def _is_loaded(endpoint: Endpoint) -> Standing:
    """READY when all versions with traffic are; else the first that is not."""
    seen = [standing(variant) for variant in _variants(endpoint) if variant.weight_bp]
    return next((one for one in seen if one.state != READY), Standing(READY))


def _until(end: float, name: str, look: Callable[[], Standing]) -> None:
    """Raises Conflict in Triton's words when it cannot become ready, or is not by then."""
    while (seen := look()).state != READY:
        if seen.state == UNAVAILABLE:
            raise Conflict(f"failed to load '{name}', {seen.reason}")
        if time.monotonic() > end:
            raise Conflict(f"failed to load '{name}', {seen.reason or 'it is not ready'} within the time for a load")
        time.sleep(POLL_S)


def _wished(version: Version) -> int:
    return Deployment.objects.filter(version=version).values_list("replicas", flat=True).first() or 0


def _variants(endpoint: Endpoint) -> list[Variant]:
    return list(endpoint.variants.select_related("version__model").order_by("version__number"))


def _seen(actor: Actor, kind: type[M], name: str) -> M | None:
    found = visible(actor, kind._default_manager.select_related("team")).filter(name=name).first()  # noqa: SLF001 (its public name in Django)
    return found if found is not None and _in_scope(actor, name) else None


def _in_scope(actor: Actor, name: str) -> bool:
    """A key that is made for some endpoints knows no others."""
    return actor.key is None or "*" in actor.key.endpoints or name in actor.key.endpoints


def _require_explicit() -> None:
    if settings.MODEL_CONTROL_MODE != EXPLICIT:
        raise NotReady(NOT_EXPLICIT)


def _require_superuser(actor: Actor) -> None:
    require(actor, Verb.OPERATE, RepositoryModel)  # as a whole it belongs to no team


def _line(name: str, version: str, seen: Standing) -> dict[str, str]:
    return {"name": name, "version": version, "state": seen.state, "reason": seen.reason}
