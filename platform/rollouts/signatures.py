"""May a candidate stand in for the stable version? Pure: compares what the two take and give, as their clients see it.

Law: whoever calls the stable version knows only its signature, so every request that is valid there must be valid at the
candidate, and what comes back must be what the client was promised. So inputs may widen and outputs may narrow: a fixed
dimension of an input may become -1, a free dimension of an output may become a number; the other way round breaks.
Every input must be given in each request: a new one breaks, too. Dimensions are counted from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from inference.protocol import generation
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.settings import RuntimeSettings
from inference.protocol.signatures import public_signature

Kind = Literal["compatible", "additive", "breaking"]
_ORDER: tuple[Kind, ...] = ("compatible", "additive", "breaking")
_Finding = tuple[Kind, str]
_OfShape = Callable[[str, Sequence[int], Sequence[int]], Iterator[_Finding]]
NO_ROWS = "the candidate takes the first dimension of each input for rows, all the same and up to"


@dataclass(frozen=True, slots=True)
class Compatibility:
    """kind: the gravest of the differences; differences: each in words, the gravest first."""

    kind: Kind
    differences: tuple[str, ...] = ()

    @property
    def is_breaking(self) -> bool:
        return self.kind == "breaking"


def compare_signatures(stable: Signature, candidate: Signature) -> Compatibility:
    """Both as clients see them (inference.protocol.signatures.public_signature).

    compatible: every request for `stable` is valid for `candidate`, and its outputs are what was promised. additive:
    the same, and more outputs or labels come back. breaking: anything else.
    """
    return _weighed([
        *_kind_of_model(stable, candidate),
        *_inputs(stable.inputs, candidate.inputs),
        *_rows(stable, candidate),
        *_outputs(stable.outputs, candidate.outputs),
        *_labels(stable.labels, candidate.labels),
    ])  # fmt: skip


def compare_versions(
    stable: Signature, stable_settings: RuntimeSettings, candidate: Signature, candidate_settings: RuntimeSettings
) -> Compatibility:
    """As compare_signatures, for signatures as they are stored, and with what their settings mean to a client:
    sequences, streamed answers, and the length of a language model's context where both set one.
    """
    public = compare_signatures(
        public_signature(stable, stable_settings), public_signature(candidate, candidate_settings)
    )
    held: list[_Finding] = [(public.kind, words) for words in public.differences]
    return _weighed([*held, *_ways(stable_settings, candidate_settings)])


def _weighed(found: Sequence[_Finding]) -> Compatibility:
    gravest = sorted(found, key=lambda one: -_ORDER.index(one[0]))
    return Compatibility(gravest[0][0] if gravest else "compatible", tuple(words for _, words in gravest))


def _kind_of_model(stable: Signature, candidate: Signature) -> Iterator[_Finding]:
    speaks, will_speak = stable.platform == generation.PLATFORM, candidate.platform == generation.PLATFORM
    if speaks and not will_speak:
        yield "breaking", "the stable version is a language model and the candidate is not: chats would end"
    elif will_speak and not speaks:
        yield "breaking", "the candidate is a language model and the stable version is not"


def _ways(stable: RuntimeSettings, candidate: RuntimeSettings) -> Iterator[_Finding]:
    if (stable.sequence is None) != (candidate.sequence is None):
        has = "stable version" if stable.sequence else "candidate"
        yield "breaking", f"only the {has} keeps state over the requests of a sequence"
    if stable.decoupled != candidate.decoupled:
        streams = "stable version" if stable.decoupled else "candidate"
        yield "breaking", f"only the {streams} answers one request by a stream"
    held, will_hold = (one.generation.max_model_len if one.generation else 0 for one in (stable, candidate))
    if held and will_hold and will_hold < held:
        yield "breaking", f"its context: {held} tokens became {will_hold}, so longer requests would be refused"


def _inputs(stable: Sequence[TensorSpec], candidate: Sequence[TensorSpec]) -> Iterator[_Finding]:
    yield from _kept("input", stable, candidate, _input_shape, gone=": requests that give it would be refused")
    known = {spec.name: spec.optional for spec in stable}
    for name in sorted(spec.name for spec in candidate if known.get(spec.name, True) and not spec.optional):
        if name in known:
            yield "breaking", f"input '{name}' may no longer be left out"
            continue
        yield "breaking", f"input '{name}' is new: requests of today do not give it"


def _kept(
    what: str, stable: Sequence[TensorSpec], candidate: Sequence[TensorSpec], shape: _OfShape, *, gone: str = ""
) -> Iterator[_Finding]:
    """What became of the stable version's tensors of one side. gone: what that means for clients."""
    after = {spec.name: spec for spec in candidate}
    for spec in stable:
        if spec.name not in after:
            yield "breaking", f"{what} '{spec.name}' is gone{gone}"
            continue
        new = after[spec.name]
        if spec.datatype != new.datatype:
            yield "breaking", f"{what} '{spec.name}': datatype {spec.datatype} became {new.datatype}"
        yield from shape(spec.name, spec.shape, new.shape)


