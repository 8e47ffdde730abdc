"""Canary, shadow and A/B. Empty until that capability is built; endpoints has the manual split."""
