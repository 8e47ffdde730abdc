"""The config that a model's `auto_complete_config` fills in. The law: what the file declares is never overruled."""

from __future__ import annotations

from typing import Any

INPUT_FIELDS = {"name", "data_type", "dims", "optional"}
OUTPUT_FIELDS = {"name", "data_type", "dims"}
NEEDED = {"name", "data_type", "dims"}
UNSET: tuple[Any, ...] = (None, "TYPE_INVALID", [], False)


class ModelConfig:
    """A config as a mapping, with the calls that Triton's Python models make on it. Each raises ValueError where it
    contradicts what config.pbtxt says.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def as_dict(self) -> dict[str, Any]:
        return self._config

    def set_max_batch_size(self, size: int) -> None:
        """Raises ValueError where config.pbtxt says more."""
        said = self._config.get("max_batch_size", 0)
        if said > size:
            raise ValueError(f"max_batch_size is {said} in config.pbtxt, and {size} in auto_complete_config")
        self._config["max_batch_size"] = size

    def set_dynamic_batching(self) -> None:
        """Raises ValueError where another scheduler is chosen."""
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._config:
                raise ValueError(f"config.pbtxt chooses {other}, and auto_complete_config dynamic_batching")
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, policy: dict[str, bool]) -> None:
        """Raises ValueError for another key than `decoupled`, or where config.pbtxt says otherwise."""
        if unknown := set(policy) - {"decoupled"}:
            raise ValueError(f"a model_transaction_policy has no {sorted(unknown)}, only decoupled")
        held = self._config.setdefault("model_transaction_policy", {})
        for name, value in policy.items():
            if held.get(name, value) != value:
                raise ValueError(f"decoupled is {held[name]} in config.pbtxt, and {value} in auto_complete_config")
            held[name] = value

    def add_input(self, tensor: dict[str, Any]) -> None:
        """Raises ValueError for a tensor without name, type and dims, one with other properties (`optional` may be
        there), or one that the file declares otherwise.
        """
        self._add("input", tensor, INPUT_FIELDS)

    def add_output(self, tensor: dict[str, Any]) -> None:
        """Raises ValueError as `add_input` does."""
        self._add("output", tensor, OUTPUT_FIELDS)

    def _add(self, kind: str, tensor: dict[str, Any], allowed: set[str]) -> None:
        if missing := NEEDED - set(tensor):
            raise ValueError(f"an {kind} must have {', '.join(sorted(missing))}")
        if unknown := set(tensor) - allowed:
            raise ValueError(f"the {kind} '{tensor['name']}' may not have {', '.join(sorted(unknown))}")
        held = self._config.setdefault(kind, [])
        for one in held:
            if one["name"] == tensor["name"]:
                _agree(kind, one, tensor)
                return
        held.append(dict(tensor))


def _agree(kind: str, held: dict[str, Any], tensor: dict[str, Any]) -> None:
    """Fills in what the file leaves out."""
    for name, value in tensor.items():
        given = list(value) if name == "dims" else value
        if held.get(name) not in UNSET and held[name] != given:
            raise ValueError(f"the {kind} '{tensor['name']}' is declared otherwise in config.pbtxt: {name}")
        held[name] = given
