"""The console's WebSocket: who may follow what, snapshot then delta, and what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from accounts.models import Membership, User
from console import consumers, hub
from console.consumers import SESSION_ENDED, TOO_SLOW, ConsoleConsumer
from console.live import feed_of
from fleet.models import Replica
from inference.errors import Forbidden, NotFound
from inference.protocol.child import replica_log
from registry.models import ValidationRun
from tests.support.cast import make_cast
from tests.support.console_sockets import Socket, socket_of
from tests.support.showroom import checks, furnish

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def console(transactional_db: None) -> Any:
    cast = make_cast()
    furnish(cast)
    return cast


async def joined(person: User) -> Socket:
    socket = await sync_to_async(socket_of)(person)
    assert await socket.connect()
    return socket


def test_an_endpoint_tells_its_stages_batches_and_queue(console: Any) -> None:
    data = feed_of(console.actor("teammate"), "endpoint:minilm").read()
    assert data["queue_depth"] == 7
    assert [edge for edge, _ in data["batches"]] == [1, 4, 16, 64]
    assert all(requests > 0 for _, requests in data["batches"])
    stages = data["points"][-1]["stages"]
    assert len(stages) == 4
    assert stages[1] == pytest.approx(22 * 0.06, rel=0.01)
    assert feed_of(console.actor("teammate"), "endpoint:digits").read()["queue_depth"] == 14


def log_of(replica: Replica, data_dir: Any) -> Any:
    folder = data_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / replica_log(str(replica.pk), replica.generation)


async def test_logs_are_followed_live(console: Any, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    monkeypatch.setattr(hub, "POLL_S", 0.1)
    replica = await Replica.objects.filter(deployment__version__model__name="digits", phase="ready").afirst()
    path = log_of(replica, settings.DATA_DIR)
    path.write_text("2026-01-02 03:04:05,678 WARNING inference.replica <b>first</b>\n")
    for topic in (f"logs:replica:{replica.pk}", "logs:endpoint:digits"):
        socket = await joined(console.developer)
        first = (await socket.ask(topic))["data"]
        line = next(one for one in first["points"] if "<b>first</b>" in one["text"])
        assert (line["level"], line["from"]) == ("WARNING", str(replica.pk)[:8])
        with path.open("a") as file:
            file.write(f"then {topic}\n")
        after = await socket.hear()
        assert after["type"] == "delta"
        assert [one["text"] for one in after["data"]["points"]] == [f"then {topic}"]
        await socket.disconnect()
    assert {host for _, host, _ in first["missing"]} == {"atlas"}


async def test_logs_are_for_those_who_may_deploy(console: Any) -> None:
    replica = await Replica.objects.filter(deployment__version__model__name="digits").afirst()
    for topic in (f"logs:replica:{replica.pk}", "logs:endpoint:digits"):
        for person, code in ((console.teammate, "forbidden"), (console.stranger, "not_found")):
            socket = await joined(person)
            assert (await socket.ask(topic))["code"] == code
            await socket.disconnect()
    socket = await joined(console.root)
    for topic in ("logs:replica:../../x", "logs:replica:", "logs:", "logs:endpoint:", "logs:host:atlas"):
        assert (await socket.ask(topic))["code"] == "not_found", topic
    await socket.disconnect()


async def test_a_snapshot_comes_first_and_then_what_changed(console: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "POLL_S", 0.1)
    socket = await joined(console.teammate)
    first = await socket.ask("version:digits:4")
    assert (first["type"], first["seq"], first["data"]["status"]) == ("snapshot", 1, "validating")
    await sync_to_async(ValidationRun.objects.update)(checks=checks(until=3, last="failed", message="no"))
    second = await socket.hear()
    assert (second["type"], second["seq"]) == ("delta", 2)
    assert set(second["data"]) == {"stamps"}
    await socket.disconnect()


@pytest.mark.parametrize("topic", ["dashboard", "fleet", "endpoint:digits", "version:digits:1"])
async def test_every_topic_gives_a_snapshot(console: Any, topic: str) -> None:
    socket = await joined(console.owner)
    answer = await socket.ask(topic)
    assert answer["type"] == "snapshot", answer
    assert answer["data"]["stamps"]
    await socket.disconnect()


async def test_the_endpoint_topic_has_the_traffic_of_five_minutes(console: Any) -> None:
    socket = await joined(console.owner)
    data = (await socket.ask("endpoint:digits"))["data"]
    assert len(data["points"]) > 250
    version, rate, p50, p99 = data["points"][10]["rows"][0]
    assert version == 1
    assert rate > 100
    assert 0 < p50 <= p99
    assert data["rps"] > 100
    await socket.disconnect()


@pytest.mark.parametrize(
    "topic",
    [
        "endpoint:digits",
        "version:digits:1",
        "version:digits:x",
        "version:digits:",
        "endpoint:",
        "nonsense",
        "",
        "version:digits:²",
    ],
)
async def test_what_one_may_not_see_is_not_there(console: Any, topic: str) -> None:
    socket = await joined(console.stranger)
    answer = await socket.ask(topic)
    assert (answer["type"], answer["code"]) == ("error", "not_found")
    await socket.disconnect()


async def test_nobody_without_a_session_is_let_in(console: Any) -> None:
    socket = socket_of(None)
    await socket.connect()
    output = await socket.receive_output(10)
    assert (output["type"], output["code"]) == ("websocket.close", SESSION_ENDED)


async def test_a_foreign_page_is_not_let_in(console: Any) -> None:
    socket = await sync_to_async(socket_of)(console.owner, "http://evil.example")
    assert not await socket.connect()


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "1", '{"type": "subscribe"}', "x" * 5000, "[" * 4000])
async def test_unreadable_messages_are_answered(console: Any, text: str) -> None:
    socket = await joined(console.owner)
    await socket.say(text)
    assert (await socket.hear())["type"] == "error"
    assert (await socket.ask("dashboard"))["type"] == "snapshot"
    await socket.disconnect()


async def test_topics_are_bounded(console: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "MAX_TOPICS", 2)
    monkeypatch.setattr(hub, "POLL_S", 60)
    socket = await joined(console.owner)
    kinds = [(await socket.ask(f"version:digits:{number}"))["type"] for number in (1, 2, 2, 3)]
    assert kinds == ["snapshot", "snapshot", "snapshot", "error"]
    await socket.disconnect()


async def test_a_role_that_is_taken_away_ends_what_it_let_one_see(
    console: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "RECHECK_S", 0.1)
    socket = await joined(console.teammate)
    await socket.ask("version:digits:1")
    await sync_to_async(Membership.objects.filter(user=console.teammate).delete)()
    answer = await socket.hear()
    assert (answer["type"], answer["code"]) == ("error", "forbidden")
    await socket.disconnect()


async def test_a_deactivated_person_is_let_go(console: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "RECHECK_S", 0.1)
    socket = await joined(console.teammate)
    await socket.ask("dashboard")
    await sync_to_async(User.objects.filter(pk=console.teammate.pk).update)(is_active=False)
    output = await socket.receive_output(10)
    assert (output["type"], output["code"]) == ("websocket.close", SESSION_ENDED)


async def test_who_reads_too_slowly_is_let_go(console: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "MAX_WAITING", 1)
    monkeypatch.setattr(ConsoleConsumer, "_write", never)
    socket = await joined(console.owner)
    for number in (1, 2):
        await socket.say(json.dumps({"type": "subscribe", "topic": f"version:digits:{number}"}))
    output = await socket.receive_output(10)
    assert (output["type"], output["code"]) == ("websocket.close", TOO_SLOW)


async def never(self: Any) -> None:
    await asyncio.Event().wait()


def test_people_with_the_same_teams_share_a_poll_and_others_do_not(console: Any) -> None:
    keys = {name: feed_of(console.actor(name), "dashboard").key for name in ("owner", "teammate", "stranger", "root")}
    assert keys["owner"] == keys["teammate"]
    assert len({keys["owner"], keys["stranger"], keys["root"]}) == 3


def test_a_person_without_a_role_follows_nothing(console: Any) -> None:
    Membership.objects.filter(user=console.teammate).delete()
    with pytest.raises(Forbidden):
        feed_of(console.actor("teammate"), "dashboard")
    with pytest.raises(NotFound):
        feed_of(console.actor("stranger"), "endpoint:digits")
