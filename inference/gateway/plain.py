"""The plain request, which is most of them: one input of fixed row shape as flat JSON numbers, all outputs wanted.

It is read in one pass and written from parts that were encoded once. Whatever is not plain is left to `calls`, so this
file only ever answers "yes, and here it is" or "no".
"""

from __future__ import annotations

from array import array
from math import prod

import msgspec

from inference.gateway.calls import Call
from inference.gateway.web import Headers
from inference.protocol.messages import Answer, TensorHeader
from inference.protocol.oip import Signature

_CODES = {"FP32": "f", "FP64": "d"}
_SIZES = {"FP32": 4, "FP64": 8}
MAX_JSON_BYTES = 64 << 10
_NO_OUTPUTS: list[str] = []
NO_HEADERS: Headers = []


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    inputs: tuple[_Input]
    id: str = ""


_decode = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode
_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


class PlainForm:
    """What one variant's plain requests look like, and the parts of their answers that never change."""

    __slots__ = ("_code", "_datatype", "_head", "_max_rows", "_name", "_output", "_per_row", "_size", "_tail", "_tops")

    def __init__(self, signature: Signature, model: str, version: str, lines: bytes) -> None:
        spec, output = signature.inputs[0], signature.outputs[0]
        self._name, self._datatype, self._tail = spec.name, spec.datatype, spec.shape[1:]
        self._code, self._size = _CODES[spec.datatype], _SIZES[spec.datatype]
        self._per_row = prod(self._tail)
        self._max_rows = signature.max_batch_size
        self._output = output.name, output.datatype, _CODES[output.datatype]
        names = {"model_name": model, "model_version": version}
        start = {"name": output.name, "datatype": output.datatype}
        self._tops = _encode(names)[:-1], b',"outputs":[' + _encode(start)[:-1] + b',"shape":'
        self._head = _JSON_HEAD + lines + b"x-request-id: "

    def read(self, body: bytes | memoryview) -> Call | None:
        """The call in a plain request's body; None for any other request, right or wrong."""
        if len(body) > MAX_JSON_BYTES:
            return None
        try:
            found = _decode(body)
            given = found.inputs[0]
            shape, data = given.shape, given.data
            rows = shape[0]
            if (
                given.name != self._name
                or given.datatype != self._datatype
                or not 1 <= rows <= self._max_rows
                or shape[1:] != self._tail
                or len(data) != rows * self._per_row
                or len(found.id) > 256
            ):
                return None
            packed = array(self._code, data).tobytes()
        except (msgspec.MsgspecError, UnicodeError, RecursionError, IndexError, OverflowError, ValueError):
            return None
        headers = [TensorHeader(self._name, self._datatype, shape, len(packed))]
        return Call(found.id, headers, [packed], _NO_OUTPUTS, rows=rows)

    def write(
        self, call: Call, answer: Answer, body: memoryview, request_id: bytes, headers: Headers = NO_HEADERS
    ) -> bytes | None:
        """The whole HTTP answer to a plain request, `headers` among its own; None when it has another form than the
        signature says.
        """
        tensors = answer.tensors
        if len(tensors) != 1 or answer.parameters:
            return None
        tensor = tensors[0]
        name, datatype, code = self._output
        if tensor.name != name or tensor.datatype != datatype or tensor.size_bytes != len(body):
            return None
        identity = b',"id":' + _encode(call.id) if call.id else b""
        parts = (
            self._tops[0], identity, self._tops[1], _encode(tensor.shape), b',"data":',
            _encode(body.cast(code).tolist()), b"}]}",  # type: ignore[call-overload]
        )  # fmt: skip
        text = b"".join(parts)
        for header in headers:
            request_id += b"\r\n%b: %b" % header
        return b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (self._head, request_id, len(text), text)


def form_of(signature: Signature, model: str, version: str, lines: bytes) -> PlainForm | None:
    """The plain form of a version's requests; None where it has none."""
    if len(signature.inputs) != 1 or len(signature.outputs) != 1 or not signature.max_batch_size:
        return None
    spec, output = signature.inputs[0], signature.outputs[0]
    if spec.datatype not in _CODES or output.datatype not in _CODES or -1 in spec.shape[1:]:
        return None
    return PlainForm(signature, model, version, lines)
