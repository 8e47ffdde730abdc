"""Rows that every test of a module begins with, made once: each test runs in a savepoint of their transaction."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.test import override_settings


@contextlib.contextmanager
def shared_rows(blocker: Any, folder: Path, make: Callable[[], Any]) -> Iterator[Any]:
    """What `make` gives; its rows last until this block ends, and its files lie in `folder`, for `bring_files`.

    blocker: pytest-django's `django_db_blocker`. Only for modules whose tests all roll their transaction back.
    """
    from django.db import transaction

    with blocker.unblock(), transaction.atomic():
        with override_settings(DATA_DIR=folder / "data", ARTIFACTS_DIR=folder / "artifacts"):
            made = make()
        yield made
        transaction.set_rollback(True)


def bring_files(folder: Path) -> None:
    """Copies what belongs to shared rows to where this test keeps its files."""
    for name, own in (("data", settings.DATA_DIR), ("artifacts", settings.ARTIFACTS_DIR)):
        if (folder / name).exists():
            shutil.copytree(folder / name, own, dirs_exist_ok=True)
