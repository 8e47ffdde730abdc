from __future__ import annotations

from pathlib import Path

import pytest

from inference.artifacts.manifest import RuntimeSettings
from inference.config import BadSetting
from inference.host.environment import child_environment
from inference.replica.entry import delayed, words


def test_tritons_variable_delays_the_scheduler() -> None:
    env = {"TRITONSERVER_DELAY_SCHEDULER": "5"}
    assert delayed(RuntimeSettings(), env).delay_until == 5
    assert delayed(RuntimeSettings(delay_until=3), env).delay_until == 3, "the version's own word wins"
    assert delayed(RuntimeSettings(), {}).delay_until == 0


def test_it_reaches_the_children_of_the_supervisor() -> None:
    env = child_environment({"TRITONSERVER_DELAY_SCHEDULER": "5", "DATABASE_URL": "x"}, home=Path("/"), threads=1)
    assert env["TRITONSERVER_DELAY_SCHEDULER"] == "5"


@pytest.mark.parametrize("text", ["many", "-1", "70000"])
def test_a_bad_value_is_told_by_name(text: str) -> None:
    with pytest.raises(BadSetting) as caught:
        delayed(RuntimeSettings(), {"TRITONSERVER_DELAY_SCHEDULER": text})
    assert words(caught.value).startswith("TRITONSERVER_DELAY_SCHEDULER=")
