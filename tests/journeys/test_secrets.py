"""Where secrets are, and where they are not: logs, command lines, environments, files, sockets; and what the database
itself refuses. On the real house, after it has been used in every way that has a secret in it.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import psutil
import psycopg
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.journeys.conftest import ECHO_BODY
from tests.support.house import PASSWORD, House

pytestmark = pytest.mark.timeout(180)
NOBODY = 65_534
GUESS = "a wrong password that someone typed"


@pytest.fixture(scope="module")
def secrets(house: House, echo: str) -> dict[str, str]:
    """Every secret of the house by name, after all of them have been used, well and badly."""
    made = house.ok("POST", "/api/keys/", {"name": "a key of the tests"})
    httpx.get(house.console_url + "/api/me/", headers={"Authorization": f"Bearer {made['token']}x"})
    httpx.get(f"{house.console_url}/api/me/?key={house.key}")
    httpx.post(f"{house.gateway_url}/v2/models/echo/infer?key={house.key}", json=ECHO_BODY)
    house.infer("echo", ECHO_BODY, key=house.key + "x")
    house.infer("nope", ECHO_BODY)
    with pytest.raises(InvalidStatus):
        connect(
            f"{house.gateway_url.replace('http', 'ws')}/v2/models/nope/stream",
            subprotocols=[f"serinus.key.{house.key}"],
        )  # type: ignore[list-item]
    with httpx.Client(base_url=house.console_url, headers={"Referer": house.console_url}) as browser:
        for password in (GUESS, PASSWORD):
            form = browser.get("/login/").text
            token = form.split('name="csrfmiddlewaretoken" value="')[1].split('"')[0]
            browser.post("/login/", data={"username": "admin", "password": password, "csrfmiddlewaretoken": token})
        session = browser.cookies["sessionid"]
        page = browser.get("/endpoints/echo/")
        assert page.status_code == 200
        told = {"X-CSRFToken": browser.cookies["csrftoken"]}
        assert browser.post("/endpoints/echo/try/", json={"request": ECHO_BODY}, headers=told).status_code == 200
    data = house.data_dir
    table = json.loads((data / "gateway" / "routes.json").read_text())
    return {
        "API key": house.key.partition(".")[2],
        "new API key": made["token"].partition(".")[2],
        "password": PASSWORD,
        "guessed password": GUESS,
        "session": session,
        "Django's key": (data / "secret_key").read_text(),
        "database password": (data / "postgres" / "password").read_text(),
        "database owner's password": (data / "postgres" / "owner_password").read_text(),
        "broker's password": (data / "valkey" / "password").read_text(),
        "playground's secret": table["token_secret"],
    }


def held(secrets: dict[str, str], text: str) -> list[str]:
    return [name for name, secret in secrets.items() if secret in text]


def processes(house: House) -> Iterator[tuple[str, psutil.Process]]:
    """Everything that the house runs, with its command line."""
    assert house.process is not None
    for process in psutil.Process(house.process.pid).children(recursive=True):
        try:
            yield " ".join(process.cmdline()), process
        except psutil.NoSuchProcess:
            continue


def test_no_secret_is_in_a_log(house: House, secrets: dict[str, str]) -> None:
    logs = [*(house.data_dir / "logs").rglob("*"), house.folder / "up.log"]
    assert len([path for path in logs if path.is_file() and path.stat().st_size]) > 3
    for path in logs:
        if path.is_file():
            assert held(secrets, path.read_text(errors="replace")) == [], path


def test_no_secret_is_on_a_command_line(house: House, secrets: dict[str, str]) -> None:
    lines = [line for line, _ in processes(house)]
    assert len(lines) >= 9
    for line in lines:
        assert held(secrets, line) == [], line


def test_each_process_knows_only_the_secrets_that_it_needs(house: House, secrets: dict[str, str]) -> None:
    """The supervisor, its replicas and the services know none; the gateway knows the broker's alone."""
    seen = set()
    for line, process in processes(house):
        with_secrets = held(secrets, "\n".join(process.environ().values()))
        assert "password" not in with_secrets, f"the first admin's password stays with {line}"
        kind = next((word for word in ("inference supervisor", "inference gateway", "postgres", "valkey-server", "forkserver")
                     if word in line), "")  # fmt: skip
        seen.add(kind)
        if kind == "inference gateway":
            assert with_secrets == ["broker's password"]
        elif kind:
            assert with_secrets == [], line
    assert seen >= {"inference supervisor", "inference gateway", "postgres", "valkey-server"}
    for replica in house.seen():
        assert held(secrets, "\n".join(psutil.Process(replica.pid).environ().values())) == []


