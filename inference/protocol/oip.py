"""Open Inference Protocol v2: datatypes, tensor specifications and signatures, shared by every room.

Source: KServe's Open Inference Protocol, as Triton answers it. Tensors travel as (name, datatype, shape, bytes);
bytes are little-endian and row-major; a BYTES element is a u32 length and the bytes.
"""

from __future__ import annotations

import msgspec

# datatype -> (bytes per element, numpy name). BYTES has no fixed size; BF16 has no numpy type of its own.
DATATYPES: dict[str, tuple[int, str | None]] = {
    "BOOL": (1, "bool"),
    "UINT8": (1, "uint8"),
    "UINT16": (2, "uint16"),
    "UINT32": (4, "uint32"),
    "UINT64": (8, "uint64"),
    "INT8": (1, "int8"),
    "INT16": (2, "int16"),
    "INT32": (4, "int32"),
    "INT64": (8, "int64"),
    "FP16": (2, "float16"),
    "BF16": (2, None),
    "FP32": (4, "float32"),
    "FP64": (8, "float64"),
    "BYTES": (0, None),
}
MAX_RANK = 16
MAX_TENSORS = 64


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One input or output of a model: -1 in `shape` is a free dimension; the batch dimension, if any, is first.

    optional: an input that a request may leave out; only for models whose own code looks for it (Python).
    """

    name: str
    datatype: str
    shape: list[int]
    optional: bool = False


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a version takes and gives.

    max_batch_size: 0 when the first dimension is no batch dimension, so requests are never merged.
    buckets: batch sizes that the program is compiled for, ascending; empty when any size runs as it is.
             A single entry is a program with a fixed batch: smaller batches are padded to it.
    platforms: devices that the program may run on ("cpu", "cuda", "tpu"); empty when any.
    platform: the name that the metadata call answers ("torch_export", "jax_export", "onnxruntime_onnx", ...).
    """

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    max_batch_size: int = 0
    buckets: list[int] = msgspec.field(default_factory=list)
    platforms: list[str] = msgspec.field(default_factory=list)
    platform: str = ""
    labels: list[str] = msgspec.field(default_factory=list)
