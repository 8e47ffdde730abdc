"""How far two answers to one request are apart: pure, of bounded work, by the type of what is compared.

Distances lie in 0..1, 0 for the same. Each output is compared in one of these ways:

- "exact": the share of values that differ (whole numbers, BOOL, labels);
- "close": |a - b| / (|a| + |b|), Euclidean norms over the whole tensor (floats);
- "cosine": 1 - cosine of the angle, a mean over rows, at most 1 (embeddings);
- "top_k": the order of the k largest of a row, as the mean over d = 1..k of how much of the d largest both share
  (average overlap: Fagin, Kumar, Sivakumar 2003); what lies within a thousandth of the row's span of the d-th is as
  good as it (scores, logits);
- "tokens": the share of positions with another token id;
- "text": edits by the longer text's length (BYTES).

"auto" takes what fits the datatype, shape and name; a way that does not fit an output gives way to "auto". A NaN on one
side only is a distance of 1. An output that only the candidate has is new and no difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import chain
from typing import NamedTuple

from inference.protocol.edits import text_distance
from inference.protocol.routes import Comparison
from inference.protocol.values import Buffer, Number, count_of, fits, numbers, texts

MOST_ELEMENTS = 65_536
MOST_BYTES = 256 << 10
MAX_DETAIL_CHARS = 200
LABEL_CHARS = 64
TIE = 1e-3
KINDS = ("auto", "exact", "close", "cosine", "top_k", "tokens", "text")
_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
_TOKENS = ("token", "input_ids", "output_ids")
_EMBEDDINGS = ("embedding", "embeddings", "sentence_embedding", "pooler_output")


class Output(NamedTuple):
    """One tensor of an answer, as it lies on the wire."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Buffer


@dataclass(frozen=True, slots=True)
class OutputCompared:
    """kind: the way it was compared; "missing" and "new" where only one side has it, "unlike" where the two cannot be
    compared. detail: in words, at most MAX_DETAIL_CHARS.
    """

    name: str
    kind: str
    distance: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Compared:
    """distance: the largest of the outputs'; is_drift: it is beyond the tolerance."""

    distance: float
    is_drift: bool
    outputs: list[OutputCompared] = field(default_factory=list)


class _Pair(NamedTuple):
    """Two tensors of numbers, as rows of `width`; partial: in words, what was not looked at; k: of "top_k"."""

    stable: list[Number]
    candidate: list[Number]
    width: int
    partial: str = ""
    k: int = 1


_Found = tuple[float, str]


