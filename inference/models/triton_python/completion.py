"""The config that a model's `auto_complete_config` fills in."""

from __future__ import annotations

from typing import Any


class ModelConfig:
    """A config as a mapping, with the calls that Triton's Python models make on it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def as_dict(self) -> dict[str, Any]:
        return self._config

    def set_max_batch_size(self, size: int) -> None:
        """What the file says wins, unless it says less."""
        self._config["max_batch_size"] = max(size, self._config.get("max_batch_size", 0))

    def set_dynamic_batching(self) -> None:
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, policy: dict[str, bool]) -> None:
        self._config["model_transaction_policy"] = dict(policy)

    def add_input(self, tensor: dict[str, Any]) -> None:
        """Raises ValueError for a tensor without name, type and dims, or one that the file declares otherwise."""
        self._add("input", tensor)

    def add_output(self, tensor: dict[str, Any]) -> None:
        """Raises ValueError as `add_input` does."""
        self._add("output", tensor)

    def _add(self, kind: str, tensor: dict[str, Any]) -> None:
        missing = {"name", "data_type", "dims"} - set(tensor)
        if missing:
            raise ValueError(f"an {kind} must have {', '.join(sorted(missing))}")
        held = self._config.setdefault(kind, [])
        for one in held:
            if one["name"] == tensor["name"]:
                if one["data_type"] != tensor["data_type"] or list(one["dims"]) != list(tensor["dims"]):
                    raise ValueError(f"the {kind} '{tensor['name']}' is declared otherwise in config.pbtxt")
                return
        held.append(dict(tensor))
