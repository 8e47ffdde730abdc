"""A rollout over the console's WebSocket: a snapshot, a delta when somebody acts, nothing for strangers."""

from __future__ import annotations

import pytest
from asgiref.sync import sync_to_async

from console import hub
from rollouts.actions import pause
from rollouts.models import Rollout
from rollouts.plans import Analyze, Plan, SetWeight
from tests.support.cast import Cast, make_cast
from tests.support.console_sockets import socket_of
from tests.support.rollout_show import begin, controller, tick_until
from tests.support.rollouts import stage

pytestmark = pytest.mark.django_db(transaction=True)
RAMP = Plan("ramp", [SetWeight(1000), Analyze(), SetWeight(10_000)])


@pytest.fixture
def cast(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Cast:
    from accounts import wakeups

    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)
    return make_cast()


@pytest.fixture
def going(cast: Cast) -> Rollout:
    endpoint, _, candidate = stage(cast.actor("developer"), of=cast.red)
    ticker, _, _ = controller()
    return tick_until(begin(endpoint, candidate, RAMP, cast.actor("developer")), ticker, "progressing", step=1)


async def test_a_viewer_follows_a_rollout(cast: Cast, going: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "POLL_S", 0.1)
    socket = await sync_to_async(socket_of)(cast.teammate)
    assert await socket.connect()
    first = await socket.ask(f"rollout:{going.pk}")
    assert (first["type"], first["data"]["phase"], first["data"]["weight_bp"]) == ("snapshot", "progressing", 1000)
    await sync_to_async(lambda: pause(rollout=going, actor=cast.actor("developer")))()
    after = await socket.hear()
    assert (after["type"], after["data"]["phase"]) == ("delta", "paused")
    assert after["data"]["stamps"]["rollout"] != first["data"]["stamps"]["rollout"]
    await socket.disconnect()


@pytest.mark.parametrize("topic", ["rollout:{pk}", "rollout:nonsense", "rollout:"])
async def test_what_others_roll_out_cannot_be_followed(cast: Cast, going: Rollout, topic: str) -> None:
    socket = await sync_to_async(socket_of)(cast.stranger)
    assert await socket.connect()
    told = await socket.ask(topic.format(pk=going.pk))
    assert (told["type"], told["code"]) == ("error", "not_found")
    assert "digits" not in str(told)
    await socket.disconnect()
