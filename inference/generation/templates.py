"""Chats -> prompts through the model's own Jinja template, as transformers' `apply_chat_template` does.

A template is code that came with a model: it runs in jinja2's immutable sandbox, in `sandbox.BoundedEnvironment`, which
counts its steps, its time and the size of all it makes. It never comes with a request. Where a template cannot take
what OpenAI's clients send (parts of text, a call's arguments as a string), messages are brought into its form first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import nodes

from inference.errors import InvalidInput
from inference.generation.sandbox import BoundedEnvironment, TemplateLimits
from inference.protocol.generation import Chat

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_NOTE = "the model brings no chat template: chats are written as ChatML"
_OWN = frozenset(
    {
        "messages",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "conversation",
        "tokenize",
    }
)
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """One template, compiled. iterates_content: it reads a message's content as a list of parts.

    Raises InvalidInput where it cannot be compiled or is too large.
    """

    def __init__(
        self, source: str, *, special_tokens: Mapping[str, str] | None = None, limits: TemplateLimits | None = None
    ) -> None:
        self.source = source
        self._special_tokens = {name: str(text) for name, text in (special_tokens or {}).items()}
        self._environment = BoundedEnvironment(limits or TemplateLimits())
        self._template = self._environment.compiled(source)
        self.iterates_content = _iterates_content(self._environment.parsed(source))
        self._only_parts = self.iterates_content and not re.search(
            r"\bis\s+(not\s+)?(string|iterable|sequence|mapping)\b", source
        )

    def render(self, chat: Chat) -> str:
        """The prompt's text. Raises InvalidInput with the template's own words, or for what it cannot take."""
        if chat.continue_final_message and chat.add_generation_prompt:
            raise InvalidInput("set add_generation_prompt to false where continue_final_message is true")
        if reserved := _OWN.intersection(chat.template_arguments):
            raise InvalidInput(f"a template argument may not be called {min(reserved)!r}")
        messages = [self._message(one) for one in chat.messages]
        final = _mark_final(messages, self.source) if chat.continue_final_message else ""
        variables = {"documents": None, **self._special_tokens, **plain(chat.template_arguments)}
        tools = plain(chat.tools) if chat.tools and chat.tool_choice != "none" else None
        text = self._environment.render(
            self._template,
            {**variables, "messages": messages, "tools": tools, "add_generation_prompt": chat.add_generation_prompt},
        )
        return _cut_at_mark(text, final) if chat.continue_final_message else text

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidInput('a message is an object with a "role" that is a string')
        made: dict[str, Any] = plain(message)
        made["content"] = self._content(made)
        if isinstance(made.get("tool_calls"), list):
            made["tool_calls"] = [_with_read_arguments(call) for call in made["tool_calls"]]
        reasoning = next((made[key] for key in _REASONING if made.get(key) is not None), None)
        if reasoning is not None:
            made = {"thinking": reasoning, **made, "reasoning_content": reasoning}
        return made

    def _content(self, message: dict[str, Any]) -> str | list[dict[str, Any]]:
        content = message.get("content")
        if content is None:
            content = ""
        if isinstance(content, str):
            return [{"type": "text", "text": content}] if self._only_parts else content
        if not isinstance(content, list):
            raise InvalidInput("a message's content is a string or a list of parts")
        parts = [_part(part) for part in content]
        return parts if self.iterates_content else "\n".join(part["text"] for part in parts)


class ChatTemplates:
    """A model's template, or several by name ("default", "tool_use": used where a chat brings tools).

    trust_request: whether a chat may bring a template of its own (`Chat.template`); else that is InvalidInput.
    """

    def __init__(
        self,
        sources: str | Mapping[str, str] | None,
        *,
        special_tokens: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
        trust_request: bool = False,
    ) -> None:
        named = {"default": sources} if isinstance(sources, str) else dict(sources or {})
        named = {name: source for name, source in named.items() if source}
        self.notes = [] if named else [CHATML_NOTE]
        self._special_tokens, self._limits, self._trust_request = special_tokens, limits, trust_request
        self._named = {name: self._template(source) for name, source in (named or {"default": CHATML}).items()}

    def _template(self, source: str) -> ChatTemplate:
        return ChatTemplate(source, special_tokens=self._special_tokens, limits=self._limits)

    @property
    def source(self) -> str:
        """What tells of the model's manner of calls and thoughts: the text of all its templates."""
        return "\n".join(template.source for template in self._named.values())

    def render(self, chat: Chat) -> str:
        """As `ChatTemplate.render`."""
        return self._for(chat).render(chat)

    def _for(self, chat: Chat) -> ChatTemplate:
        if chat.template:
            if not self._trust_request:
                raise InvalidInput(
                    "chat_template is not taken from requests here: a chat template comes with the model's version, "
                    "unless that has generation.trust_request_chat_template"
                )
            return self._template(chat.template)
        name = "tool_use" if chat.tools and "tool_use" in self._named else "default"
        if name not in self._named:
            raise InvalidInput(f"the model has no default chat template, only {', '.join(sorted(self._named))}")
        return self._named[name]


def plain(value: Any) -> Any:
    """A copy of JSON's own types: a template sees nothing that has methods of somebody else's."""
    if value is None or type(value) in {str, int, float, bool}:
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    raise InvalidInput(f"a chat is JSON: it cannot hold {type(value).__name__}")


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return {**part, "type": "text"}
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise InvalidInput(f"this model reads text only, not a part of type {kind!r}")


def _with_read_arguments(call: Any) -> Any:
    """OpenAI's clients send a call's arguments as a string of JSON; templates write them as JSON themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        read = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": read}} if isinstance(read, dict) else call


def _mark_final(messages: list[dict[str, Any]], source: str) -> str:
    """Puts the mark behind the last message's text, and gives that text."""
    if not messages or not messages[-1]["content"]:
        raise InvalidInput("continue_final_message needs a final message with content")
    if "content" not in source:
        raise InvalidInput("continue_final_message does not work with a template that writes no content")
    content = messages[-1]["content"]
    if isinstance(content, str):
        messages[-1]["content"] = content + _TAG
        return content
    text: str = content[-1]["text"]
    content[-1] = {**content[-1], "text": text + _TAG}
    return text


def _cut_at_mark(rendered: str, final: str) -> str:
    at = rendered.rfind(_TAG.strip())
    if at < 0 or final.strip() not in rendered:
        raise InvalidInput("continue_final_message does not work here: the template changes the final message")
    kept = rendered[:at]
    return kept if rendered.startswith(_TAG, at) else kept.rstrip()


def _iterates_content(tree: nodes.Template) -> bool:
    """Whether some loop runs over a message's content, or a name that stands for it."""
    names = {"content"}
    for one in tree.find_all(nodes.Assign):
        if isinstance(one.target, nodes.Name) and _is_content(one.node, names):
            names.add(one.target.name)
    return any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _is_content(node.node, names)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in names
