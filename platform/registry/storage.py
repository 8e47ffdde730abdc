"""The one artifact store of this installation."""

from __future__ import annotations

from django.conf import settings

from inference.artifacts.store import Store


def store() -> Store:
    return Store(settings.ARTIFACTS_DIR)
