"""The JSON inside a .pt2 file as frozen structs; unknown fields are refused, so that what is checked is all there is.

Source: torch/_export/serde/schema.py (schema 8). A union is a struct of optional fields of which exactly one is set.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Text = Annotated[str, Meta(max_length=4096)]
LongText = Annotated[str, Meta(max_length=1 << 20)]
Float = float | Annotated[str, Meta(pattern="^(Infinity|-Infinity|NaN)$")]


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """A plain record: every field without a default must be there."""


class Union(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One of several: exactly one field is set, which `chosen` checks."""


class Device(Record, frozen=True):
    type: Text
    index: int | None = None


class Hint(Union, frozen=True):
    as_int: int | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET


class SymExpr(Record, frozen=True):
    expr_str: Text
    hint: Hint | None = None


class SymInt(Union, frozen=True):
    as_expr: SymExpr | UnsetType = UNSET
    as_int: int | UnsetType = UNSET


class SymFloat(Union, frozen=True):
    as_expr: SymExpr | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET


class SymBool(Union, frozen=True):
    as_expr: SymExpr | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET


class TensorMeta(Record, frozen=True):
    dtype: int
    sizes: Annotated[list[SymInt], Meta(max_length=64)]
    requires_grad: bool
    device: Device
    strides: Annotated[list[SymInt], Meta(max_length=64)]
    storage_offset: SymInt
    layout: int


class SymIntArgument(Union, frozen=True):
    as_name: Text | UnsetType = UNSET
    as_int: int | UnsetType = UNSET


class SymFloatArgument(Union, frozen=True):
    as_name: Text | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET


class SymBoolArgument(Union, frozen=True):
    as_name: Text | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET


class TensorArgument(Record, frozen=True):
    name: Text


class OptionalTensorArgument(Union, frozen=True):
    as_tensor: TensorArgument | UnsetType = UNSET
    as_none: bool | UnsetType = UNSET


class ComplexValue(Record, frozen=True):
    real: Float
    imag: Float


class CustomObject(Record, frozen=True):
    name: Text
    class_fqn: Text


class GraphArgument(Record, frozen=True):
    name: Text
    graph: Graph


class Argument(Union, frozen=True):
    as_none: bool | UnsetType = UNSET
    as_tensor: TensorArgument | UnsetType = UNSET
    as_tensors: list[TensorArgument] | UnsetType = UNSET
    as_int: int | UnsetType = UNSET
    as_ints: list[int] | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET
    as_floats: list[Float] | UnsetType = UNSET
    as_string: Text | UnsetType = UNSET
    as_strings: list[Text] | UnsetType = UNSET
    as_sym_int: SymIntArgument | UnsetType = UNSET
    as_sym_ints: list[SymIntArgument] | UnsetType = UNSET
    as_scalar_type: int | UnsetType = UNSET
    as_memory_format: int | UnsetType = UNSET
    as_layout: int | UnsetType = UNSET
    as_device: Device | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET
    as_bools: list[bool] | UnsetType = UNSET
    as_sym_bool: SymBoolArgument | UnsetType = UNSET
    as_sym_bools: list[SymBoolArgument] | UnsetType = UNSET
    as_graph: GraphArgument | UnsetType = UNSET
    as_optional_tensors: list[OptionalTensorArgument] | UnsetType = UNSET
    as_custom_obj: CustomObject | UnsetType = UNSET
    as_operator: Text | UnsetType = UNSET
    as_sym_float: SymFloatArgument | UnsetType = UNSET
    as_sym_floats: list[SymFloatArgument] | UnsetType = UNSET
    as_optional_tensor: OptionalTensorArgument | UnsetType = UNSET
    as_complex: ComplexValue | UnsetType = UNSET
    as_nested_tensors: list[list[TensorArgument]] | UnsetType = UNSET
    as_int_lists: list[list[int]] | UnsetType = UNSET
    as_string_to_argument: dict[str, Argument] | UnsetType = UNSET
    as_float_lists: list[list[Float]] | UnsetType = UNSET


class NamedArgument(Record, frozen=True):
    name: Text
    arg: Argument
    kind: Annotated[int, Meta(ge=0, le=2)] | None = None


class Node(Record, frozen=True):
    target: Text
    inputs: list[NamedArgument]
    outputs: list[Argument]
    metadata: dict[str, LongText]
    is_hop_single_tensor_return: bool | None = None
    name: Text | None = None


