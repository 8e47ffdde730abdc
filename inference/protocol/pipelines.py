"""pipeline.json: a version that is a directed graph of other versions, with named tensors.

Tensors of the graph are its inputs and what steps make, each made once. Shapes hold the batch dimension, as everywhere
here. A definition that leaves a version or the batch size open is pinned when the version is created; what is stored
and served says all of them.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from inference.protocol.oip import MAX_TENSORS, TensorSpec

ENTRY = "pipeline.json"
FORMAT = "pipeline"
PLATFORM = "ensemble"
NEWEST = -1
MAX_STEPS = 64
MAX_BYTES = 1 << 20

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
TensorMap = Annotated[dict[Name, Name], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]


class PipelineTensor(TensorSpec, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An input or output of the whole graph. labels: names of an output's classes, in order."""

    labels: list[str] = msgspec.field(default_factory=list)


class PipelineStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One version in the graph. Named by `version` or by `alias`; -1 without an alias is the model's newest ready one.

    input_map: the step's input -> the graph's tensor; output_map: the step's output -> the graph's tensor. Outputs
    that are not named are not asked for. max_inflight: requests that one gateway may have at this step at once, more
    are refused as overloaded; 0 leaves it to the queues of the replicas.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
    model: Name
    input_map: TensorMap
    output_map: TensorMap
    version: Annotated[int, msgspec.Meta(ge=NEWEST, le=2**31 - 1)] = NEWEST
    alias: Annotated[str, msgspec.Meta(max_length=64)] = ""
    max_inflight: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 0


class Pipeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The graph. max_batch_size: 0 where the first dimension is no batch dimension; None for what all steps can take."""

    inputs: Annotated[list[PipelineTensor], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[list[PipelineTensor], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    steps: Annotated[list[PipelineStep], msgspec.Meta(min_length=1, max_length=MAX_STEPS)]
    max_batch_size: Annotated[int, msgspec.Meta(ge=0, le=4096)] | None = None


def decode(data: bytes) -> Pipeline:
    """Raises msgspec.ValidationError or msgspec.DecodeError, naming what is wrong and where."""
    return msgspec.json.decode(data, type=Pipeline)


def encode(pipeline: Pipeline) -> bytes:
    """One byte form, so that equal graphs have equal digests."""
    return msgspec.json.format(msgspec.json.encode(pipeline, order="deterministic"), indent=1)
