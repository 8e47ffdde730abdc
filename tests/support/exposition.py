"""Prometheus' text as a strict reader takes it: what `promtool check metrics` refuses, and what a scraper would mix up."""

from __future__ import annotations

import math
import re
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}
# Triton's names keep other rules, and dashboards know them so.
FOREIGN = ("nv_",)
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(text: str) -> Series:
    """(name, labels) -> value of every sample. The parser adds "_total" to counters that have none."""
    return {
        (
            one.name.removesuffix("_total") if one.name.startswith(FOREIGN) else one.name,
            frozenset(one.labels.items()),
        ): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def value(found: Series, name: str, **labels: str) -> float:
    """The sum of the samples of that name that bear these labels."""
    return sum(number for (one, held), number in found.items() if one == name and labels.items() <= dict(held).items())


def faults(text: str) -> list[str]:
    """What is wrong with it, line by line; empty where nothing is."""
    found: list[str] = [] if text.endswith("\n") else ["the last line has no end"]
    kinds, helps, done, current = {}, set(), set(), ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ")[2]
            found += [f"{current}: begins twice"] if current in done else []
            found += [f"{current}: HELP says nothing"] if len(line.split(" ", 3)) < 4 else []
            helps.add(current)
            done.add(current)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            found += [f"{name}: TYPE without its HELP before it"] if name != current or name in kinds else []
            kinds[name] = kind
        elif not line.startswith("#"):
            found += _line(line, current, kinds.get(current, ""))
    return found + _series(text, kinds)


def _line(line: str, family: str, kind: str) -> list[str]:
    match = re.fullmatch(r'([^{ ]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)', line)
    if match is None or not NAME.fullmatch(match[1]):
        return [f"not a sample: {line}"]
    name, number = match[1], float(match[3])
    found = [f"{name} stands in the family {family!r}"] if name not in _allowed(family, kind) else []
    if kind == "counter" and (number < 0 or not math.isfinite(number)):
        found.append(f"{name}: a counter of {number}")
    if kind == "counter" and not family.endswith("_total") and not family.startswith(FOREIGN):
        found.append(f"{name}: a counter's name ends in _total")
    if kind == "gauge" and family.endswith(("_total", "_count", "_sum", "_bucket")) and not family.startswith(FOREIGN):
        found.append(f"{name}: a gauge's name says that it is none")
    return found


def _allowed(family: str, kind: str) -> set[str]:
    return {family + suffix for suffix in SUFFIXES.get(kind, ("",))}


def _series(text: str, kinds: dict[str, str]) -> list[str]:
    found, seen = [], set()
    for family in text_string_to_metric_families(text):
        buckets: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
        counts: dict[frozenset[tuple[str, str]], float] = {}
        for one in family.samples:
            labels = dict(one.labels)
            key = (one.name, frozenset(labels.items()))
            found += [f"{key}: there twice"] if key in seen else []
            seen.add(key)
            if kinds.get(family.name) == "histogram":
                edge = labels.pop("le", "")
                if one.name.endswith("_bucket"):
                    buckets.setdefault(frozenset(labels.items()), []).append((float(edge), one.value))
                elif one.name.endswith("_count"):
                    counts[frozenset(labels.items())] = one.value
        for held, steps in buckets.items():
            rises = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(steps))
            if not rises or steps[-1][0] != math.inf or steps[-1][1] != counts.get(held):
                found.append(f"{family.name}{dict(held)}: buckets {steps}, count {counts.get(held)}")
    return found
