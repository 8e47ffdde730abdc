"""Custom metrics of Triton's Python models: `MetricFamily` and `Metric`, and the register that the replica tells from.

Source of the names and meanings: the public documentation of Triton's Python backend. One thing differs: what was
counted stays until the replica ends, also when the model lets go of its MetricFamily, for counters never fall here.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from inference.models.triton_python.tensors import TritonModelException
from inference.protocol import custom_metrics as bounds
from inference.protocol.custom_metrics import Families, Family, Kind, Labels, Series

KINDS: tuple[Kind, ...] = ("counter", "gauge", "histogram")


class Register:
    """All families of this process. Any thread of the model writes, the event loop reads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.families: Families = {}
        self._marked: Families = {}

    def told(self) -> Families:
        """A copy, as of now."""
        with self.lock:
            return {name: one.copy() for name, one in self.families.items()}

    def mark(self) -> None:
        """Loaded: from here until `rewind`, what is counted is of warm-up runs."""
        self._marked = self.told()

    def rewind(self) -> None:
        """Counters and histograms are as they were at the mark; gauges say what they say."""
        with self.lock:
            for name, family in self.families.items():
                marked = self._marked.get(name, Family(family.kind)).series
                for labels, series in family.series.items() if family.kind != "gauge" else ():
                    before = marked.get(labels, Series(counts=[0] * len(series.counts)))
                    series.value, series.counts = before.value, list(before.counts)

    def family(self, name: str, text: str, kind: Kind) -> Family:
        """The family of that name, made where there is none yet. Raises TritonModelException where it cannot be."""
        if flaw := bounds.name_flaw(name):
            raise TritonModelException(flaw)
        with self.lock:
            found = self.families.get(name)
            if found is None:
                if len(self.families) >= bounds.MAX_FAMILIES:
                    raise TritonModelException(f"a model has at most {bounds.MAX_FAMILIES} metric families")
                found = self.families[name] = Family(kind, _printable(text))
        if found.kind != kind:
            raise TritonModelException(f"the metric family '{name}' is there already, and is a {found.kind}")
        return found

    def series(self, family: Family, labels: Labels, edges: tuple[float, ...]) -> Series:
        """The family's series with these labels, made where there is none yet."""
        with self.lock:
            found = family.series.get(labels)
            if found is None:
                found = Series(edges=edges, counts=[0] * (len(edges) + 1) if family.kind == "histogram" else [])
                if sum(one.size for one in self.families.values()) + found.size > bounds.MAX_SERIES:
                    words = f"a model's metrics have at most {bounds.MAX_SERIES} series, each bucket counted as one"
                    raise TritonModelException(words)
                family.series[labels] = found
        return found


REGISTER = Register()


class Metric:
    """One series of a family. Two with the same labels are the same one."""

    def __init__(self, kind: Kind, series: Series) -> None:
        self._kind = kind
        self._series = series

    def increment(self, value: float) -> None:
        """Adds to a counter, or to a gauge."""
        self._needs("increment", "counter", "gauge")
        number = _finite(value)
        if self._kind == "counter" and number < 0:
            raise TritonModelException("a counter can only be incremented by non-negative values")
        with REGISTER.lock:
            self._series.value = _finite(self._series.value + number)

    def set(self, value: float) -> None:
        """Of gauges."""
        self._needs("set", "gauge")
        with REGISTER.lock:
            self._series.value = float(value)

    def observe(self, value: float) -> None:
        """Of histograms."""
        self._needs("observe", "histogram")
        number = _finite(value)
        with REGISTER.lock:
            self._series.value = _finite(self._series.value + number)
            self._series.counts[bisect_left(self._series.edges, number)] += 1

    def value(self) -> float:
        """Of counters and gauges."""
        self._needs("value", "counter", "gauge")
        return self._series.value

    def _needs(self, what: str, *kinds: Kind) -> None:
        if self._kind not in kinds:
            raise TritonModelException(f"a {self._kind} does not support {what}")


class MetricFamily:
    """Metrics of one name, which differ in their labels."""

    COUNTER, GAUGE, HISTOGRAM = range(3)

    def __init__(self, name: str, description: str, kind: int) -> None:
        if kind not in range(len(KINDS)):
            raise TritonModelException("kind must be MetricFamily.COUNTER, GAUGE or HISTOGRAM")
        self._kind = KINDS[kind]
        self._family = REGISTER.family(name, str(description), self._kind)

    def Metric(  # noqa: N802 (Triton's name)
        self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None
    ) -> Metric:
        """buckets: ascending upper edges; a histogram must have them, and nothing else may."""
        if flaw := bounds.labels_flaw(labels or {}):
            raise TritonModelException(flaw)
        is_histogram = self._kind == "histogram"
        if is_histogram != (buckets is not None):
            raise TritonModelException(f"a {self._kind} {'needs buckets' if is_histogram else 'has no buckets'}")
        edges = tuple(float(edge) for edge in buckets or ())
        if flaw := bounds.edges_flaw(edges):
            raise TritonModelException(flaw)
        return Metric(self._kind, REGISTER.series(self._family, tuple(sorted((labels or {}).items())), edges))


def _finite(value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise TritonModelException("a counter's or a histogram's value must be finite")
    return number


def _printable(text: str) -> str:
    """A description that can stand in one line, cut to what a family may say."""
    plain = "".join(one if one.isprintable() else " " for one in text)
    return plain.encode()[: bounds.MAX_TEXT].decode(errors="ignore")
