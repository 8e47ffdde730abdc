"""Canary, shadow and A/B: plans as data, a reconciler that moves through them, and a judge whose errors are known."""
