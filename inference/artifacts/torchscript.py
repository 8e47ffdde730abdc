"""TorchScript: recognised, never parsed further. It is code, and there is no safe way to load it (tier CODE)."""

from __future__ import annotations

from pathlib import Path

from inference.artifacts.pickles import is_torchscript, members

NOTE = (
    "TorchScript runs what it likes when it is loaded, so it needs the right to upload code and a second person's "
    "approval. torch.export.save(...) makes a .pt2 file that needs neither."
)


def recognise(path: Path) -> bool:
    """Whether the zip file at `path` is TorchScript. Raises Rejected for a damaged zip."""
    return is_torchscript(members(path))
