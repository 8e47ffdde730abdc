"""The same people in every test of the control plane: owner, teammate, stranger, and a superuser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accounts import actions, keys
from accounts.models import ApiKey, Membership, Role, Team, User
from accounts.permissions import SYSTEM, Actor, actor_of_key, actor_of_user

PASSWORD = "correct horse battery"
# One hash for all: the slow hash is not what these tests are about.
UNUSABLE = "!"


@dataclass(frozen=True)
class Cast:
    """owner: admin of team `red`; developer and teammate (a viewer) are in it too; stranger: admin of team `blue`."""

    red: Team
    blue: Team
    root: User
    owner: User
    developer: User
    teammate: User
    stranger: User

    def actor(self, name: str) -> Actor:
        return actor_of_user(getattr(self, name))

    def key(self, name: str, **options: Any) -> str:
        """The token of a key with the rights of that person."""
        person = getattr(self, name)
        member = Membership.objects.filter(user=person).first()
        defaults = {
            "team": member.team if member else self.red,
            "role": member.role if member else Role.ADMIN,
            "platform_admin": person.is_superuser,
        }
        _, token = actions.create_key(actor=SYSTEM, name=f"{name}'s key", **(defaults | options))
        ApiKey.objects.filter(pk=token[4:16]).update(created_by=person)
        return token

    def key_actor(self, name: str, **options: Any) -> Actor:
        token = self.key(name, **options)
        split = keys.split(token)
        assert split is not None
        return actor_of_key(ApiKey.objects.select_related("team", "created_by").get(pk=split[0]))

    def bearer(self, name: str, **options: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key(name, **options)}"}


def make_cast() -> Cast:
    red, blue = Team.objects.create(name="red"), Team.objects.create(name="blue")
    root = User.objects.create(username="root", password=UNUSABLE, is_superuser=True, is_staff=True)
    people = {name: User.objects.create(username=name, password=UNUSABLE) for name in
              ("owner", "developer", "teammate", "stranger")}  # fmt: skip
    for name, team, role in (
        ("owner", red, Role.ADMIN),
        ("developer", red, Role.DEVELOPER),
        ("teammate", red, Role.VIEWER),
        ("stranger", blue, Role.ADMIN),
    ):
        Membership.objects.create(user=people[name], team=team, role=role)
    return Cast(red=red, blue=blue, root=root, **people)
