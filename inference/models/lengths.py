"""Models with a free second dimension, run at a few lengths only: each request is padded with zeros to the next one.

For programs that are compiled for their shapes (JAX, CUDA graphs), and so that requests of unlike lengths can share a
batch. Zeros must mean "nothing" to the model, as in an attention mask; `bucket_lengths` is the author's word for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import InvalidInput, Rejected, SerinusError
from inference.models.contract import Prepared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.models.contract import Arrays, Model
    from inference.protocol.oip import TensorSpec


def bucketed(model: Model, bucket_lengths: Sequence[int]) -> BucketedModel:
    """Raises Rejected where no input has a length to be padded."""
    names = [spec.name for spec in model.signature.inputs if _is_free(spec) and spec.datatype != "BYTES"]
    if not names or not model.signature.max_batch_size:
        raise Rejected(
            "bucket_lengths is set, but no numeric input has a batch and a free second dimension",
            remedy="leave bucket_lengths out, or export the model with a dynamic second dimension",
            check="load",
        )
    return BucketedModel(model, names, sorted(set(bucket_lengths)))


class BucketedModel:
    """`model`, at `warm_lengths` only."""

    def __init__(self, model: Model, names: list[str], lengths: list[int]) -> None:
        self._model = model
        self._names = names
        self._free_outputs = {spec.name for spec in model.signature.outputs if _is_free(spec)}
        self.warm_lengths = lengths
        self.signature = model.signature

    @property
    def is_shareable(self) -> bool:
        return bool(getattr(self._model, "is_shareable", False))

    @property
    def compiles(self) -> int:
        return int(getattr(self._model, "compiles", 0))

    @property
    def device_memory_bytes(self) -> int:
        return int(getattr(self._model, "device_memory_bytes", 0))

    def prepare(self, requests: Sequence[Arrays]) -> list[Prepared | SerinusError]:
        """Each request, padded to the next length; the error of one that is too long or does not agree in itself."""
        return [self._padded(request) for request in requests]

    def restore(self, outputs: Arrays, length: int) -> Arrays:
        """Outputs with a free second dimension, cut back to the request's own length."""
        return {
            name: array[:, :length] if name in self._free_outputs and array.shape[1] in self.warm_lengths else array
            for name, array in outputs.items()
        }

    def work(self, inputs: Arrays) -> tuple[int, int]:
        """(elements of a pass, 0): what of them is padding is known from the requests' own lengths."""
        rows, length = inputs[self._names[0]].shape[:2]
        return rows * length, 0

    def run(self, inputs: Arrays) -> Arrays:
        return self._model.run(inputs)

    def close(self) -> None:
        self._model.close()

    def _padded(self, request: Arrays) -> Prepared | SerinusError:
        found = {request[name].shape[1] for name in self._names}
        if len(found) != 1:
            return InvalidInput(f"inputs {', '.join(self._names)} must have the same length, not {sorted(found)}")
        length = found.pop()
        size = next((size for size in self.warm_lengths if size >= length), 0)
        if not size:
            return InvalidInput(f"inputs may have at most {self.warm_lengths[-1]} elements in a row, not {length}")
        inputs = {name: _grown(array, size) if name in self._names else array for name, array in request.items()}
        return Prepared(inputs, length, length * request[self._names[0]].shape[0])


def _is_free(spec: TensorSpec) -> bool:
    return len(spec.shape) > 1 and spec.shape[1] == -1


def _grown(array: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    missing = size - array.shape[1]
    return np.pad(array, [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2)) if missing else array
