"""Guessing passwords is slow, and says so."""

from __future__ import annotations

import pytest
from django.contrib.auth import authenticate
from django.db import connection
from django.test import RequestFactory

from accounts import login
from accounts.models import AuditEntry, LoginFailure
from tests.support.cast import PASSWORD, Cast


@pytest.fixture(autouse=True)
def _fast_hash(settings: object) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # type: ignore[attr-defined]


def attempt(password: str, address: str = "10.0.0.1", username: str = "owner") -> object:
    request = RequestFactory().post("/login/", REMOTE_ADDR=address)
    return authenticate(request, username=username, password=password)


def test_a_right_password_logs_in_and_forgets_failures(cast: Cast) -> None:
    cast.owner.set_password(PASSWORD)
    cast.owner.save()
    for _ in range(login.PER_PERSON_AND_ADDRESS - 1):
        assert attempt("wrong") is None
    assert attempt(PASSWORD) == cast.owner
    assert not LoginFailure.objects.exists()


def test_after_the_limit_even_the_right_password_waits(cast: Cast) -> None:
    cast.owner.set_password(PASSWORD)
    cast.owner.save()
    for _ in range(login.PER_PERSON_AND_ADDRESS):
        attempt("wrong")
    assert attempt(PASSWORD) is None
    assert attempt(PASSWORD, address="10.0.0.2") == cast.owner
    assert AuditEntry.objects.filter(verb="login_locked", object_name="owner").count() == 1
    with connection.cursor() as cursor:
        cursor.execute("UPDATE accounts_loginfailure SET at = at - interval '16 minutes'")
    assert attempt(PASSWORD) == cast.owner


def test_who_logs_in_and_who_fails_is_in_the_trail(cast: Cast) -> None:
    cast.owner.set_password(PASSWORD)
    cast.owner.save()
    attempt("wrong")
    attempt("wrong", username="nobody<script>")
    attempt(PASSWORD)
    found = AuditEntry.objects.order_by("pk").values_list("actor_kind", "actor", "verb", "object_name", "after")
    there = {"address": "10.0.0.1"}
    assert list(found) == [
        ("anonymous", "anonymous", "login_failed", "owner", there),
        ("anonymous", "anonymous", "login_failed", "nobody<script>", there),
        ("user", "owner", "login", "owner", there),
    ]
    assert "wrong" not in str(found)


def test_a_stranger_cannot_flood_the_trail(cast: Cast) -> None:
    for number in range(login.PER_ADDRESS * 2):
        attempt("wrong", username=f"guess{number}")
    assert AuditEntry.objects.count() <= login.PER_ADDRESS + 1


def test_one_address_does_not_try_many_names(cast: Cast) -> None:
    for number in range(login.PER_ADDRESS):
        attempt("wrong", username=f"guess{number}")
    cast.owner.set_password(PASSWORD)
    cast.owner.save()
    assert attempt(PASSWORD) is None


def test_case_is_no_way_around(cast: Cast) -> None:
    for name in ["owner", "OWNER", "Owner", "oWNER", "owNer"]:
        attempt("wrong", username=name)
    assert login.is_locked("owner", "10.0.0.1")


def test_the_form_says_why(cast: Cast) -> None:
    request = RequestFactory().post("/login/", REMOTE_ADDR="10.0.0.1")
    for _ in range(login.PER_PERSON_AND_ADDRESS):
        form = login.LoginForm(request, {"username": "owner", "password": "wrong"})
        assert not form.is_valid()
    assert login.LOCKED in str(form.errors)


def test_old_failures_are_forgotten(cast: Cast) -> None:
    attempt("wrong")
    assert login.forget_old_failures() == 0
    with connection.cursor() as cursor:
        cursor.execute("UPDATE accounts_loginfailure SET at = at - interval '16 minutes'")
    assert login.forget_old_failures() == 1
