"""Names of the wake-ups that this app sends. One that is lost changes nothing: whoever it would wake looks by itself."""

from __future__ import annotations

from accounts.wakeups import send_on_commit

RECONCILE = "fleet.tasks.reconcile"
PUBLISH = "endpoints.tasks.publish"
CONVERGE = "worker.converge"


def queue_of(host: str) -> str:
    """The queue that only this host's agent reads."""
    return f"host.{host}"


def wake_host_on_commit(name: str) -> None:
    """Asks the agent of this host to converge as soon as the running transaction is committed."""
    send_on_commit(CONVERGE, name, queue=queue_of(name))
