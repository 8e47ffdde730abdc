"""Golden inputs: requests whose right answers are known, saved with the model. Called through registry.actions.

Bounded: MAX_GOLDEN of a model, MAX_BYTES each. What is saved was read whole: a tensor has as many values as its shape
says and each is of its datatype, so that a comparison never fails on what lies here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import msgspec
from django.db import transaction

from accounts.audit import record
from accounts.names import check_slug, is_storable
from accounts.permissions import Actor, Verb
from inference.errors import Conflict, InvalidInput, NotFound, TooLarge
from inference.protocol import generation
from inference.protocol.compare import KINDS
from inference.protocol.oip import DATATYPES, MAX_RANK, MAX_TENSORS, Signature, TensorSpec
from inference.protocol.routes import Comparison
from inference.protocol.settings import RuntimeSettings
from inference.protocol.signatures import public_signature
from registry.models import GoldenInput, Model, Version, VersionStatus
from registry.rights import require_seen

MAX_GOLDEN = 50
MAX_BYTES = 256 << 10
MAX_PARAMETERS = 32
MAX_K = 1000
PROMPT_TOKENS = 64
AUTO = Comparison()
Tensor = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Golden:
    """What is to be saved. name: "" for the first free "golden-N"; source_version: 0 when a person wrote the answer."""

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    comparison: Comparison = AUTO
    source_version: int = 0


def golden_prompt(prompt: str, expected: str, *, max_tokens: int = PROMPT_TOKENS, **more: Any) -> Golden:
    """A prompt to a language model and the text that it answers greedily, as tensors of its Open Inference door."""
    return Golden(
        inputs=[{"name": generation.TEXT_INPUT, "datatype": "BYTES", "shape": [1], "data": [prompt]}],
        outputs=[{"name": generation.TEXT_OUTPUT, "datatype": "BYTES", "shape": [1], "data": [expected]}],
        parameters={"temperature": 0.0, "max_tokens": max_tokens},
        **more,
    )


@transaction.atomic
def save_golden(*, actor: Actor, model: Model, golden: Golden) -> GoldenInput:
    """Saves one. Raises InvalidInput for what is no request or no answer, or is none of the model's newest ready
    version (or of `source_version`); TooLarge beyond MAX_BYTES; Conflict when the name is taken or MAX_GOLDEN are there.
    """
    require_seen(actor, Verb.UPLOAD, model)
    inputs, outputs = read_tensors("input", golden.inputs), read_tensors("output", golden.outputs)
    parameters = _read_parameters(golden.parameters)
    _check_comparison(golden.comparison)
    _check_size(inputs, outputs, parameters)
    Model.objects.select_for_update().get(pk=model.pk)
    _check_fit(model, golden.source_version, inputs, outputs)
    row = GoldenInput.objects.create(
        model=model,
        name=_free_name(model, golden.name),
        inputs=inputs,
        parameters=parameters,
        outputs=outputs,
        comparison=golden.comparison.kind,
        tolerance=golden.comparison.tolerance,
        k=golden.comparison.k,
        source_version=golden.source_version or None,
        created_by=actor.name,
    )
    after = {"name": row.name, "source_version": row.source_version, "comparison": row.comparison}
    record(actor, "save_golden_input", "model", model.name, team=model.team, after=after)
    return row


@transaction.atomic
def remove_golden(*, actor: Actor, model: Model, identity: int) -> None:
    """Raises NotFound when the model has no such golden input."""
    require_seen(actor, Verb.UPLOAD, model)
    row = GoldenInput.objects.select_for_update().filter(model=model, pk=identity).first()
    if row is None:
        raise NotFound(f"{model.name} has no golden input {identity}")
    before = {"name": row.name, "source_version": row.source_version, "comparison": row.comparison}
    row.delete()
    record(actor, "remove_golden_input", "model", model.name, team=model.team, before=before)


def read_tensors(kind: str, given: Sequence[Any]) -> list[Tensor]:
    """The tensors with nothing but name, datatype, shape and flat data. Raises InvalidInput saying what is wrong."""
    if not isinstance(given, list | tuple) or not 1 <= len(given) <= MAX_TENSORS:
        raise InvalidInput(f"a golden input has 1 to {MAX_TENSORS} {kind} tensors: {{name, datatype, shape, data}}")
    found = [_read_tensor(kind, one) for one in given]
    if len({one["name"] for one in found}) != len(found):
        raise InvalidInput(f"an {kind} is given twice")
    return found


def _read_tensor(kind: str, given: Any) -> Tensor:
    if not isinstance(given, Mapping):
        raise InvalidInput(f"an {kind} is an object with name, datatype, shape and data")
    name, datatype, shape, data = (given.get(key) for key in ("name", "datatype", "shape", "data"))
    if not isinstance(name, str) or not 0 < len(name) <= 256:
        raise InvalidInput(f"an {kind} needs a name")
    if datatype not in DATATYPES:
        raise InvalidInput(f"{kind} '{name}': '{str(datatype)[:32]}' is no datatype; there are {', '.join(DATATYPES)}")
    if not isinstance(shape, list | tuple) or not _is_shape(shape):
        raise InvalidInput(f"{kind} '{name}': the shape is a list of up to {MAX_RANK} whole numbers from 0")
    values = _flat(kind, name, data)
    if len(values) != prod(shape):
        raise InvalidInput(f"{kind} '{name}': {len(values)} values do not fill the shape {shape}")
    if not all(_is_value(datatype, value) for value in values):
        raise InvalidInput(f"{kind} '{name}': a value is no {datatype} (null stands for NaN, which is no right answer)")
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": values}


def _is_shape(shape: Sequence[Any]) -> bool:
    return len(shape) <= MAX_RANK and all(
        isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**31 for size in shape
    )


def _flat(kind: str, name: str, data: Any) -> list[Any]:
    """`data` without its nesting, of at most MAX_BYTES values (each takes a byte or more)."""
    if not isinstance(data, list):
        raise InvalidInput(f"{kind} '{name}': the data is a list")
    values: list[Any] = data
    for _ in range(MAX_RANK):
        if not any(isinstance(value, list) for value in values):
            break
        values = [one for value in values for one in (value if isinstance(value, list) else [value])]
        if len(values) > MAX_BYTES:
            raise TooLarge(f"a golden input has at most {MAX_BYTES} bytes")
    return values


def _is_value(datatype: str, value: Any) -> bool:
    if datatype == "BYTES":
        return isinstance(value, str) and is_storable(value)
    if datatype == "BOOL":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if datatype[:2] in {"FP", "BF"}:
        return abs(value) < 1e308 and math.isfinite(value)
    bits = 8 * DATATYPES[datatype][0]
    low, high = (0, 2**bits) if datatype[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return float(value).is_integer() and low <= value < high


def _read_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    plain = isinstance(given, Mapping) and all(
        isinstance(key, str) and is_storable(key) and isinstance(value, str | bool | int | float)
        for key, value in given.items()
    )
    if (
        not plain
        or len(given) > MAX_PARAMETERS
        or not is_storable("".join(v for v in given.values() if isinstance(v, str)))
    ):
        raise InvalidInput(f"parameters are up to {MAX_PARAMETERS} names with a text, number or truth value each")
    return dict(given)


def _check_comparison(comparison: Comparison) -> None:
    if comparison.kind not in KINDS:
        raise InvalidInput(f"'{comparison.kind[:32]}' is no way to compare; there are {', '.join(KINDS)}")
    if not 0 <= comparison.tolerance <= 1:
        raise InvalidInput("the tolerance is a distance from 0 (the same) to 1 (nothing in common)")
    if not 1 <= comparison.k <= MAX_K:
        raise InvalidInput(f"k is from 1 to {MAX_K}")


def _check_size(*parts: Any) -> None:
    size = len(json.dumps(parts, ensure_ascii=False).encode())
    if size > MAX_BYTES:
        raise TooLarge(f"a golden input has at most {MAX_BYTES} bytes as JSON, this has {size}")


def _check_fit(model: Model, number: int, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """Against the version that answered, else the newest that is ready; a model without one is not checked."""
    ready = Version.objects.filter(model=model, status__in=[VersionStatus.READY, VersionStatus.ARCHIVED])
    version = (ready.filter(number=number) if number else ready.order_by("-number")).first()
    if number and version is None:
        raise InvalidInput(f"{model.name} has no ready version {number}")
    if version is None or not version.signature:
        return
    settings = msgspec.convert(version.settings, RuntimeSettings)
    signature = public_signature(msgspec.convert(version.signature, Signature), settings)
    _check_names("input", version, inputs, signature.inputs, whole=True)
    _check_names("output", version, outputs, signature.outputs, whole=False)


def _check_names(kind: str, version: Version, given: list[Tensor], specs: list[TensorSpec], *, whole: bool) -> None:
    known = {spec.name: spec.datatype for spec in specs}
    for one in given:
        if one["name"] not in known:
            raise InvalidInput(f"{version} has no {kind} '{one['name']}': it has {', '.join(known)}")
        if one["datatype"] != known[one["name"]]:
            raise InvalidInput(f"{kind} '{one['name']}' of {version} is {known[one['name']]}, not {one['datatype']}")
    if whole and (missing := known.keys() - {one["name"] for one in given}):
        raise InvalidInput(f"{version} needs its {kind} '{min(missing)}' in each request, too")


def _free_name(model: Model, name: str) -> str:
    """`name`, or the first free one; the model is locked. Raises Conflict."""
    taken = set(GoldenInput.objects.filter(model=model).values_list("name", flat=True))
    if len(taken) >= MAX_GOLDEN:
        raise Conflict(f"{model.name} has {MAX_GOLDEN} golden inputs, which is the most: remove one first")
    if not name:
        return next(free for n in range(1, MAX_GOLDEN + 2) if (free := f"golden-{n}") not in taken)
    check_slug("golden input", name)
    if name in taken:
        raise Conflict(f"{model.name} has a golden input '{name}' already: remove it first, or choose another name")
    return name
