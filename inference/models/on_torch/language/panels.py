"""Float32 weights of a linear layer on the CPU, in panels, as the compiled product (`products`) reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

Tensor = torch.Tensor
PANEL = 32  # outputs whose weights lie together, as `lanes` has it


@dataclass(slots=True, eq=False)
class Panelled:
    """weights: float32 [panels, inputs, 32], the last panel filled up with zeros."""

    outputs: int
    inputs: int
    weights: Tensor

    @property
    def nbytes(self) -> int:
        return self.weights.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[rows, outputs]: x [rows, inputs], float32, times the weights, plus the bias."""
        from inference.models.on_torch import products
        from inference.models.on_torch.language import team

        x, out = x.contiguous(), torch.empty(len(x), self.outputs)
        added = 0 if bias is None else bias.data_ptr()
        held = self.weights.data_ptr(), x.data_ptr(), out.data_ptr()
        team.shared().run(products.product(), *held, self.outputs, added, len(x), self.inputs, self.outputs)
        return out

    def rows(self, chosen: Tensor) -> Tensor:
        """Float32 [len(chosen), inputs]: the weights of those outputs (an embedding's lookup). chosen: int64."""
        return self.weights[chosen // PANEL, :, chosen % PANEL]


def panelled(weight: Tensor) -> Panelled:
    """`weight`: float32 [outputs, inputs], on the host."""
    outputs, inputs = weight.shape
    panels = F.pad(weight, (0, 0, 0, -outputs % PANEL)).view(-1, PANEL, inputs)
    held = torch.empty(len(panels), inputs, PANEL)
    held.copy_(panels.transpose(1, 2))
    return Panelled(outputs, inputs, held)
