"""What `/v1/responses` keeps, and how a response's items are put together from an engine's events."""

import json

import pytest

from inference.errors import NotFound
from inference.gateway.openai import kept
from inference.gateway.openai.conversations import LOGPROBS
from inference.gateway.openai.kept import KEPT_S, KeptResponses, Store
from inference.gateway.openai.response_events import ResponseWriter
from inference.protocol.generation import Event, Piece, TokenLogprob, ToolPiece, Usage
from inference.protocol.openai import ResponseBody


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_response_is_its_callers_alone_and_goes_after_its_time():
    clock = Clock()
    store = Store(now=clock)
    store.put("a", "resp_1", b"{}", b"[]")
    assert store.find("a", "resp_1").shown == b"{}"
    assert store.find("b", "resp_1") is None
    clock.now = KEPT_S
    assert store.find("a", "resp_1") is None
    store.put("a", "resp_2", b"{}", b"[]")
    assert (len(store), store.size_bytes) == (1, 4)


def test_the_oldest_make_room(monkeypatch):
    store = Store(max_bytes=100)
    for number in range(5):
        store.put("a", f"resp_{number}", b"x" * 30, b"x" * 10)
    assert (len(store), store.size_bytes) == (2, 80)
    store.put("a", "resp_large", b"x" * 101, b"")
    assert len(store) == 2
    store.forget("a", "resp_4")
    store.forget("a", "resp_4")
    assert (len(store), store.size_bytes) == (1, 40)
    monkeypatch.setattr(kept, "MAX_KEPT", 1)
    store.put("a", "resp_6", b"", b"")
    assert (len(store), store.size_bytes) == (1, 0)


async def test_without_a_valkey_a_gateway_has_its_own():
    alone = KeptResponses()
    await alone.put("a", "resp_1", b"{}", b"[]")
    assert (await alone.get("a", "resp_1")).messages == b"[]"
    for caller, identity in (("b", "resp_1"), ("a", "resp_2"), ("a", "x" * 100_000)):
        with pytest.raises(NotFound, match="not found: it was not stored"):
            await alone.get(caller, identity)
    await alone.delete("a", "resp_1")
    with pytest.raises(NotFound):
        await alone.delete("a", "resp_1")


def logprob(text: str) -> TokenLogprob:
    return TokenLogprob(1, text, text.encode(), -0.5)


def test_logprobs_come_for_tokens_whose_text_comes_later_too():
    writer = ResponseWriter("resp_1", ResponseBody(model="lm", include=[LOGPROBS]))
    for text in ("a", "", "é"):
        writer.event(Event([Piece(0, text, logprobs=[logprob(text)])], Usage(1, 1)))
    writer.end()
    part = writer.shown()["output"][0]["content"][0]
    assert (part["text"], len(part["logprobs"])) == ("aé", 3)


def test_text_and_calls_are_items_in_their_order():
    writer = ResponseWriter("resp_1", ResponseBody(model="lm"))
    told = writer.event(Event([Piece(0, "so", reasoning="hm")]))
    for part in ('{"x"', ":1}"):
        told += writer.event(Event([Piece(0, tools=[ToolPiece(0, "c1", "f", part)])]))
    told += writer.event(Event([Piece(0, tools=[ToolPiece(1, "c2", "g", "{}")], finish="tool_calls")], Usage(3, 4)))
    told += writer.end()
    events = [json.loads(one.split(b"data: ")[1]) for one in told]
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    output = events[-1]["response"]["output"]
    assert [one["type"] for one in output] == ["reasoning", "message", "function_call", "function_call"]
    assert [one.get("arguments") for one in output[2:]] == ['{"x":1}', "{}"]
    assert events[-1]["response"]["usage"]["total_tokens"] == 7
