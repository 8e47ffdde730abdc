"""LoRA adapters behind an endpoint: attached to the variant whose version they change, named ENDPOINT:NAME by clients.

A replica serves its version for every endpoint that runs it, so its adapters are those of all of them: one name means
one adapter there, whoever attached it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from django.db import transaction

from accounts.permissions import Actor, Verb, require
from endpoints.actions import NAME, changed, locked
from endpoints.models import Adapter, Endpoint, Variant
from fleet import messages
from fleet.models import Replica
from inference.errors import Conflict, InvalidInput, NotFound
from registry.adapters import base_name, is_adapter, most_adapters
from registry.models import Version, VersionStatus


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an adapter stands in the ready replicas of its base. state: "loaded" in all of them, "waiting", or "failed" in
    one; reason: why it failed there.
    """

    state: str
    loaded: int
    replicas: int
    reason: str = ""

    @property
    def is_served(self) -> bool:
        """Whether gateways may name it. Where no replica is ready it is loaded before one is."""
        return not self.replicas or (self.loaded > 0 and self.state != "waiting")


def attach(
    *, endpoint: Endpoint, version: Version, actor: Actor, name: str = "", revision: int | None = None
) -> Adapter:
    """Has the replicas of the version that this adapter changes load it, while they serve, under `name` (by default its
    model's). Raises InvalidInput, Conflict or Forbidden.
    """
    require(actor, Verb.DEPLOY, version)
    require(actor, Verb.DEPLOY, endpoint)
    name = name or version.model.name
    if not NAME.fullmatch(name):
        raise InvalidInput(
            "an adapter's name has up to 64 letters, digits, '-' and '_', and begins with one of the first"
        )
    _check(version, endpoint)
    with transaction.atomic():
        endpoint = locked(endpoint, revision)
        variant = _variant_of(endpoint, version)
        # Another endpoint may run the same version: its row is what two attachments at once meet at.
        base = Version.objects.select_for_update(of=("self",)).select_related("model").get(pk=variant.version_id)
        _check_room(base, endpoint, version, name)
        before = _named(endpoint)
        found = Adapter.objects.create(variant=variant, version=version, name=name)
        changed(endpoint, actor, "attach_adapter", before={"adapters": before}, after={"adapters": _named(endpoint)})
        _wake(base.pk)
    return found


def detach(*, endpoint: Endpoint, name: str, actor: Actor, revision: int | None = None) -> None:
    """Takes the adapter of this name away. What began with it ends with it; new requests get an error. Raises NotFound."""
    require(actor, Verb.DEPLOY, endpoint)
    with transaction.atomic():
        endpoint = locked(endpoint, revision)
        rows = Adapter.objects.filter(variant__endpoint=endpoint, name=name)
        bases = list(rows.values_list("variant__version_id", flat=True))
        if not bases:
            raise NotFound(f"endpoint '{endpoint.name}' has no adapter '{name[:64]}'")
        before = _named(endpoint)
        rows.delete()
        changed(endpoint, actor, "detach_adapter", before={"adapters": before}, after={"adapters": _named(endpoint)})
        for base in bases:
            _wake(base)


def adapters_for(versions: Iterable[int]) -> dict[int, list[Adapter]]:
    """Version id -> the adapters that its replicas shall hold, each name once, the oldest first."""
    found: dict[int, dict[str, Adapter]] = {}
    rows = Adapter.objects.filter(variant__version__in=set(versions))
    for row in rows.select_related("version__model", "variant").order_by("id"):
        found.setdefault(row.variant.version_id, {}).setdefault(row.name, row)
    return {version: list(rows.values()) for version, rows in found.items()}


def standing(adapter: Adapter, replicas: Iterable[Replica]) -> Standing:
    """replicas: all of the version that it changes."""
    ready = [row for row in replicas if row.wanted == "run" and row.phase == "ready"]
    told = [_told(adapter, row) for row in ready]
    loaded = sum(state == "loaded" for state, _ in told)
    failed = next((message for state, message in told if state == "failed"), None)
    if ready and loaded == len(ready):
        return Standing("loaded", loaded, len(ready))
    if failed is not None and all(state in {"loaded", "failed"} for state, _ in told):
        return Standing("failed", loaded, len(ready), failed)
    return Standing("waiting", loaded, len(ready))


def _told(adapter: Adapter, row: Replica) -> tuple[str, str]:
    """(state, message) of the adapter in that replica."""
    for one in row.adapters:
        if (one["name"], one["digest"]) == (adapter.name, adapter.version.digest) and one["state"] != "leaving":
            return one["state"], one.get("message", "")
    return "waiting", ""


def _check(version: Version, endpoint: Endpoint) -> None:
    if not is_adapter(version):
        raise InvalidInput(f"{version} is no LoRA adapter: put it behind an endpoint of its own (deploy)")
    if version.status != VersionStatus.READY:
        raise Conflict(f"{version} is {version.get_status_display().lower()}: only a ready adapter can be added")
    if version.model.team_id != endpoint.team_id:
        raise InvalidInput(f"{version} and endpoint '{endpoint.name}' belong to different teams: upload it in this one")


def _variant_of(endpoint: Endpoint, version: Version) -> Variant:
    model, number = base_name(version)
    found = endpoint.variants.filter(version__model__name=model, version__number=number).first()
    if found is None:
        raise InvalidInput(
            f"{version} changes {model}:{number}, which endpoint '{endpoint.name}' does not run: deploy {model}:{number} "
            "there first, or add the adapter where it runs"
        )
    return found


def _check_room(base: Version, endpoint: Endpoint, version: Version, name: str) -> None:
    most = most_adapters(base)
    if not most:
        raise InvalidInput(
            f"{base} was uploaded without room for adapters: upload it again with the setting "
            'generation={"max_adapters": 8} and deploy that version'
        )
    rows = Adapter.objects.filter(variant__version=base).select_related("variant__endpoint", "version__model")
    held = {row.name: row for row in rows.order_by("-id")}
    own = next((row for row in rows if row.name == name and row.variant.endpoint_id == endpoint.pk), None)
    other = own or held.get(name)
    if own is not None and own.version_id == version.pk:
        raise Conflict(f"{version} is already '{endpoint.name}:{name}'")
    if other is not None and other.version_id != version.pk:
        raise Conflict(
            f"'{other.variant.endpoint.name}:{name}' is {other.version} already, in the same replicas: remove that one "
            "first, or give this one another name"
        )
    if other is None and len(held) >= most:
        raise Conflict(
            f"the replicas of {base} hold {most} adapters at most, and have as many: remove one, or upload {base.model} "
            "again with a larger generation.max_adapters"
        )


def _named(endpoint: Endpoint) -> dict[str, str]:
    rows = Adapter.objects.filter(variant__endpoint=endpoint).select_related("version__model")
    return {row.name: str(row.version) for row in rows}


def _wake(base: int) -> None:
    hosts = Replica.objects.filter(deployment__version=base, wanted="run").exclude(host=None)
    for host in sorted(set(hosts.values_list("host_id", flat=True))):
        messages.wake_host_on_commit(str(host))
