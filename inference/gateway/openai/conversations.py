"""What `/v1/responses` is asked, as a chat: items become messages, and an answer's items the messages of its next turn."""

from __future__ import annotations

import json
from typing import Any

from inference.gateway.openai import chats, checks, foreign, sampling
from inference.gateway.openai.asking import Target
from inference.gateway.openai.problems import BadField
from inference.protocol.generation import Chat, Generate
from inference.protocol.openai import (
    ChatBody,
    Function,
    JsonSchema,
    ResponseBody,
    ResponseFormat,
    ResponseTool,
    TextFormat,
    Tool,
)

Message = dict[str, Any]
LOGPROBS = "message.output_text.logprobs"


def message_of(body: ResponseBody, target: Target, before: list[Message], salt: str) -> tuple[Generate, list[Message]]:
    """What is asked of the model, and the conversation so far without the instructions. Raises BadField."""
    _refuse(body)
    asked = chats.messages([*before, *_messages(body.input)])
    if not any(one.get("content") or one.get("tool_calls") for one in asked):
        raise BadField("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    instructions: list[Message] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    tools = chats.tools([_tool(tool, f"tools[{place}]") for place, tool in enumerate(body.tools or [])])
    arguments = dict(body.chat_template_kwargs or {})
    if body.reasoning and body.reasoning.effort:
        arguments.setdefault("reasoning_effort", body.reasoning.effort)
    chat = Chat(
        [*instructions, *asked], tools, chats.choice(body.tool_choice, tools), body.chat_template or "", arguments
    )
    found = Generate(
        chat,
        sampling.of_chat(_as_chat(body)),
        bool(body.stream),
        adapter=target.adapter,
        salt=salt,
        priority=body.priority or 0,
        add_special_tokens=False,
    )
    return found, asked


def _refuse(body: ResponseBody) -> None:
    foreign.refuse(body, foreign.GENERATION | foreign.RESPONSES)
    checks.refused(body.background, "background", "ask with 'stream', or use /v1/batches.")
    checks.refused(body.prompt, "prompt", "send 'input' and 'instructions' themselves.")
    checks.refused(body.conversation, "conversation", "use 'previous_response_id'.")
    if body.truncation not in {None, "disabled"}:
        raise BadField("'truncation' can only be 'disabled': nothing is left out of a conversation here.", "truncation")
    checks.number(body.max_output_tokens, "max_output_tokens", 1, sampling.MAX_TOKENS)
    if len(body.metadata or ()) > 16:
        raise BadField("Invalid 'metadata': at most 16 entries.", "metadata")


def _as_chat(body: ResponseBody) -> ChatBody:
    """The same sampling, said as a chat says it."""
    return ChatBody(
        model=body.model,
        stream=body.stream,
        temperature=body.temperature,
        top_p=body.top_p,
        max_completion_tokens=body.max_output_tokens,
        logprobs=LOGPROBS in (body.include or ()) or None,
        top_logprobs=body.top_logprobs if LOGPROBS in (body.include or ()) else None,
        response_format=_format(body.text.format if body.text else None),
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
        stop=body.stop,
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        priority=body.priority,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
        stop_token_ids=body.stop_token_ids,
        include_stop_str_in_output=body.include_stop_str_in_output,
        bad_words=body.bad_words,
        skip_special_tokens=body.skip_special_tokens,
        structured_outputs=body.structured_outputs,
    )


def _format(given: TextFormat | None) -> ResponseFormat | None:
    if given is None:
        return None
    schema = JsonSchema(given.name, given.schema) if given.type == "json_schema" else None
    return ResponseFormat(given.type, schema)


def _tool(given: ResponseTool, param: str) -> Tool:
    if given.type != "function":
        raise BadField(f"Invalid '{param}': only tools of type 'function' are there.", f"{param}.type")
    return Tool("function", Function(given.name, given.description, given.parameters, given.strict))


def _messages(given: str | list[dict[str, Any]] | None) -> list[Message]:
    if isinstance(given, str):
        return [{"role": "user", "content": checks.needed(given, "input")}]
    messages: list[Message] = []
    for place, item in enumerate(checks.needed(given, "input")):
        _add(messages, item, f"input[{place}]")
    return messages


def _add(messages: list[Message], item: dict[str, Any], param: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        messages.append({"role": item.get("role"), "content": item.get("content")})
    elif kind == "function_call":
        _add_call(messages, item, param)
    elif kind == "function_call_output":
        messages.append(
            {"role": "tool", "tool_call_id": _text(item, "call_id", param), "content": _output(item, param)}
        )
    elif kind != "reasoning":  # what was thought is no part of what is said
        raise BadField(
            f"Invalid '{param}': items are messages, 'function_call', 'function_call_output' and 'reasoning'.",
            f"{param}.type",
        )


def _add_call(messages: list[Message], item: dict[str, Any], param: str) -> None:
    call = {
        "id": _text(item, "call_id", param),
        "type": "function",
        "function": {"name": _text(item, "name", param), "arguments": _text(item, "arguments", param)},
    }
    if not (messages and messages[-1].get("role") == "assistant"):
        messages.append({"role": "assistant", "content": None})
    messages[-1] = messages[-1] | {"tool_calls": [*messages[-1].get("tool_calls", []), call]}


def _output(item: dict[str, Any], param: str) -> Any:
    given = item.get("output")
    if isinstance(given, dict):
        return json.dumps(given)
    return given if isinstance(given, list) else _text(item, "output", param)


def _text(item: dict[str, Any], name: str, param: str) -> str:
    found = item.get(name)
    if not isinstance(found, str):
        raise BadField(f"Invalid type for '{param}.{name}': expected a text.", f"{param}.{name}", "invalid_type")
    return found


def turn_of(output: list[dict[str, Any]]) -> list[Message]:
    """An answer's items as the messages that the next turn begins with."""
    messages: list[Message] = []
    for item in output:
        _add(messages, item, "output")
    return chats.messages(messages) if messages else []
