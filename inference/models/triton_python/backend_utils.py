"""What a model imports as `triton_python_backend_utils`: our own module with the names that such models use.

Source of the names and meanings: the public documentation of Triton's Python backend. Tensors lie in host memory.
"""
# ruff: noqa: ARG001, PLR0917 (the arguments, and their order, are those that models pass)

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from inference.errors import SerinusError
from inference.models.triton_python import bls
from inference.models.triton_python.channel import FINAL, Channel
from inference.models.triton_python.completion import ModelConfig
from inference.models.triton_python.metrics import Metric, MetricFamily
from inference.models.triton_python.tensors import FROM_NUMPY, NUMPY, TO_NUMPY, Tensor, TritonModelException

__all__ = [
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "InferenceRequest",
    "InferenceResponse",
    "Logger",
    "Metric",
    "MetricFamily",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
]  # fmt: skip

TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2
TRITONSERVER_MEMORY_CPU = 0
TRITONSERVER_MEMORY_GPU = 1
TRITON_STRING_TO_NUMPY = dict(NUMPY)
TRITON_TO_NUMPY_TYPE = dict(TO_NUMPY)
NUMPY_TO_TRITON_TYPE = dict(FROM_NUMPY)


class TritonError:
    """An error that a response carries to its caller. The codes are Triton's."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message = str(message)
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class PreferredMemory:
    """Where a model would like another model's answers to lie. Here they lie in host memory."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        self.preferred_memory_type = preferred_memory_type
        self.preferred_device_id = preferred_device_id


class InferenceTrace:
    """The request's trace context."""

    def __init__(self, traceparent: str = "") -> None:
        self.traceparent = traceparent

    def get_context(self) -> str | None:
        """W3C trace context as JSON; None without any."""
        return json.dumps({"traceparent": self.traceparent}) if self.traceparent else None


class InferenceResponse:
    """Output tensors, or an error for this request alone."""

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._output_tensors = list(output_tensors)
        self._error = TritonError(str(error)) if isinstance(error, TritonModelException) else error
        self.said = _checked(parameters)

    def output_tensors(self) -> list[Tensor]:
        return self._output_tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        return json.dumps(self.said)


