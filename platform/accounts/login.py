"""Logging in, with a brake on guessing that works behind every door (console, admin) and by the database's clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from django import forms
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.forms import AuthenticationForm
from django.db.models import Q
from django.db.models.functions import Now
from django.http import HttpRequest

from accounts.audit import record
from accounts.models import LoginFailure, User
from accounts.permissions import ANONYMOUS, actor_of_user

WINDOW = timedelta(minutes=15)
PER_PERSON_AND_ADDRESS = 5
PER_ADDRESS = 50
PER_PERSON = 200
LOCKED = "Too many failed logins. Wait 15 minutes, or ask an admin to set a new password."


def _recent() -> Q:
    return Q(at__gt=Now() - WINDOW)


def is_locked(username: str, address: str, *, own: int = 0) -> bool:
    """own: how many of the counted attempts are the one that asks."""
    rows = LoginFailure.objects.filter(_recent())
    name = username.lower()
    return (
        rows.filter(username=name, address=address).count() - own >= PER_PERSON_AND_ADDRESS
        or rows.filter(address=address).count() - own >= PER_ADDRESS
        or rows.filter(username=name).count() - own >= PER_PERSON
    )


def address_of(request: HttpRequest | None) -> str:
    """The peer's address. A forwarding header is not believed: anybody can write one."""
    return str(request.META.get("REMOTE_ADDR", ""))[:45] if request else ""


class LimitedBackend(ModelBackend):
    """Django's own check, behind the brake."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> User | None:
        """1. Writes the attempt down as failed, so that parallel guesses see each other. 2. Refuses when locked.
        3. Checks the password. 4. A success forgets the failures from this address. 5. Writes the audit entry; the
        brake bounds how many of them a stranger can cause.
        """
        if not username or password is None or "\0" in username:
            return None
        name, address = username.lower()[:150], address_of(request)
        attempt = LoginFailure.objects.create(username=name, address=address)
        if is_locked(name, address, own=1):
            attempt.delete()
            return None
        user = super().authenticate(request, username, password, **kwargs)
        told, request_id = {"address": address}, str(getattr(request, "request_id", ""))
        if isinstance(user, User):
            LoginFailure.objects.filter(username=name, address=address).delete()
            record(actor_of_user(user, request_id), "login", "user", user.username, after=told)
            return user
        verb = "login_locked" if is_locked(name, address) else "login_failed"
        record(replace(ANONYMOUS, request_id=request_id), verb, "user", name, after=told)
        return None


class LoginForm(AuthenticationForm):
    """Tells a locked person why nothing works."""

    error_messages = {**AuthenticationForm.error_messages, "locked": LOCKED}

    def get_invalid_login_error(self) -> forms.ValidationError:
        username = str(self.cleaned_data.get("username", ""))
        if is_locked(username, address_of(self.request)):
            return forms.ValidationError(LOCKED, code="locked")
        return super().get_invalid_login_error()


def forget_old_failures() -> int:
    """Deletes what no longer counts; returns how many rows."""
    return LoginFailure.objects.exclude(_recent()).delete()[0]
