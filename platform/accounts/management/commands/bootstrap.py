"""Makes a new installation usable: team, first admin, first key, credentials.json. Running it again changes nothing."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection, transaction

from accounts import actions
from accounts.authentication import find_key
from accounts.models import Role, Team, User
from accounts.permissions import SYSTEM, actor_of_user
from accounts.teams import DEFAULT_TEAM
from inference.errors import SerinusError

ADMIN = "admin"
LOCK = 7_236_481  # any number: two starts at once must not make two admins


class Command(BaseCommand):
    help = "Create the default team, the first admin and the first API key, and write credentials.json."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--migrate", action="store_true", help="bring the database's tables up to date first")

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints the credentials as JSON; `admin_password` is null when it was made at an earlier start."""
        if options["migrate"]:
            call_command("migrate", interactive=False, verbosity=0)
        try:
            with transaction.atomic():
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
                shown = self._bootstrap()
        except SerinusError as error:
            raise CommandError(error.message) from error
        self.stdout.write(json.dumps(shown))

    def _bootstrap(self) -> dict[str, Any]:
        """1. Team. 2. Admin. 3. Key, unless the kept one still works. 4. The file, whole or not at all."""
        file = settings.DATA_DIR / "credentials.json"
        kept = _read(file)
        team = Team.objects.filter(name=DEFAULT_TEAM).first() or actions.create_team(actor=SYSTEM, name=DEFAULT_TEAM)
        admin, password = self._admin()
        token = str(kept.get("api_key") or "")
        if find_key(token) is None:
            _, token = actions.create_key(
                actor=actor_of_user(admin), name="first admin key", team=team, role=Role.ADMIN, platform_admin=True
            )
        found = {**addresses(), "admin_user": admin.username, "api_key": token}
        write_private(file, json.dumps({**found, "admin_password": password or kept.get("admin_password")}, indent=1))
        return {**found, "admin_password": password}

    def _admin(self) -> tuple[User, str | None]:
        """(the first superuser, the password when it was set now)."""
        admin = User.objects.filter(is_superuser=True, is_active=True).order_by("pk").first()
        if admin is not None:
            return admin, None
        password = os.environ.get("SERINUS_ADMIN_PASSWORD") or secrets.token_urlsafe(15)
        return actions.create_user(actor=SYSTEM, username=ADMIN, password=password, superuser=True), password


def addresses() -> dict[str, str | None]:
    """Where this installation answers."""
    host = os.environ.get("SERINUS_HOST") or "127.0.0.1"
    reached = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 (compared, not bound)
    console = os.environ.get("SERINUS_CONSOLE_URL") or f"http://{reached}:{settings.CONSOLE_PORT}"
    grpc = f"{reached}:{os.environ.get('SERINUS_GRPC_PORT') or '8001'}"
    return {"console_url": console, "gateway_url": settings.GATEWAY_URL, "grpc_address": grpc}


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_private(file: Path, text: str) -> None:
    """Mode 0600 from the first byte on, and never half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
    temporary.replace(file)
