"""Why somebody may or may not do something, in words: the answer to "it says 403, what do I ask for?"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accounts.models import ApiKey, Role, Team, User
from accounts.permissions import MAY, Actor, Verb, actor_of_key, actor_of_user, can, team_of
from inference.errors import ClientError, Forbidden, NotFound

Finder = Callable[[str], Any]
# kind -> how to find such a thing by name (None when there is none). Each app adds its own when it is ready.
FINDERS: dict[str, Finder] = {"team": lambda name: Team.objects.filter(name=name).first()}


def find_object(text: str) -> Any:
    """The thing that "kind:name" names; None for the empty text. Raises ClientError, NotFound."""
    if not text:
        return None
    kind, _, name = text.partition(":")
    if kind not in FINDERS:
        raise ClientError(f"object is KIND:NAME, where KIND is one of {', '.join(sorted(FINDERS))}")
    found = FINDERS[kind](name)
    if found is None:
        raise NotFound(f"there is no {kind} '{name[:64]}'")
    return found


def find_actor(text: str) -> Actor:
    """The actor that "user:NAME" or "key:ID" names. Raises ClientError, NotFound."""
    kind, _, name = text.partition(":")
    if kind == "user" and (user := User.objects.filter(username=name, is_active=True).first()):
        return actor_of_user(user)
    if kind == "key" and (key := ApiKey.objects.filter(pk=name.removeprefix("ser_"), revoked_at=None).first()):
        return actor_of_key(key)
    if kind not in {"user", "key"}:
        raise ClientError("actor is user:NAME or key:ID")
    raise NotFound(f"there is no {kind} '{name[:64]}'")


def explain(asker: Actor, actor_text: str, verb_text: str, object_text: str) -> dict[str, Any]:
    """{"actor", "verb", "object", "allowed", "because"}. About others only an admin of the team may ask."""
    if verb_text not in set(Verb):
        raise ClientError(f"verb is one of {', '.join(Verb)}")
    verb, thing = Verb(verb_text), find_object(object_text)
    if thing is not None and not can(asker, Verb.VIEW, thing):
        kind, _, name = object_text.partition(":")
        raise NotFound(f"there is no {kind} '{name[:64]}'")
    if actor_text and thing is None and not asker.superuser:
        raise ClientError("say which object this is about: roles are held in teams")
    if actor_text and not can(asker, Verb.MANAGE_PEOPLE, thing):
        raise Forbidden("only an admin of the team may ask about somebody else")
    actor = find_actor(actor_text) if actor_text else asker
    if not asker.superuser and actor.key is not None and actor.key.team_id not in asker.roles:
        raise NotFound(f"there is no key '{actor_text.partition(':')[2][:64]}'")
    return {
        "actor": actor.name,
        "verb": verb.value,
        "object": object_text,
        "allowed": can(actor, verb, thing),
        "because": because(actor, verb, thing),
    }


def because(actor: Actor, verb: Verb, thing: Any) -> str:
    if actor.superuser:
        return "a superuser, or a platform admin's key, may do everything"
    least = next(role for role in Role.values if verb in MAY[role])
    team = team_of(thing)
    if team is not None:
        role = actor.roles.get(team.id)
        held = f"is {role}" if role else "has no role"
        return f"{actor.name} {held} in team '{team.name}'; {verb.value} needs {least}"
    if thing is not None and verb is not Verb.VIEW:
        return "this belongs to the whole platform: only a superuser may change it"
    best = max((Role.values.index(role) for role in actor.roles.values()), default=-1)
    held = f"is at most {Role.values[best]}" if best >= 0 else "has no role"
    return f"{actor.name} {held} in any team; {verb.value} needs {least} in one"
