"""The graph of a .pt2 file: names, operators, shape expressions and signature, checked as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import UNSET

from inference.artifacts import pt2_expressions as expressions
from inference.artifacts import pt2_schema as schema
from inference.artifacts import pt2_tree as trees
from inference.artifacts.paths import shown
from inference.artifacts.pt2_operators import is_allowed
from inference.artifacts.pt2_weights import check_qualified
from inference.errors import Rejected
from inference.protocol.oip import MAX_RANK, MAX_TENSORS, Signature, TensorSpec

SCHEMA_MAJOR = 8
MAX_NODES = 200_000
DEFAULT_BATCH = 64
VERIFIERS = {"ATEN", "TRAINING", "EDGE", "CORE_ATEN"}
DEVICES = {"cpu", "cuda", "meta"}
REMEDY = "Export it again with torch.export.save(torch.export.export(model.eval(), args, dynamic_shapes=...), path)."
TENSORS = (
    "Wrap the model so that forward takes tensors and returns a tensor, a tuple or a dict of tensors; export again."
)
_CONTAINERS = (msgspec.Struct, list, dict)
STATELESS = "Call model.eval() before the export, and keep no state in the model."
DENSE = "Export a model of dense tensors only."
PLAIN = "Export a model of plain tensors only."
_IN_PLACE = re.compile(r"torch\.ops\.aten\.[a-z0-9_]*[a-z0-9]_\..*")
_BATCH_NORM = re.compile(r"torch\.ops\.aten\.(cudnn_)?batch_norm\.")
_DROPOUT = re.compile(r"torch\.ops\.aten\.[a-z_]*dropout\.")
_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}")
T = TypeVar("T", bound=msgspec.Struct)
_OUTPUTS = {
    "buffer_mutation": "changes its buffers while it runs, so requests would see each other",
    "parameter_mutation": "changes its parameters while it runs",
    "user_input_mutation": "changes its inputs in place",
    "loss_output": "is a training step",
    "gradient_to_parameter": "is a training step",
    "gradient_to_user_input": "is a training step",
    "token": "has side effects",
}


def check(document: schema.ExportedProgram) -> Signature:
    """The program's signature, after all of it was found harmless. Raises Rejected."""
    if document.schema_version.major != SCHEMA_MAJOR:
        _refuse("the program was written by another generation of torch.export", "Export it with torch 2.9 or newer.")
    if set(document.verifiers) - VERIFIERS:
        _refuse("the program is of an unknown dialect", REMEDY)
    for name, bounds in document.range_constraints.items():
        if not _SYMBOL.fullmatch(name):
            _refuse(f"the program has a size with the unusual name {shown(name)}", REMEDY)
        if max(abs(bounds.min_val or 0), abs(bounds.max_val or 0)) >= 1 << 62:
            _refuse("the program has a size without sensible bounds", REMEDY)
    _walk(document.graph_module.graph)
    _walk(document.graph_module.signature)
    _check_state(document.graph_module)
    return _signature(document)


def check_parameters(
    document: schema.ExportedProgram, weights: schema.PayloadConfig, constants: schema.PayloadConfig
) -> None:
    """Every parameter, buffer and constant that the graph takes is in the file. Raises Rejected."""
    known = weights.config.keys() | constants.config.keys()
    for spec in document.graph_module.signature.input_specs:
        name = _parameter_name(spec)
        if name:
            check_qualified(name)
            if name not in known:
                _refuse(f"the parameter {shown(name)} is not in the file", REMEDY)


def notes(document: schema.ExportedProgram) -> list[str]:
    """What a person should know of a program that is served."""
    found = []
    if not _signature(document).max_batch_size:
        found.append("The first dimension is fixed; export with dynamic_shapes to let requests be batched.")
    if any(_DROPOUT.match(node.target) and _is_true(node, "train") for node in document.graph_module.graph.nodes):
        found.append(
            "Its dropout is on, so answers are random; call model.eval() before the export if you mean it not."
        )
    return found


def root_call(module: schema.GraphModule) -> schema.ModuleCallSignature:
    """How the exported function is called. Raises Rejected when the file does not say."""
    for entry in module.module_call_graph:
        if entry.fqn == "" and entry.signature is not None:
            return entry.signature
    raise Rejected("the program does not say how it is called", remedy=REMEDY, check="program")


def without_metadata(graph: schema.Graph) -> schema.Graph:
    """The graph without the traces of where it came from, at every depth."""
    nodes = [
        msgspec.structs.replace(node, metadata={}, inputs=[_plain(argument) for argument in node.inputs])
        for node in graph.nodes
    ]
    return msgspec.structs.replace(graph, nodes=nodes)


