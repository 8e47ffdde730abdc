"""The demo models: trained or copied in seconds, uploaded and deployed through the same doors as everybody's."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference.client import Client
from inference.errors import SerinusError
from serinus.commands.traffic import wait_ready
from serinus.control import Control, ControlError
from serinus.paths import UpConfig
from serinus.uploads import send

BUILD_TIMEOUT_S = 240
CHAT_TIMEOUT_S = 120
PACKAGED = ("smollm2", "minilm", "vad")
MADE = ("digits", *PACKAGED)
# Two lanes of one thread answer more sentences than one lane of two.
SETTINGS: dict[str, dict[str, Any]] = {"minilm": {"instances": 2}}


class Demo:
    """Brings up `digits` (torch as version 1, JAX as version 2, 90/10), `smollm2`, which chats, `minilm` and `vad`,
    which is stateful. Running it twice changes nothing.
    """

    def __init__(self, config: UpConfig, say: Callable[[str], None]) -> None:
        self.config = config
        self.folder = config.data_dir / "demo"
        self.say = say
        self._chats = False
        self._makers = {name: self._maker(name) for name in MADE if not (self.folder / name / "done").exists()}

    def _maker(self, name: str) -> subprocess.Popen[str]:
        """Starts making a demo model beside the start of the platform."""
        target = self.folder / name
        target.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "serinus.demo", name, str(target)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def close(self) -> None:
        """Ends makers that are still at work."""
        for maker in self._makers.values():
            if maker.poll() is None:
                maker.kill()
                maker.wait()

    def run(self, started_s: float) -> dict[str, Any]:
        """Returns {"demo_s", "curl", "chat"}, the last "" where the language model is left out; `started_s` is the
        monotonic time from which the seconds count.
        """
        self.control = Control(url=self.config.console_url)
        known = {row["name"] for row in self.control.pages("/api/endpoints/")}
        if "digits" not in known:
            self._digits()
        seconds = self._first_answer(started_s)
        for name in PACKAGED:
            if name not in known:
                self._packaged(name)
        self._wait_for_chat()
        return {"demo_s": round(seconds, 1), "curl": self.curl(), "chat": self.chat()}

    def built(self, name: str) -> Path:
        """The folder with the demo model. Raises ControlError with the maker's last words."""
        maker = self._makers.pop(name, None)
        if maker is not None:
            try:
                _, errors = maker.communicate(timeout=BUILD_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                maker.kill()
                raise ControlError(f"the demo model '{name}' was not made within {BUILD_TIMEOUT_S} s") from error
            if maker.returncode:
                raise ControlError(f"the demo model '{name}' could not be made: {errors.strip()[-400:]}")
            (self.folder / name / "done").touch()
        return self.folder / name

    def _version(self, model: str, name: str, part: str) -> int:
        artifact = self.built(name) / part
        self.say(f"demo: uploading {model} ({part})")
        written = artifact.parent / "settings.json"
        settings = json.loads(written.read_text()) if written.exists() else SETTINGS.get(model, {})
        version = send(self.control, model, artifact, settings=settings, alias="", screen=None)
        return int(version["number"])

    def _ready(self, model: str, number: int) -> int:
        self.say(f"demo: {model}:{number} is validated in the sandbox")
        version = self.control.wait_version(model, number, lambda _: None, 300)
        if version["status"] != "ready":
            raise ControlError(f"the demo model {model}:{number} is {version['status']}: {version['reason']}")
        return number

    def _deploy(self, model: str, number: int) -> None:
        self.say(f"demo: {model}:{number} is deployed")
        body = {"name": model, "model": model, "version": number, "replicas": 1, "access": "key", "device": "any"}
        self.control.call("POST", "/api/endpoints/", body)

    def _digits(self) -> None:
        first = self._version("digits", "digits", "torch")
        second = self._version("digits", "digits", "jax")
        for number in (first, second):
            self._deploy("digits", self._ready("digits", number))
        self.say("demo: the replicas of digits load")
        for number in (first, second):
            wait_ready(self.control, "digits", number, 120)
        shares = {str(first): 9_000, str(second): 1_000}
        self.control.call("PUT", "/api/endpoints/digits/weights/", {"weights": shares})

    def _packaged(self, name: str) -> None:
        """A model out of a package, left out with a word where that is not installed."""
        try:
            number = self._version(name, name, name)
        except ControlError as error:
            self.say(f"demo: {name} is left out: {error}")
            return
        self._deploy(name, self._ready(name, number))

    def _wait_for_chat(self) -> None:
        """Until the language model, if it is there, answers; its line is then shown only when it works."""
        name = "smollm2"
        if name not in {row["name"] for row in self.control.pages("/api/endpoints/")}:
            return
        self.say(f"demo: the replica of {name} loads")
        client = Client(self.config.gateway_url, self.control.key)
        until = time.monotonic() + CHAT_TIMEOUT_S
        while time.monotonic() < until:
            with contextlib.suppress(SerinusError):
                if client.ready(name):
                    self._chats = True
                    return
            time.sleep(0.2)
        self.say(f"demo: {name} is not ready after {CHAT_TIMEOUT_S} s; see `serinus hosts`")

    def _first_answer(self, started_s: float) -> float:
        client = Client(self.config.gateway_url, self.control.key)
        while True:
            try:
                client.infer("digits", self.sample()["inputs"])
            except Exception as error:
                if time.monotonic() - started_s > 300:
                    raise ControlError(f"the demo model does not answer: {error}") from error
                time.sleep(0.1)
            else:
                return time.monotonic() - started_s

    def sample(self) -> dict[str, Any]:
        """An infer request with one handwritten digit."""
        found: dict[str, Any] = json.loads((self.folder / "digits" / "sample_input.json").read_text())
        return found

    def chat(self) -> str:
        """A line that chats when pasted."""
        written = self.folder / "smollm2" / "sample_input.json"
        if not self._chats:
            return ""
        body = json.dumps(json.loads(written.read_text()), separators=(",", ":"))
        return (
            f"curl -s {self.config.gateway_url}/v1/chat/completions -H 'Authorization: Bearer {self.control.key}' "
            f"-d '{body}'"
        )

    def curl(self) -> str:
        """A line that works when pasted."""
        body = json.dumps(self.sample(), separators=(",", ":"))
        return (
            f"curl -s {self.config.gateway_url}/v2/models/digits/infer -H 'Authorization: Bearer {self.control.key}' "
            f"-d '{body}'"
        )
