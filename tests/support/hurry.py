"""Shorter times for a process of ours, so that a test need not wait for the real ones: constants set at its start.

It writes a `sitecustomize.py`, which Python runs before anything else; the product has no hooks for tests.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def hurried(folder: Path, *, max_files: int = 0, **constants: float) -> dict[str, str]:
    """The environment for a process with other constants: hurried(folder, http__HEAD_S=2.0) sets HEAD_S of
    `inference.gateway.http`. max_files: its limit of open files.
    """
    lines = ["import importlib, resource"]
    if max_files:
        lines.append(f"resource.setrlimit(resource.RLIMIT_NOFILE, ({max_files}, {max_files}))")
    for name, value in constants.items():
        module, _, constant = name.partition("__")
        lines += [
            f"module = importlib.import_module('inference.gateway.{module}')",
            f"assert hasattr(module, {constant!r})",
            f"module.{constant} = {value!r}",
        ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    return {"PYTHONPATH": f"{folder}:{ROOT}"}
