"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, shared by both digits models.

`image` FP32 [n, 64], grey values 0..16 as they are in the data set; `logits` FP32 [n, 10].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PIXELS, CLASSES, HIDDEN, MAX_BATCH = 64, 10, 64, 64
SEED = 7
Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Digits:
    """train_x, test_x: float32 [n, 64]; train_y, test_y: int64 [n]."""

    train_x: Images
    train_y: Labels
    test_x: Images
    test_y: Labels


def digits() -> Digits:
    """The data set, shuffled by a fixed seed, the last 360 kept for testing."""
    from sklearn.datasets import load_digits

    held: Any = load_digits()
    order = np.random.default_rng(SEED).permutation(len(held.target))
    images, labels = held.data[order].astype(np.float32), held.target[order].astype(np.int64)
    return Digits(images[:-360], labels[:-360], images[-360:], labels[-360:])


def sample_input() -> dict[str, Any]:
    """An Open Inference Protocol request with the first test image."""
    image = digits().test_x[0]
    return {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, PIXELS], "data": image.tolist()}]}
