"""Stores the numbers that gateways and replicas send: what console, scaling and judge read."""
