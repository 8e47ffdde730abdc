"""Settings, urls, asgi, celery: composition only, no logic. Nobody imports it."""

from config.celery import app as celery

__all__ = ["celery"]
