"""Puts a model's versions behind the endpoint of its name: load first, then switch, then take the old ones away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inference.artifacts.triton.repository import RepositoryModel
from serinus.commands.traffic import FULL_BP, wait_ready
from serinus.control import Control, ControlError

READY_S = 300


def serve(
    control: Control, model: RepositoryModel, numbers: Sequence[int], *, newest: int, timeout_s: float = READY_S
) -> None:
    """1. Deploys what is not deployed; the old version keeps its traffic. 2. Waits until the newest is ready. 3. Gives
    it all the traffic. 4. Takes away what the version policy no longer serves. Raises ControlError; then the old
    version still serves.
    """
    wanted = sorted(numbers, key=lambda number: (number != newest, number))
    held = {row["version"]: row for row in _variants(control, model.name)}
    for number in wanted:
        if number not in held or not held[number]["replicas"]:
            _deploy(control, model, number)
    row = control.patiently(lambda: wait_ready(control, model.name, newest, timeout_s))
    shares = {variant["version"]: variant["weight_bp"] for variant in row["variants"]}
    if shares.get(newest) != FULL_BP:
        # Not forced: it is only switched to when the control plane sees it ready too.
        body = {"weights": {str(newest): FULL_BP}, "reason": "newest version of the model repository"}
        control.patiently(lambda: control.call("PUT", f"/api/endpoints/{model.name}/weights/", body))
    for number in sorted(set(shares) - set(wanted)):
        control.call("POST", f"/api/endpoints/{model.name}/undeploy/", {"version": number})


def remove(control: Control, name: str) -> None:
    """Takes the endpoint away; its versions stay in the registry."""
    try:
        control.patiently(lambda: control.call("DELETE", f"/api/endpoints/{name}/"))
    except ControlError as error:
        if error.code != "not_found":
            raise


def _variants(control: Control, name: str) -> list[dict[str, Any]]:
    try:
        row = control.patiently(lambda: control.call("GET", f"/api/endpoints/{name}/"))
    except ControlError as error:
        if error.code == "not_found":
            return []
        raise
    found: list[dict[str, Any]] = row["variants"]
    return found


def _deploy(control: Control, model: RepositoryModel, number: int) -> None:
    body = {
        "name": model.name,
        "model": model.name,
        "version": number,
        "replicas": model.translated.replicas,
        "device": model.translated.device,
    }
    control.patiently(lambda: control.call("POST", "/api/endpoints/", body))
