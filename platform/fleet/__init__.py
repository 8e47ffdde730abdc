"""Hosts, devices, replicas: what runs where, wanted against seen. placement is pure."""
