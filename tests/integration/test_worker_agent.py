"""The host agent with a real supervisor, a real database and a real Celery worker process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from accounts.models import Role
from endpoints import actions as endpoints
from endpoints import publish
from fleet import actions
from fleet.models import Device, Host, Replica
from registry.models import ValidationRun, Version, VersionStatus
from tests.support import hosts
from tests.support.celery_workers import celery_worker
from tests.support.database import Services
from tests.support.fleet_cast import lapse, person, version
from worker.agent import Agent, converge_once

pytestmark = pytest.mark.django_db(transaction=True)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    from accounts import wakeups

    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[hosts.Host]:
    with hosts.running(tmp_path) as host:
        yield host


def until(what: str, true: Callable[[], object], timeout_s: float = 15.0, step: Callable[[], object] | None = None):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if step:
            step()
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}: {list(Replica.objects.values())}")


def ready() -> Replica | None:
    return Replica.objects.filter(phase="ready", wanted="run").first()


def deploy(host: hosts.Host, act: str = "serve") -> None:
    converge_once("a", host.client)
    row = version(settings={"act": act})
    endpoints.deploy(version=row, actor=person("dev", Role.DEVELOPER))
    actions.reconcile()


def test_a_deployed_version_is_served_and_published(supervisor: hosts.Host) -> None:
    deploy(supervisor)
    row = until("ready", ready, step=lambda: converge_once("a", supervisor.client))
    os.kill(row.pid, 0)
    assert Path(row.address.removeprefix("unix:")).is_socket()
    assert Device.objects.get(name="cpu").memory_total_bytes > 0
    (route,) = publish.build_table().endpoints[0].variants[0].replicas
    assert (route.id, route.generation, route.address) == (str(row.id), 1, row.address)


def test_a_killed_replica_is_back_at_its_address_by_itself(supervisor: hosts.Host) -> None:
    deploy(supervisor)
    old = until("ready", ready, step=lambda: converge_once("a", supervisor.client))
    os.kill(old.pid, signal.SIGKILL)
    back = until(
        "back", lambda: (r := ready()) and r.pid != old.pid and r, step=lambda: converge_once("a", supervisor.client)
    )
    assert (back.generation, back.address, back.restarts) == (old.generation, old.address, 1)


def test_a_killed_supervisor_gets_its_replicas_again(supervisor: hosts.Host) -> None:
    deploy(supervisor)
    agent = Agent("a", supervisor.client)
    old = until("ready", ready, step=agent.pass_once)
    supervisor.kill()
    agent.pass_once()
    assert "does not answer" in Host.objects.get().problem
    supervisor.start(standby=False)
    back = until("back", lambda: (r := ready()) and r.pid != old.pid and r, step=agent.pass_once)
    assert back.address == old.address
    assert Host.objects.get().problem == ""


def test_a_frozen_host_gives_its_replica_up_when_it_wakes(supervisor: hosts.Host, tmp_path: Path) -> None:
    deploy(supervisor)
    old = until("ready", ready, step=lambda: converge_once("a", supervisor.client))
    (tmp_path / "b").mkdir()
    with hosts.running(tmp_path / "b") as other:
        converge_once("b", other.client)
        lapse("a")
        from fleet.models import Reconciliation

        Reconciliation.objects.update(grace_until=None)
        actions.reconcile()
        if Replica.objects.get().host_id == "a":  # the database is younger than its grace period
            pytest.skip("PostgreSQL has just started")
        moved = until("moved", ready, step=lambda: converge_once("b", other.client))
        assert (moved.host_id, moved.generation, moved.id) == ("b", 2, old.id)
        until("gone", lambda: not supervisor.client.look().replicas, step=lambda: converge_once("a", supervisor.client))
        assert ready().host_id == "b"


def wish_validation(act: str) -> ValidationRun:
    files = [{"path": "echo.json", "size_bytes": 2, "sha256": "0" * 64}]
    manifest = {"files": files, "settings": {"act": act}}
    row = version(status=VersionStatus.VALIDATING, manifest=manifest, format="", tier="", signature=None, report=None)
    return ValidationRun.objects.create(version=row)


def test_a_wished_validation_runs_and_its_verdict_is_handed_in(supervisor: hosts.Host) -> None:
    run = wish_validation("segfault")
    supervisor.wait(lambda seen: seen.standby_ready)
    verdict = until(
        "verdict",
        lambda: Version.objects.filter(pk=run.version_id).exclude(status="validating").first(),
        step=lambda: converge_once("a", supervisor.client),
    )
    assert verdict.status == "rejected"
    assert "memory that is not its own" in verdict.reason
    assert verdict.remedy
    run.refresh_from_db()
    assert (run.state, run.host) == ("done", "a")
    assert [check["state"] for check in run.checks] == ["passed", "failed"]


# A real agent process.


def agent_process(host: hosts.Host, services: Services) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    env = {"SERINUS_ROLE": "agent", "SERINUS_HOST_NAME": "a", "SERINUS_RUNTIME_DIR": str(host.runtime)}
    return celery_worker("host.a", host.data, services, **env)


def test_an_agent_without_a_broker_converges_and_its_successor_adopts(
    supervisor: hosts.Host, services: Services
) -> None:
    with agent_process(supervisor, services) as first:
        until("host", lambda: Host.objects.filter(name="a", lease_until__isnull=False).exists(), 30)
        endpoints.deploy(version=version(settings={"act": "serve"}), actor=person("dev", Role.DEVELOPER))
        actions.reconcile()
        old = until("ready", ready, 10)
        mapped = Path(f"/proc/{first.pid}/maps").read_text()
        assert not [lib for lib in ("libtorch", "jaxlib", "onnxruntime") if lib in mapped]
    os.kill(old.pid, 0)
    with agent_process(supervisor, services) as second:
        until("adopted", lambda: Host.objects.get().agent_pid == second.pid, 30)
        after = ready()
        assert (after.pid, after.restarts, after.generation) == (old.pid, 0, 1)
        assert [replica.pid for replica in supervisor.client.look().replicas] == [old.pid]


def test_the_agent_never_imports_a_tensor_library() -> None:
    code = (
        "import django, sys; django.setup(); import worker.tasks, fleet.tasks, endpoints.tasks, telemetry.tasks;"
        "from config.celery import app; app.loader.import_default_modules();"
        "print(sorted({'torch', 'jax', 'jaxlib', 'numpy', 'onnxruntime', 'transformers'} & set(sys.modules)))"
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}", "DJANGO_SETTINGS_MODULE": "config.settings"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