def test_what_holds_a_secret_is_for_its_owner_alone(house: House, secrets: dict[str, str]) -> None:
    found = set()
    for path in house.data_dir.rglob("*"):
        plain = path.is_file() and not path.is_symlink() and "cluster" not in path.parts
        if plain and held(secrets, path.read_bytes()[: 1 << 20].decode(errors="replace")):
            found.add(path.name)
            assert path.stat().st_mode & 0o077 == 0, path
    assert found >= {"credentials.json", "secret_key", "environment.json", "routes.json", "password", "valkey.conf"}
    for folder in (house.data_dir, house.runtime_dir, house.runtime_dir.with_name(house.runtime_dir.name + "-pg")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def as_nobody(attempt: Callable[[], object]) -> bool:
    """Whether another user of this machine gets through with `attempt`, in a process of its own."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            attempt()
        except OSError:
            os._exit(1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, 1}
    return status == 0


def reach(path: Path) -> Callable[[], object]:
    return lambda: socket.socket(socket.AF_UNIX).connect(str(path))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_reaches_nothing(house: House, secrets: dict[str, str], tmp_path: Path) -> None:
    database = Path(dict(parse_qsl(urlsplit(house.services["DATABASE_URL"]).query))["host"])
    sockets = [path for path in (*house.runtime_dir.rglob("*"), *database.iterdir()) if path.is_socket()]
    sockets += [database / ".s.PGSQL.5432"]
    assert len(sockets) >= 5
    for path in sockets:
        assert not as_nobody(reach(path)), path
    for name in ("credentials.json", "secret_key", "run/environment.json", "gateway/routes.json", "logs/console.log"):
        assert not as_nobody((house.data_dir / name).read_bytes), name
    assert as_nobody(lambda: Path("/etc/hostname").read_bytes()), "nobody can do what anybody may"


# --- H9: what the database refuses, whoever writes ---------------------------------------------------------------------

FROZEN = [
    "UPDATE registry_version SET digest = repeat('0', 64) WHERE status = 'ready'",
    "UPDATE registry_version SET manifest = jsonb_set(manifest, '{files,0,sha256}', to_jsonb(repeat('0', 64)))",
    "UPDATE registry_version SET served_files = '[]' WHERE status = 'ready'",
    "UPDATE registry_version SET tier = 'data', format = 'python' WHERE status = 'ready'",
    "UPDATE registry_version SET signature = '{}' WHERE status = 'ready'",
    "UPDATE registry_version SET status = 'validating' WHERE status = 'ready'",
    "UPDATE registry_version SET number = number + 100",
    "DELETE FROM registry_version",
    "UPDATE accounts_auditentry SET actor = 'somebody else'",
    "DELETE FROM accounts_auditentry",
]


@pytest.mark.parametrize("statement", FROZEN)
def test_the_database_refuses_to_change_what_was_validated_and_what_was_done(
    house: House, echo: str, statement: str
) -> None:
    with psycopg.connect(house.services["DATABASE_URL"]) as connection:
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation):
            connection.execute(statement)
        connection.rollback()
    assert house.infer(echo, ECHO_BODY).status_code == 200


def test_the_application_is_no_superuser_of_its_database(house: House) -> None:
    with psycopg.connect(house.services["DATABASE_URL"], autocommit=True) as connection:
        row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
        assert row == (False,)
        for statement in (
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_read_file('/etc/hostname')",
            "CREATE ROLE other",
        ):
            with pytest.raises(psycopg.Error):
                connection.execute(statement)


def test_the_services_refuse_who_has_no_password(house: House) -> None:
    import redis

    parts = urlsplit(house.services["DATABASE_URL"])
    for password in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(f"postgresql://serinus:{password}@/serinus?{parts.query}", connect_timeout=5)
    place = house.services["REDIS_URL"].rsplit("@", 1)[1]
    for url in (f"unix://{place}", f"unix://:wrong@{place}"):
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(url).ping()
