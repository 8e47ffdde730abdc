"""The playground's WebSocket: whose chats are passed on, what is refused, and that a chat that is left ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import Client

from accounts.models import Membership, User
from console import chat
from console.consumers import SESSION_ENDED
from registry.models import Version
from tests.support.cast import make_cast
from tests.support.console_sockets import Socket, socket_of
from tests.support.gateway_house import House, until
from tests.support.playroom import furnish_language, open_gateway, publish

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]
PROTOCOL = "serinus.v1"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    found = House()
    open_gateway(found)
    yield found
    found.close()


@pytest.fixture
def cast(transactional_db: None, house: House, settings: Any) -> Any:
    settings.GATEWAY_URL = house.gateways[0].url
    made = make_cast()
    furnish_language(made)
    publish(house)
    house.gateways[0].wait_ready("tiny")
    return made


async def joined(person: User) -> Socket:
    socket = await sync_to_async(socket_of)(person, path="/ws/v2/stream", protocols=[PROTOCOL])
    assert await socket.connect()
    return socket


def frame(text: str, *, identity: str = "1", model: str = "tiny", kind: str = "chat", **more: Any) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return json.dumps({"type": kind, "id": identity, "credit": 1000, "body": body, **more})


async def until_done(socket: Socket, identity: str = "1") -> tuple[str, Any]:
    """The text of a chat and its last frame."""
    text = ""
    while True:
        heard = await socket.hear()
        assert heard["id"] == identity
        if heard.get("type") != "chunk":
            return text, heard
        text += heard["data"]["choices"][0]["delta"].get("content") or ""


async def test_a_chat_is_passed_on_for_those_who_see_the_endpoint(cast: Any, house: House) -> None:
    for name in ("teammate", "owner", "root"):
        socket = await joined(getattr(cast, name))
        await socket.say(frame("a b c", version=2))
        text, last = await until_done(socket)
        assert (text, last["type"], last["model_version"]) == ("a b c", "done", "2")
        await socket.disconnect()
    assert house.replicas["tiny-2"].asked[-1].prompt.messages[-1]["content"] == "a b c"


async def test_what_one_may_not_see_does_not_exist(cast: Any) -> None:
    socket = await joined(cast.stranger)
    for model in ("tiny", "tiny@1", "tiny:polite", "nothing", "../tiny"):
        await socket.say(frame("a", model=model))
        assert (await until_done(socket))[1]["code"] == "not_found", model
    await socket.disconnect()


async def test_pages_from_elsewhere_and_people_without_a_session_get_nothing(cast: Any) -> None:
    foreign = await sync_to_async(socket_of)(cast.owner, "http://evil.example", "/ws/v2/stream")
    assert not await foreign.connect()
    nobody = await sync_to_async(socket_of)(None, path="/ws/v2/stream")
    assert await nobody.connect()
    assert await nobody.receive_output(10) == {"type": "websocket.close", "code": SESSION_ENDED}


async def test_a_session_that_ends_ends_its_chats(cast: Any, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "WATCH_S", 0.2)
    replica = house.replicas["tiny-1"]
    before = len(replica.cancelled)
    socket = await joined(cast.teammate)
    await socket.say(frame("slow" + " w" * 400, version=1))
    await socket.hear()
    await sync_to_async(User.objects.filter(pk=cast.teammate.pk).update)(is_active=False)
    while (output := await socket.receive_output(10))["type"] != "websocket.close":
        assert output["type"] == "websocket.send"
    assert output["code"] == SESSION_ENDED
    await socket.disconnect()
    await sync_to_async(until)(lambda: len(replica.cancelled) == before + 1)


async def test_a_role_that_is_taken_away_ends_the_next_chat(cast: Any) -> None:
    socket = await joined(cast.teammate)
    await sync_to_async(Membership.objects.filter(user=cast.teammate).delete)()
    await socket.say(frame("a"))
    assert (await until_done(socket))[1]["code"] == "not_found"
    await socket.disconnect()


async def test_cancel_and_leaving_end_the_generation(cast: Any, house: House) -> None:
    replica = house.replicas["tiny-1"]
    before = len(replica.cancelled)
    socket = await joined(cast.teammate)
    await socket.say(frame("slow" + " w" * 400, version=1))
    await socket.hear()
    await socket.say('{"type": "cancel", "id": "1"}')
    assert (await until_done(socket))[1]["code"] == "cancelled"
    await sync_to_async(until)(lambda: len(replica.cancelled) == before + 1)
    await socket.say(frame("slow" + " w" * 400, version=1))
    await socket.hear()
    await socket.disconnect()
    await sync_to_async(until)(lambda: len(replica.cancelled) == before + 2)


async def test_a_chat_cancelled_before_it_reached_the_gateway_ends_too(cast: Any) -> None:
    socket = await joined(cast.teammate)
    await socket.say(frame("slow a b c d"))
    await socket.say('{"type": "cancel", "id": "1"}')
    assert (await until_done(socket))[1]["code"] == "cancelled"
    await socket.disconnect()


async def test_credit_holds_the_replica_back(cast: Any, house: House) -> None:
    replica = house.replicas["tiny-1"]
    socket = await joined(cast.teammate)
    await socket.say(frame("one two three four", version=1, credit=2))
    assert [(await socket.hear())["data"]["choices"][0]["delta"].get("content") for _ in range(2)] == ["", "one"]
    assert await socket.receive_nothing(0.3)
    await socket.say('{"type": "credit", "id": "1", "n": 50}')
    assert (await until_done(socket))[0] == " two three four"
    assert replica.asked[-1].stream
    await socket.disconnect()


async def test_junk_is_answered_and_the_connection_goes_on(cast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_CHATS", 1)
    socket = await joined(cast.teammate)
    for text, code in (
        ("{", "malformed"), ("[]", "malformed"), ('{"type": "chat"}', "malformed"), ("[" * 5000, "malformed"),
        ('{"type": "chat", "id": 5}', "malformed"), ('{"type": "chat", "id": "1", "body": []}', "malformed"),
        ('{"type": "chat", "id": "1", "body": {"model": 3}}', "malformed"), ('{"type": "infer", "id": "1"}', "unsupported"),
        ('{"type": "chat", "id": "' + "x" * 300 + '"}', "malformed"), ("x" * (chat.MAX_MESSAGE_CHARS + 1), "malformed"),
    ):  # fmt: skip
        await socket.say(text)
        assert (await socket.hear())["code"] == code, text[:60]
    await socket.say('{"type": "ping"}')
    assert await socket.hear() == {"type": "pong"}
    await socket.say('{"type": "cancel", "id": "nobody"}')
    await socket.say(frame("slow a b", identity="held"))
    for identity, code in (("held", "conflict"), ("2", "overloaded")):
        await socket.say(frame("a", identity=identity))
        while (heard := await socket.hear()).get("type") == "chunk":
            pass
        assert (heard["id"], heard["code"]) == (identity, code)
    assert (await until_done(socket, "held"))[1]["type"] == "done"
    await socket.disconnect()


async def test_a_gateway_that_is_away_or_knows_no_such_token_is_said(cast: Any, house: House, settings: Any) -> None:
    socket = await joined(cast.teammate)
    settings.GATEWAY_URL = "http://127.0.0.1:1"
    await socket.say(frame("a"))
    assert (await until_done(socket))[1]["error"] == "The gateway cannot be reached"
    settings.GATEWAY_URL = house.gateways[0].url
    await sync_to_async(_new_secret)()
    await socket.say(frame("a"))
    assert (await until_done(socket))[1]["code"] == "forbidden"
    await socket.disconnect()


def _new_secret() -> None:
    from endpoints.models import PublishedTable

    PublishedTable.objects.update(token_secret="another")


def page_of(person: User, path: str = "/playground/") -> str:
    client = Client()
    client.force_login(person, backend="accounts.login.LimitedBackend")
    response = client.get(path)
    assert response.status_code == 200
    return response.content.decode()


def test_the_page_says_what_there_is_to_chat_with(cast: Any) -> None:
    from endpoints.models import Variant

    shown = page_of(cast.teammate)
    assert '"name": "asleep"' in shown
    assert '"share_bp": 9000' in shown
    stranger = page_of(cast.stranger)
    assert "No language model yet" in stranger
    assert "tiny" not in stranger
    Variant.objects.all().delete()
    waiting = page_of(cast.teammate)
    assert "No language model is deployed" in waiting
    assert "/models/tiny/versions/2/" in waiting
    Version.objects.update(status="archived")
    assert "Upload a model" in page_of(cast.owner)
    assert "Upload a model" not in page_of(cast.teammate)


def test_a_version_that_serves_is_called_by_its_number(cast: Any) -> None:
    from endpoints.models import Endpoint, Variant

    shown = page_of(cast.teammate, "/models/tiny/versions/2/")
    assert "/v1/chat/completions" in shown
    assert "tiny@2" in shown
    assert "134.5M, in 30 layers" in shown
    facts = " ".join(re.sub(r"<[^>]+>", " ", shown).split())
    assert "quantised to int8" in facts
    assert "Perplexity 21.40 on a built-in text; 21.25 without quantisation (+0.7 %)" in facts
    assert "Computed by our own decoder" in facts
    assert "text_input" not in page_of(cast.teammate, "/endpoints/tiny/")
    bare = page_of(cast.teammate, "/models/untaught/versions/1/")
    assert "/v1/completions" in bare
    assert "completions only" in bare
    Endpoint.objects.filter(name="tiny").update(access="public")
    assert "Authorization" not in page_of(cast.teammate, "/models/tiny/versions/2/")
    Variant.objects.all().delete()
    assert "/v1/" not in page_of(cast.teammate, "/models/tiny/versions/2/")
