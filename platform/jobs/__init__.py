"""Batch predictions over files. Empty until that capability is built."""
