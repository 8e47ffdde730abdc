"""What a language model was asked, as a body of OpenAI's API, and what that API's answer says as one text. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from inference.protocol import generation
from inference.protocol.generation import Chat, Generate, Structure
from inference.protocol.records import Record

_LEFT_OUT = ("logprobs", "prompt_logprobs")  # they change no text


def chat_body(record: Record, model: str) -> dict[str, Any] | None:
    """None for what has no such form: a template of the caller's own, a request that cannot be read."""
    try:
        asked = generation.decode_asked(memoryview(record.body)[4:])
    except msgspec.MsgspecError:
        return None
    if not isinstance(asked, Generate):
        return None
    body = _sampling(asked) | {"model": f"{model}:{asked.adapter}" if asked.adapter else model}
    if isinstance(asked.prompt, Chat):
        return body | _chat(asked.prompt) if not asked.prompt.template else None
    return body | {"prompt": asked.prompt, "add_special_tokens": asked.add_special_tokens}


def _sampling(asked: Generate) -> dict[str, Any]:
    """Names are OpenAI's and vLLM's already, but for few."""
    found = {name: value for name, value in msgspec.to_builtins(asked.sampling).items() if name not in _LEFT_OUT}
    if found.pop("include_stop", False):
        found["include_stop_str_in_output"] = True
    if found.pop("structure", None) and asked.sampling.structure is not None:
        found["structured_outputs"] = _structured(asked.sampling.structure)
    if asked.echo:
        found["echo"] = True
    return found


def _structured(structure: Structure) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(structure)
    if "json_schema" in found:
        found["json"] = found.pop("json_schema")
    return found


def _chat(chat: Chat) -> dict[str, Any]:
    found: dict[str, Any] = {"messages": chat.messages}
    if chat.tools:
        named = chat.tool_choice.removeprefix("function:")
        choice: Any = {"type": "function", "function": {"name": named}} if named != chat.tool_choice else named
        found |= {"tools": chat.tools, "tool_choice": choice}
    if chat.template_arguments:
        found["chat_template_kwargs"] = chat.template_arguments
    if chat.continue_final_message:
        found |= {"continue_final_message": True, "add_generation_prompt": False}
    return found


def choice_text(choice: dict[str, Any]) -> str:
    """Reasoning, text and tool calls, one after the other, as a record holds them."""
    message = choice.get("message")
    if message is None:
        return str(choice.get("text") or "")
    tools = "".join(
        call["function"]["name"] + call["function"]["arguments"] for call in message.get("tool_calls") or []
    )
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    return f"{reasoning}{message.get('content') or ''}{tools}"
