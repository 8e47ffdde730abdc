"""`python -m inference validate`: the parse stage as a command. It must not import a framework."""

from __future__ import annotations

from inference.replica.parse import main

__all__ = ["main"]
