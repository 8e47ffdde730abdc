"""ONNX files, walked as protobuf without the onnx package: standard operators only, nothing outside of the file.

Source of the field numbers: onnx/onnx.proto. Graphs inside of attributes (If, Loop, Scan) and functions are walked too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from inference.artifacts import protobuf
from inference.artifacts.paths import shown
from inference.artifacts.protobuf import Broken, Value, number, text, view
from inference.artifacts.window import Data, opened
from inference.errors import Rejected
from inference.protocol.oip import MAX_RANK, MAX_TENSORS, Signature, TensorSpec

MAX_BYTES = 2 << 30
MAX_NODES = 1_000_000
MAX_DEPTH = 16
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
# Operators of com.microsoft that load code or files are not standard and not allowed, whatever their domain is.
REFUSED_OPERATORS = {"PyOp", "ExternalLibrary", "TensorRTEngine", "EPContext", "OpenVINOModel"}
DEFAULT_BATCH = 64
DATATYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip
REMEDY = "Export the model again with torch.onnx.export (or your framework's exporter) and upload the new file."


@dataclass(frozen=True, slots=True)
class Graph:
    """What the file says of itself. symbols: name of the first dimension of each input and output, "" when fixed."""

    signature: Signature
    nodes: int
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Walk:
    nodes: int = 0
    initializers: set[str] = field(default_factory=set)
    inputs: list[tuple[TensorSpec, str]] = field(default_factory=list)
    outputs: list[tuple[TensorSpec, str]] = field(default_factory=list)
    local_domains: set[str] = field(default_factory=set)


def looks_like(path: Path) -> bool:
    """Whether the file is a protobuf message with an IR version, a graph and operator sets, as a ModelProto has."""
    if path.stat().st_size > MAX_BYTES:
        return False
    with opened(path) as data:
        return _is_model(data)


def _is_model(data: Data) -> bool:
    seen: dict[int, bool] = {}
    try:
        for index, (name, value) in enumerate(protobuf.fields(data)):
            seen[name] = isinstance(value, int)
            if index > 100_000 or name > 1000:
                return False
    except Broken:
        # A file that is cut short still begins like one: the version first, then names or the graph.
        return seen.get(1) is True and bool(seen.keys() & {2, 3, 7}) and seen.keys() <= set(range(1, 27))
    return seen.get(1) is True and seen.get(7) is False and seen.get(8, False) is False


def read(path: Path) -> Graph:
    """Walks the whole file. Raises Rejected for foreign operators, external data, damage and impossible signatures."""
    if path.stat().st_size > MAX_BYTES:
        _refuse("the ONNX file is larger than 2 GiB", "Quantise the model, or export it with torch.export.")
    walk = _Walk()
    try:
        with opened(path) as data:
            _model(data, walk)
    except (Broken, IndexError):
        _refuse("the ONNX file is damaged or cut short", REMEDY)
    return Graph(_signature(walk), walk.nodes)


def _model(data: Data, walk: _Walk) -> None:
    has_graph = False
    for name, value in protobuf.fields(data):
        if name == 7:
            has_graph = True
            _graph(view(value), walk, 0)
        elif name == 8:
            _opset(view(value))
        elif name == 25:
            _function(view(value), walk)
    if not has_graph:
        _refuse("the ONNX file holds no graph", REMEDY)


def _opset(data: Data) -> None:
    for name, value in protobuf.fields(data):
        if name == 1:
            _check_domain(text(value))


def _check_domain(domain: str) -> None:
    if domain not in DOMAINS and not domain.startswith("pkg.onnxscript.") and domain not in {"pkg.torch", "pkg.onnx"}:
        _refuse(
            f"the model uses operators of the domain {shown(domain)}, which are not built in",
            "Use standard ONNX operators (domains ai.onnx, ai.onnx.ml, com.microsoft).",
        )


def _graph(data: Data, walk: _Walk, depth: int) -> None:
    if depth > MAX_DEPTH:
        _refuse("the ONNX graph is nested too deep", REMEDY)
    for name, value in protobuf.fields(data):
        if name == 1:
            _node(view(value), walk, depth)
        elif name == 5:
            initializer = _tensor(view(value))
            if depth == 0:
                walk.initializers.add(initializer)
        elif name == 15:
            for part, inner in protobuf.fields(view(value)):
                if part in {1, 2}:
                    _tensor(view(inner))
        elif name in {11, 12} and depth == 0:
            (walk.inputs if name == 11 else walk.outputs).append(_value_info(view(value)))


def _function(data: Data, walk: _Walk) -> None:
    for name, value in protobuf.fields(data):
        if name == 7:
            _node(view(value), walk, 1)
        elif name == 9:
            _opset(view(value))
        elif name == 11:
            _attribute(view(value), walk, 1)


def _node(data: Data, walk: _Walk, depth: int) -> None:
    walk.nodes += 1
    if walk.nodes > MAX_NODES:
        _refuse(f"the ONNX graph has more than {MAX_NODES} nodes", REMEDY)
    operator = ""
    for name, value in protobuf.fields(data):
        if name == 4:
            operator = text(value)
        elif name == 7:
            _check_domain(text(value))
        elif name == 5:
            _attribute(view(value), walk, depth)
    if operator in REFUSED_OPERATORS:
        _refuse(f"the operator {shown(operator)} is not allowed", "Use standard ONNX operators.")


def _attribute(data: Data, walk: _Walk, depth: int) -> None:
    for name, value in protobuf.fields(data):
        if name in {5, 10}:
            _tensor(view(value))
        elif name in {6, 11}:
            _graph(view(value), walk, depth + 1)
        elif name in {22, 23}:
            for part, inner in protobuf.fields(view(value)):
                if part in {1, 2}:
                    _tensor(view(inner))


def _tensor(data: Data) -> str:
    found = ""
    for name, value in protobuf.fields(data):
        if name == 8:
            found = text(value)
        elif name == 13 or (name == 14 and value == 1):
            _refuse(
                "the model keeps its weights in another file (external data)",
                "Save it as one file: onnx.save_model(model, path, save_as_external_data=False).",
            )
    return found


def _value_info(data: Data) -> tuple[TensorSpec, str]:
    label, datatype, first = "", "", ""
    shape: list[int] = []
    for name, value in protobuf.fields(data):
        if name == 1:
            label = text(value)
        elif name == 2:
            datatype, shape, first = _type(label, view(value))
    if not datatype:
        _refuse(f"the type of {shown(label)} is not written in the file", REMEDY)
    return TensorSpec(label, datatype, shape), first


def _type(label: str, data: Data) -> tuple[str, list[int], str]:
    for name, value in protobuf.fields(data):
        if name != 1:
            _refuse(
                f"{shown(label)} is no tensor but a sequence, a map or an optional",
                "Let the model take and give tensors (for scikit-learn: options={'zipmap': False}).",
            )
        datatype, first = "", ""
        shape: list[int] | None = None
        for part, inner in protobuf.fields(view(value)):
            if part == 1:
                datatype = DATATYPES.get(number(inner), "")
            elif part == 2:
                shape, first = _shape(view(inner))
        if not datatype:
            _refuse(f"{shown(label)} has a datatype that the inference protocol cannot carry", "Cast it in the model.")
        if shape is None:
            _refuse(f"the rank of {shown(label)} is not known", "Export the model with shapes written into it.")
        return datatype, shape, first
    raise Broken


def _shape(data: Data) -> tuple[list[int], str]:
    shape: list[int] = []
    names: list[str] = []
    for name, value in protobuf.fields(data):
        if name != 1:
            continue
        size, symbol = -1, f"?{len(shape)}"
        for part, inner in _dimension(view(value)):
            if part == 1:
                size, symbol = number(inner), ""
            elif part == 2:
                symbol = text(inner)
        shape.append(size if size >= 0 and not symbol else -1)
        names.append(symbol)
        if len(shape) > MAX_RANK:
            _refuse(f"the model has a tensor of more than {MAX_RANK} dimensions", REMEDY)
    return shape, names[0] if names else ""


def _dimension(data: Data) -> Iterator[tuple[int, Value]]:
    return protobuf.fields(data)


def _signature(walk: _Walk) -> Signature:
    inputs = [item for item in walk.inputs if item[0].name not in walk.initializers]
    if not inputs or not walk.outputs:
        _refuse("the model takes or gives nothing", REMEDY)
    if len(inputs) > MAX_TENSORS or len(walk.outputs) > MAX_TENSORS:
        _refuse(f"the model has more than {MAX_TENSORS} inputs or outputs", REMEDY)
    specs = [spec for spec, _ in inputs], [spec for spec, _ in walk.outputs]
    for listed in specs:
        names = [spec.name for spec in listed]
        if len(set(names)) != len(names) or not all(names):
            _refuse("two inputs or outputs of the model have the same name, or none", REMEDY)
    batched = all(spec.shape and spec.shape[0] == -1 for listed in specs for spec in listed)
    return Signature(
        inputs=specs[0],
        outputs=specs[1],
        max_batch_size=DEFAULT_BATCH if batched else 0,
        platform="onnxruntime_onnx",
    )


def _refuse(reason: str, remedy: str) -> NoReturn:
    raise Rejected(reason, remedy=remedy, check="program")
