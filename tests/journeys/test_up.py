"""`serinus up`: refusals that say what to do, the demo's own words, and an end without remains."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.house import REPO, House, remains, until

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("house")]


def refused_start(environment: dict[str, str]) -> str:
    """The message of a start that must be refused at once, with status 1."""
    command = [sys.executable, "-m", "serinus", "up", "--json"]
    done = subprocess.run(
        command, env=environment, cwd=REPO, capture_output=True, text=True, timeout=20, check=False
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-1000:]
    assert "Traceback" not in done.stderr
    return str(json.loads(done.stdout)["error"]["message"])


def test_a_second_start_in_the_same_folder_is_refused(house: House) -> None:
    assert house.process is not None
    message = refused_start(house.environment)
    assert str(house.data_dir) in message
    assert str(house.process.pid) in message
    assert "SERINUS_DATA_DIR" in message
    assert house.api("GET", "/api/me/").status_code == 200


@pytest.mark.parametrize("variable", ["SERINUS_CONSOLE_PORT", "SERINUS_HTTP_PORT", "SERINUS_GRPC_PORT"])
def test_a_taken_port_is_named_with_its_variable(house: House, tmp_path: Path, variable: str) -> None:
    taken = house.environment[variable]
    message = refused_start(House(tmp_path, **{variable: taken}).environment)
    assert f"port {taken}" in message
    assert f"{variable}=" in message
    assert remains(tmp_path / "data") == []


class Family:
    """Everything below a process, remembered by pid and time of birth."""

    def __init__(self, pid: int) -> None:
        self.members = psutil.Process(pid).children(recursive=True)

    @property
    def alive(self) -> list[str]:
        """Those that still run; a zombie is gone but for its parent's notice."""
        found = []
        for process in self.members:
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:100]}")
        return found


@contextlib.contextmanager
def shown_start(house: House, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`serinus up` as a person starts it: the process, and what it printed until it was up. Ctrl-C is heard also where
    the tests run in the background of a shell, which has what it starts ignore that.
    """
    command = ["env", "--default-signal=INT", sys.executable, "-m", "serinus", "up", *options]
    process = subprocess.Popen(
        command, env=house.environment | {"COLUMNS": "200"}, cwd=house.folder, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    printed = ""
    try:
        for line in process.stdout:
            printed += line
            if "Ctrl-C stops everything" in line:
                break
        else:
            raise AssertionError("it did not come up:\n" + printed)
        yield process, printed
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        process.stdout.close()


def pasted(line: str) -> dict[str, Any]:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def best_class(answer: dict[str, Any]) -> int:
    scores: list[float] = answer["outputs"][0]["data"]
    return scores.index(max(scores))


@pytest.mark.alone
def test_the_demo_from_an_empty_folder_to_nothing_left(tmp_path: Path) -> None:
    """Demo, curl line, clean stop, start again with everything kept, kill -9: after each end no process is left."""
    house = House(tmp_path, SERINUS_VALIDATION_TIMEOUT_S="300")  # as users have it: a language model is among them
    with shown_start(house, "--demo") as (process, printed):
        found = re.search(r"demo model answered after ([\d.]+) s", printed)
        assert found, printed
        assert float(found[1]) < 90
        secret = json.loads((house.data_dir / "credentials.json").read_text())["admin_password"]
        assert len(secret) >= 8
        line, chat = [row for row in printed.splitlines() if row.startswith("curl ")]
        assert pasted(chat)["choices"][0]["message"]["content"].strip()
        answer = pasted(line)
        assert answer["model_name"] == "digits"
        wanted = best_class(answer)
        family = Family(process.pid)
        assert len(family.alive) > 10
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
        assert process.returncode == 0, rest[-2000:]
        assert "Traceback" not in printed + rest
        assert family.alive == []
        assert remains(house.data_dir) == []
    with shown_start(house) as (process, printed):
        assert secret not in printed, "it is shown once only"
        again = until("what was deployed answers again", lambda: answered(line), 60, 0.2)
        assert best_class(again) == wanted
        family = Family(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        killed = time.monotonic()
        until("nothing is left", lambda: not family.alive and not remains(house.data_dir), 30, 0.1)
        print(f"nothing left {time.monotonic() - killed:.1f} s after kill -9")


def answered(line: str) -> dict[str, Any] | None:
    """The answer once it is one; a gateway that has no ready replica yet answers with an error."""
    with contextlib.suppress(subprocess.CalledProcessError, ValueError):
        found = pasted(line)
        return found if "outputs" in found else None
    return None
