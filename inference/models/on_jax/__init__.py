"""Loaders that run on JAX: jax.export programs."""
