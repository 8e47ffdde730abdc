"""What the pages make of a language model's report, and the chats that they offer to copy."""

from __future__ import annotations

import ast
import json
import shlex

import pytest

from console.language import facts_of, is_language, language_of, steps_of
from console.relay import address_of, failed
from console.snippets import chat_snippets
from inference.errors import NotReady
from inference.protocol.generation import PLATFORM
from registry.models import Version


def version(**language: object) -> Version:
    report = {"measurements": {"language": language}} if language else {"measurements": {}}
    return Version(signature={"platform": PLATFORM}, report=report)


def test_a_quantised_model_tells_how_its_perplexity_changed() -> None:
    assert facts_of(version(perplexity=22.0, perplexity_plain=20.0))["perplexity_change"] == pytest.approx(0.1)
    assert facts_of(version(perplexity=22.0, perplexity_plain=0.0))["perplexity_change"] is None
    assert facts_of(version()) == {}
    assert facts_of(Version()) == {}


def test_a_language_model_is_known_by_its_platform() -> None:
    assert is_language(version())
    assert not is_language(Version(signature={"platform": "onnx"}))
    assert not is_language(Version())


def test_an_endpoint_promises_what_all_of_its_versions_hold() -> None:
    held = [version(context=8192, has_chat_template=True), version(context=2048, has_chat_template=False)]
    assert language_of(held) == {"has_chat_template": False, "context": 2048}
    assert language_of([version()]) == {"has_chat_template": True, "context": 0}
    assert language_of([Version()]) == {}


def test_steps_are_speeds() -> None:
    rows = steps_of({"latency_ms": {"16": 80.0, "1": 20.0, "junk": 1.0, "4": 0.0}})
    assert [(row["many"], row["each_per_s"], row["all_per_s"]) for row in rows] == [(1, 50, 50), (16, 12.5, 200)]
    assert rows[0]["top"] == 80
    assert steps_of({}) == []


@pytest.mark.parametrize("chats", [True, False])
@pytest.mark.parametrize("key", [True, False])
def test_the_offered_chats_can_be_pasted(chats: bool, key: bool) -> None:
    curl, python = (one["text"] for one in chat_snippets("http://gw:8000/", "lm@2", key=key, chats=chats))
    words = shlex.split(curl)
    assert words[2] == f"http://gw:8000/v1/{'chat/' if chats else ''}completions"
    body = json.loads(words[words.index("-d") + 1])
    assert (body["model"], body["stream"], "messages" in body, "prompt" in body) == ("lm@2", True, chats, not chats)
    assert ("$SERINUS_API_KEY" in curl, "SERINUS_API_KEY" in python) == (key, key)
    ast.parse(python)
    assert f"client.{'chat.' if chats else ''}completions.create" in python


def test_the_gateways_address_and_a_failure_as_a_frame() -> None:
    assert address_of("https://gw.example/base/") == "wss://gw.example/base/v2/stream"
    assert address_of("http://127.0.0.1:8000") == "ws://127.0.0.1:8000/v2/stream"
    told = json.loads(failed("7", NotReady("nobody", retry_after_s=1.5)))
    assert told == {"id": "7", "error": "nobody", "code": "not_ready", "retry_after_s": 1.5}
