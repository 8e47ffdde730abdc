"""A child that computes with torch and JAX before it is ready: proof that the fork server left them usable."""

from __future__ import annotations

import json
import select
import socket
import sys
import time

from inference.protocol.child import PhaseReport, StartReplica
from inference.protocol.frames import encode
from inference.protocol.status import ReplicaPhase


def run_replica(message: StartReplica, control_fd: int, listener_fd: int) -> int:
    began = time.monotonic()
    control = socket.socket(fileno=control_fd)
    assert {"torch", "jax", "onnxruntime", "transformers"} <= set(sys.modules)
    control.sendall(encode(PhaseReport(ReplicaPhase.LOADING)))
    stood_ms = (time.monotonic() - began) * 1e3
    told = json.dumps({"torch": _torch(), "jax": _jax(), "stood_ms": stood_ms})
    while True:
        control.sendall(encode(PhaseReport(ReplicaPhase.READY, told)))
        ready, _, _ = select.select([control], [], [], 0.5)
        if ready:
            return 0


def _torch() -> float:
    import torch

    torch.set_num_threads(2)
    weight = torch.nn.Parameter(torch.arange(5.0))
    loss = (weight @ torch.ones(5, 300) @ torch.ones(300, 1)).sum() / 100
    loss.backward()
    return float(loss.detach())


def _jax() -> float:
    import jax
    import jax.numpy as jnp

    return float(jax.jit(lambda x: (x @ jnp.ones((5, 300)) @ jnp.ones((300, 1))).sum() / 100)(jnp.arange(5.0)))
