"""Metrics that a model's own code keeps: what a replica tells of them, and the bounds that both ends hold them to.

The law: a replica may run anybody's code, so nothing here can make the gateway's page of others wrong or large.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[tuple[str, str], ...]  # sorted by name
MAX_FAMILIES, MAX_SERIES, MAX_BUCKETS = 64, 1000, 64
MAX_NAME, MAX_TEXT, MAX_LABELS, MAX_LABEL_NAME, MAX_LABEL_BYTES = 128, 512, 8, 64, 128
RESERVED = ("serinus_", "nv_", "vllm:")
OURS = ("endpoint", "version")
MAX_COUNT = 1 << 53
SUFFIXES = ("_bucket", "_sum", "_count")
_NAME = re.compile(rf"[a-zA-Z_:][a-zA-Z0-9_:]{{0,{MAX_NAME - 1}}}")
_LABEL = re.compile(rf"(?!__)[a-zA-Z_][a-zA-Z0-9_]{{0,{MAX_LABEL_NAME - 1}}}")
_TAKEN = ("le", *(f"exported_{name}" for name in OURS))


class Series(msgspec.Struct):
    """value: a counter's or a gauge's, and of a histogram the sum of what was observed. edges: a histogram's upper ones;
    counts: one more than edges, for what is above; both empty for the other kinds.
    """

    value: float = 0.0
    edges: tuple[float, ...] = ()
    counts: list[int] = msgspec.field(default_factory=list)

    @property
    def size(self) -> int:
        """Lines on the page."""
        return len(self.counts) + 2 if self.counts else 1

    def merge(self, other: Series) -> None:
        """Adds `other`, where it has the same edges."""
        if self.edges == other.edges and len(self.counts) == len(other.counts):
            self.value += other.value
            summed = (mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True))
            self.counts = [min(one, MAX_COUNT) for one in summed]

    def copy(self) -> Series:
        return Series(self.value, self.edges, list(self.counts))


class Family(msgspec.Struct):
    """text: the description."""

    kind: Kind
    text: str = ""
    series: dict[Labels, Series] = msgspec.field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(one.size for one in self.series.values())

    def copy(self) -> Family:
        return Family(self.kind, self.text, {labels: one.copy() for labels, one in self.series.items()})


Families = dict[str, Family]


def merge(mine: Families, theirs: Mapping[str, Family]) -> None:
    """Adds another replica's: counters, histograms and gauges are summed. What is of another kind here, or would go
    beyond the bounds of one version, is left out.
    """
    room = MAX_SERIES - sum(one.size for one in mine.values())
    for name, other in theirs.items():
        family = mine.get(name)
        if family is None:
            if len(mine) >= MAX_FAMILIES:
                continue
            family = mine[name] = Family(other.kind, other.text)
        if family.kind != other.kind:
            continue
        for labels, series in other.series.items():
            if labels in family.series:
                family.series[labels].merge(series)
            elif series.size <= room:
                room -= series.size
                family.series[labels] = series.copy()


def forget_now(families: Families) -> None:
    """Leaves the sums: the replica is gone, and its gauges with it."""
    for name in [name for name, one in families.items() if one.kind == "gauge"]:
        del families[name]


def name_flaw(name: object) -> str:
    """Why a family cannot bear this name; empty where it can."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"{name!r:.140} is no metric's name: letters, digits, '_' and ':', at most {MAX_NAME}, no digit first"
    taken = next((one for one in RESERVED if name.startswith(one)), "")
    return f"the metric '{name}' cannot begin with '{taken}': those names are the platform's own" if taken else ""


def labels_flaw(labels: object) -> str:
    """Why a series cannot bear these labels, a mapping of names to texts; empty where it can."""
    if not isinstance(labels, Mapping):
        return "labels must be a dict of names and texts"
    if len(labels) > MAX_LABELS:
        return f"a metric has at most {MAX_LABELS} labels, not {len(labels)}"
    for name, value in labels.items():
        if not isinstance(name, str) or not _LABEL.fullmatch(name) or name in _TAKEN:
            return f"{name!r:.80} cannot be a label's name"
        if not isinstance(value, str) or not is_text(value, MAX_LABEL_BYTES):
            return f"the label '{name}' must be a text of at most {MAX_LABEL_BYTES} bytes without control characters"
    return ""


def is_text(value: str, most_bytes: int) -> bool:
    """Whether it is printable and encodable, in at most so many bytes."""
    return len(value) <= most_bytes and value.isprintable() and len(value.encode()) <= most_bytes


def edges_flaw(edges: Iterable[float]) -> str:
    """Why a histogram cannot have these upper edges; empty where it can."""
    held = tuple(edges)
    if len(held) > MAX_BUCKETS:
        return f"a histogram has at most {MAX_BUCKETS} buckets, not {len(held)}"
    if not all(map(math.isfinite, held)) or any(low >= high for low, high in pairwise(held)):
        return "buckets must be finite and ascending, each one once"
    return ""


def are_sound(families: Mapping[str, Family]) -> bool:
    """Whether they can be merged and shown."""
    bounded = len(families) <= MAX_FAMILIES and sum(one.size for one in families.values()) <= MAX_SERIES
    return bounded and all(not name_flaw(name) and _is_sound(one) for name, one in families.items())


def _is_sound(family: Family) -> bool:
    return is_text(family.text, MAX_TEXT) and all(
        _are_labels(labels) and _is_series(one, family.kind) for labels, one in family.series.items()
    )


def _are_labels(labels: Labels) -> bool:
    """Whether they are as a model's own register has them: sorted, each name once."""
    held = dict(labels)
    return list(labels) == sorted(held.items()) and not labels_flaw(held)


def _is_series(one: Series, kind: Kind) -> bool:
    if kind != "histogram" and (one.edges or one.counts):
        return False
    if kind == "histogram" and (edges_flaw(one.edges) or len(one.counts) != len(one.edges) + 1):
        return False
    counted = all(0 <= count <= MAX_COUNT for count in one.counts)
    return counted and (kind == "gauge" or (math.isfinite(one.value) and (one.value >= 0 or kind == "histogram")))
