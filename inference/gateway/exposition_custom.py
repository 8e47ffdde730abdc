"""What /metrics says of metrics that models' own code keeps, with our labels `endpoint` and `version` beside theirs.

A name means one kind on a page: who told it first has it, until nobody means that by it any more; what others mean is
left out. The lines are written here, for the metrics library would add `_total` to the names that models chose.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping

from inference.protocol.custom_metrics import OURS, SUFFIXES, Family, Kind, Labels, Series
from inference.protocol.statistics import ModelStatistics

Key = tuple[str, str]
_log = logging.getLogger(__name__)


class CustomMetrics:
    """The names of the models' metrics that this gateway shows, and their kinds."""

    def __init__(self) -> None:
        self._kinds: dict[str, Kind] = {}
        self._told: set[tuple[str, Key]] = set()

    def lines(self, found: Mapping[Key, ModelStatistics]) -> Iterator[str]:
        """Of every version, family by family."""
        held = {(name, family.kind) for one in found.values() for name, family in one.custom.items()}
        self._kinds = {name: kind for name, kind in self._kinds.items() if (name, kind) in held}
        self._told = {(name, key) for name, key in self._told if key in found and name in found[key].custom}
        shown: dict[str, list[tuple[Key, Family]]] = {}
        for key, one in found.items():
            for name, family in one.custom.items():
                if family.series and self._may(name, family.kind):
                    shown.setdefault(name, []).append((key, family))
                elif family.series and (name, key) not in self._told:
                    self._told.add((name, key))
                    _log.warning(
                        "the metric %s of %s is not shown: another model means something else by it", name, key
                    )
        for name, families in sorted(shown.items()):
            yield f"# HELP {name} {families[0][1].text.replace(chr(92), chr(92) * 2) or name}"
            yield f"# TYPE {name} {self._kinds[name]}"
            for key, family in families:
                for labels, series in sorted(family.series.items()):
                    yield from _series(name, _labels(key, labels), series)

    def _may(self, name: str, kind: Kind) -> bool:
        """Whether the name can be shown as this kind; it is this kind's from now on."""
        if name not in self._kinds:
            taken = {sample for other, its in self._kinds.items() for sample in _samples(other, its)}
            if taken & _samples(name, kind):
                return False
            self._kinds[name] = kind
        return self._kinds[name] == kind


def _samples(name: str, kind: Kind) -> set[str]:
    """The names that its lines begin with."""
    return {name, *(name + suffix for suffix in SUFFIXES)} if kind == "histogram" else {name}


def _labels(key: Key, labels: Labels) -> list[str]:
    """Ours first. The model's own of such a name are kept under another, as Prometheus does it."""
    own = [(f"exported_{name}" if name in OURS else name, value) for name, value in labels]
    return [f'{name}="{_escaped(value)}"' for name, value in (*zip(OURS, key, strict=True), *own)]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _series(name: str, labels: list[str], series: Series) -> Iterator[str]:
    held = ",".join(labels)
    if not series.counts:
        yield f"{name}{{{held}}} {_number(series.value)}"
        return
    seen = 0
    for edge, count in zip((*series.edges, math.inf), series.counts, strict=True):
        seen += count
        yield f'{name}_bucket{{{held},le="{_number(edge)}"}} {seen}'
    yield f"{name}_sum{{{held}}} {_number(series.value)}"
    yield f"{name}_count{{{held}}} {seen}"


def _number(told: float) -> str:
    value = float(told)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
