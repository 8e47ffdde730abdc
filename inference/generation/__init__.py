"""Continuous batching of language models. Empty until that capability is built (see docs/architecture.md)."""
