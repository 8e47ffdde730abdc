"""Loaders that run on torch: torch.export programs, TorchScript, Hugging Face encoders."""
