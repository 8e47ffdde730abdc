"""What is kept of compiled loops: bytes under names, for one code and processor, and only what nobody else can have written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inference.protocol import compiled


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "key"


def test_what_was_kept_is_read_and_nothing_else_lies_beside_it(place):
    compiled.write("loop", b"code", place)
    assert compiled.read("loop", place) == b"code"
    assert compiled.read("another", place) is None
    assert [path.name for path in place.iterdir()] == ["loop"]
    assert place.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:40] + b"x" + data[41:], lambda _: b""])
def test_what_was_torn_or_changed_on_disk_is_not_taken(place, change):
    compiled.write("loop", bytes(100), place)
    (place / "loop").write_bytes(change((place / "loop").read_bytes()))
    assert compiled.read("loop", place) is None


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_write_to_is_not_believed(place, mode):
    compiled.write("loop", b"code", place)
    place.chmod(mode)
    assert compiled.read("loop", place) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_believed(place):
    compiled.write("loop", b"code", place)
    os.chown(place, 12345, 12345)
    assert compiled.read("loop", place) is None


def test_where_nothing_can_be_kept_nothing_fails(tmp_path):
    (tmp_path / "file").write_text("in the way")
    compiled.write("loop", b"code", tmp_path / "file" / "key")
    compiled.write("loop", b"code", None)
    assert compiled.read("loop", tmp_path / "file" / "key") is None
    assert compiled.read("loop", None) is None
    assert compiled.is_complete(None)


def test_the_folder_is_the_one_named_or_in_the_users_cache():
    assert compiled.folder({compiled.VARIABLE: "/a/b", "HOME": "/home/x"}) == Path("/a/b")
    assert compiled.folder({compiled.VARIABLE: "", "HOME": "/home/x"}) is None
    assert compiled.folder({}) is None
    mine = compiled.folder({"HOME": "/home/x"})
    assert mine is not None
    assert mine.parent == Path("/home/x/.cache/serinus/compiled")
    assert compiled.folder({"HOME": "/home/x", "XDG_CACHE_HOME": "/c"}) == Path("/c/serinus/compiled", mine.name)


def test_other_code_or_another_processor_is_another_folder(monkeypatch):
    before = compiled._key()
    compiled._key.cache_clear()
    monkeypatch.setenv("NUMBA_CPU_NAME", "haswell")
    try:
        assert compiled._key() != before
    finally:
        compiled._key.cache_clear()


def test_the_folders_of_other_versions_go_when_nobody_has_used_them_for_a_month(place):
    for name, days in (("old", 31), ("recent", 29)):
        compiled.write("complete", b"", place.parent / name)
        then = (place.parent / name / "complete").stat().st_mtime - days * 86_400
        os.utime(place.parent / name / "complete", (then, then))
    compiled.write("loop", b"code", place.parent / "half")
    compiled.finish(place)
    assert {path.name for path in place.parent.iterdir()} == {"key", "recent", "half"}
    assert compiled.is_complete(place)
