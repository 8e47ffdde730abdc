"""Answers in one piece: `chat.completion` and `text_completion`."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from inference.gateway.openai import gathering
from inference.gateway.openai.gathering import Choice, Gathered
from inference.protocol.openai import ChatBody, CompletionBody

_encode = msgspec.json.Encoder().encode


def chat(identity: str, body: ChatBody, found: Gathered, prefix: str = "") -> bytes:
    """prefix: the text that the last message began with, where the answer shall repeat it."""
    own: dict[str, Any] = {
        "id": identity,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": [_chat_choice(index, body, one, prefix) for index, one in sorted(found.choices.items())],
        "usage": gathering.usage(found.usage),
        "system_fingerprint": None,
        "service_tier": None,
    }
    if body.prompt_logprobs is not None:
        own["prompt_logprobs"] = gathering.prompt_logprobs(found.prompt.logprobs)
    if body.return_token_ids:
        own["prompt_token_ids"] = found.prompt.tokens
    return _encode(own)


def _chat_choice(index: int, body: ChatBody, one: Choice, prefix: str) -> dict[str, Any]:
    text, reasoning = prefix + "".join(one.text), "".join(one.reasoning)
    calls = [one.calls[place].shown() for place in sorted(one.calls)]
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if reasoning and body.include_reasoning is not False:
        message |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if calls:
        message["tool_calls"] = calls
    logprobs = {"content": gathering.chat_logprobs(one.logprobs), "refusal": None} if body.logprobs else None
    found = {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": one.finish or "stop",
        "stop_reason": one.stop_reason,
    }
    return found | ({"token_ids": one.tokens} if body.return_token_ids else {})


def completion(identity: str, body: CompletionBody, found: list[Gathered]) -> bytes:
    """found: of each prompt, in order."""
    wanted = body.n or 1
    choices: list[dict[str, Any]] = []
    for one in found:
        made = one.ordered()
        if len(made) > wanted:
            made = sorted(made, key=Choice.mean_logprob, reverse=True)[:wanted]
        choices += [_completion_choice(len(choices) + place, body, one, choice) for place, choice in enumerate(made)]
    own = {
        "id": identity,
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": choices,
        "usage": gathering.usage(gathering.total([one.usage for one in found])),
        "system_fingerprint": None,
    }
    return _encode(own)


def _completion_choice(index: int, body: CompletionBody, of: Gathered, one: Choice) -> dict[str, Any]:
    logprobs = None
    if body.logprobs is not None:
        tokens = [*of.prompt.logprobs, *one.logprobs] if body.echo else one.logprobs
        logprobs = gathering.completion_logprobs(tokens, 0)
    found: dict[str, Any] = {
        "index": index,
        "text": "".join(one.text),
        "logprobs": logprobs,
        "finish_reason": one.finish or "stop",
        "stop_reason": one.stop_reason,
    }
    if body.prompt_logprobs is not None:
        found["prompt_logprobs"] = gathering.prompt_logprobs(of.prompt.logprobs)
    if body.return_token_ids:
        found |= {"token_ids": one.tokens, "prompt_token_ids": of.prompt.tokens}
    return found
