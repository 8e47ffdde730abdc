"""A language model's replica for the gateway's tests: it speaks the real frames and answers from what it was asked.

It has no weights: a token is a word with the space before it, its id the number of its first byte plus 256 times its
length. What it says repeats the last message (or the prompt) word by word, so a test knows every answer beforehand.
Words with a meaning, at the beginning of the last message: "tool" calls the first tool with the rest as its argument,
"think" reasons first, "json" answers `{"a":1}`, "fail" faults at once, "break" after two words, "slow" waits between
words, "wait" never answers, "long" says "w" max_tokens times.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

from inference.protocol import frames, generation
from inference.protocol.generation import (
    Chat,
    Detokenize,
    Event,
    Generate,
    Piece,
    Prompt,
    Ranked,
    Tokenize,
    TokenLogprob,
    ToolPiece,
    Usage,
)
from inference.protocol.messages import Answer, Fault, Infer, TensorHeader
from tests.support.fake_replica import FakePeer, FakeReplica

CONTEXT = 512
PACE_S = 0.02


class FakeLanguage(FakeReplica):
    """asked: every message that came, in order. words: what it says instead. ended: ids of the requests whose last event was sent."""

    def __init__(self, path: str, **more) -> None:
        super().__init__(path, **more)
        self.asked: list[generation.Asked] = []
        self.ended: list[int] = []
        self.pace_s = PACE_S
        self.words = ""

    async def start(self) -> FakeLanguage:
        Path(self.path).unlink(missing_ok=True)  # noqa: ASYNC240
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: LanguagePeer(self), self.path)
        return self


class LanguagePeer(FakePeer):
    replica: FakeLanguage

    def data_received(self, data: bytes) -> None:
        mine = []
        for message, body in self.decoder.feed(data):
            if type(message) is Infer:
                mine.append((message, bytes(body)))
            else:
                self.control(message)
        for message, body in mine:
            self.replica.seen.append(message)
            if message.tensors[0].name == generation.TEXT_INPUT:
                self.plain(message, body)
                continue
            asked = generation.decode_asked(body[4:])
            self.replica.asked.append(asked)
            self.streams[message.id] = asyncio.ensure_future(self.say(message, asked))

    def control(self, message) -> None:
        """As any other replica takes what is no request."""
        super_decoder, self.decoder = self.decoder, _One(message)
        try:
            super().data_received(b"")
        finally:
            self.decoder = super_decoder

    def plain(self, message: Infer, body: bytes) -> None:
        """`text_input` of the OIP door: as many answers as words, with the parameters it came with."""
        words = split(body[4 : 4 + int.from_bytes(body[:4], "little")].decode())
        most = int(message.parameters.get("max_tokens", len(words)))
        words = words[:most] if message.parameters.get("stream") else ["".join(words[:most])]
        for number, word in enumerate(words):
            data = len(word.encode()).to_bytes(4, "little") + word.encode()
            header = TensorHeader(generation.TEXT_OUTPUT, "BYTES", [1], len(data))
            final = number == len(words) - 1
            self.transport.write(frames.encode(Answer(message.id, [header], 1, 1, 1, final), data))

    async def say(self, message: Infer, asked: generation.Asked) -> None:
        if isinstance(asked, Generate):
            await self.generate(message, asked)
        elif isinstance(asked, Tokenize):
            words = split(text_of(asked.prompt))
            texts = words if asked.return_texts else []
            self.event(
                message, Event(prompt=Prompt([token(w) for w in words], "", texts, max_tokens=CONTEXT)), final=True
            )
        elif isinstance(asked, Detokenize):
            text = " ".join("x" * (one // 256) for one in asked.tokens)
            self.event(message, Event(prompt=Prompt(asked.tokens, text)), final=True)
        self.streams.pop(message.id, None)

    async def generate(self, message: Infer, asked: Generate) -> None:
        prompt = text_of(asked.prompt)
        words = split(prompt)
        if len(words) > CONTEXT:
            told = f"This model's maximum context length is {CONTEXT} tokens. However, your prompt has {len(words)} tokens."
            return self.refuse(message, "context_length_exceeded", told)
        if asked.adapter not in {"", "polite"}:
            return self.refuse(message, "not_found", f"there is no adapter '{asked.adapter}'")
        if self.replica.fault is not None:
            return self.refuse(message, self.replica.fault.code, self.replica.fault.message)
        if prompt.startswith("fail"):
            return self.refuse(message, "overloaded", "no room")
        if prompt.startswith("wait"):
            await asyncio.Event().wait()
        pieces = list(pieces_of(asked, self.replica.words or prompt))
        if not asked.stream:
            usage = Usage(len(words), sum(max(1, len(piece.tokens)) for piece in pieces) // asked.sampling.n, 1, 0)
            return self.event(message, Event(pieces, usage, prompt_of(asked, words)), final=True)
        for number, piece in enumerate(pieces):
            while message.id in self.paused:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            if prompt.startswith("slow") and number:
                await asyncio.sleep(self.replica.pace_s)
            if prompt.startswith("break") and number == 2:
                return self.refuse(message, "out_of_memory", "the cache is gone")
            first = prompt_of(asked, words) if not number else None
            final = number == len(pieces) - 1
            self.event(message, Event([piece], Usage(len(words), number + 1, 1), first), final=final)
            self.replica.parts_sent += 1
            if not number % 64:
                await asyncio.sleep(0)
        self.replica.ended.append(message.id)
        return None

    def refuse(self, message: Infer, code: str, words: str) -> None:
        self.transport.write(frames.encode(Fault(message.id, code, words, 2.0 if code == "overloaded" else None)))

    def event(self, message: Infer, event: Event, *, final: bool) -> None:
        if self.transport.is_closing() or message.id in self.given_up:
            return
        data = generation.encode_event(event)
        header = TensorHeader(generation.EVENT, "BYTES", [1], len(data) + 4)
        answer = Answer(message.id, [header], 1, 1, 1, final)
        self.transport.write(frames.encode(answer, len(data).to_bytes(4, "little"), data))


class _One:
    def __init__(self, message) -> None:
        self.message = message

    def feed(self, _data: bytes):
        return [(self.message, memoryview(b""))]


def split(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text) or [text]


def token(word: str) -> int:
    return len(word) * 256 + (word.encode()[0] if word else 0)


def text_of(prompt: str | list[int] | Chat) -> str:
    if isinstance(prompt, Chat):
        return str(prompt.messages[-1].get("content") or "")
    return prompt if isinstance(prompt, str) else " ".join(str(one) for one in prompt)


def prompt_of(asked: Generate, words: list[str]) -> Prompt | None:
    wanted = asked.sampling.prompt_logprobs is not None
    if not (wanted or asked.return_token_ids):
        return None
    logprobs = [logprob(word, 1, first=not place) for place, word in enumerate(words)] if wanted else []
    return Prompt([token(word) for word in words], logprobs=logprobs, max_tokens=CONTEXT)


def logprob(word: str, top: int, *, first: bool = False) -> TokenLogprob:
    ranked = [Ranked(token(word) + n, f"{word}{n or ''}", word.encode(), -0.5 - n) for n in range(top)]
    return TokenLogprob(token(word), word, word.encode(), None if first else -0.5, ranked)


def pieces_of(asked: Generate, prompt: str) -> Iterator[Piece]:
    """Of every choice in turn."""
    chat = asked.prompt if isinstance(asked.prompt, Chat) else None
    for index in range(asked.sampling.n):
        if chat is not None and chat.tools and chat.tool_choice != "none" and prompt.startswith("tool"):
            yield from _tools(index, chat, prompt)
        else:
            yield from _words(index, asked, prompt)


def _tools(index: int, chat: Chat, prompt: str) -> Iterator[Piece]:
    named = chat.tool_choice.removeprefix("function:") if ":" in chat.tool_choice else chat.tools[0]["function"]["name"]
    arguments = json.dumps({"x": prompt.removeprefix("tool").strip()})
    for number in range(2 if prompt.startswith("tools") else 1):
        yield Piece(index, tools=[ToolPiece(number, f"call_{number}", named)])
        for at in range(0, len(arguments), 4):
            yield Piece(index, tools=[ToolPiece(number, arguments=arguments[at : at + 4])])
    yield Piece(index, finish="tool_calls")


def _words(index: int, asked: Generate, prompt: str) -> Iterator[Piece]:
    sampling = asked.sampling
    if prompt.startswith("think"):
        yield Piece(index, reasoning="hm ")
        yield Piece(index, reasoning="so")
    words = ['{"a":', "1}"] if prompt.startswith("json") else split(prompt)
    if prompt.startswith("long"):
        words = ["w"] * (sampling.max_tokens or 1)
    if asked.adapter:
        words = ["please", *words]
    finish: str = "stop"
    if sampling.max_tokens is not None and (len(words) > sampling.max_tokens or prompt.startswith("long")):
        words, finish = words[: sampling.max_tokens], "length"
    if asked.echo:
        words = [prompt, *words]
    for number, word in enumerate(words):
        last = number == len(words) - 1
        yield Piece(
            index,
            word,
            tokens=[token(word)] if asked.return_token_ids else [],
            logprobs=[logprob(word, sampling.logprobs)] if sampling.logprobs is not None else [],
            finish=finish if last else "",
        )
