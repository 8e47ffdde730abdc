"""`python -m serinus.demo digits | digits-torch | digits-jax | minilm | vad | smollm2 OUTDIR`: one JSON line of what was made.

`digits` makes OUTDIR/torch and OUTDIR/jax: two versions of one model, with the same inputs and outputs. Each folder is
what one uploads; OUTDIR/sample_input.json is a request to try it with.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

MAKERS = {
    "digits-torch": ("serinus.demo.digits_torch", "torch"),
    "digits-jax": ("serinus.demo.digits_jax", "jax"),
    "minilm": ("serinus.demo.minilm", "minilm"),
    "vad": ("serinus.demo.vad", "vad"),
    "smollm2": ("serinus.demo.smollm2", "smollm2"),
}


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in {*MAKERS, "digits"}:
        sys.stderr.write(f"usage: python -m serinus.demo {' | '.join(['digits', *MAKERS])} OUTDIR\n")
        return 2
    name, out = arguments[0], Path(arguments[1])
    made = [_make(one, out) for one in (MAKERS if name == "digits" else [name]) if name != "digits" or "digits" in one]
    sys.stdout.write(json.dumps({"made": made, "sample_input": str(out / "sample_input.json")}) + "\n")
    return 0


def _make(name: str, out: Path) -> dict[str, Any]:
    module, folder = MAKERS[name]
    maker = importlib.import_module(module)
    target = out / folder
    target.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = maker.make(target)
    (out / "sample_input.json").write_text(json.dumps(maker.sample_input()))
    return {"name": name, "folder": str(target), **found}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