def _input_shape(name: str, before: Sequence[int], after: Sequence[int]) -> Iterator[_Finding]:
    # A request's trailing dimensions of 1 are dropped where the model has fewer.
    if len(after) > len(before) or any(size != 1 for size in before[len(after) :]):
        yield "breaking", f"input '{name}': shape {_shown(before)} became {_shown(after)}, another number of dimensions"
        return
    for at, (old, new) in enumerate(zip(before, after, strict=False), 1):
        if old == new:
            continue
        if new == -1:
            yield "compatible", f"input '{name}', dimension {at}: {old} became -1, which takes any size"
        elif old == -1:
            yield "breaking", f"input '{name}', dimension {at}: any size became {new} only"
        else:
            yield "breaking", f"input '{name}', dimension {at}: {old} became {new}; -1 would take both"


def _rows(stable: Signature, candidate: Signature) -> Iterator[_Finding]:
    """Whether the candidate takes as many rows in a request."""
    most, held = candidate.max_batch_size, stable.max_batch_size
    if not most:
        return
    before = {spec.name: spec.shape for spec in stable.inputs}
    for spec in candidate.inputs:
        if not spec.shape and before.get(spec.name):
            yield "breaking", f"input '{spec.name}' has no first dimension any more, where the rows of a request stand"
    if held > most:
        yield "breaking", f"rows of a request: up to {held} became up to {most}"
    elif not held:
        firsts = {spec.shape[0] if spec.shape else 0 for spec in stable.inputs}
        if len(firsts) != 1 or not 1 <= firsts.pop() <= most:
            yield "breaking", f"{NO_ROWS} {most}; the stable version has no such rule"


def _outputs(stable: Sequence[TensorSpec], candidate: Sequence[TensorSpec]) -> Iterator[_Finding]:
    yield from _kept("output", stable, candidate, _output_shape)
    for name in sorted({spec.name for spec in candidate} - {spec.name for spec in stable}):
        yield "additive", f"output '{name}' is new"


def _output_shape(name: str, before: Sequence[int], after: Sequence[int]) -> Iterator[_Finding]:
    if len(before) != len(after):
        yield (
            "breaking",
            f"output '{name}': shape {_shown(before)} became {_shown(after)}, another number of dimensions",
        )
        return
    for at, (old, new) in enumerate(zip(before, after, strict=True), 1):
        if old == new:
            continue
        if old == -1:
            yield "compatible", f"output '{name}', dimension {at}: any size became always {new}"
        elif new == -1:
            yield "breaking", f"output '{name}', dimension {at}: always {old} became any size"
        else:
            yield "breaking", f"output '{name}', dimension {at}: {old} became {new}"


def _labels(before: Sequence[str], after: Sequence[str]) -> Iterator[_Finding]:
    """Class n must go on meaning what it meant; a version without labels promised nothing."""
    for index, (old, new) in enumerate(zip_longest(before, after)):
        if old is None:
            yield "additive", f"{len(after) - len(before)} labels are new"
            return
        if new is None:
            yield "breaking", f"class {index} has no label any more; it was '{old}'"
            return
        if old != new:
            yield "breaking", f"class {index}: label '{old}' became '{new}'"
            return


def _shown(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
