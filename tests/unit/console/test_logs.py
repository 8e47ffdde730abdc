"""Following log files: every line once and in order, whatever happens to the file, and never more than the bounds."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import logs
from console.logs import Follower, Tail
from inference.protocol.child import replica_log

STAMP = "2026-01-02 03:04:05,678"


def texts(follower: Follower) -> list[str]:
    return [text for _, text in follower.read() or []]


@given(st.lists(st.lists(st.integers(0, 10**6), max_size=8), max_size=10), st.integers(1, 9))
def test_every_line_comes_once_and_in_order_however_it_is_written(batches: list[list[int]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.log")
        path.touch()
        follower, found = Follower(path), []
        for batch in batches:
            data = "".join(f"line {number}\n" for number in batch).encode()
            for part in (data[:cut], data[cut:]):  # a line may be written in two parts
                with path.open("ab") as file:
                    file.write(part)
                found += texts(follower)
        assert found == [f"line {number}" for batch in batches for number in batch]


def test_a_file_that_is_not_there_yet_a_cut_and_a_replaced_one(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    follower = Follower(path)
    assert follower.read() is None
    path.write_text("one\n")
    assert texts(follower) == ["one"]
    with path.open("r+") as file:  # as bound_logs cuts it
        file.truncate(0)
    with path.open("a") as file:
        file.write("2\n")
    assert texts(follower) == ["2"]
    path.rename(tmp_path / "a.log.1")
    assert follower.read() is None
    path.write_text("three\nfour\n")
    assert texts(follower) == ["three", "four"]


def test_only_the_end_of_an_old_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"line {number:06}\n" for number in range(50_000)))
    found = texts(Follower(path))
    assert found[-1] == "line 049999"
    assert "came faster" in found[0]
    assert len(found) == logs.LINES_AT_ONCE + 1


def test_a_flood_is_bounded_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("begin\n")
    follower = Follower(path)
    assert texts(follower) == ["begin"]
    with path.open("a") as file:
        file.write("x" * 99 + "\n" + ("y" * 99 + "\n") * 100_000 + "last\n")
    found = texts(follower)
    assert "bytes came faster than can be shown here" in found[0]
    assert found[-1] == "last"
    assert len(found) <= logs.LINES_AT_ONCE + 1
    assert texts(follower) == []


def test_a_line_without_an_end_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"z" * 50_000)
    found = texts(Follower(path))
    assert [len(text) for text in found] == [logs.MAX_LINE_CHARS]


def test_levels_are_read_and_a_traceback_has_that_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(
        f"{STAMP} INFO a b\n{STAMP} ERROR a b\nTraceback (most recent call last):\n  File\n{STAMP} DEBUG a b\n"
    )
    assert [level for level, _ in Follower(path).read() or []] == ["INFO", "ERROR", "ERROR", "ERROR", "DEBUG"]


def test_bytes_that_are_no_text_and_control_sequences_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"\x1b[31mred\x1b[0m \xff\x00\x07<script>\r\n")
    assert texts(Follower(path)) == ["red \ufffd<script>"]


def test_links_and_other_things_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    (tmp_path / "link.log").symlink_to(secret)
    os.mkfifo(tmp_path / "pipe.log")
    (tmp_path / "folder.log").mkdir()
    for name in ("link", "pipe", "folder"):
        assert Follower(tmp_path / f"{name}.log").read() is None


@pytest.mark.parametrize("replica", ["../../etc/passwd", "a/b", "..", "\0"])
def test_a_log_files_name_holds_nothing_of_the_id(replica: str) -> None:
    assert set(replica_log(replica, 1)) <= set("replica-0123456789abcdef.log")


def test_a_tail_numbers_lines_of_all_replicas_and_names_who_is_missing(tmp_path: Path, settings: Any) -> None:
    settings.DATA_DIR = tmp_path
    (tmp_path / "logs").mkdir()
    held = [SimpleNamespace(id=f"{name}-1234567", generation=2, host_id="atlas") for name in "ab"]
    path = tmp_path / "logs" / replica_log("a-1234567", 2)
    path.write_text("one\ntwo\n")
    tail = Tail(lambda: held)  # type: ignore[arg-type, return-value]
    data = tail.read()
    assert [(line["at"], line["from"], line["text"]) for line in data["points"]] == [
        (1, "a-123456", "one"),
        (2, "a-123456", "two"),
    ]
    assert data["missing"] == [["b-123456", "atlas", replica_log("b-1234567", 2)]]
    with path.open("a") as file:
        file.writelines(f"{number}\n" for number in range(logs.LINES_AT_ONCE))
    for _ in range(4):
        with path.open("a") as file:
            file.writelines(f"{number}\n" for number in range(150))
        data = tail.read()
    assert len(data["points"]) == logs.KEPT_LINES
    assert data["points"][-1]["at"] > logs.KEPT_LINES
    held.clear()
    assert tail.read()["missing"] == []