def _plain(argument: schema.NamedArgument) -> schema.NamedArgument:
    inner = argument.arg.as_graph
    if not isinstance(inner, schema.GraphArgument):
        return argument
    arg = schema.Argument(as_graph=schema.GraphArgument(inner.name, without_metadata(inner.graph)))
    return msgspec.structs.replace(argument, arg=arg)


def on_cpu(value: T) -> T:
    """A copy in which every device is the CPU."""

    def moved(item: object) -> object:
        if isinstance(item, dict):
            if set(item) == {"type", "index"}:
                return {"type": "cpu", "index": None}
            return {key: moved(inner) for key, inner in item.items()}
        return [moved(inner) for inner in item] if isinstance(item, list) else item

    return msgspec.convert(moved(msgspec.to_builtins(value)), type(value))


def _walk(root: msgspec.Struct) -> None:
    waiting: list[Any] = [root]
    nodes = 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, schema.Node):
            nodes += 1
            if nodes > MAX_NODES:
                _refuse(f"the program has more than {MAX_NODES} operations", REMEDY)
        waiting += [inner for inner in _inside(item) if isinstance(inner, _CONTAINERS)]


def _inside(item: Any) -> Iterable[Any]:
    if isinstance(item, list):
        return item
    if isinstance(item, dict):
        for key in item:
            _name(key)
        return list(item.values())
    rule = _RULES.get(type(item))
    if rule is not None:
        rule(item)
    if isinstance(item, schema.Union):
        return [_union(item)]
    return [getattr(item, name) for name in item.__struct_fields__ if name != "metadata"]


def _check_state(module: schema.GraphModule) -> None:
    kept = {
        spec.arg.name
        for item in module.signature.input_specs
        for spec in (item.parameter, item.buffer, item.tensor_constant)
        if spec is not UNSET
    }
    for node in module.graph.nodes:
        first = node.inputs[0].arg.as_tensor if node.inputs else UNSET
        if _IN_PLACE.fullmatch(node.target) and isinstance(first, schema.TensorArgument) and first.name in kept:
            _refuse(f"the program {_OUTPUTS['buffer_mutation']}", STATELESS)
        if _BATCH_NORM.match(node.target) and _is_true(node, "training"):
            _refuse("the program was exported in training mode (its batch normalisation learns)", STATELESS)


def _is_true(node: schema.Node, argument: str) -> bool:
    return any(item.name == argument and item.arg.as_bool is True for item in node.inputs)


def _union(item: schema.Union) -> Any:
    try:
        kind, value = schema.chosen(item)
    except ValueError:
        _refuse("the program holds a value of two kinds, or of none", REMEDY)
    if kind in {"as_custom_obj", "as_operator", "custom_obj"}:
        _refuse("the program uses a custom object or operator", PLAIN)
    if kind == "as_layout" and value != schema.STRIDED:
        _refuse("the program makes sparse tensors", DENSE)
    return value


def _symbolic(item: schema.SymIntArgument | schema.SymFloatArgument | schema.SymBoolArgument) -> None:
    if isinstance(item.as_name, str):
        _name(item.as_name)


def _device(item: schema.Device) -> None:
    if item.type not in DEVICES:
        _refuse(f"the program is for the unknown device {shown(item.type)}", REMEDY)


def _tensor(item: schema.TensorMeta) -> None:
    if item.dtype not in schema.SCALARS or item.layout != schema.STRIDED:
        _refuse("the program uses sparse or unknown tensors", DENSE)


def _graph(item: schema.Graph) -> None:
    if item.custom_obj_values:
        _refuse("the program uses a custom object", PLAIN)


def _named(item: schema.TensorArgument | schema.GraphArgument) -> None:
    _name(item.name)


def _node(node: schema.Node) -> None:
    if not is_allowed(node.target):
        _refuse(
            f"the program calls {shown(node.target)}, which is not allowed",
            "Use PyTorch's own operators; custom operators, file access and sparse or quantised tensors are not served.",
        )
    if node.name is not None:
        _name(node.name)
    for argument in node.inputs:
        if argument.name:
            _name(argument.name, of_argument=True)


def _name(text: str, *, of_argument: bool = False) -> None:
    if not trees.is_name(text) and not (of_argument and text in trees.RESERVED):
        _refuse(f"the program holds the name {shown(text)}, which is no plain name", REMEDY)


@lru_cache(maxsize=4096)
def _expression(text: str) -> None:
    try:
        expressions.check(text)
    except expressions.NotAllowed:
        _refuse(f"the shape expression {shown(text)} is not allowed", REMEDY)


_RULES: dict[type[msgspec.Struct], Callable[[Any], None]] = {
    schema.TensorArgument: _named,
    schema.GraphArgument: _named,
    schema.SymIntArgument: _symbolic,
    schema.SymFloatArgument: _symbolic,
    schema.SymBoolArgument: _symbolic,
    schema.Node: _node,
    schema.SymExpr: lambda item: _expression(item.expr_str),
    schema.Device: _device,
    schema.TensorMeta: _tensor,
    schema.Graph: _graph,
}


