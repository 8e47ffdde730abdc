"""Exported programs and read-only inputs: lent memory is read where it lies, and never written to."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference.models import LoadContext, load
from inference.models.on_torch import export
from inference.protocol.settings import RuntimeSettings


class Doubles(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2


class WritesToItsInput(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        x.mul_(2)
        return x.clone()


class WritesToAView(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        x[:, 0] = 7
        return x + 0


def loaded(folder: Path, module: torch.nn.Module) -> export.ExportedModel:
    folder.mkdir(exist_ok=True)
    rows = ({0: torch.export.Dim("rows", min=1, max=8)},)
    torch.export.save(torch.export.export(module.eval(), (torch.zeros(2, 4),), dynamic_shapes=rows), folder / "m.pt2")
    model = load("torch_export", LoadContext(folder, RuntimeSettings(), "cpu", 1))
    assert isinstance(model, export.ExportedModel)
    return model


def read_only() -> np.ndarray[Any, Any]:
    """As a lent block looks from its borrower's side."""
    source = mmap.mmap(-1, 4096)
    source[:32] = np.arange(8, dtype=np.float32).tobytes()
    return np.frombuffer(memoryview(source).toreadonly(), np.float32, 8).reshape(2, 4)


def test_a_program_that_only_reads_gets_the_memory_itself(tmp_path: Path) -> None:
    model, array = loaded(tmp_path / "m", Doubles()), read_only()
    assert not array.flags.writeable
    assert model._leaf(array, "FP32").data_ptr() == array.ctypes.data
    assert model.run({"x": array})["output_0"].tolist() == (np.arange(8).reshape(2, 4) * 2).tolist()


@pytest.mark.parametrize(("module", "wanted"), [
    (WritesToItsInput(), [[0, 2, 4, 6], [8, 10, 12, 14]]), (WritesToAView(), [[7, 1, 2, 3], [7, 5, 6, 7]]),
])  # fmt: skip
def test_a_program_that_writes_to_its_input_gets_a_copy(
    tmp_path: Path, module: torch.nn.Module, wanted: list[list[float]]
) -> None:
    model, array = loaded(tmp_path / "m", module), read_only()
    assert model._leaf(array, "FP32").data_ptr() != array.ctypes.data
    assert model.run({"x": array})["output_0"].tolist() == wanted
    assert array.ravel().tolist() == list(range(8))
