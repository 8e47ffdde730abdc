"""What the fork server imports so that a child stands within milliseconds. Names only: nothing here computes.

Forking after a library has computed, or while it has threads, hangs the child; so every import is watched for threads.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from inference.host.processes import thread_count

ENTRY = "inference.replica.entry"
MODULES = (
    "numpy",
    "torch",
    "torch.export",
    "jax",
    "jax.export",
    "jaxlib",
    "flatbuffers",
    "onnxruntime",
    "safetensors.numpy",
    "safetensors.torch",
    "tokenizers",
    "transformers",
    "transformers.models.auto",
    "transformers.models.bert.configuration_bert",
    "transformers.models.bert.modeling_bert",
    "uvloop",
    # Late imports of the child, so that a load begins with loading.
    "inference.models.on_torch.encoder_kernels",
    "inference.models.on_torch.export",
    "inference.models.on_torch.hf_encoder",
    "inference.models.on_torch.torchscript",
    "inference.models.on_jax.export",
    "inference.models.on_onnx.session",
    "inference.models.triton_python.loader",
    "inference.replica.validation",
    ENTRY,
)


@dataclass(slots=True)
class Preloaded:
    """import_ms: all of it. missing: modules that are not installed or failed, with why. threaded: who started threads."""

    import_ms: float = 0.0
    missing: dict[str, str] = field(default_factory=dict)
    threaded: list[str] = field(default_factory=list)


def preload(modules: Iterable[str]) -> Preloaded:
    """Import each module; a missing one is noted, never fatal: its children import late, or say what is missing."""
    found = Preloaded()
    began = time.perf_counter()
    with _no_device():
        for name in modules:
            before = thread_count()
            try:
                importlib.import_module(name)
            except Exception as error:  # noqa: BLE001 (a broken optional package must not stop the others)
                found.missing[name] = f"{type(error).__name__}: {error}"
            if thread_count() > before:
                found.threaded.append(name)
    found.import_ms = (time.perf_counter() - began) * 1e3
    return found


@contextlib.contextmanager
def _no_device() -> Iterator[None]:
    """Hide CUDA while importing, so that a library that looks for devices at import finds none to open."""
    name = "CUDA_VISIBLE_DEVICES"
    held = os.environ.get(name)
    os.environ[name] = ""
    try:
        yield
    finally:
        if held is None:
            del os.environ[name]
        else:
            os.environ[name] = held
