"""The demo models: trained or copied in seconds, uploaded and deployed through the same doors as everybody's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference.client import Client
from serinus.commands.traffic import wait_ready
from serinus.control import Control, ControlError
from serinus.paths import UpConfig
from serinus.uploads import send

BUILD_TIMEOUT_S = 240


class Demo:
    """Brings up `digits` (torch as version 1, JAX as version 2, 90/10) and `minilm`. Running it twice changes nothing."""

    def __init__(self, config: UpConfig, say: Callable[[str], None]) -> None:
        self.folder = config.data_dir / "demo"
        self.gateway_url = config.gateway_url
        self.say = say
        self.control = Control(url=config.console_url)
        self.started_s = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Returns {"demo_s", "curl"}."""
        known = {row["name"] for row in self.control.pages("/api/endpoints/")}
        if "digits" not in known:
            self._digits()
        if "minilm" not in known:
            self._minilm()
        seconds = self._first_answer()
        return {"demo_s": round(seconds, 1), "curl": self.curl()}

    def build(self, name: str) -> Path:
        """The folder with the demo model, made when missing. Raises ControlError with the maker's last words."""
        target = self.folder / name
        if (target / "done").exists():
            return target
        target.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "serinus.demo", name, str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
        if done.returncode:
            raise ControlError(f"the demo model '{name}' could not be made: {done.stderr.strip()[-400:]}")
        (target / "done").touch()
        return target

    def _version(self, model: str, name: str) -> int:
        self.say(f"demo: {name}")
        made = self.build(name)
        (artifact,) = [path for path in made.iterdir() if path.name not in {"done", "sample_input.json"}]
        version = send(self.control, model, artifact, settings={}, alias="", screen=None)
        return int(version["number"])

    def _ready(self, model: str, number: int) -> int:
        version = self.control.wait_version(model, number, lambda _: None, 300)
        if version["status"] != "ready":
            raise ControlError(f"the demo model {model}:{number} is {version['status']}: {version['reason']}")
        return number

    def _deploy(self, model: str, number: int) -> None:
        body = {"name": model, "model": model, "version": number, "replicas": 1, "access": "key", "device": "any"}
        self.control.call("POST", "/api/endpoints/", body)

    def _digits(self) -> None:
        first = self._version("digits", "digits_torch")
        second = self._version("digits", "digits_jax")
        for number in (first, second):
            self._deploy("digits", self._ready("digits", number))
        for number in (first, second):
            wait_ready(self.control, "digits", number, 120)
        shares = {str(first): 9_000, str(second): 1_000}
        self.control.call("PUT", "/api/endpoints/digits/weights/", {"weights": shares})

    def _minilm(self) -> None:
        try:
            number = self._version("minilm", "minilm")
        except ControlError as error:
            self.say(f"demo: minilm is left out: {error}")
            return
        self._deploy("minilm", self._ready("minilm", number))

    def _first_answer(self) -> float:
        client = Client(self.gateway_url, self.control.key)
        while True:
            try:
                client.infer("digits", self.sample()["inputs"])
            except Exception as error:
                if time.monotonic() - self.started_s > 300:
                    raise ControlError(f"the demo model does not answer: {error}") from error
                time.sleep(0.1)
            else:
                return time.monotonic() - self.started_s

    def sample(self) -> dict[str, Any]:
        """An infer request with one handwritten digit."""
        found: dict[str, Any] = json.loads((self.folder / "digits_torch" / "sample_input.json").read_text())
        return found

    def curl(self) -> str:
        """A line that works when pasted."""
        body = json.dumps(self.sample(), separators=(",", ":"))
        return (
            f"curl -s {self.gateway_url}/v2/models/digits/infer -H 'Authorization: Bearer {self.control.key}' "
            f"-d '{body}'"
        )
