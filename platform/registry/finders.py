"""Things of the registry by the names that people write: "digits", "digits:3"."""

from __future__ import annotations

from registry.models import Model, Version


def find_model(name: str) -> Model | None:
    return Model.objects.select_related("team").filter(name=name).first()


def find_version(name: str) -> Version | None:
    """Of "model:number"."""
    model, _, number = name.rpartition(":")
    if not number.isdecimal() or len(number) > 9:
        return None
    return Version.objects.select_related("model__team").filter(model__name=model, number=int(number)).first()
