"""What can be changed while the gateway runs: what it logs, and which requests are traced. Kept in this process alone.

Names, values and words follow Triton's logging and trace extensions. Where logs and traces go is not changed over the
network: that would let a key write files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from inference.errors import InvalidInput, Malformed, Unsupported
from inference.gateway.web import Part

LEVELS = ("TIMESTAMPS", "TENSORS")
FORMATS = {"default": None, "ISO8601": "%Y-%m-%dT%H:%M:%S%z"}
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOGGER = "inference"
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def parse(data: Part) -> dict[str, Any]:
    """The settings that a request names. Raises Malformed."""
    try:
        found: dict[str, Any] = _decode(data or b"{}")
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Malformed(f"failed to parse the request JSON: {error}") from error
    return found


@dataclass(frozen=True, slots=True)
class Logs:
    """log_verbose_level: 0, or more for what helps only those who look for something."""

    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: int = 0
    log_format: str = "default"

    def allows(self, level: int) -> bool:
        """Whether a line of this level is written."""
        if level >= logging.ERROR:
            return self.log_error
        if level >= logging.WARNING:
            return self.log_warning
        return self.log_info if level >= logging.INFO else self.log_verbose_level > 0

    def told(self) -> dict[str, Any]:
        return {
            "log_file": "",
            "log_info": self.log_info,
            "log_warning": self.log_warning,
            "log_error": self.log_error,
            "log_verbose_level": self.log_verbose_level,
            "log_format": self.log_format,
        }


def changed_logs(now: Logs, wanted: dict[str, Any]) -> Logs:
    """Pure; null leaves a setting as it is. Raises InvalidInput naming the setting, or Unsupported."""
    wanted = {
        name: value for name, value in wanted.items() if value is not None or name not in {"log_file", *Logs.__slots__}
    }
    for name, value in wanted.items():
        if name == "log_file":
            raise Unsupported("log file location can not be updated through network protocol")
        if name not in Logs.__slots__:
            raise InvalidInput(f"unexpected log setting '{name}'")
        good = {
            "log_verbose_level": type(value) is int and 0 <= value < 2**31,
            "log_format": type(value) is str and value in FORMATS,
        }.get(name, type(value) is bool)
        if not good:
            words = {"log_verbose_level": "a whole number", "log_format": " or ".join(f"'{one}'" for one in FORMATS)}
            raise InvalidInput(f"log setting '{name}' must be {words.get(name, 'true or false')}")
    return replace(now, **wanted)


@dataclass(frozen=True, slots=True)
class Traces:
    """rate: every so many requests one is traced; count: so many more are, -1 for any number."""

    levels: tuple[str, ...] = ()
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0

    def told(self) -> dict[str, Any]:
        return {
            "trace_level": list(self.levels) or ["OFF"],
            "trace_rate": str(self.rate),
            "trace_count": str(self.count),
            "log_frequency": str(self.log_frequency),
            "trace_mode": "opentelemetry",
        }


_NUMBERS = {"trace_rate": ("rate", 1), "trace_count": ("count", -1), "log_frequency": ("log_frequency", 0)}


def changed_traces(now: Traces, wanted: dict[str, Any], reset: Traces) -> Traces:
    """Pure; null puts a setting back to that of `reset`. Raises InvalidInput naming the setting, or Unsupported."""
    for name, value in wanted.items():
        if name == "trace_file":
            raise Unsupported("trace file location can not be updated through network protocol")
        if name == "trace_level":
            now = replace(now, levels=reset.levels if value is None else _levels(value))
        elif name in _NUMBERS:
            own, least = _NUMBERS[name]
            number: int = getattr(reset, own) if value is None else _number(name, value, least)
            change: dict[str, Any] = {own: number}
            now = replace(now, **change)
        else:
            raise InvalidInput(f"unexpected trace setting '{name}'")
    return now


def _levels(value: Any) -> tuple[str, ...]:
    given: Iterable[Any] = value if type(value) is list else [value]
    found = tuple(dict.fromkeys(given)) if all(type(one) is str for one in given) else ("?",)
    if found == ("OFF",):
        return ()
    if "OFF" in found:
        raise InvalidInput("Expect only one trace level 'OFF' is specified")
    if not found or not set(found) <= set(LEVELS):
        raise InvalidInput(f"trace setting 'trace_level' must be a list of 'OFF' alone or of {', '.join(LEVELS)}")
    return found


def _number(name: str, value: Any, least: int) -> int:
    try:
        found = int(value) if type(value) in {int, str} and len(str(value)) <= 10 else least - 1
    except ValueError:
        raise InvalidInput(f"Unable to parse '{name}': a whole number is expected") from None
    if not least <= found < 2**31:
        raise InvalidInput(f"Unable to parse '{name}': a whole number from {least} to {2**31 - 1} is expected")
    return found


@dataclass(slots=True)
class _Scope:
    """One set of trace settings in use, and how far it has counted."""

    traces: Traces = field(default_factory=Traces)
    seen: int = 0
    left: int = -1

    def set(self, traces: Traces) -> None:
        self.traces, self.seen, self.left = traces, 0, traces.count

    def samples(self) -> bool:
        if not self.traces.levels or not self.left:
            return False
        self.seen += 1
        if self.seen < self.traces.rate:
            return False
        self.seen = 0
        self.left -= self.left > 0
        return True


class LiveSettings:
    """The settings in force. `is_tracing` is False as long as no request at all can be traced: look at it first."""

    def __init__(self) -> None:
        self.logs = Logs()
        self.is_tracing = False
        self._global = _Scope()
        self._models: dict[str, _Scope] = {}

    # -- logs -------------------------------------------------------------------------------------------------------

    def set_logs(self, wanted: dict[str, Any]) -> None:
        """Effective at once. Raises InvalidInput or Unsupported; nothing is changed then."""
        self.logs = changed_logs(self.logs, wanted)
        logging.getLogger(_LOGGER).setLevel(logging.DEBUG if self.logs.log_verbose_level else logging.INFO)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(LINE, FORMATS[self.logs.log_format]))

    def allows(self, record: logging.LogRecord) -> bool:
        """A filter for logging's handlers."""
        return self.logs.allows(record.levelno)

    # -- traces -----------------------------------------------------------------------------------------------------

    def traces(self, model: str = "") -> Traces:
        """Of a model: its own, else those of the server."""
        return self._models.get(model, self._global).traces

    def set_traces(self, wanted: dict[str, Any], model: str = "") -> None:
        """Of a model, or of all that have none of their own. Raises InvalidInput or Unsupported."""
        reset = self._global.traces if model else Traces()
        found = changed_traces(self.traces(model), wanted, reset)
        if model and all(value is None for value in wanted.values()) and found == reset:
            self._models.pop(model, None)
        elif wanted:
            scope = self._models.setdefault(model, _Scope()) if model else self._global
            scope.set(found)
        self.is_tracing = any(scope.traces.levels for scope in (self._global, *self._models.values()))

    def keep(self, known: Callable[[str], bool]) -> None:
        """Forgets the settings of models that are gone."""
        for model in [model for model in self._models if not known(model)]:
            del self._models[model]

    def samples(self, model: str) -> bool:
        """Whether this request of the model is to be traced; to be asked once a request."""
        return self.is_tracing and self._models.get(model, self._global).samples()