class Graph(Record, frozen=True):
    inputs: list[Argument]
    outputs: list[Argument]
    nodes: list[Node]
    tensor_values: dict[str, TensorMeta]
    sym_int_values: dict[str, SymInt]
    sym_bool_values: dict[str, SymBool]
    is_single_tensor_return: bool = False
    custom_obj_values: dict[str, CustomObject] = {}
    sym_float_values: dict[str, SymFloat] = {}


class UserInput(Record, frozen=True):
    arg: Argument


class ConstantValue(Union, frozen=True):
    as_none: bool | UnsetType = UNSET
    as_int: int | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET
    as_string: Text | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET


class ConstantInput(Record, frozen=True):
    name: Text
    value: ConstantValue


class Parameter(Record, frozen=True):
    arg: TensorArgument
    parameter_name: Text


class Buffer(Record, frozen=True):
    arg: TensorArgument
    buffer_name: Text
    persistent: bool


class TensorConstant(Record, frozen=True):
    arg: TensorArgument
    tensor_constant_name: Text


class InputSpec(Union, frozen=True):
    user_input: UserInput | UnsetType = UNSET
    parameter: Parameter | UnsetType = UNSET
    buffer: Buffer | UnsetType = UNSET
    tensor_constant: TensorConstant | UnsetType = UNSET
    custom_obj: msgspec.Raw | UnsetType = UNSET
    token: msgspec.Raw | UnsetType = UNSET
    constant_input: ConstantInput | UnsetType = UNSET


class OutputSpec(Union, frozen=True):
    user_output: UserInput | UnsetType = UNSET
    loss_output: msgspec.Raw | UnsetType = UNSET
    buffer_mutation: msgspec.Raw | UnsetType = UNSET
    gradient_to_parameter: msgspec.Raw | UnsetType = UNSET
    gradient_to_user_input: msgspec.Raw | UnsetType = UNSET
    user_input_mutation: msgspec.Raw | UnsetType = UNSET
    token: msgspec.Raw | UnsetType = UNSET
    parameter_mutation: msgspec.Raw | UnsetType = UNSET


class GraphSignature(Record, frozen=True):
    input_specs: list[InputSpec]
    output_specs: list[OutputSpec]


class Range(Record, frozen=True):
    min_val: int | None
    max_val: int | None


class ModuleCallSignature(Record, frozen=True):
    inputs: list[Argument]
    outputs: list[Argument]
    in_spec: LongText
    out_spec: LongText
    forward_arg_names: list[Text] | None = None


class ModuleCall(Record, frozen=True):
    fqn: Text
    signature: ModuleCallSignature | None = None


class NamedTupleDef(Record, frozen=True):
    field_names: list[Text]


class GraphModule(Record, frozen=True):
    graph: Graph
    signature: GraphSignature
    module_call_graph: list[ModuleCall]
    metadata: dict[str, LongText] = {}
    treespec_namedtuple_fields: dict[str, NamedTupleDef] = {}


class SchemaVersion(Record, frozen=True):
    major: int
    minor: int


class ExportedProgram(Record, frozen=True):
    graph_module: GraphModule
    opset_version: dict[str, int]
    range_constraints: dict[str, Range]
    schema_version: SchemaVersion
    verifiers: list[Text] = []
    torch_version: Text = "<=2.4"
    guards_code: list[LongText] = []


class Payload(Record, frozen=True):
    path_name: Text
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None


class PayloadConfig(Record, frozen=True):
    config: dict[str, Payload]


# ScalarType -> (bytes per element, datatype of the inference protocol or "" where it has none).
SCALARS: dict[int, tuple[int, str]] = {
    1: (1, "UINT8"), 2: (1, "INT8"), 3: (2, "INT16"), 4: (4, "INT32"), 5: (8, "INT64"), 6: (2, "FP16"), 7: (4, "FP32"),
    8: (8, "FP64"), 9: (4, ""), 10: (8, ""), 11: (16, ""), 12: (1, "BOOL"), 13: (2, "BF16"), 28: (2, "UINT16"),
    29: (1, ""), 30: (1, ""), 31: (1, ""), 32: (1, ""), 33: (1, ""), 34: (4, "UINT32"), 35: (8, "UINT64"),
}  # fmt: skip
STRIDED = 7


def chosen(union: Union) -> tuple[str, object]:
    """The one field that is set, and its value. Raises ValueError when it is none or several."""
    found = [(name, value) for name in type(union).__struct_fields__ if (value := getattr(union, name)) is not UNSET]
    if len(found) != 1:
        raise ValueError("a choice of several, or of none")
    return found[0]
