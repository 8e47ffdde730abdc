"""Weights of a linear layer in 8 or 4 bits, quantised when they are loaded; inputs and outputs stay floating-point.

Symmetric, by groups of inputs of each output (as llama.cpp's Q8_0 and Q4_0): weight = whole number * scale, the scale in
bfloat16. With 8 bits the largest weight of a group becomes 127; with 4 bits the largest becomes -8 (so that all sixteen
numbers are used), and of several scales near it the one with the least squared error is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from inference.errors import Rejected

Tensor = torch.Tensor
PANEL = 32  # outputs whose weights lie together
GROUPS = {8: 64, 4: 32}  # inputs that share a scale
SHRUNK = (1.0, 0.96, 0.92, 0.88, 0.84)  # of the largest scale, for 4 bits
MANY_ROWS = 192  # from so many rows on, a product with weights made dense costs less than one with packed ones
TINY = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """weights: int8 [panels, inputs, 32], or with 4 bits [panels, inputs / 2, 32], of two inputs the first one's in the
    low half; scales: bfloat16 [panels, groups, 32]. Panels are filled up with zeros.
    """

    bits: int
    outputs: int
    inputs: int
    weights: Tensor
    scales: Tensor

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[rows, outputs]: x [rows, inputs] times the weights, plus the bias, in x's dtype."""
        if x.device.type != "cpu" or len(x) >= MANY_ROWS:
            found = x @ self.dense().to(x.dtype)
            return found if bias is None else found.add_(bias)
        from inference.models.on_torch.language import packed

        out = torch.empty(len(x), self.outputs)
        multiply = packed.product_int8 if self.bits == 8 else packed.product_int4
        scales = self.scales.view(torch.int16).numpy()
        multiply(self.weights.numpy(), scales, x.float().contiguous().numpy(), out.numpy())
        found = out.to(x.dtype)
        return found if bias is None else found.add_(bias)

    def dense(self) -> Tensor:
        """Float32 [inputs, outputs], on the weights' device."""
        if self.weights.device.type == "cpu":
            from inference.models.on_torch.language import packed

            out = torch.empty(self.inputs, self.outputs)
            unpack = packed.dense_int8 if self.bits == 8 else packed.dense_int4
            unpack(self.weights.numpy(), self.scales.view(torch.int16).numpy(), out.numpy())
            return out
        return self._taken(self.weights, self.scales).transpose(0, 1).flatten(1)[:, : self.outputs]

    def rows(self, chosen: Tensor) -> Tensor:
        """Float32 [len(chosen), inputs]: the weights of those outputs (an embedding's lookup). chosen: int64."""
        panel, lane = chosen // PANEL, chosen % PANEL
        return self._taken(self.weights[panel, :, lane][..., None], self.scales[panel, :, lane][..., None])[..., 0]

    def _taken(self, weights: Tensor, scales: Tensor) -> Tensor:
        """[..., inputs, n] out of weights [..., inputs or half of them, n] and scales [..., groups, n]."""
        if self.bits == 4:
            weights = torch.stack(((weights << 4) >> 4, weights >> 4), dim=2).flatten(1, 2)
        return weights.float() * scales.float().repeat_interleave(self.inputs // scales.shape[1], 1)


def quantise(weight: Tensor, bits: int) -> Quantised:
    """`weight`: [outputs, inputs]. Raises Rejected for 4 bits and an odd number of inputs."""
    outputs, inputs = weight.shape
    group = _group(inputs, bits)
    parts: list[tuple[Tensor, Tensor]] = [
        _packed(*_whole(piece, bits, group), bits) for piece in _padded(weight).split(PANEL * 256)
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
    """(whole numbers int8 [outputs, inputs], scales bfloat16 [outputs, groups])."""
    grouped = weight.float().unflatten(1, (-1, group))
    if bits == 8:
        scales = (grouped.abs().amax(-1, keepdim=True) / 127).clamp_min(TINY)
        return _rounded(grouped, scales, 127)
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True)) / -8
    largest = torch.where(largest.abs() < TINY, TINY, largest)
    best, least = None, None
    for share in SHRUNK:
        found = _rounded(grouped, largest * share, 7)
        error = (_again(*found, group) - grouped).square().sum(-1, keepdim=True)
        if best is None or least is None:
            best, least = found, error
            continue
        is_better = error < least
        whole = torch.where(is_better.expand_as(grouped).flatten(1), found[0], best[0])
        best, least = (whole, torch.where(is_better[..., 0], found[1], best[1])), torch.minimum(error, least)
    assert best is not None
    return best


def _rounded(grouped: Tensor, scales: Tensor, top: int) -> tuple[Tensor, Tensor]:
    kept = scales.bfloat16()
    whole = (grouped / kept.float()).round_().clamp_(-top - (top == 7), top)
    return whole.to(torch.int8).flatten(1), kept[..., 0]


def _again(whole: Tensor, scales: Tensor, group: int) -> Tensor:
    return whole.float().unflatten(1, (-1, group)) * scales.float()[..., None]


def _packed(whole: Tensor, scales: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    panels = whole.unflatten(0, (-1, PANEL)).transpose(1, 2)
    if bits == 4:
        panels = (panels[:, 0::2] & 15) | (panels[:, 1::2] << 4)
    return panels.contiguous(), scales.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()
