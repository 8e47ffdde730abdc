"""From messages and tools to a `Chat`: which roles and parts there are, what a tool may be called, what may be chosen."""

from __future__ import annotations

import re
from typing import Any

from inference.gateway.openai.checks import needed, refused
from inference.gateway.openai.problems import BadField
from inference.protocol.generation import Chat
from inference.protocol.openai import ChatBody, Function, TokenizeBody, Tool

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MAX_TOOLS = 128
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}
_FUNCTION = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CHOICES = frozenset({"none", "auto", "required"})


def of_chat(body: ChatBody) -> Chat:
    """Raises BadField."""
    refused(body.functions or body.function_call, "functions", "use 'tools' and 'tool_choice'.")
    refused([one for one in body.modalities or [] if one != "text"], "modalities", "text is all that is made here.")
    refused(body.audio, "audio", "text is all that is made here.")
    refused(body.web_search_options, "web_search_options", "nothing is looked up here; use 'tools'.")
    refused((body.best_of or 1) > (body.n or 1), "best_of", "use 'n', or 'best_of' of /v1/completions.")
    arguments = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        arguments.setdefault("reasoning_effort", body.reasoning_effort)
    if body.documents:
        arguments.setdefault("documents", body.documents)
    found = tools(body.tools)
    adds = body.add_generation_prompt
    continues = bool(body.continue_final_message)
    if adds and continues:
        raise BadField(
            "'continue_final_message' and 'add_generation_prompt' cannot both be true.", "continue_final_message"
        )
    return Chat(
        messages(body.messages),
        found,
        choice(body.tool_choice, found),
        body.chat_template or "",
        arguments,
        not continues if adds is None else adds,
        continues,
    )


def of_tokenize(body: TokenizeBody) -> Chat:
    """Raises BadField."""
    continues = bool(body.continue_final_message)
    return Chat(
        messages(body.messages),
        tools(body.tools),
        "auto",
        body.chat_template or "",
        body.chat_template_kwargs or {},
        not continues if body.add_generation_prompt is None else body.add_generation_prompt,
        continues,
    )


def messages(given: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The messages as the client sent them, but that a content of several texts is joined to one, which is what chat
    templates read. Raises BadField.
    """
    found = needed(given, "messages")
    if not found:
        raise BadField("Invalid 'messages': empty array. Expected an array with minimum length 1.", "messages",
                       "empty_array")  # fmt: skip
    return [_message(one, f"messages[{place}]") for place, one in enumerate(found)]


def _message(given: dict[str, Any], param: str) -> dict[str, Any]:
    role = given.get("role")
    if role not in ROLES if isinstance(role, str) else True:
        shown = f"'{role[:32]}'" if isinstance(role, str) else "what is no text"
        raise BadField(
            f"Invalid value: {shown}. Supported values are: 'system', 'assistant', 'user', 'tool' and 'developer'.",
            f"{param}.role",
        )
    content = given.get("content")
    if isinstance(content, list):
        return given | {"content": "\n".join(_part(one, f"{param}.content[{n}]") for n, one in enumerate(content))}
    if content is None:
        if role != "assistant":
            raise BadField(f"Invalid type for '{param}.content': expected a text or an array of parts.", f"{param}.content",
                           "invalid_type")  # fmt: skip
    elif not isinstance(content, str):
        raise BadField(f"Invalid type for '{param}.content': expected a text or an array of parts.", f"{param}.content",
                       "invalid_type")  # fmt: skip
    if given.get("tool_calls") is not None:
        _check_calls(given["tool_calls"], f"{param}.tool_calls")
    return given


def _part(given: Any, param: str) -> str:
    if isinstance(given, str):
        return given
    kind = given.get("type") if isinstance(given, dict) else None
    key = _TEXTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise BadField(f"'{param}' is no text: language models here read text alone, no images, audio or files.", param)
    text = given.get(key)
    if not isinstance(text, str):
        raise BadField(f"Invalid type for '{param}.{key}': expected a text.", f"{param}.{key}", "invalid_type")
    return text


def _check_calls(given: Any, param: str) -> None:
    if not isinstance(given, list):
        raise BadField(f"Invalid type for '{param}': expected an array.", param, "invalid_type")
    for place, one in enumerate(given):
        function = one.get("function") if isinstance(one, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadField(
                f"'{param}[{place}]' is no function call: it needs 'function' with a 'name'.", f"{param}[{place}]"
            )


def tools(given: list[Tool] | None) -> list[dict[str, Any]]:
    """As objects in OpenAI's form. Raises BadField."""
    if len(given or ()) > MAX_TOOLS:
        raise BadField(
            f"Invalid 'tools': array too long. Expected at most {MAX_TOOLS}.", "tools", "array_above_max_length"
        )
    found = []
    for place, tool in enumerate(given or ()):
        if tool.type != "function" or tool.function is None:
            raise BadField(
                f"Invalid 'tools[{place}]': only tools of type 'function' are there.", f"tools[{place}].type"
            )
        found.append({"type": "function", "function": _function(tool.function, f"tools[{place}].function")})
    return found


def _function(given: Function, param: str) -> dict[str, Any]:
    if not _FUNCTION.fullmatch(given.name):
        raise BadField(
            f"Invalid '{param}.name': up to 64 letters, digits, dots, dashes and underscores.", f"{param}.name"
        )
    found: dict[str, Any] = {"name": given.name}
    found |= {"description": given.description} if given.description is not None else {}
    found["parameters"] = given.parameters or {"type": "object", "properties": {}}
    return found | ({"strict": given.strict} if given.strict is not None else {})


def choice(given: str | dict[str, Any] | None, there: list[dict[str, Any]]) -> str:
    """One of "none", "auto", "required" and "function:NAME". Raises BadField."""
    if given is None:
        return "auto" if there else "none"
    if isinstance(given, str) and given not in _CHOICES:
        raise BadField(f"Invalid value: '{given[:32]}'. Supported values are: 'none', 'auto' and 'required'.",
                       "tool_choice")  # fmt: skip
    if not there and given != "none":
        raise BadField("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
    if isinstance(given, str):
        return given
    named = _named(given)
    if all(tool["function"]["name"] != named for tool in there):
        raise BadField(f"'tool_choice' names the function '{named[:64]}', which is not in 'tools'.", "tool_choice")
    return f"function:{named}"


def _named(given: dict[str, Any]) -> str:
    """Chats nest the name, responses do not."""
    function = given.get("function", given)
    named = function.get("name") if isinstance(function, dict) and given.get("type") == "function" else None
    if not isinstance(named, str) or not named:
        raise BadField("'tool_choice' names a function: {\"type\": \"function\", \"function\": {\"name\": ...}}.",
                       "tool_choice")  # fmt: skip
    return named
