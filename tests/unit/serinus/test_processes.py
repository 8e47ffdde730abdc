from __future__ import annotations

import configparser
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serinus.paths import private_dir, up_config, write_private
from serinus.processes import (
    CHILD,
    SERVICE,
    Program,
    configuration,
    control_programs,
    gateway_program,
    host_programs,
)


def parse(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    return parser


def test_every_program_restarts_and_the_data_plane_sees_no_database(tmp_path: Path) -> None:
    config = up_config({"SERINUS_DATA_DIR": str(tmp_path)})
    programs = [*host_programs(config), *control_programs(config), gateway_program()]
    found = parse(configuration(programs, config, as_root=False))
    for program in programs:
        section = found[f"program:{program.name}"]
        assert section["autorestart"] == "true"
        assert str(CHILD) in section["command"]
    for name in ("gateway", "host"):
        assert "DATABASE_URL" in found[f"program:{name}"]["command"], "the wrapper takes it away"
    assert "DATABASE_URL" not in found["program:console"]["command"]


def test_who_plans_gives_way_to_who_serves(tmp_path: Path) -> None:
    config = up_config({"SERINUS_DATA_DIR": str(tmp_path)})
    programs = [*host_programs(config), *control_programs(config), gateway_program()]
    found = parse(configuration(programs, config, as_root=False))
    polite = {one.name for one in programs if found[f"program:{one.name}"]["command"].startswith("'nice' '-n' '5' ")}
    assert polite == {"agent", "console", "control", "jobs", "beat"}


def test_services_are_stopped_last(tmp_path: Path) -> None:
    """supervisord stops from the highest priority down; a part that lost its broker first would wait for it."""
    config = up_config({"SERINUS_DATA_DIR": str(tmp_path)})
    programs = [Program("valkey", ["v"], stage=SERVICE), *host_programs(config), *control_programs(config)]
    found = parse(configuration(programs, config, as_root=False))
    order = {program.name: int(found[f"program:{program.name}"]["priority"]) for program in programs}
    assert order["valkey"] < order["host"] < min(order[name] for name in ("agent", "console", "control", "beat"))


def test_percent_signs_and_quotes_survive(tmp_path: Path) -> None:
    config = up_config({"SERINUS_DATA_DIR": str(tmp_path)})
    program = Program("odd", ["echo", "50%", "it's"], dies_with_parent=False)
    command = parse(configuration([program], config, as_root=False))["program:odd"]["command"]
    assert "'50%%'" in command
    assert "it'\\''s" in command


def test_a_child_dies_with_its_parent_and_does_not_see_what_is_unset(tmp_path: Path) -> None:
    shown = tmp_path / "environment"
    inner = f"import os, time; open({str(shown)!r}, 'w').write(','.join(os.environ)); time.sleep(60)"
    outer = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-S', {str(CHILD)!r}, 'SIGTERM', 'SECRET', sys.executable, '-c', {inner!r}])\n"
        "print(p.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True, env=os.environ | {"SECRET": "x", "OPEN": "y"}
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    end = time.monotonic() + 10
    while not (shown.exists() and shown.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    names = shown.read_text().split(",")
    assert "OPEN" in names
    assert "SECRET" not in names
    pidfd = os.pidfd_open(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(5000), "the child outlived its parent"
    os.close(pidfd)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        private_dir(tmp_path / "link")


def test_private_files_are_0600_and_replaced_whole(tmp_path: Path) -> None:
    write_private(tmp_path / "secret", "one")
    write_private(tmp_path / "secret", "two")
    assert (tmp_path / "secret").read_text() == "two"
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