def compare(
    stable: Sequence[Output],
    candidate: Sequence[Output],
    how: Comparison,
    *,
    most_elements: int = MOST_ELEMENTS,
    most_bytes: int = MOST_BYTES,
) -> Compared:
    """The candidate's answer against the stable version's. At most `most_elements` numbers and `most_bytes` of text of
    each side are looked at, in equal parts of each output; what is beyond is sampled, and that is said. Never raises.
    """
    theirs = {output.name: output for output in candidate}
    parts = max(1, len(stable))
    limits = _Limits(max(1, most_elements // parts), max(64, most_bytes // parts))
    found = []
    for output in stable:
        other = theirs.pop(output.name, None)
        if other is None:
            found.append(OutputCompared(output.name, "missing", 1.0, "the candidate does not give this output"))
        else:
            found.append(_compared(output, other, how, limits))
    found.extend(OutputCompared(name, "new", 0.0, "only the candidate gives this output") for name in theirs)
    distance = max((each.distance for each in found), default=0.0)
    return Compared(distance, distance > how.tolerance, found)


class _Limits(NamedTuple):
    elements: int
    bytes: int


def _compared(a: Output, b: Output, how: Comparison, limits: _Limits) -> OutputCompared:
    if not (fits(a.datatype, a.shape, a.data) and fits(b.datatype, b.shape, b.data)):
        return OutputCompared(a.name, "unlike", 1.0, "bytes and shape do not fit")
    if (a.datatype == "BYTES") != (b.datatype == "BYTES"):
        return OutputCompared(a.name, "unlike", 1.0, f"{a.datatype} against {b.datatype}")
    kind, (distance, detail) = (_strings if a.datatype == "BYTES" else _numeric)(a, b, how, limits)
    return OutputCompared(a.name, kind, min(1.0, max(0.0, distance)), detail[:MAX_DETAIL_CHARS])


# -- texts ---------------------------------------------------------------------------------------------------------


def _strings(a: Output, b: Output, how: Comparison, limits: _Limits) -> tuple[str, _Found]:
    if count_of(a.shape) != count_of(b.shape):
        return "text", (1.0, f"shape {_shape(a)} against {_shape(b)}")
    try:
        mine, whole = texts(a.data, count_of(a.shape), limits.bytes)
        theirs, also_whole = texts(b.data, count_of(b.shape), limits.bytes)
    except ValueError as error:
        return "unlike", (1.0, str(error))
    partial = "" if whole and also_whole else f"only the first {limits.bytes} bytes were compared"
    pairs = list(zip(mine, theirs, strict=False))
    if how.kind == "exact" or (how.kind == "auto" and all(_is_label(text) for pair in pairs for text in pair)):
        return "exact", _labels(pairs, partial)
    return "text", _edited(pairs, partial, limits)


def _is_label(text: str) -> bool:
    return len(text) <= LABEL_CHARS and len(text.split()) <= 1


def _labels(pairs: list[tuple[str, str]], partial: str) -> _Found:
    other = [index for index, (mine, theirs) in enumerate(pairs) if mine != theirs]
    if not other:
        return 0.0, partial
    mine, theirs = pairs[other[0]]
    return len(other) / len(pairs), _words(
        f"{len(other)} of {len(pairs)} differ, first {other[0]}: {_short(mine)} against {_short(theirs)}", partial
    )


def _edited(pairs: list[tuple[str, str]], partial: str, limits: _Limits) -> _Found:
    """A mean over the elements. What is aligned of each shrinks with their number, so that the work stays bounded."""
    aligned = max(64, min(4096, limits.bytes // 4) // max(1, len(pairs)))
    found = [text_distance(mine, theirs, aligned) for mine, theirs in pairs]
    if not any(distance for distance, _ in found):
        return 0.0, partial
    at = next(index for index, (distance, _) in enumerate(found) if distance)
    estimate = "an estimate" if any(is_estimate for _, is_estimate in found) else ""
    share = sum(distance for distance, _ in found) / len(found)
    mine, theirs = _from_difference(*pairs[at])
    return share, _words(f"{_short(mine)} against {_short(theirs)}", estimate, partial)


def _from_difference(a: str, b: str) -> tuple[str, str]:
    """Both texts from a little before they part."""
    parts = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, parts - 16)
    return a[start:], b[start:]


# -- numbers -------------------------------------------------------------------------------------------------------


def _numeric(a: Output, b: Output, how: Comparison, limits: _Limits) -> tuple[str, _Found]:
    are_whole = a.datatype not in _FLOATS and b.datatype not in _FLOATS
    if are_whole and (how.kind == "tokens" or (how.kind == "auto" and _has_name(a, _TOKENS))):
        return "tokens", _tokens(a, b, limits)
    kind = how.kind if how.kind in _NUMERIC else "exact" if are_whole else "close"
    if list(a.shape) != list(b.shape):
        return kind, (1.0, f"shape {_shape(a)} against {_shape(b)}")
    pair = _pair(a, b, limits)._replace(k=how.k)
    if not are_whole:
        broken = _broken(pair)
        if broken is not None:
            return kind, broken
        pair = _finite(pair)
        if how.kind not in _NUMERIC:
            kind = _float_kind(a, pair)
    if kind == "top_k" and pair.width < 2:
        kind = "close"
    return kind, _NUMERIC[kind](pair)


def _has_name(output: Output, words: tuple[str, ...]) -> bool:
    name = output.name.lower()
    return any(word in name for word in words)


def _float_kind(a: Output, pair: _Pair) -> str:
    if _has_name(a, _EMBEDDINGS) or (
        pair.width > 2 and _are_unit(pair.stable, pair) and _are_unit(pair.candidate, pair)
    ):
        return "cosine"
    return "top_k" if len(a.shape) == 2 and pair.width > 1 else "close"


def _are_unit(values: list[Number], pair: _Pair) -> bool:
    """Whether all rows have length 1 and some value is below 0: embeddings, not probabilities."""
    return min(values, default=0) < 0 and all(abs(math.hypot(*row) - 1) < 0.01 for row in _rows(values, pair.width))


def _pair(a: Output, b: Output, limits: _Limits) -> _Pair:
    """The same rows of both; where a tensor has too many, every so-manieth."""
    width = a.shape[-1] if a.shape else 1
    rows = count_of(a.shape) // width if width else 0
    if not rows:
        return _Pair([], [], 1)
    if width > limits.elements:
        step = -(-width // limits.elements)
        taken = slice(0, width, step)
        mine, theirs = (numbers(output.datatype, output.data, taken, 1) for output in (a, b))
        return _Pair(mine, theirs, len(mine), f"every {step}th value of the first row was compared")
    step = -(-rows // max(1, limits.elements // width))
    taken = slice(0, None, step)
    partial = f"every {step}th row was compared" if step > 1 else ""
    return _Pair(numbers(a.datatype, a.data, taken, width), numbers(b.datatype, b.data, taken, width), width, partial)


def _broken(pair: _Pair) -> _Found | None:
    """What NaN and infinity say: a distance of 1 where only one side has them, None where both or none has."""
    for index, (mine, theirs) in enumerate(zip(pair.stable, pair.candidate, strict=True)):
        if math.isfinite(mine) and math.isfinite(theirs):
            continue
        if mine != theirs and not (math.isnan(mine) and math.isnan(theirs)):
            return 1.0, f"value {index}: {mine:g} against {theirs:g}"
    return None


def _finite(pair: _Pair) -> _Pair:
    """Without what is NaN or infinite on both sides alike, as 0."""
    if all(map(math.isfinite, pair.stable)):
        return pair
    stable = [value if math.isfinite(value) else 0.0 for value in pair.stable]
    candidate = [value if math.isfinite(value) else 0.0 for value in pair.candidate]
    return pair._replace(stable=stable, candidate=candidate)


def _rows(values: list[Number], width: int) -> list[list[Number]]:
    return [values[at : at + width] for at in range(0, len(values), width)]


def _exact(pair: _Pair) -> _Found:
    if pair.stable == pair.candidate:
        return 0.0, pair.partial
    other = [at for at, (mine, theirs) in enumerate(zip(pair.stable, pair.candidate, strict=True)) if mine != theirs]
    first = f"first {other[0]}: {pair.stable[other[0]]:g} against {pair.candidate[other[0]]:g}"
    return len(other) / len(pair.stable), _words(f"{len(other)} of {len(pair.stable)} differ, {first}", pair.partial)


def _close(pair: _Pair) -> _Found:
    if pair.stable == pair.candidate:
        return 0.0, pair.partial
    mine, theirs = _scaled(pair.stable, pair.candidate)
    apart = math.dist(mine, theirs) / (math.hypot(*mine) + math.hypot(*theirs))
    gaps = [abs(x - y) for x, y in zip(mine, theirs, strict=True)]
    at = max(range(len(gaps)), key=gaps.__getitem__)
    widest = f"widest at {at}: {pair.stable[at]:.6g} against {pair.candidate[at]:.6g}"
    return apart, _words(f"relative difference {apart:.3g}, {widest}", pair.partial)


def _scaled(a: list[Number], b: list[Number]) -> tuple[list[float], list[float]]:
    """Both by the largest value there is, so that no square overflows or vanishes."""
    most = max(map(abs, chain(a, b))) or 1
    return [value / most for value in a], [value / most for value in b]


def _cosine(pair: _Pair) -> _Found:
    if pair.stable == pair.candidate:
        return 0.0, pair.partial
    found = [
        _angle(mine, theirs)
        for mine, theirs in zip(_rows(pair.stable, pair.width), _rows(pair.candidate, pair.width), strict=True)
    ]
    worst = max(range(len(found)), key=found.__getitem__)
    return sum(found) / len(found), _words(f"cosine {1 - found[worst]:.4f} in row {worst}", pair.partial)


def _angle(a: list[Number], b: list[Number]) -> float:
    """1 - cosine, 0..1. A row of zeros is as near to another one as can be, and to all else as far."""
    if a == b:
        return 0.0
    mine, theirs = _scaled(a, b)
    size, other = math.hypot(*mine), math.hypot(*theirs)
    if not size or not other:
        return 1.0
    dot = math.fsum(x / size * (y / other) for x, y in zip(mine, theirs, strict=True))
    return min(1.0, max(0.0, 1.0 - dot))


def _top_k(pair: _Pair) -> _Found:
    if pair.stable == pair.candidate:
        return 0.0, pair.partial
    k = max(1, min(pair.k, pair.width - 1))
    found = [
        _order(mine, theirs, k)
        for mine, theirs in zip(_rows(pair.stable, pair.width), _rows(pair.candidate, pair.width), strict=True)
    ]
    if not any(found):
        return 0.0, pair.partial
    worst = max(range(len(found)), key=found.__getitem__)
    begin = worst * pair.width
    mine, theirs = _best(pair.stable[begin : begin + pair.width]), _best(pair.candidate[begin : begin + pair.width])
    first = f"first {mine} against {theirs}" if mine != theirs else f"first {mine} in both"
    return sum(found) / len(found), _words(
        f"top-{k} overlap {1 - found[worst]:.3f} in row {worst}, {first}", pair.partial
    )


def _best(row: list[Number]) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _order(a: list[Number], b: list[Number], k: int) -> float:
    if a == b:
        return 0.0
    ours, theirs = nlargest(k, range(len(a)), key=a.__getitem__), nlargest(k, range(len(b)), key=b.__getitem__)
    near_a, near_b = TIE * max(a) - TIE * min(a), TIE * max(b) - TIE * min(b)
    shared = 0.0
    for depth in range(1, k + 1):
        least_a, least_b = a[ours[depth - 1]] - near_a, b[theirs[depth - 1]] - near_b
        hits = sum(b[index] >= least_b for index in ours[:depth]) + sum(a[index] >= least_a for index in theirs[:depth])
        shared += hits / (2 * depth)
    return 1.0 - shared / k


def _tokens(a: Output, b: Output, limits: _Limits) -> _Found:
    """Sequences may end at different places: what only one has is different."""
    lengths = [output.shape[-1] if output.shape else 1 for output in (a, b)]
    longest = max(lengths)
    rows = [count_of(output.shape) // length if length else 0 for output, length in zip((a, b), lengths, strict=True)]
    if not longest:
        return 0.0, ""
    if all(lengths) and rows[0] != rows[1]:
        return 1.0, f"shape {_shape(a)} against {_shape(b)}"
    seen_rows, seen = max(1, min(max(rows), limits.elements // longest)), min(longest, limits.elements)
    partial = f"only the first {seen_rows} of {max(rows)} rows and {seen} of {longest} tokens were compared"
    whole = seen_rows >= max(rows) and seen == longest
    same, prefix = 0, seen
    for row in range(min(seen_rows, max(rows))):
        mine, theirs = (
            numbers(output.datatype, output.data, slice(row * length, row * length + min(length, seen)), 1)
            for output, length in zip((a, b), lengths, strict=True)
        )
        equal = [x == y for x, y in zip(mine, theirs, strict=False)]
        same += sum(equal)
        prefix = min(prefix, next((at for at, is_same in enumerate(equal) if not is_same), len(equal)))
    total = min(seen_rows, max(rows)) * seen
    if not total or same == total:
        return 0.0, "" if whole else partial
    return 1 - same / total, _words(
        f"{same} of {total} tokens agree, the first {prefix} in every row", "" if whole else partial
    )


_NUMERIC: dict[str, Callable[[_Pair], _Found]] = {
    "exact": _exact, "close": _close, "cosine": _cosine, "top_k": _top_k,
}  # fmt: skip


# -- words ---------------------------------------------------------------------------------------------------------


def _words(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _shape(output: Output) -> str:
    return "x".join(map(str, output.shape)) or "scalar"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
