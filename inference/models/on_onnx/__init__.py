"""Loaders that run on ONNX Runtime."""
