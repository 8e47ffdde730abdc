"""ONNX models by onnxruntime. The session itself says what goes in and out; no custom operator libraries are loaded."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnxruntime

from inference.artifacts import onnx
from inference.errors import Rejected
from inference.models import batch, declared
from inference.models.entry import entry_file
from inference.protocol.oip import Signature, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from inference.models.contract import Arrays, LoadContext

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def load(context: LoadContext) -> OnnxModel:
    """A session on the context's device with its number of threads. Raises Rejected."""
    path = entry_file(context.folder, ".onnx")
    options = _options(context.threads)
    lent = weights_beside(path)
    try:
        if lent:
            sizes = [len(data) for data in lent.values()]
            options.add_external_initializers_from_files_in_memory(list(lent), list(lent.values()), sizes)
        session = onnxruntime.InferenceSession(str(path), options, providers=_providers(context))
    except Exception as error:
        remedy = "check it with onnx.checker.check_model and export it for a lower opset if need be"
        raise Rejected(
            f"onnxruntime cannot load this model: {str(error)[:300]}", remedy=remedy, check="load"
        ) from error
    return OnnxModel(session, context)


class OnnxModel:
    """One session. String tensors come and go as UTF-8 bytes."""

    is_shareable = True
    forgets_inputs = True

    def __init__(self, session: Any, context: LoadContext) -> None:
        self._session = session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        signature = Signature(
            inputs=[_spec(value) for value in inputs],
            outputs=[_spec(value) for value in outputs],
            platform="onnxruntime_onnx",
        )
        if context.settings.inputs or context.settings.outputs:
            self.signature = declared.against(signature, context.settings)
            return
        leading = {value.shape[0] if value.shape else "" for value in (*inputs, *outputs)}
        self.signature = signature
        if len(leading) == 1 and not isinstance(leading.copy().pop(), int) and "" not in leading:
            largest = batch.max_batch(context.settings, None)
            self.signature = msgspec.structs.replace(signature, max_batch_size=largest)
        else:
            self.signature = batch.with_fixed_batch(signature, self.run)

    def run(self, inputs: Arrays) -> Arrays:
        feed = {
            spec.name: _decoded(inputs[spec.name]) if spec.datatype == "BYTES" else inputs[spec.name]
            for spec in self.signature.inputs
        }
        names = [spec.name for spec in self.signature.outputs]
        results = self._session.run(names, feed)
        return {
            spec.name: _encoded(result) if spec.datatype == "BYTES" else result
            for spec, result in zip(self.signature.outputs, results, strict=True)
        }

    def close(self) -> None:
        self._session = None


def weights_beside(path: Path) -> dict[str, mmap.mmap | bytes]:
    """The model's external data, mapped, by the names that it has in the graph; the session copies what it needs of it.

    onnxruntime would open the files itself, and refuses links out of the folder: here each is a link into the store.
    Raises Rejected.
    """
    if not any(one != path for one in path.parent.iterdir()):
        return {}
    found: dict[str, mmap.mmap | bytes] = {}
    for name in onnx.read(path).outside:
        with (path.parent / name).open("rb") as source:
            is_empty = not os.fstat(source.fileno()).st_size
            found[name] = b"" if is_empty else mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ)
    return found


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _providers(context: LoadContext) -> list[Any]:
    kind, _, index = context.device.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        options = {"device_id": index or "0"}
        if context.device_memory_bytes:
            options["gpu_mem_limit"] = str(context.device_memory_bytes)
        return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
    raise Rejected(
        f"this build of onnxruntime cannot run on {context.device}",
        remedy="deploy the version with device cpu, or install Serinus with the extra [cuda]",
        check="load",
    )


def _spec(value: Any) -> TensorSpec:
    datatype = DATATYPES.get(value.type)
    if datatype is None:
        raise Rejected(
            f"{value.name} is a {value.type}, which the inference protocol cannot carry",
            remedy="let the graph take and give plain tensors (no sequences, maps or optionals)",
            check="signature",
        )
    return TensorSpec(value.name, datatype, [size if isinstance(size, int) else -1 for size in value.shape])


def _decoded(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    texts = [item.decode("utf-8", "replace") for item in array.ravel()]
    return np.array(texts, dtype=object).reshape(array.shape)


def _encoded(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    items = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel()]
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found.reshape(array.shape)
