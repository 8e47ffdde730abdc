"""A real PostgreSQL and a real Valkey for the tests: those of DATABASE_URL and REDIS_URL, else embedded ones."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_S = 60.0
# A cluster that dies with its session need not outlive a power cut: a commit, a new database and a flush of every table
# wait for no disk.
FORGETFUL = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


@dataclass(frozen=True)
class Services:
    """Where the two answer."""

    database_url: str
    redis_url: str


@contextlib.contextmanager
def embedded() -> Iterator[Services]:
    """Both, in a short temporary folder (socket paths are limited), as `serinus up` runs them; gone afterwards."""
    from serinus.paths import private_dir, up_config
    from serinus.services import Postgres, Valkey

    folder = Path(tempfile.mkdtemp(prefix="ser-test-"))
    folder.chmod(0o755)
    config = up_config({"SERINUS_DATA_DIR": str(folder / "data"), "SERINUS_RUNTIME_DIR": str(folder / "run")})
    private_dir(config.runtime_dir)
    postgres, valkey = Postgres(config), Valkey(config)
    running: list[subprocess.Popen[bytes]] = []
    try:
        for service, options in ((postgres, FORGETFUL), (valkey, ())):
            service.prepare()
            command = [*service.command(), *options]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"))
        _until(postgres.answers)
        _until(valkey.answers)
        postgres.make_database()
        yield Services(postgres.url(), valkey.url())
    finally:
        for process in running:
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _until(answers: object) -> None:
    end = time.monotonic() + START_S
    while not answers():  # type: ignore[operator]
        if time.monotonic() > end:
            raise AssertionError(f"an embedded service did not answer within {START_S} s")
        time.sleep(0.1)
