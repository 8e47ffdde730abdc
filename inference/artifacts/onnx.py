"""ONNX files, walked as protobuf without the onnx package: standard operators only, nothing outside of the folder.

Source of the field numbers: onnx/onnx.proto. Graphs inside of attributes (If, Loop, Scan) and functions are walked too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from inference.artifacts import protobuf
from inference.artifacts.paths import member_path, shown
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
MAX_OUTSIDE = 10_000
ONE_FILE = (
    "Put that file beside the model, or save it as one file: onnx.save_model(model, path, save_as_external_data=False)."
)
REMEDY = "Export the model again with torch.onnx.export (or your framework's exporter) and upload the new file."


@dataclass(frozen=True, slots=True)
class Graph:
    """What the file says of itself. outside: files with weights (external data), by their paths from the model's folder."""

    signature: Signature
    nodes: int
    outside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Walk:
    nodes: int = 0
    initializers: set[str] = field(default_factory=set)
    inputs: list[tuple[TensorSpec, str]] = field(default_factory=list)
    outputs: list[tuple[TensorSpec, str]] = field(default_factory=list)
    local_domains: set[str] = field(default_factory=set)
    outside: dict[str, int] = field(default_factory=dict)  # path -> bytes that must be there


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
    """Walks the whole file. Raises Rejected for foreign operators, damage, impossible signatures, and external data that
    lies elsewhere than below the file's folder, is missing or too short.
    """
    if path.stat().st_size > MAX_BYTES:
        _refuse("the ONNX file is larger than 2 GiB", "Quantise the model, or export it with torch.export.")
    walk = _Walk()
    try:
        with opened(path) as data:
            _model(data, walk)
    except (Broken, IndexError):
        _refuse("the ONNX file is damaged or cut short", REMEDY)
    for name, size_bytes in walk.outside.items():
        _check_outside(path.parent / name, name, size_bytes)
    return Graph(_signature(walk), walk.nodes, sorted(walk.outside))


def _check_outside(path: Path, name: str, size_bytes: int) -> None:
    if not path.is_file():
        _refuse(f"the model keeps weights in {shown(name)} (external data), which is not there", ONE_FILE)
    if path.stat().st_size < size_bytes:
        _refuse(f"{shown(name)} (external data) has fewer than the {size_bytes} bytes that the model names", ONE_FILE)


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
            initializer = _tensor(view(value), walk)
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


def _tensor(data: Data, walk: _Walk | None = None) -> str:
    """Its name. walk: where weights in other files are noted; without it they may not be there, for only initializers
    are read from elsewhere.
    """
    found, outside = "", dict[str, str]()
    is_outside = False
    for name, value in protobuf.fields(data):
        if name == 8:
            found = text(value)
        elif name == 13:
            key, said = _entry(view(value))
            outside[key], is_outside = said, True
        elif name == 14 and value == 1:
            is_outside = True
    if is_outside and walk is None:
        _refuse(f"the constant {shown(found)} keeps its values in another file (external data)", ONE_FILE)
    if is_outside and walk is not None:
        _note(found, outside, walk)
    return found


def _entry(data: Data) -> tuple[str, str]:
    key = said = ""
    for name, value in protobuf.fields(data):
        if name == 1:
            key = text(value)
        elif name == 2:
            said = text(value)
    return key, said


def _note(tensor: str, outside: dict[str, str], walk: _Walk) -> None:
    """Notes the file and how much of it is read. Raises Rejected for a path that leaves the folder or is none."""
    name = outside.get("location", "")
    try:
        member_path(name)
    except Rejected as error:
        _refuse(f"the weights {shown(tensor)} are external data, and {error.reason}", ONE_FILE)
    if "*" in name:  # onnxruntime takes such a name for an address in memory
        _refuse(f"the weights {shown(tensor)} are external data, and the path {shown(name)} holds a '*'", ONE_FILE)
    end = 0
    for key in ("offset", "length"):
        said = outside.get(key, "0")
        if not (said.isascii() and said.isdigit() and len(said) <= 18):
            _refuse(f"the {key} of the weights {shown(tensor)} (external data) is no number", REMEDY)
        end += int(said)
    walk.outside[name] = max(end, walk.outside.get(name, 0))
    if len(walk.outside) > MAX_OUTSIDE:
        _refuse(f"the model keeps weights in more than {MAX_OUTSIDE} files (external data)", ONE_FILE)


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
