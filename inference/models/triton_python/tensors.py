"""A tensor as Triton's Python models hold it, and the tables of datatypes. Tensors lie in host memory."""

from __future__ import annotations

from typing import Any

import numpy as np

BF16 = "BF16"
NUMPY: dict[str, Any] = {
    "TYPE_BOOL": np.bool_, "TYPE_UINT8": np.uint8, "TYPE_UINT16": np.uint16, "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64, "TYPE_INT8": np.int8, "TYPE_INT16": np.int16, "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64, "TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}  # fmt: skip
TO_NUMPY = dict(enumerate(NUMPY.values(), start=1))
FROM_NUMPY = {kind: number for number, kind in TO_NUMPY.items()} | {np.bytes_: 13, np.str_: 13}
BF16_NUMBER = 14


class TritonModelException(Exception):
    """An error that a model raises, or that this house raises to it."""


class Tensor:
    """A named array. Made from a numpy array, or from anything with `__dlpack__` by `from_dlpack`.

    numpy has no bfloat16: such a tensor has no `as_numpy`, and is carried as uint16.
    """

    def __init__(self, name: str, array: Any) -> None:
        if not isinstance(array, np.ndarray):
            raise TritonModelException(f"Tensor '{name}' must be made from a numpy array, not {type(array).__name__}")
        self._name = name
        self.carried = array
        self.is_bf16 = False

    @staticmethod
    def of(name: str, array: np.ndarray[Any, Any], *, is_bf16: bool) -> Tensor:
        found = Tensor(name, array)
        found.is_bf16 = is_bf16
        return found

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """From a tensor of another framework; one that lies on a GPU is copied to the host."""
        if isinstance(tensor, np.ndarray):
            return Tensor(name, tensor)
        import torch

        if not isinstance(tensor, torch.Tensor):
            tensor = torch.utils.dlpack.from_dlpack(tensor)
        tensor = tensor.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            return Tensor.of(name, tensor.view(torch.uint16).numpy(), is_bf16=True)
        return Tensor(name, tensor.numpy())

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        if self.is_bf16:
            words = "Tensor dtype is BF16 and cannot be converted to numpy"  # as Triton says it
            raise TritonModelException(f"{words}: '{self._name}' goes by to_dlpack()")
        return self.carried

    def shape(self) -> tuple[int, ...]:
        return tuple(self.carried.shape)

    def triton_dtype(self) -> int:
        return BF16_NUMBER if self.is_bf16 else FROM_NUMPY[self.carried.dtype.type]

    @property
    def kind(self) -> str:
        return "bfloat16" if self.is_bf16 else str(self.carried.dtype)

    def is_cpu(self) -> bool:
        return True

    def to_dlpack(self) -> Any:
        return self.__dlpack__()

    def __dlpack__(self, **options: Any) -> Any:
        return self._lent().__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._lent().__dlpack_device__()

    def _lent(self) -> Any:
        if self.carried.dtype == object:
            raise TritonModelException(f"tensor '{self._name}' holds strings, which DLPack cannot carry")
        # DLPack has no word for "read only", and what a frame brought may not be written to.
        array = self.carried if self.carried.flags.writeable else self.carried.copy()
        if not self.is_bf16:
            return array
        import torch

        return torch.from_numpy(array).view(torch.bfloat16)
