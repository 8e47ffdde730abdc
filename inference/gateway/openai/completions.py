"""`/v1/chat/completions`, `/v1/completions`, `/tokenize` and `/detokenize`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any, cast

import msgspec

from inference.errors import NotReady
from inference.gateway.dataplane import DataPlane
from inference.gateway.openai import chats, checks, sampling, streams, wholes
from inference.gateway.openai.asking import Asking, Target, Who, find, merged, together, who_of
from inference.gateway.openai.chunks import ChatChunks, CompletionChunks
from inference.gateway.openai.problems import BadField
from inference.gateway.web import JSON_TYPE, Headers, Request, Response, Stream
from inference.protocol import generation
from inference.protocol.generation import Generate, Prompt
from inference.protocol.openai import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

MAX_PROMPTS = 2048
_encode = msgspec.json.Encoder().encode


def chat_message(body: ChatBody, target: Target) -> Generate:
    """What a chat asks of the model. Raises BadField."""
    return Generate(
        chats.of_chat(body),
        sampling.of_chat(body),
        bool(body.stream),
        adapter=target.adapter,
        salt=salt_of(body.cache_salt, target),
        priority=body.priority or 0,
        return_token_ids=bool(body.return_token_ids),
        # the template brings the special tokens that it wants
        add_special_tokens=bool(body.add_special_tokens),
    )


def completion_messages(body: CompletionBody, target: Target) -> list[Generate]:
    """One for each prompt. Raises BadField."""
    checks.refused(body.suffix, "suffix", "the models here write forward only.")
    found = sampling.of_completion(body)
    return [
        Generate(
            prompt,
            found,
            bool(body.stream),
            bool(body.echo),
            target.adapter,
            salt_of(body.cache_salt, target),
            body.priority or 0,
            bool(body.return_token_ids),
            body.add_special_tokens is not False,
        )
        for prompt in prompts(body.prompt, "prompt")
    ]


def salt_of(given: str | None, target: Target) -> str:
    """Whose prefixes are whose: what one key's prompts left in the cache tells another key nothing."""
    return f"{target.caller.id}\0{given}" if given else target.caller.id


def prompts(given: str | list[str | int | list[int]] | None, param: str) -> list[str | list[int]]:
    """A text, texts, token ids or lists of token ids. Raises BadField."""
    found = checks.needed(given, param) if given != "" else ""
    if isinstance(found, str):
        return [found]
    if not found:
        raise BadField(f"Invalid '{param}': empty array.", param, "empty_array")
    if len(found) > MAX_PROMPTS and not isinstance(found[0], int):
        raise BadField(f"Invalid '{param}': at most {MAX_PROMPTS} in one request.", param, "array_above_max_length")
    if len({type(one) for one in found}) > 1:
        raise BadField(f"Invalid '{param}': texts and token ids cannot be mixed.", param, "invalid_type")
    if isinstance(found[0], int):
        return [checks.token_ids(cast("list[int]", found), param)]
    if isinstance(found[0], list):
        lists = cast("list[list[int]]", found)
        if not all(lists):
            raise BadField(f"Invalid '{param}': an empty list of tokens.", param, "empty_array")
        return [checks.token_ids(one, param) for one in lists]
    return cast("list[str | list[int]]", found)


def prefix_of(body: ChatBody) -> str:
    """With `echo`, what the last message began and the answer continues."""
    last = body.messages[-1] if body.echo and body.messages else {}
    content = last.get("content")
    return content if last.get("role") == "assistant" and isinstance(content, str) else ""


class Completions:
    """The handlers."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def chat(self, request: Request) -> Response | Stream:
        who, body = who_of(request), checks.decode(request.body, ChatBody)
        target = find(self._plane, body.model, who)
        asking = Asking(self._plane, target, who, chat_message(body, target))
        identity, prefix = f"chatcmpl-{request.id}", prefix_of(body)
        if body.stream:
            writer = ChatChunks(identity, body, prefix=prefix)
            return await streams.opened(streams.written(asking, writer), writer, request.id, lambda: asking.headers)
        found = await asking.gathered(one_call=body.parallel_tool_calls is False)
        return _json(wholes.chat(identity, body, found, prefix), asking.headers)

    async def complete(self, request: Request) -> Response | Stream:
        who, body = who_of(request), checks.decode(request.body, CompletionBody)
        target = find(self._plane, body.model, who)
        askings = [Asking(self._plane, target, who, message) for message in completion_messages(body, target)]
        identity = f"cmpl-{request.id}"
        if body.stream:
            writer = CompletionChunks(identity, body)
            messages = streams.written(askings[0], writer) if len(askings) == 1 else _several(askings, writer)
            return await streams.opened(messages, writer, request.id, lambda: askings[0].headers)
        found = await together([asking.gathered for asking in askings])
        return _json(wholes.completion(identity, body, found), askings[0].headers)

    async def tokenize(self, request: Request) -> Response:
        who, body = who_of(request), checks.decode(request.body, TokenizeBody)
        target = find(self._plane, body.model, who)
        if body.messages is not None:
            prompt: Any = chats.of_tokenize(body)
            adds = bool(body.add_special_tokens)
        else:
            prompt = body.prompt if body.prompt is not None else checks.needed(body.prompt, "prompt")
            adds = body.add_special_tokens is not False
        asked = generation.Tokenize(prompt, adds, bool(body.return_token_strs))
        found, headers = await self._prompt_of(target, who, asked)
        told: dict[str, Any] = {
            "count": len(found.tokens),
            "max_model_len": found.max_tokens,
            "tokens": found.tokens,
            "token_strs": found.texts if body.return_token_strs else None,
        }
        return _json(_encode(told), headers)

    async def detokenize(self, request: Request) -> Response:
        who, body = who_of(request), checks.decode(request.body, DetokenizeBody)
        target = find(self._plane, body.model, who)
        tokens = checks.token_ids(checks.needed(body.tokens, "tokens"), "tokens")
        found, headers = await self._prompt_of(target, who, generation.Detokenize(tokens))
        return _json(_encode({"prompt": found.text}), headers)

    async def _prompt_of(self, target: Target, who: Who, asked: generation.Asked) -> tuple[Prompt, Headers]:
        asking = Asking(self._plane, target, who, asked)
        found: Prompt | None = None
        async with contextlib.aclosing(asking.events()) as events:
            async for event in events:
                found = event.prompt or found
        if found is None:
            raise NotReady("the replica sent an unreadable answer")
        return found, asking.headers


async def _several(askings: list[Asking], writer: CompletionChunks) -> AsyncGenerator[list[bytes], None]:
    async with contextlib.aclosing(merged(askings)) as events:
        async for number, event in events:
            yield writer.of(number, event)


def _json(body: bytes, headers: Headers) -> Response:
    return Response(200, [JSON_TYPE, *headers], body)
