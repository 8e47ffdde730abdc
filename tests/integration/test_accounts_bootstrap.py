"""A new installation is usable after one command, and not changed by a second."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client

from accounts.authentication import find_key
from accounts.models import ApiKey, AuditEntry, Team, User

pytestmark = pytest.mark.django_db


def bootstrap() -> Any:
    out = io.StringIO()
    call_command("bootstrap", stdout=out)
    return json.loads(out.getvalue())


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERINUS_ADMIN_PASSWORD", "SERINUS_CONSOLE_URL", "SERINUS_HOST", "SERINUS_GRPC_PORT"):
        monkeypatch.delenv(name, raising=False)


def credentials() -> Path:
    file: Path = settings.DATA_DIR / "credentials.json"
    return file


def test_the_first_start_makes_team_admin_key_and_file() -> None:
    shown = bootstrap()
    assert set(shown) == {"console_url", "gateway_url", "grpc_address", "admin_user", "admin_password", "api_key"}
    assert json.loads(credentials().read_text()) == shown
    assert credentials().stat().st_mode & 0o777 == 0o600
    assert Team.objects.get().name == "default"
    admin = User.objects.get()
    assert admin.is_superuser
    assert admin.check_password(shown["admin_password"])
    key = find_key(shown["api_key"])
    assert key is not None
    assert (key.platform_admin, key.created_by) == (True, admin)
    me = Client().get("/api/me/", headers={"Authorization": f"Bearer {shown['api_key']}"})
    assert me.json()["superuser"] is True
    assert set(AuditEntry.objects.values_list("verb", flat=True)) == {"create_team", "create_user", "create_key"}
    assert Client().login(username="admin", password=shown["admin_password"])


def test_a_second_start_changes_nothing_and_keeps_the_password_to_itself() -> None:
    first, entries = bootstrap(), AuditEntry.objects.count()
    second = bootstrap()
    assert second == {**first, "admin_password": None}
    assert json.loads(credentials().read_text())["admin_password"] == first["admin_password"]
    assert AuditEntry.objects.count() == entries


def test_a_lost_file_gets_a_new_key_and_no_new_admin() -> None:
    first = bootstrap()
    credentials().unlink()
    second = bootstrap()
    assert second["api_key"] != first["api_key"]
    assert find_key(second["api_key"]) is not None
    assert User.objects.count() == 1
    assert ApiKey.objects.count() == 2


def test_the_password_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_ADMIN_PASSWORD", "correct horse battery")
    assert bootstrap()["admin_password"] == "correct horse battery"
    assert User.objects.get().check_password("correct horse battery")


def test_a_bad_password_stops_the_start_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_ADMIN_PASSWORD", "short")
    with pytest.raises(CommandError, match="too short"):
        bootstrap()
    assert not User.objects.exists()
    assert not credentials().exists()
