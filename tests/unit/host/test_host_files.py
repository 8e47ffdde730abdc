"""Folders, listeners, kept wants, bounded logs and adopted files: small effects on a temporary folder."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from inference.config import BadSetting, supervisor_config
from inference.errors import Rejected
from inference.host import adopt, folders, logs, wanted
from inference.protocol.supervision import FileRef
from tests.support.hosts import spec


def made(data: bytes, path: str = "w.safetensors") -> FileRef:
    return FileRef(path, len(data), hashlib.sha256(data).hexdigest())


def test_a_folder_becomes_private(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    folders.private(loose)
    assert loose.stat().st_mode & 0o777 == 0o700


def test_a_link_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(BadSetting, match="belongs to this user"):
        folders.private(tmp_path / "link")


def test_a_socket_path_of_107_bytes_is_the_longest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders.listen(Path("s" * 107)).close()
    with pytest.raises(BadSetting, match="SERINUS_RUNTIME_DIR"):
        folders.listen(Path("s" * 108))


def test_listening_again_takes_over_what_a_dead_process_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("s")
    folders.listen(path).close()
    again = folders.listen(path)
    with again, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_only_one_holds_the_lock(tmp_path: Path) -> None:
    config = supervisor_config({"SERINUS_DATA_DIR": str(tmp_path), "SERINUS_RUNTIME_DIR": str(tmp_path / "run")})
    folders.Folders(config).lock()
    with pytest.raises(folders.AlreadyRunning):
        folders.Folders(config).lock()


def test_preparing_removes_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    config = supervisor_config({"SERINUS_DATA_DIR": str(tmp_path), "SERINUS_RUNTIME_DIR": str(tmp_path / "run")})
    here = folders.Folders(config)
    here.prepare()
    (here.new_work("a") / "big").write_bytes(b"x")
    here.listener_path("a", 1).touch()
    here.prepare()
    assert list(here.work.iterdir()) == list(here.listeners.iterdir()) == []


def test_a_replicas_address_depends_on_its_id_and_generation_only(tmp_path: Path) -> None:
    here = folders.Folders(supervisor_config({"SERINUS_DATA_DIR": str(tmp_path)}))
    hostile = here.listener_path("../../etc/x", 1)
    assert hostile.parent == here.listeners
    assert len({hostile, here.listener_path("../../etc/x", 2), here.listener_path("b", 1)}) == 3


def test_what_was_wanted_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "wanted.json"
    wanted.save(path, {"a": spec(generation=4)}, {"a": 4, "gone": 9})
    assert wanted.load(path) == wanted.Kept([spec(generation=4)], {"a": 4, "gone": 9})
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"replicas": 3}'])
def test_an_unreadable_file_is_no_want(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "wanted.json"
    path.write_bytes(data)
    assert wanted.load(path) == wanted.Kept([], {})


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    wanted.save(tmp_path / "missing" / "wanted.json", {}, {})


def test_a_log_that_has_grown_is_cut_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"old" * 100)
        logs.bound_logs(tmp_path, max_bytes=100)
        writer.write(b"new")
    assert path.read_bytes() == b"new"
    assert (tmp_path / "a.log.1").stat().st_size == 100


def test_the_oldest_logs_go_when_there_are_too_many(tmp_path: Path) -> None:
    for age in range(5):
        (tmp_path / f"{age}.log").touch()
        os.utime(tmp_path / f"{age}.log", (1000 - age, 1000 - age))
    logs.bound_logs(tmp_path, max_files=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.log", "1.log"]


def test_a_converted_file_is_adopted_once_and_read_only(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    out, store = tmp_path / "out", tmp_path / "store"
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "w").write_bytes(data)
    file = made(data, "sub/w")
    for _ in range(2):
        adopt.adopt([file], out, store)
    (blob,) = [path for path in store.rglob("*") if path.is_file()]
    assert blob == store / "blobs" / file.sha256[:2] / file.sha256
    assert blob.read_bytes() == data
    assert blob.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize(
    "path", ["../w", "/etc/passwd", "", "a/../../w", "missing", "link", "linked/w", "pipe", "sub", "a\0b"]
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (tmp_path / "w").write_bytes(b"x")
    (out / "link").symlink_to(tmp_path / "w")
    (out / "linked").symlink_to(tmp_path)
    os.mkfifo(out / "pipe")
    with pytest.raises(Rejected):
        adopt.adopt([made(b"x", path)], out, tmp_path / "store")
    assert not [found for found in (tmp_path / "store").rglob("*") if found.is_file()]


@pytest.mark.parametrize(
    "lie", [FileRef("w", 1, "a" * 64), FileRef("w", 9, made(b"x").sha256), FileRef("w", 1, "../x")]
)
def test_no_hash_or_size_is_believed(tmp_path: Path, lie: FileRef) -> None:
    (tmp_path / "w").write_bytes(b"x")
    with pytest.raises(Rejected):
        adopt.adopt([lie], tmp_path, tmp_path / "store")
    assert not [found for found in (tmp_path / "store").rglob("*") if found.is_file()]
