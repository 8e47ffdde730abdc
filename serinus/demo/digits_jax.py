"""Digits by JAX: the same perceptron in plain jax.numpy, exported for cpu, cuda and tpu with a symbolic batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from serinus.demo.digits import CLASSES, HIDDEN, PIXELS, SEED, Digits, digits, sample_input

__all__ = ["logits", "make", "sample_input", "trained"]

Parameters = dict[str, Any]
PLAN = {"program": "model.jaxexport", "weights": [], "inputs": ["image"], "outputs": ["logits"]}


def logits(parameters: Parameters, image: Any) -> Any:
    """`image` float32 [n, 64], 0..16 -> float32 [n, 10]."""
    hidden = jax.nn.relu(image / 16.0 @ parameters["w1"] + parameters["b1"])
    return hidden @ parameters["w2"] + parameters["b2"]


def trained(data: Digits, steps: int = 600) -> Parameters:
    """Adam on random batches of 64, the whole loop one compiled program."""
    images, labels = jnp.asarray(data.train_x), jnp.asarray(data.train_y)

    def loss(parameters: Parameters, picked: Any) -> Any:
        scores = jax.nn.log_softmax(logits(parameters, images[picked]))
        return -scores[jnp.arange(64), labels[picked]].mean()

    def step(state: Any, key: Any) -> Any:
        parameters, mean, square, count = state
        gradient = jax.grad(loss)(parameters, jax.random.randint(key, (64,), 0, len(images)))
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
        square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, square, gradient)
        rate = 3e-3 * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        moved = jax.tree.map(lambda p, m, s: p - rate * m / (jnp.sqrt(s) + 1e-8), parameters, mean, square)
        return (moved, mean, square, count + 1), None

    start = _start()
    zeros = jax.tree.map(jnp.zeros_like, start)
    keys = jax.random.split(jax.random.key(SEED), steps)
    (parameters, *_), _ = jax.jit(lambda state: jax.lax.scan(step, state, keys))((start, zeros, zeros, 1.0))
    found: Parameters = jax.device_get(parameters)
    return found


def make(folder: Path) -> dict[str, Any]:
    """Writes model.jaxexport and jax.json into `folder`; returns {"accuracy": on the test images}."""
    data = digits()
    parameters = trained(data)
    (batch,) = export.symbolic_shape("batch")
    function = jax.jit(lambda image: logits(parameters, image))
    shape: Any = jax.ShapeDtypeStruct((batch, PIXELS), jnp.float32)  # type: ignore[no-untyped-call]
    blob = export.export(function, platforms=["cpu", "cuda", "tpu"])(shape).serialize()
    (folder / "model.jaxexport").write_bytes(blob)
    (folder / "jax.json").write_text(json.dumps(PLAN))
    found = np.asarray(function(data.test_x)).argmax(1)
    return {"accuracy": round(float((found == data.test_y).mean()), 4)}


def _start() -> Parameters:
    generator = np.random.default_rng(SEED)
    return {
        "w1": jnp.asarray(generator.standard_normal((PIXELS, HIDDEN)) * (2 / PIXELS) ** 0.5, jnp.float32),
        "b1": jnp.zeros(HIDDEN),
        "w2": jnp.asarray(generator.standard_normal((HIDDEN, CLASSES)) * (2 / HIDDEN) ** 0.5, jnp.float32),
        "b2": jnp.zeros(CLASSES),
    }
