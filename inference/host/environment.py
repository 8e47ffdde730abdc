"""What a child process may know: an allow-list of the environment, never a block-list.

No database, broker or Django secret is ever passed on, whatever new ones are called.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from inference.protocol import compiled

PASSED = frozenset(
    {"PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "JAX_PLATFORMS"}
    | {"CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
    | {"PYTHONDONTWRITEBYTECODE", "SSL_CERT_FILE", "SSL_CERT_DIR", "TRITONSERVER_DELAY_SCHEDULER"}
)
PASSED_PREFIXES = ("SERINUS_SANDBOX", "TPU_")
FIXED = {
    # Spinning OpenMP threads cost twenty times the median latency when cores are shared.
    "OMP_WAIT_POLICY": "PASSIVE",
    # OpenBLAS starts its threads when numpy or scipy is imported; the fork server must have one.
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # onnxruntime would otherwise start a thread that reports to its vendor as soon as it is imported.
    "ORT_DISABLE_TELEMETRY": "1",
    "ORT_TELEMETRY_DISABLED": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    # torch then counts devices without opening the driver, which no fork survives.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
}


def child_environment(env: Mapping[str, str], *, home: Path, threads: int) -> dict[str, str]:
    """The whole environment of the fork server and of every child. `threads`: OpenMP threads at import."""
    kept = {name: value for name, value in env.items() if name in PASSED or name.startswith(PASSED_PREFIXES)}
    if "PYTHONPATH" in kept:
        kept["PYTHONPATH"] = _absolute(kept["PYTHONPATH"])
    own = {"HOME": str(home), "OMP_NUM_THREADS": str(threads), compiled.VARIABLE: str(compiled.folder(env) or "")}
    return kept | FIXED | own


def _absolute(path: str) -> str:
    # A child changes into its work folder, and late imports must still find the code.
    return os.pathsep.join(str(Path(part).resolve()) for part in path.split(os.pathsep) if part)
