"""The host agent (Celery): converges this host's replicas to what is wanted. Owns no process and has no models."""
