"""`serinus golden` against a real console, and a real gateway with a replica that is asked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from inference.protocol.oip import Signature
from inference.protocol.routes import VariantRoute
from registry.models import GoldenInput
from serinus.__main__ import app
from tests.support.browser import console_server
from tests.support.cast import Cast, make_cast
from tests.support.contents import SIGNATURE, ready_version
from tests.support.gateway_house import House, key
from tests.support.routes import GOLDEN

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
]
Cli = Callable[..., Any]


@pytest.fixture
def people(transactional_db: None) -> Cast:
    return make_cast()


@pytest.fixture
def cli(people: Cast, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """Runs a command with --json; answers what it printed, or the error's code."""
    ready_version(people.actor("owner"), people.red)

    def run(*words: str, fails: bool = False) -> Any:
        result = CliRunner().invoke(app, ["golden", *words, "--json"])
        assert (result.exit_code != 0) == fails, result.output
        told = json.loads(result.stdout)
        return told["error"]["code"] if fails else told

    with console_server() as url:
        monkeypatch.setenv("SERINUS_URL", url)
        monkeypatch.setenv("SERINUS_API_KEY", people.key("developer"))
        yield run


def test_one_is_added_listed_and_removed(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(GOLDEN))
    made = cli("add", "digits", str(file), "--name", "ramp", "--comparison", "close", "--tolerance", "0.05")
    assert (made["name"], made["comparison"], made["tolerance"]) == ("ramp", "close", 0.05)
    assert [row["name"] for row in cli("list", "digits")] == ["ramp"]
    assert "ramp" in CliRunner().invoke(app, ["golden", "list", "digits"]).stdout
    assert cli("remove", "digits", "nothing", fails=True) == "not_found"
    cli("remove", "digits", "ramp")
    assert not GoldenInput.objects.exists()


def test_what_is_asked_wrongly_is_said(cli: Cli, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{")
    assert cli("add", "digits", str(wrong), fails=True) == "malformed"
    wrong.write_text("[1]")
    assert cli("add", "digits", str(wrong), fails=True) == "malformed"
    assert cli("add", "digits", fails=True) == "invalid_request"
    wrong.write_text(json.dumps({"inputs": GOLDEN["inputs"]}))
    assert cli("add", "digits", str(wrong), fails=True) == "invalid_input"
    assert cli("add", "digits", str(tmp_path / "none.json"), fails=True)
    assert cli("add", "digits", "--prompt", "p", "--expected", "t", fails=True) == "invalid_input", "no language model"


def test_an_endpoint_is_asked_and_its_answer_kept(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    try:
        house.replica("r1")
        signature = msgspec.convert(msgspec.to_builtins(SIGNATURE), Signature)
        identity, _, secret = os.environ["SERINUS_API_KEY"].removeprefix("ser_").partition(".")
        variants = [VariantRoute(1, "primary", 10_000, signature, [house.route()])]
        house.publish(house.table(variants, keys=[key(identity, secret, ["mlp"]), key("all", "s2", ["*"])]))
        gateway = house.gateway().wait_live().wait_ready()
        monkeypatch.setenv("SERINUS_GATEWAY_URL", gateway.url)
        file = tmp_path / "request.json"
        file.write_text(json.dumps({"inputs": GOLDEN["inputs"]}))
        made = cli("add", "digits", str(file), "--ask", "mlp")
    finally:
        house.close()
    assert made["version"] == 1
    assert made["outputs"][0]["data"] == [0.0, 2.0, 4.0, 6.0], "the fake replica doubles"