def _parameter_name(spec: schema.InputSpec) -> str:
    if isinstance(spec.parameter, schema.Parameter):
        return spec.parameter.parameter_name
    if isinstance(spec.buffer, schema.Buffer):
        return spec.buffer.buffer_name
    if isinstance(spec.tensor_constant, schema.TensorConstant):
        return spec.tensor_constant.tensor_constant_name
    return ""


def _signature(document: schema.ExportedProgram) -> Signature:
    module = document.graph_module
    call = root_call(module)
    takes, gives = _input_names(module), _output_names(module)
    in_tree, out_tree = trees.parse(call.in_spec), trees.parse(call.out_spec)
    if [child.kind for child in in_tree.children] != ["builtins.tuple", "builtins.dict"]:
        _refuse("the program's arguments are not a tuple and a dict", TENSORS)
    for name in call.forward_arg_names or []:
        _name(name)
    if in_tree.leaves() != len(takes) or out_tree.leaves() != len(gives):
        _refuse("the program's arguments do not fit its graph", REMEDY)
    metas = [_meta(module.graph, name) for name in takes], [_meta(module.graph, name) for name in gives]
    if not takes or not gives or max(len(takes), len(gives)) > MAX_TENSORS:
        _refuse(f"the program has no input or output, or more than {MAX_TENSORS}", TENSORS)
    inputs = [_spec(name, meta) for name, meta in zip(takes, metas[0], strict=True)]
    outputs = [_spec(name, meta) for name, meta in zip(_told(out_tree), metas[1], strict=True)]
    return Signature(
        inputs=inputs,
        outputs=outputs,
        max_batch_size=_batch(document, [*metas[0], *metas[1]]),
        platform="torch_export",
    )


def _input_names(module: schema.GraphModule) -> list[str]:
    names = []
    for spec in module.signature.input_specs:
        kind, _ = schema.chosen(spec)
        if kind == "user_input" and isinstance(spec.user_input, schema.UserInput):
            names.append(_tensor_name(spec.user_input.arg, "takes"))
        elif kind in {"constant_input", "token", "custom_obj"}:
            _refuse("the program takes an argument that is no tensor", TENSORS)
    return names


def _output_names(module: schema.GraphModule) -> list[str]:
    names = []
    for spec in module.signature.output_specs:
        kind, _ = schema.chosen(spec)
        if kind in _OUTPUTS:
            _refuse(f"the program {_OUTPUTS[kind]}", STATELESS)
        if isinstance(spec.user_output, schema.UserInput):
            names.append(_tensor_name(spec.user_output.arg, "gives"))
    return names


def _tensor_name(argument: schema.Argument, verb: str) -> str:
    if not isinstance(argument.as_tensor, schema.TensorArgument):
        _refuse(f"the program {verb} something that is no tensor", TENSORS)
    return argument.as_tensor.name


def _told(tree: trees.Tree) -> list[str]:
    if any(child.kind for child in tree.children):
        _refuse("the program returns nested results", TENSORS)
    if tree.keys:
        return list(tree.keys)
    return [f"output_{index}" for index in range(tree.leaves())]


def _meta(graph: schema.Graph, name: str) -> schema.TensorMeta:
    if name not in graph.tensor_values:
        _refuse(f"the program does not describe {shown(name)}", REMEDY)
    return graph.tensor_values[name]


def _spec(name: str, meta: schema.TensorMeta) -> TensorSpec:
    datatype = schema.SCALARS[meta.dtype][1]
    if not datatype:
        _refuse(f"{shown(name)} has a dtype that the inference protocol cannot carry", "Cast it inside the model.")
    if len(meta.sizes) > MAX_RANK:
        _refuse(f"{shown(name)} has more than {MAX_RANK} dimensions", REMEDY)
    shape = [size.as_int if isinstance(size.as_int, int) else -1 for size in meta.sizes]
    return TensorSpec(name, datatype, shape)


def _batch(document: schema.ExportedProgram, metas: list[schema.TensorMeta]) -> int:
    symbols = set()
    for meta in metas:
        first = meta.sizes[0].as_expr if meta.sizes else None
        symbols.add(expressions.symbol_of(first.expr_str) if isinstance(first, schema.SymExpr) else "")
    symbol = symbols.pop()
    if symbols or not symbol:
        return 0
    bounds = document.range_constraints.get(symbol)
    return min(bounds.max_val, 4096) if bounds and bounds.max_val and bounds.max_val > 0 else DEFAULT_BATCH


def _refuse(reason: str, remedy: str) -> NoReturn:
    raise Rejected(reason, remedy=remedy, check="program")
