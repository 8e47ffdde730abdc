"""Shared by every test: where nothing else is said, the tests run on their own embedded PostgreSQL and Valkey.

Tests marked `gpu` or `tpu` are skipped where the machine has no such device; no other skip is known here.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

# What is asked here is on this machine and without TLS, yet every `httpx.get` reads all certificates that are trusted:
# 40 ms of work each time, and tests that wait ask twenty times a second. So one is trusted, whose key nobody has, also
# where the machine names a file of its own: a quarter of all processor time went into reading that.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "data" / "nobody.pem")


# Whole files go to processes (Makefile), in this order and then any: one that takes minutes and begins last leaves the
# other processes idle.
LONGEST_FIRST = (
    "journeys/test_rollouts.py", "journeys/test_faults.py", "journeys/test_rollouts_steps.py", "journeys/test_up.py",
    "journeys/test_playground.py", "journeys/test_browser.py", "journeys/test_triton_repository.py",
    "journeys/test_faults_more.py", "journeys/test_bad_uploads.py", "journeys/test_adapters.py", "journeys/test_outside.py",
    "integration/test_gateway_faults.py", "integration/test_jobs_batches.py", "integration/test_console_browser.py",
    "integration/test_playground_browser.py", "integration/test_fuzz.py", "integration/test_host.py",
    "integration/test_host_frameworks.py", "integration/test_host_real.py", "integration/test_openai_fuzz.py",
    "integration/test_schema_rest.py", "integration/test_schema_control.py", "integration/test_rollouts_webhooks.py",
    "integration/test_rollouts_judge_simulation.py", "integration/test_security_routes.py",
)  # fmt: skip


GC_THRESHOLDS = (20_000, 20, 50)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: looks how soon something happens, so nothing else may run beside it")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _skip_without_device(items)
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    root = Path(__file__).parent
    items.sort(key=lambda item: places.get(item.path.relative_to(root).as_posix(), len(places)))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: hundreds of thousands of objects that need not be looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _skip_without_device(items: list[pytest.Item]) -> None:
    from inference.host import devices

    finders = {"gpu": lambda: devices.cuda().devices, "tpu": devices.tpu}
    for marker, find in finders.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not find():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=f"this machine has no {marker.upper()}"))


# CI draws the same examples each time, so that a change is judged by what it changed; at a desk they are new each run.
# HYPOTHESIS_PROFILE=deep draws many more. No deadline: the machine may be busy, and timed claims live in the benchmarks.
hypothesis_settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
hypothesis_settings.register_profile("desk", deadline=None, max_examples=40)
hypothesis_settings.register_profile("deep", deadline=None, max_examples=1000)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "desk"))


@pytest.fixture(scope="session")
def services() -> Iterator[Any]:
    """DATABASE_URL and REDIS_URL as they are set; embedded services for the session when they are not."""
    from tests.support.database import Services, embedded

    if os.environ.get("DATABASE_URL") and os.environ.get("REDIS_URL"):
        yield Services(os.environ["DATABASE_URL"], os.environ["REDIS_URL"])
        return
    with embedded() as found:
        yield found


@pytest.fixture(scope="session")
def django_db_modify_db_settings(services: Any, django_db_modify_db_settings_parallel_suffix: None) -> Iterator[None]:
    """Points Django and Celery, whose settings were read long ago, to the services of this session."""
    from celery import current_app
    from django.conf import settings

    from config.settings import _broker, _database, _unix_redis

    found = _database(services.database_url)
    if not os.environ.get("DATABASE_URL"):
        settings.DATABASES["default"].update({**found, "TEST": settings.DATABASES["default"].get("TEST", {})})
    if not os.environ.get("REDIS_URL"):
        settings.REDIS_URL = _unix_redis(services.redis_url)
        settings.CHANNEL_LAYERS["default"]["CONFIG"]["hosts"] = [settings.REDIS_URL]
        settings.CELERY_BROKER_URL = current_app.conf.broker_url = _broker(services.redis_url)
    yield
    current_app.close()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Ends what connections other threads have left open: the test database could not be dropped under them."""
    yield
    from django.db import connection

    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@pytest.fixture(autouse=True)
def _private_folders(tmp_path: Path) -> Iterator[None]:
    """No test touches the data folder of a real installation."""
    from django.test import override_settings

    with override_settings(
        DATA_DIR=tmp_path / "data",
        ARTIFACTS_DIR=tmp_path / "artifacts",
        STATIC_ROOT=tmp_path,
        WHITENOISE_AUTOREFRESH=True,  # otherwise every test client reads every static file
    ):
        yield


@pytest.fixture
def cast(db: None) -> Any:
    """Owner, developer, teammate, stranger, root: see tests.support.cast."""
    from tests.support.cast import make_cast

    return make_cast()
