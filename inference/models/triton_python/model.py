"""A started `TritonPythonModel` under our model contract. The law: `execute` is entered by one thread at a time."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from inference import errors
from inference.errors import ModelFailed, SerinusError
from inference.models.asked import About, Response, about
from inference.models.triton_python import backend_utils as pb
from inference.models.triton_python.background import Background
from inference.models.triton_python.channel import Channel
from inference.models.triton_python.executions import Execution, asked_in_vain, entered, under_way
from inference.models.triton_python.metrics import REGISTER
from inference.models.triton_python.tensors import BF16, Tensor
from inference.protocol.oip import DATATYPES

if TYPE_CHECKING:
    from inference.models.contract import Arrays
    from inference.protocol.custom_metrics import Families
    from inference.protocol.oip import Signature

log = logging.getLogger(__name__)
STREAMS = 16  # threads; `execute` itself only sets a request on its way
ERRORS: dict[int, type[SerinusError]] = {
    pb.TritonError.NOT_FOUND: errors.NotFound,
    pb.TritonError.INVALID_ARG: errors.InvalidInput,
    pb.TritonError.UNAVAILABLE: errors.NotReady,
    pb.TritonError.UNSUPPORTED: errors.Unsupported,
    pb.TritonError.ALREADY_EXISTS: errors.Conflict,
    pb.TritonError.CANCELLED: errors.Cancelled,
}


class TritonPythonModel:
    """Requests reach the model as Triton gives them to it: a list, one object for each, never stacked."""

    runs_requests = True
    answers_anything = True
    streams_per_instance = STREAMS

    def __init__(
        self, made: Any, signature: Signature, *, name: str, version: int, decoupled: bool, patience_s: float
    ) -> None:
        self.signature = signature
        self._made = made
        self._name, self._version = name, version
        self._decoupled = decoupled
        self._patience_s = patience_s
        self._executing = threading.Lock()
        self._background = Background()
        self._datatypes = {spec.name: spec.datatype for spec in signature.outputs}
        self._bf16 = {spec.name for spec in signature.inputs if spec.datatype == BF16}

    def run(self, inputs: Arrays) -> Arrays:
        """One request; of a decoupled model its first answer."""
        if self._decoupled:
            stream = self.stream(inputs, {})
            try:
                return next(stream)
            except StopIteration:
                raise ModelFailed("the model gave no answer to this request") from None
            finally:
                stream.close()
        found = self.run_requests([inputs])[0]
        if isinstance(found, SerinusError):
            raise found
        return found

    def run_requests(self, requests: list[Arrays]) -> list[Arrays | SerinusError]:
        """Raises ModelFailed when `execute` itself fails: Triton then fails all of the batch, and so do we."""
        told = [about(inputs) for inputs in requests]
        channels = [Channel(left=one.has_left) for one in told]
        given = [self._request(*one) for one in zip(requests, told, channels, strict=True)]
        execution = Execution(told, self._patience_s, time.monotonic() + self._patience_s)
        with under_way(execution), self._executing, _own_words(), entered(execution):
            answers = self._made.execute(given)
            if inspect.iscoroutine(answers):
                answers = self._background.result(answers)
        if not isinstance(answers, list | tuple) or len(answers) != len(given):
            count = len(answers) if isinstance(answers, list | tuple) else type(answers).__name__
            raise ModelFailed(f"execute must return a list of {len(given)} responses, not {count}")
        return [self._answer(*one) for one in zip(answers, channels, told, strict=True)]

    def stream(self, inputs: Arrays, parameters: Mapping[str, Any]) -> Generator[Arrays, None, None]:
        """Each answer as the model sends it. Closing the iterator tells the model that its caller has left."""
        told = about(inputs)
        channel = Channel(left=told.has_left)
        request = self._request(inputs, told, channel, parameters)
        execution = Execution([told], self._patience_s)
        worker = threading.Thread(target=self._streamed, args=(request, channel, execution), daemon=True)
        with under_way(execution):
            worker.start()
            try:
                for response in channel.answers(self._patience_s):
                    found = self._arrays(response)
                    if isinstance(found, SerinusError):
                        raise found
                    yield found
            finally:
                channel.leave()

    @property
    def asked_in_vain(self) -> int:
        return asked_in_vain()

    def own_metrics(self) -> Families:
        """What its code counts itself, of all instances of this process."""
        return REGISTER.told()

    def forget_warm_up(self) -> None:
        """Nobody asked for those runs."""
        REGISTER.rewind()

    def close(self) -> None:
        finalize = getattr(self._made, "finalize", None)
        if callable(finalize):
            finalize()
        self._background.close()
        self._made = None

    def _streamed(self, request: pb.InferenceRequest, channel: Channel, execution: Execution) -> None:
        try:
            with _own_words(), entered(execution):
                with self._executing:
                    answers = self._made.execute([request])
                if inspect.iscoroutine(answers):  # while it waits, others may be executed
                    answers = self._background.result(answers)
            if not self._decoupled:
                channel.send(answers[0], pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except BaseException as error:
            if not isinstance(error, SerinusError):
                log.exception("execute raised")
            channel.fail(error if isinstance(error, SerinusError) else ModelFailed())

    def _request(
        self, inputs: Arrays, told: About, channel: Channel, parameters: Mapping[str, Any] | None = None
    ) -> pb.InferenceRequest:
        sequence = told.sequence
        return pb.InferenceRequest(
            told.request_id,
            sequence.id if sequence else 0,
            [Tensor.of(name, array, is_bf16=name in self._bf16) for name, array in inputs.items()],
            list(told.outputs) or list(self._datatypes),
            self._name,
            self._version,
            flags=_flags(start=sequence.start, end=sequence.end) if sequence else 0,
            timeout=told.timeout_us,
            trace=pb.InferenceTrace(told.traceparent),
            parameters=told.parameters or parameters,
            channel=channel,
        )

    def _answer(self, response: Any, channel: Channel, told: About) -> Arrays | SerinusError:
        """A response that was returned, or else the one that was sent."""
        if response is None:
            try:
                response = next(channel.answers(self._patience_s))
            except StopIteration:
                return ModelFailed("the model gave no answer to this request")
            except SerinusError as error:
                return error
        found = self._arrays(response)
        if isinstance(found, SerinusError):
            return found
        missing = sorted(set(told.outputs) - set(found))
        if missing or not found:
            return ModelFailed(f"the model gave no output {missing or sorted(self._datatypes)}")
        return found

    def _arrays(self, response: Any) -> Response | SerinusError:
        if not isinstance(response, pb.InferenceResponse):
            return ModelFailed(f"a response must be an InferenceResponse, not {type(response).__name__}")
        if (error := response.error()) is not None:
            return ERRORS.get(error.code(), ModelFailed)(error.message())
        found = Response({}, response.said)
        for tensor in response.output_tensors():
            datatype = self._datatypes.get(tensor.name())
            if datatype is None:
                return ModelFailed(f"the model gave an output '{tensor.name()}' that its config does not declare")
            array = as_declared(tensor, datatype)
            if array is None:
                kind = tensor.kind
                return ModelFailed(f"the model's output '{tensor.name()}' is {kind}, and {datatype} is declared")
            found[tensor.name()] = array
        return found


@contextmanager
def _own_words() -> Iterator[None]:
    """A TritonModelException is told to the callers in its own words."""
    try:
        yield
    except pb.TritonModelException as error:
        log.exception("execute raised")
        raise ModelFailed(str(error) or None) from error


def _flags(*, start: bool, end: bool) -> int:
    first = pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START if start else 0
    return first | (pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END if end else 0)


def as_declared(tensor: Tensor, datatype: str) -> np.ndarray[Any, Any] | None:
    """The tensor's array as `datatype` is carried here; None where it is of another type."""
    array = tensor.carried
    if datatype == "BYTES":
        if array.dtype.kind not in "OSU":
            return None
        texts = np.empty(array.size, dtype=object)
        texts[:] = [one.encode() if isinstance(one, str) else bytes(one) for one in array.ravel()]
        return texts.reshape(array.shape)
    if datatype == BF16:
        return array if array.dtype == np.uint16 else None
    return array if array.dtype == np.dtype(DATATYPES[datatype][1]) and not tensor.is_bf16 else None
