"""Continuous batching of language models: sequences, paged blocks with a prefix cache, one token budget an iteration."""
