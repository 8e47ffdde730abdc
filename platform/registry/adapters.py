"""LoRA adapters as versions: which version one changes, and how many a version takes."""

from __future__ import annotations

from collections.abc import Mapping

from inference.artifacts import lora
from inference.artifacts.manifest import Format
from inference.errors import InvalidInput, Rejected
from registry.models import Version

ADAPTER = Format.LORA.value  # the format of a version that is one
MAX_OFFERED = 200


def is_adapter(version: Version) -> bool:
    return version.format == ADAPTER


def base_name(version: Version) -> tuple[str, int]:
    """(model, number) of the version that an adapter changes. Raises InvalidInput for what does not say so."""
    try:
        return lora.base_of(version.settings.get("parameters") or {})
    except Rejected as error:
        raise InvalidInput(f"{version}: {error.reason}") from error


def most_adapters(version: Version) -> int:
    """How many adapters a replica of this version may hold at once."""
    generation = version.settings.get("generation")
    most = generation.get("max_adapters", 0) if isinstance(generation, Mapping) else 0
    return most if type(most) is int else 0


def adapters_of(team_id: int, bases: list[str]) -> list[Version]:
    """Ready adapters of a team for one of these versions ("MODEL:NUMBER"), the newest of each model first."""
    rows = Version.objects.filter(
        format=ADAPTER, status="ready", model__team=team_id, settings__parameters__base__in=bases
    )
    return list(rows.select_related("model").order_by("model__name", "-number")[:MAX_OFFERED])
