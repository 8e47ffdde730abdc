"""Weights of a linear layer in 8 or 4 bits, quantised when they are loaded or kept as a GGUF file has them; inputs and
outputs stay floating-point.

By groups of inputs of each output, as llama.cpp's Q8_0 and Q4_1: with 8 bits a weight is whole number * scale, with 4
bits it is whole number * scale + the group's least weight (without that, a small model's perplexity grows three times as
much). Scales are bfloat16. With 4 bits, of several ranges within the group's own the one with the least squared error
is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from inference.errors import Rejected
from inference.models.on_torch.language.panels import PANEL, Panelled

Tensor = torch.Tensor
GROUPS = {8: 64, 4: 32}  # inputs that share a scale
# Shares of a group's least and largest weight.
RANGES = ((1.0, 1.0), (0.92, 0.92), (0.92, 1.0), (1.0, 0.92), (0.84, 0.84))
TINY = 1e-30


@dataclass(slots=True, eq=False)
class Quantised:
    """weights: int8 [panels, inputs, 32], or with 4 bits [panels, inputs / 2, 32], of two inputs the first one's in the
    low half; scales: bfloat16, float16 or float32 [panels, groups, 1 or 2, 32]: the scale, and the group's offset where
    there is one. 4 bits without an offset are 8 higher than their values. Panels are filled up with zeros.
    """

    bits: int
    outputs: int
    inputs: int
    weights: Tensor
    scales: Tensor

    @property
    def form(self) -> tuple[int, int, str]:
        """(bits, numbers of a group, their dtype), by which its kernels are told apart."""
        return self.bits, self.scales.shape[2], str(self.scales.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        return self.weights.nbytes + self.scales.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[rows, outputs]: x [rows, inputs] times the weights, plus the bias, in x's dtype."""
        if x.device.type != "cpu":
            found = x @ self.dense().to(x.dtype)
            return found if bias is None else found.add_(bias)
        from inference.models.on_torch.language import packed, team

        rows, out = x.to(torch.float32).contiguous(), torch.empty(len(x), self.outputs)
        addresses = self.weights.data_ptr(), self.scales.data_ptr(), rows.data_ptr(), out.data_ptr()
        sizes = len(x), self.inputs, self.outputs, self.scales.shape[1]
        team.shared().run(packed.together_of(packed.Form(*self.form)), *addresses, *sizes)
        found = out if x.dtype is torch.float32 else out.to(x.dtype)
        return found if bias is None else found.add_(bias)

    def compile(self) -> None:
        """Compiles what `product` runs, which takes seconds, so that no step waits for it."""
        self.product(torch.zeros(1, self.inputs, device=self.weights.device), None)

    def dense(self) -> Tensor:
        """Float32 [inputs, outputs], on the weights' device."""
        if self.weights.device.type == "cpu":
            from inference.models.on_torch.language import packed, team

            out = torch.empty(self.inputs, self.outputs)
            addresses = self.weights.data_ptr(), self.scales.data_ptr(), out.data_ptr()
            sizes = self.inputs, self.outputs, self.scales.shape[1]
            team.shared().run(packed.dense_of(packed.Form(*self.form)), *addresses, *sizes)
            return out
        return self._taken(self.weights, self.scales).transpose(0, 1).flatten(1)[:, : self.outputs]

    def rows(self, chosen: Tensor) -> Tensor:
        """Float32 [len(chosen), inputs]: the weights of those outputs (an embedding's lookup). chosen: int64."""
        panel, lane = chosen // PANEL, chosen % PANEL
        return self._taken(self.weights[panel, :, lane][..., None], self.scales[panel, :, :, lane][..., None])[..., 0]

    def _taken(self, weights: Tensor, scales: Tensor) -> Tensor:
        """[..., inputs, n] out of weights [..., inputs or half of them, n] and scales [..., groups, 1 or 2, n]."""
        if self.bits == 4:
            weights = torch.stack((weights & 15, (weights >> 4) & 15), dim=2).flatten(1, 2)
            weights = weights - 8 if scales.shape[2] == 1 else weights
        every = scales.float().repeat_interleave(self.inputs // scales.shape[1], 1)
        found = weights.float() * every[:, :, 0]
        return found + every[:, :, 1] if scales.shape[2] == 2 else found


@dataclass(slots=True, eq=False)
class Beside:
    """The weights of one linear layer in parts that are kept in different ways, their outputs one after another."""

    parts: list[Tensor | Panelled | Quantised]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """As `Quantised.product`."""
        every = [F.linear(x, part) if isinstance(part, torch.Tensor) else part.product(x, None) for part in self.parts]
        found = torch.cat(every, dim=1)
        return found if bias is None else found.add_(bias)


def kept(whole: Tensor, scales: Tensor, bits: int) -> Quantised:
    """Of what is quantised already. whole: int8 [outputs, inputs]; scales: [outputs, groups, 1 or 2]."""
    outputs, inputs = whole.shape
    more = -outputs % PANEL
    held = _packed(F.pad(whole, (0, 0, 0, more)), F.pad(scales, (0, 0, 0, 0, 0, more)), bits)
    return Quantised(bits, outputs, inputs, *held)


def quantise(weight: Tensor, bits: int) -> Quantised:
    """`weight`: [outputs, inputs]. Raises Rejected for 4 bits and an odd number of inputs."""
    outputs, inputs = weight.shape
    group = _group(inputs, bits)
    parts: list[tuple[Tensor, Tensor]] = [
        _packed(*_whole(piece, bits, group), bits) for piece in torch.split(_padded(weight), PANEL * 256)
    ]
    weights, scales = (torch.cat(part) for part in zip(*parts, strict=True))
    return Quantised(bits, outputs, inputs, weights, scales)


def _group(inputs: int, bits: int) -> int:
    group = GROUPS[bits]
    while group > 8 and inputs % group:
        group //= 2
    group = group if inputs % group == 0 else inputs
    if bits == 4 and group % 2:
        raise Rejected(
            f"a layer with {inputs} inputs cannot be quantised to int4",
            remedy="set generation.quantization to int8 or none",
            check="load",
        )
    return group


def _padded(weight: Tensor) -> Tensor:
    return F.pad(weight, (0, 0, 0, -len(weight) % PANEL))


def _whole(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """(whole numbers int8 [outputs, inputs], scales bfloat16 [outputs, groups, 1 or 2])."""
    grouped = weight.float().reshape(len(weight), -1, group)
    if bits == 8:
        scales = (grouped.abs().amax(-1, keepdim=True) / 127).clamp_min(TINY).bfloat16()
        return (grouped / scales.float()).round_().clamp_(-127, 127).to(torch.int8).flatten(1), scales
    least, largest = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    best, error = _ranged(grouped, least, largest)
    for low, high in RANGES[1:]:
        found, its_error = _ranged(grouped, least * low, largest * high)
        best = torch.where(its_error < error, found, best)
        error = torch.minimum(error, its_error)
    scales, offsets = best[..., :1], best[..., 1:]
    whole = ((grouped - offsets) / scales).round_().clamp_(0, 15).to(torch.int8)
    return whole.flatten(1), best.bfloat16()


def _ranged(grouped: Tensor, least: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """(scale and offset [outputs, groups, 2], as bfloat16 has them; squared error [outputs, groups, 1])."""
    scales = ((largest - least) / 15).clamp_min(TINY).bfloat16().float()
    offsets = least.bfloat16().float()
    again = ((grouped - offsets) / scales).round_().clamp_(0, 15).mul_(scales).add_(offsets)
    return torch.cat((scales, offsets), -1), again.sub_(grouped).square_().sum(-1, keepdim=True)


def _packed(whole: Tensor, scales: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    panels = whole.reshape(-1, PANEL, whole.shape[1]).transpose(1, 2)
    if bits == 4:
        panels = panels[:, 0::2] | (panels[:, 1::2] << 4)
    return panels.contiguous(), scales.reshape(-1, PANEL, *scales.shape[1:]).permute(0, 2, 3, 1).contiguous()
