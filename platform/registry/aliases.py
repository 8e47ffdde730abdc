"""Aliases: movable names for ready versions, with their history. Called through registry.actions."""

from __future__ import annotations

from django.db import transaction

from accounts.audit import record
from accounts.names import check_slug, check_text
from accounts.permissions import Actor, Verb
from inference.errors import ClientError, Conflict, NotFound
from registry.models import Alias, AliasChange, Model, Version, VersionStatus
from registry.rights import require_seen


def check_alias_name(name: str) -> str:
    """An alias is a slug with a letter in it, so that it can never be taken for a number; `latest` is computed."""
    check_slug("alias", name)
    if name.isdigit() or name == "latest":
        raise ClientError(f"'{name}' cannot name an alias: it already means a version")
    return name


@transaction.atomic
def set_alias(*, actor: Actor, model: Model, name: str, version: Version, reason: str = "") -> Alias:
    """Lets the alias point to this ready version of the model, and writes its history."""
    require_seen(actor, Verb.DEPLOY, model)
    check_alias_name(name)
    check_text("reason", reason, 500)
    Model.objects.select_for_update().get(pk=model.pk)
    version = Version.objects.select_for_update().get(pk=version.pk)
    if version.model_id != model.pk:
        raise ClientError(f"{version} is no version of {model.name}")
    if version.status != VersionStatus.READY:
        raise Conflict(f"{version} is {version.status}: an alias needs a ready version")
    held = Alias.objects.filter(model=model, name=name).select_related("version").first()
    if held and held.version_id == version.pk:
        return held
    row, _ = Alias.objects.update_or_create(model=model, name=name, defaults={"version": version})
    _write_history(actor, model, name, reason, old=held.version if held else None, new=version)
    return row


@transaction.atomic
def delete_alias(*, actor: Actor, model: Model, name: str, reason: str = "") -> None:
    require_seen(actor, Verb.DEPLOY, model)
    check_text("reason", reason, 500)
    Model.objects.select_for_update().get(pk=model.pk)
    held = Alias.objects.filter(model=model, name=name).select_related("version").first()
    if held is None:
        raise NotFound(f"{model.name} has no alias '{name[:64]}'")
    held.delete()
    _write_history(actor, model, name, reason, old=held.version, new=None)


def _write_history(
    actor: Actor, model: Model, name: str, reason: str, *, old: Version | None, new: Version | None
) -> None:
    AliasChange.objects.create(
        model=model, name=name, from_version=old, to_version=new, actor=actor.name, reason=reason
    )
    verb = "set_alias" if new else "delete_alias"
    before, after = ({"version": version.number} if version else None for version in (old, new))
    record(actor, verb, "alias", f"{model.name}@{name}", team=model.team, before=before, after=after, reason=reason)
