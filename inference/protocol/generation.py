"""What an OpenAI door asks of a language model's replica, and what comes back. Shapes of our own, so that each door
(chat, completions, responses, WebSocket, generate) writes its own public form from the same events.

On the wire it is an ordinary Infer whose only tensor is `request`, BYTES [1], an `Asked` in msgpack; the answers hold
one tensor `event`, BYTES [1], an `Event` in msgpack. The doors of the Open Inference Protocol send `text_input`
instead, and get `text_output`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inference.protocol.oip import Signature, TensorSpec

PLATFORM = "serinus_language_model"
REQUEST, EVENT = "request", "event"
TEXT_INPUT, TEXT_OUTPUT = "text_input", "text_output"
HIDDEN = frozenset({REQUEST, EVENT})
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
BACKGROUND = 100  # the first priority of what runs behind requests that somebody waits for
NO_LOGPROB = -9999.0  # what is sent where the number would be minus infinity: JSON has none


class Structure(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the text must be; exactly one is given. json_schema: the schema as JSON; grammar: Lark as llguidance reads it."""

    json_object: bool = False
    json_schema: str = ""
    regex: str = ""
    choice: list[str] = msgspec.field(default_factory=list)
    grammar: str = ""


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tokens are chosen and when to stop; the names are OpenAI's and vLLM's.

    max_tokens: None for as many as the context holds. top_k: 0 or -1 for all. temperature 0 is greedy. logprobs and
    prompt_logprobs: None for none, else how many of the most likely beside the chosen one. seed: None for a new one.
    stop: texts that end the answer and are not part of it, unless `include_stop`. bad_words: texts that never come.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    stop: list[str] = msgspec.field(default_factory=list)
    stop_token_ids: list[int] = msgspec.field(default_factory=list)
    include_stop: bool = False
    bad_words: list[str] = msgspec.field(default_factory=list)
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    skip_special_tokens: bool = True
    structure: Structure | None = None


class Chat(msgspec.Struct, frozen=True, omit_defaults=True):
    """Messages for the model's own chat template, each a JSON object as the client sent it. tools: OpenAI's function
    tools. tool_choice: "none", "auto", "required", or the name of a function after "function:".
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tool_choice: str = "auto"
    template: str = ""
    template_arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class Generate(msgspec.Struct, frozen=True, omit_defaults=True, tag="generate"):
    """Make text after a prompt: text, token ids, or a chat.

    stream: an event for every piece; else one event with all of it. echo: the prompt comes first in every choice.
    adapter: the name of a LoRA adapter. salt: prefixes are shared only among requests with the same one.
    priority: a smaller number goes first. return_token_ids: pieces hold the ids, and the first event the prompt's.
    """

    prompt: str | list[int] | Chat
    sampling: Sampling = Sampling()
    stream: bool = False
    echo: bool = False
    adapter: str = ""
    salt: str = ""
    priority: int = 0
    return_token_ids: bool = False
    add_special_tokens: bool = True


class Tokenize(msgspec.Struct, frozen=True, omit_defaults=True, tag="tokenize"):
    """Answered by one event whose `prompt` has the ids (and, with return_texts, each token's text)."""

    prompt: str | list[int] | Chat
    add_special_tokens: bool = True
    return_texts: bool = False


class Detokenize(msgspec.Struct, frozen=True, omit_defaults=True, tag="detokenize"):
    """Answered by one event whose `prompt` has the text."""

    tokens: list[int]


Asked = Generate | Tokenize | Detokenize


class Ranked(msgspec.Struct, frozen=True, array_like=True):
    """One of the most likely tokens at a place. text may hold the replacement character; `raw` are the true bytes."""

    token: int
    text: str
    raw: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The token at a place, its logprob (natural logarithm, of the model's distribution before temperature and
    filters) and the most likely ones there.
    """

    token: int
    text: str
    raw: bytes
    logprob: float | None
    top: list[Ranked] = msgspec.field(default_factory=list)


class ToolPiece(msgspec.Struct, frozen=True, array_like=True):
    """A part of a tool call: `id` and `name` come with its first part; `arguments` is the next part of their JSON."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """What is new in one choice. finish: "" while it goes on, else "stop", "length", "tool_calls" or "abort";
    stop_reason: the stop text or token id that ended it.
    """

    index: int
    text: str = ""
    reasoning: str = ""
    tools: list[ToolPiece] = msgspec.field(default_factory=list)
    tokens: list[int] = msgspec.field(default_factory=list)
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)
    finish: str = ""
    stop_reason: str | int | None = None


class Usage(msgspec.Struct, frozen=True, array_like=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Prompt(msgspec.Struct, frozen=True, array_like=True):
    """What the engine made of the prompt, as far as it was asked for. max_tokens: the model's context."""

    tokens: list[int] = msgspec.field(default_factory=list)
    text: str = ""
    texts: list[str] = msgspec.field(default_factory=list)
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)
    max_tokens: int = 0


class Event(msgspec.Struct, frozen=True, array_like=True):
    """One answer. `usage` is in every event of a stream; the last event's are the totals."""

    pieces: list[Piece] = msgspec.field(default_factory=list)
    usage: Usage | None = None
    prompt: Prompt | None = None


def language_signature() -> Signature:
    """What every language model takes and gives; `public_signature` leaves out the engine's own pair."""
    return Signature(
        [TensorSpec(TEXT_INPUT, "BYTES", [1]), TensorSpec(REQUEST, "BYTES", [1])],
        [TensorSpec(TEXT_OUTPUT, "BYTES", [1]), TensorSpec(EVENT, "BYTES", [1])],
        platform=PLATFORM,
    )


encode_event = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(Event).decode
encode_asked = msgspec.msgpack.Encoder().encode
decode_asked = msgspec.msgpack.Decoder(Asked).decode
