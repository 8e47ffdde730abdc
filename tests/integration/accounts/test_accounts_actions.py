"""People, teams, roles and keys: who may do what to whom, and that each change leaves its audit entry."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from accounts import actions
from accounts.authentication import find_key
from accounts.models import ApiKey, AuditEntry, Membership, User
from accounts.permissions import SYSTEM
from inference.errors import ClientError, Conflict, Forbidden
from tests.support.cast import PASSWORD, Cast


def verbs() -> list[str]:
    return list(AuditEntry.objects.order_by("pk").values_list("verb", flat=True))


def test_a_new_person_can_log_in_and_has_no_rights(cast: Cast) -> None:
    user = actions.create_user(actor=cast.actor("owner"), username="ann", password=PASSWORD)
    assert user.check_password(PASSWORD)
    assert not Membership.objects.filter(user=user).exists()
    assert verbs() == ["create_user"]
    assert PASSWORD not in str(AuditEntry.objects.values())


@pytest.mark.parametrize("name", ["developer", "teammate"])
def test_only_admins_make_people(cast: Cast, name: str) -> None:
    with pytest.raises(Forbidden):
        actions.create_user(actor=cast.actor(name), username="ann", password=PASSWORD)


def test_a_team_admin_makes_no_superuser(cast: Cast) -> None:
    with pytest.raises(Forbidden):
        actions.create_user(actor=cast.actor("owner"), username="ann", password=PASSWORD, superuser=True)


@pytest.mark.parametrize("name", ["", "../etc", "a b", "a/b", "a\0b", "x" * 151, "..", "-rf"])
def test_bad_user_names_are_refused(cast: Cast, name: str) -> None:
    with pytest.raises(ClientError):
        actions.create_user(actor=SYSTEM, username=name, password=PASSWORD)


def test_user_names_differ_by_more_than_case(cast: Cast) -> None:
    with pytest.raises(Conflict):
        actions.create_user(actor=SYSTEM, username="OWNER", password=PASSWORD)


def test_weak_passwords_are_refused(cast: Cast) -> None:
    with pytest.raises(ClientError):
        actions.create_user(actor=SYSTEM, username="ann", password="password")


def test_an_admin_has_no_power_over_people_of_other_teams(cast: Cast) -> None:
    with pytest.raises(Forbidden):
        actions.set_password(actor=cast.actor("owner"), user=cast.stranger, password=PASSWORD)
    actions.set_role(actor=cast.actor("stranger"), user=cast.developer, team=cast.blue, role="viewer")
    with pytest.raises(Forbidden):
        actions.deactivate_user(actor=cast.actor("owner"), user=cast.developer)
    actions.deactivate_user(actor=cast.actor("owner"), user=cast.teammate)
    assert not User.objects.get(username="teammate").is_active


def test_an_admin_has_no_power_over_a_superuser_in_the_team(cast: Cast) -> None:
    actions.set_role(actor=cast.actor("owner"), user=cast.root, team=cast.red, role="viewer")
    with pytest.raises(Forbidden):
        actions.set_password(actor=cast.actor("owner"), user=cast.root, password=PASSWORD)


def test_the_last_superuser_stays(cast: Cast) -> None:
    with pytest.raises(Conflict):
        actions.deactivate_user(actor=cast.actor("root"), user=cast.root)


def test_roles_are_given_changed_and_taken(cast: Cast) -> None:
    owner = cast.actor("owner")
    actions.set_role(actor=owner, user=cast.teammate, team=cast.red, role="operator")
    actions.set_role(actor=owner, user=cast.teammate, team=cast.red, role="operator")
    actions.set_role(actor=owner, user=cast.teammate, team=cast.red, role=None)
    assert not Membership.objects.filter(user=cast.teammate).exists()
    found = [(e.before, e.after) for e in AuditEntry.objects.order_by("pk")]
    assert found == [({"role": "viewer"}, {"role": "operator"}), ({"role": "operator"}, {"role": None})]


def test_a_strangers_admin_gives_no_role_here(cast: Cast) -> None:
    with pytest.raises(Forbidden):
        actions.set_role(actor=cast.actor("stranger"), user=cast.stranger, team=cast.red, role="viewer")


def test_a_key_works_until_it_is_revoked(cast: Cast) -> None:
    key, token = actions.create_key(actor=cast.actor("developer"), name="ci", team=cast.red, role="developer")
    assert token.startswith("ser_")
    assert find_key(token) == key
    assert find_key(token[:-1] + ("a" if token[-1] != "a" else "b")) is None
    actions.revoke_key(actor=cast.actor("developer"), key=key)
    actions.revoke_key(actor=cast.actor("developer"), key=key)
    assert find_key(token) is None
    assert verbs() == ["create_key", "revoke_key"]
    secret = token.split(".")[1]
    assert secret not in str(list(ApiKey.objects.values())) + str(list(AuditEntry.objects.values()))


def test_a_key_has_no_more_rights_than_its_maker(cast: Cast) -> None:
    with pytest.raises(Forbidden):
        actions.create_key(actor=cast.actor("developer"), name="up", team=cast.red, role="operator")
    with pytest.raises(Forbidden):
        actions.create_key(actor=cast.actor("owner"), name="up", team=cast.red, role="admin", platform_admin=True)
    with pytest.raises(Forbidden):
        actions.create_key(actor=cast.actor("teammate"), name="up", team=cast.red)
    with pytest.raises(Forbidden):
        actions.create_key(actor=cast.actor("stranger"), name="up", team=cast.red)


def test_an_expired_key_is_refused_by_the_databases_clock(cast: Cast) -> None:
    with pytest.raises(ClientError):
        actions.create_key(actor=SYSTEM, name="k", team=cast.red, expires_at=timezone.now() - timedelta(seconds=1))
    key, token = actions.create_key(
        actor=SYSTEM, name="k", team=cast.red, expires_at=timezone.now() + timedelta(hours=1)
    )
    assert find_key(token) == key
    with connection.cursor() as cursor:
        cursor.execute("UPDATE accounts_apikey SET expires_at = now() - interval '1 second' WHERE id = %s", [key.pk])
    assert find_key(token) is None


def test_a_change_to_keys_is_published_after_the_commit_only(
    cast: Cast, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: object
) -> None:
    sent: list[str] = []
    monkeypatch.setattr("accounts.wakeups.send", lambda task, *args, **options: sent.append(task))
    with django_capture_on_commit_callbacks(execute=True) as calls:  # type: ignore[operator]
        actions.create_key(actor=SYSTEM, name="k", team=cast.red)
        assert sent == []
    assert len(calls) == 1
    assert sent == ["endpoints.tasks.publish"]


@pytest.mark.parametrize(
    "statement", ["UPDATE accounts_auditentry SET actor = 'me'", "DELETE FROM accounts_auditentry"]
)
def test_the_audit_trail_is_append_only(cast: Cast, statement: str) -> None:
    actions.create_team(actor=SYSTEM, name="green")
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


def test_an_action_that_fails_leaves_no_entry(cast: Cast) -> None:
    with pytest.raises(Conflict):
        actions.create_team(actor=SYSTEM, name="red")
    assert verbs() == []
