"""numpy <-> torch, sharing memory where both allow it. Knows the protocol's datatypes."""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inference.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from inference.models.contract import LoadContext

_streams = threading.local()
# Torch has no read-only tensors and says so, once in a process: here. Such memory goes to programs only that do not
# write to their inputs.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"\0", np.uint8))

DATATYPE_OF = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}


def datatype_of(dtype: torch.dtype, name: str) -> str:
    """Raises Rejected for a dtype that the protocol has no word for (complex, quantised)."""
    found = DATATYPE_OF.get(dtype)
    if found is None:
        raise Rejected(
            f"{name} is {dtype}, which the inference protocol cannot carry",
            remedy="cast it to a float, integer or bool type inside the model and export again",
            check="signature",
        )
    return found


def to_torch(array: np.ndarray[Any, Any], datatype: str, device: str, *, only_reads: bool = False) -> torch.Tensor:
    """A tensor on `device`. Unaligned memory (a view of a frame) is copied once, and so is what is read-only unless the
    program `only_reads`. On its way to CUDA it goes through pinned memory, so that the copy runs beside other lanes'
    passes.
    """
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned and (flags.writeable or only_reads)):
        array = array.copy()
    tensor = torch.from_numpy(array)
    if datatype == "BF16":
        tensor = tensor.view(torch.bfloat16)
    if device == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor.to(device)


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's values on the host; BF16 as uint16."""
    host = _pinned(tensor.detach()) if tensor.is_cuda else tensor.detach().cpu()
    if host.dtype == torch.bfloat16:
        host = host.view(torch.uint16)
    return host.contiguous().numpy()


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host


@contextmanager
def lane(device: str) -> Iterator[None]:
    """Runs what is inside on a CUDA stream of this thread's own, so that one lane's copies overlap another's pass."""
    if not device.startswith("cuda"):
        yield
        return
    stream = _streams.__dict__.get(device)
    if stream is None:
        torch.cuda.synchronize(device)  # the weights were written on another stream
        stream = _streams.__dict__[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield


def named(result: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a model's result with their output names: keys of a mapping, else output_0, output_1, ...

    Raises TypeError for anything else in it, nested results included.
    """
    for name, value in _pairs(result):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"the model's output {name} is a {type(value).__name__}, not a tensor")
        yield name, value


def _pairs(result: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(result, torch.Tensor):
        return [("output_0", result)]
    if isinstance(result, dict):
        return [(str(key), value) for key, value in result.items()]
    if isinstance(result, tuple | list):
        return [(f"output_{index}", value) for index, value in enumerate(result)]
    raise TypeError(f"the model returned a {type(result).__name__}, not tensors")


def settle(context: LoadContext) -> None:
    """Threads of this process's forward passes (after a preload the environment's word comes too late), and the part
    of a CUDA device that its allocator may take.
    """
    torch.set_num_threads(max(1, context.threads))
    if context.device.startswith("cuda") and context.device_memory_share:
        torch.cuda.set_per_process_memory_fraction(context.device_memory_share, context.device)
