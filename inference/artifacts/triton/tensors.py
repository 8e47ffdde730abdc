"""Inputs, outputs, warm-up samples and the model's own shapes (reshape) of a ModelConfig, as we write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from inference.artifacts.triton.refusals import refuse
from inference.protocol.oip import MAX_TENSORS, TensorSpec
from inference.protocol.settings import WarmupSample

WARMUP_FOLDER = "warmup"


def datatype(value: int, owner: Any, path: str) -> str:
    """The protocol's name: FP32 for TYPE_FP32. Raises Rejected where none is given."""
    name: str = owner.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[value].name
    if name == "TYPE_INVALID":
        raise refuse(f"{path}.data_type", "it must be set")
    return "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")


def specs(tensors: Sequence[Any], path: str, batched: bool) -> list[TensorSpec]:
    """The tensors as clients see them; the batch dimension, which config.pbtxt leaves out, is first."""
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names) or not all(names) or len(names) > MAX_TENSORS:
        raise refuse(f"{path}.name", f"each tensor has a name of its own, and there are at most {MAX_TENSORS}")
    for tensor in tensors:
        if not tensor.dims:
            raise refuse(f"{path}.dims", f"'{tensor.name}' must have at least one dimension")
    return [
        TensorSpec(
            t.name,
            datatype(t.data_type, t, path),
            shape(t.dims, f"{path}.dims", batched=batched),
            getattr(t, "optional", False),
        )
        for t in tensors
    ]


def shape(dims: Iterable[int], path: str, *, batched: bool) -> list[int]:
    """Raises Rejected for a dimension that is none."""
    found = list(dims)
    if any(size == 0 or size < -1 for size in found):
        raise refuse(path, f"{found} must hold positive sizes, or -1 for a free one")
    return [-1, *found] if batched else found


def reshapes(tensors: Sequence[Any], path: str) -> dict[str, list[int]]:
    """Tensor -> the shape that the model itself has, without the batch dimension, where clients see another one."""
    found: dict[str, list[int]] = {}
    for tensor in tensors:
        if not tensor.HasField("reshape"):
            continue
        inner = list(tensor.reshape.shape)
        if _count(inner) != _count(tensor.dims):
            raise refuse(f"{path}.reshape", f"'{tensor.name}': {list(tensor.dims)} and {inner} differ in elements")
        found[tensor.name] = inner
    return found


def _count(dims: Iterable[int]) -> tuple[int, int]:
    known, free = 1, 0
    for size in dims:
        if size == -1:
            free += 1
        else:
            known *= size
    return known, free


def warmup(samples: Sequence[Any], *, batched: bool) -> list[WarmupSample]:
    """The author's warm-up requests; a file lies in the model's folder `warmup`."""
    return [
        WarmupSample(
            name=sample.name,
            batch_size=max(1, sample.batch_size),
            count=sample.count or 1,
            inputs=[
                TensorSpec(
                    name,
                    datatype(one.data_type, one, "model_warmup.inputs"),
                    shape(one.dims, "model_warmup.inputs.dims", batched=batched),
                )
                for name, one in sorted(sample.inputs.items())
            ],
            data={name: _data(name, one) for name, one in sorted(sample.inputs.items())},
        )
        for sample in samples
    ]


def _data(name: str, one: Any) -> str:
    kind = one.WhichOneof("input_data_type")
    if kind == "zero_data":
        return "zero"
    if kind == "random_data":
        return "random"
    if kind == "input_data_file":
        return f"{WARMUP_FOLDER}/{one.input_data_file}"
    raise refuse("model_warmup.inputs", f"'{name}' says neither zero_data, random_data nor input_data_file")
