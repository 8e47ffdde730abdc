"""Real Celery worker processes on a test's own database, without a broker unless one is given."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from django.conf import settings

from tests.support.database import Services

ROOT = Path(__file__).parents[2]
NOBODY_LISTENS = "redis://127.0.0.1:1/0"


def database_of(services: Services) -> str:
    """Where this test's rows are."""
    parts = urlsplit(services.database_url)
    return urlunsplit(parts._replace(path="/" + str(settings.DATABASES["default"]["NAME"])))


@contextlib.contextmanager
def celery_worker(
    queue: str, folder: Path, services: Services, *, redis_url: str = NOBODY_LISTENS, **more: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that reads `queue`; killed (not stopped) at the end. Its log is in `folder`."""
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
        "SERINUS_DATA_DIR": str(folder),
        "DATABASE_URL": database_of(services),
        "REDIS_URL": redis_url,
        "DJANGO_SETTINGS_MODULE": "config.settings",
    }
    command = [sys.executable, "-m", "celery", "-A", "config", "worker", "-P", "threads", "-c", "2", "-Q", queue]
    command += ["-n", f"{queue}@test", "--without-gossip", "--without-mingle"]
    with (folder / "celery.log").open("ab") as log:
        process = subprocess.Popen(command, env=env | more, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
