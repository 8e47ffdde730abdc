"""Digits by torch: a small perceptron, trained in seconds, exported with a batch of 1 to 64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from serinus.demo.digits import CLASSES, HIDDEN, MAX_BATCH, PIXELS, SEED, Digits, digits, sample_input

__all__ = ["Perceptron", "make", "sample_input", "trained"]


class Perceptron(nn.Module):
    """image float32 [n, 64], 0..16 -> {"logits": float32 [n, 10]}."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(PIXELS, HIDDEN)
        self.second = nn.Linear(HIDDEN, CLASSES)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.second(torch.relu(self.first(image / 16.0)))}


def trained(data: Digits, epochs: int = 40) -> Perceptron:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model = Perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, labels = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[part])["logits"], labels[part])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def make(folder: Path) -> dict[str, Any]:
    """Writes model.pt2 into `folder`; returns {"accuracy": on the test images}."""
    data = digits()
    model = trained(data)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    program = torch.export.export(model, (torch.zeros(2, PIXELS),), dynamic_shapes={"image": {0: batch}})
    torch.export.save(program, folder / "model.pt2")
    with torch.inference_mode():
        found = model(torch.from_numpy(data.test_x))["logits"].argmax(1)
    return {"accuracy": round(float((found == torch.from_numpy(data.test_y)).float().mean()), 4)}