class InferenceResponseSender:
    """Sends the answers of one request, from any thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if response is None and not flags & FINAL:
            raise TritonModelException("send needs a response, or the flag TRITONSERVER_RESPONSE_COMPLETE_FINAL")
        try:
            self._channel.send(response, flags)
        except ValueError as error:
            raise TritonModelException(str(error)) from error

    def is_cancelled(self) -> bool:
        return self._channel.is_cancelled


class InferenceRequest:
    """One request as a model sees it."""

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        channel: Channel | None = None,
    ) -> None:
        self._id, self._correlation_id = request_id, correlation_id
        self._inputs, self._outputs = list(inputs), list(requested_output_names)
        self._model, self._version = model_name, model_version
        self._flags, self._timeout = flags, timeout
        self._trace = trace or InferenceTrace()
        self.said = _checked(parameters)
        self._channel = channel or Channel()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._id

    def correlation_id(self) -> int | str:
        return self._correlation_id

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def model_name(self) -> str:
        return self._model

    def model_version(self) -> int:
        return self._version

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = flags

    def timeout(self) -> int:
        return self._timeout

    def parameters(self) -> str:
        return json.dumps(self.said)

    def trace(self) -> InferenceTrace:
        return self._trace

    def is_cancelled(self) -> bool:
        return self._channel.is_cancelled

    def get_response_sender(self) -> InferenceResponseSender:
        return InferenceResponseSender(self._channel)

    def set_release_flags(self, flags: int) -> None:
        if flags != TRITONSERVER_REQUEST_RELEASE_ALL:
            _not_built("rescheduling a request")

    def exec(self, decoupled: bool = False) -> Any:
        """Another model's response; of a decoupled one an iterator of them. What goes wrong is an error in the response.

        Raises TritonModelException outside of `execute`.
        """
        answers = bls.Answers(bls.question(self, many=decoupled), _part if decoupled else _whole)
        return answers if decoupled else next(answers)

    def async_exec(self, decoupled: bool = False) -> asyncio.Future[Any]:
        """As `exec`, to be awaited; the call is on its way at once."""
        if decoupled:
            return bls.ready(self.exec(decoupled=True))
        return bls.awaited(bls.question(self, many=False), _whole)


def _whole(arrived: bls.Arrived) -> InferenceResponse:
    """The response that came."""
    try:
        if isinstance(arrived, SerinusError):
            raise arrived
        return InferenceResponse(bls.tensors_of(arrived), parameters=arrived.parameters)
    except SerinusError as error:
        return InferenceResponse(error=TritonError(error.message, bls.code_of(error)))


def _part(arrived: bls.Arrived) -> InferenceResponse | None:
    """The response that came; None for an end that says nothing more."""
    found = _whole(arrived)
    return found if found.has_error() or found.output_tensors() else None


def _checked(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    found = dict(parameters or {})
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, bool | int | float | str):
            raise TritonModelException(f"parameter {name!r} must be a text, a number, true or false")
    return found


class Logger:
    """Lines of the replica's log."""

    INFO, WARNING, ERROR, VERBOSE = "info", "warning", "error", "debug"
    _log = logging.getLogger("triton_python")

    @classmethod
    def log(cls, message: str, level: str = INFO) -> None:
        getattr(cls._log, level)("%s", message)

    @classmethod
    def log_info(cls, message: str) -> None:
        cls._log.info("%s", message)

    @classmethod
    def log_warn(cls, message: str) -> None:
        cls._log.warning("%s", message)

    @classmethod
    def log_error(cls, message: str) -> None:
        cls._log.error("%s", message)

    @classmethod
    def log_verbose(cls, message: str) -> None:
        cls._log.debug("%s", message)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """None when the request has no such input."""
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    """None when the response has no such output."""
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """`model_config`: the JSON of args["model_config"], read."""
    return next((one for one in model_config.get("input", []) if one["name"] == name), None)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """`model_config`: the JSON of args["model_config"], read."""
    return next((one for one in model_config.get("output", []) if one["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def triton_string_to_numpy(name: str) -> Any:
    """numpy.float32 for TYPE_FP32."""
    return TRITON_STRING_TO_NUMPY[name]


def triton_to_numpy_type(number: int) -> Any:
    return TRITON_TO_NUMPY_TYPE[number]


def numpy_to_triton_type(kind: Any) -> int:
    return NUMPY_TO_TRITON_TYPE[np.dtype(kind).type if not isinstance(kind, type) else kind]


def get_model_dir() -> str:
    """The numbered folder of the model under way."""
    from inference.models.triton_python import loader

    return str(loader.current_folder)


def is_model_ready(model_name: str, model_version: str = "") -> NoReturn:
    _not_built("asking for other models from a model")


def load_model(model_name: str, *others: Any, **more: Any) -> NoReturn:
    _not_built("loading other models from a model")


def unload_model(model_name: str, *others: Any, **more: Any) -> NoReturn:
    _not_built("unloading other models from a model")


def serialize_byte_tensor(input_tensor: Any) -> Any:
    """An object array of `bytes` or `str` as one uint8 array: each element is a u32 length and its bytes."""
    parts = []
    for one in np.asarray(input_tensor, dtype=object).ravel():
        text = one.encode() if isinstance(one, str) else bytes(one)
        parts += [len(text).to_bytes(4, "little"), text]
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Any:
    """The other way: an object array of `bytes`, of one dimension."""
    found, at, data = [], 0, bytes(encoded_tensor)
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array


def __getattr__(name: str) -> Any:
    raise AttributeError(f"Serinus's triton_python_backend_utils has no '{name}': see docs/triton.md for what it has")


def _not_built(what: str) -> NoReturn:
    raise TritonModelException(f"Serinus does not support {what}")
