"""Collects requests into batches for stateless models. window is pure; batcher is its asyncio shell."""
