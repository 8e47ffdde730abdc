"""A response as it comes about: its items, and the typed events that tell of them, numbered from 0."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from inference.errors import SerinusError
from inference.gateway.openai import gathering, problems
from inference.gateway.openai.conversations import LOGPROBS
from inference.protocol.generation import Event, Piece, ToolPiece, Usage
from inference.protocol.openai import ResponseBody, TextFormat

_encode = msgspec.json.Encoder().encode
_KINDS = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


class ResponseWriter:
    """One response. `event` for each event, then `end`; `shown` is the response as it stands."""

    def __init__(self, identity: str, body: ResponseBody) -> None:
        self._id = identity
        self._body = body
        self._created = int(time.time())
        self._number = 0
        self._status = "in_progress"
        self._error: dict[str, Any] | None = None
        self._finish = ""
        self._usage: Usage | None = None
        self._has_begun = False
        self._has_logprobs = LOGPROBS in (body.include or ())
        self._one_call = body.parallel_tool_calls is False
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._item: dict[str, Any] | None = None  # that is being told
        self._call = -1
        self.output: list[dict[str, Any]] = []

    # -- what a stream calls -----------------------------------------------------------------------------------------

    def event(self, event: Event) -> list[bytes]:
        found: list[bytes] = []
        if not self._has_begun:
            self._has_begun = True
            found += [self._told(f"response.{kind}", response=self.shown()) for kind in ("created", "in_progress")]
        self._usage = event.usage or self._usage
        for piece in event.pieces:
            self._piece(piece, found)
        return found

    def end(self) -> list[bytes]:
        found: list[bytes] = []
        self._close(found)
        self._status = "incomplete" if self._finish == "length" else "completed"
        return [*found, self._told(f"response.{self._status}", response=self.shown())]

    def failed(self, error: SerinusError) -> list[bytes]:
        told = problems.envelope(problems.in_stream(error, self._usage or Usage(0, 0)))
        self._status = "failed"
        self._error = {"code": told["code"] or "server_error", "message": told["message"]}
        return [self._told("response.failed", response=self.shown())]

    @property
    def is_stored(self) -> bool:
        return self._body.store is not False

    # -- the response ------------------------------------------------------------------------------------------------

    def shown(self) -> dict[str, Any]:
        body, is_cut = self._body, self._status == "incomplete"
        given = body.text.format if body.text and body.text.format else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "background": False,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": list(self.output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": _told_format(given)},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": _usage(self._usage) if self._status not in {"in_progress", "failed"} else None,
            "user": body.user,
        }

    # -- items -------------------------------------------------------------------------------------------------------

    def _told(self, kind: str, **more: Any) -> bytes:
        data = _encode({"type": kind, "sequence_number": self._number, **more})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    def _piece(self, piece: Piece, found: list[bytes]) -> None:
        if piece.index:
            return
        if piece.reasoning:
            self._turn_to("reasoning", found)
            self._text.append(piece.reasoning)
            found.append(self._of_item("response.reasoning_text.delta", content_index=0, delta=piece.reasoning))
        if piece.text:
            self._turn_to("message", found)
        if piece.text or (piece.logprobs and self._is_in("message")):
            self._text.append(piece.text)
            logprobs = gathering.chat_logprobs(piece.logprobs) if self._has_logprobs else []
            self._logprobs += logprobs
            delta = {"content_index": 0, "delta": piece.text, "logprobs": logprobs}
            found.append(self._of_item("response.output_text.delta", **delta))
        for tool in piece.tools:
            if not (self._one_call and tool.index):
                self._tool(tool, found)
        self._finish = piece.finish or self._finish

    def _tool(self, tool: ToolPiece, found: list[bytes]) -> None:
        if tool.index != self._call or self._item is None:
            self._close(found)
            self._call = tool.index
            self._open({"type": "function_call", "call_id": tool.id, "name": tool.name, "arguments": ""}, found)
        if tool.arguments:
            self._text.append(tool.arguments)
            found.append(self._of_item("response.function_call_arguments.delta", delta=tool.arguments))

    def _of_item(self, kind: str, **more: Any) -> bytes:
        assert self._item is not None
        return self._told(kind, item_id=self._item["id"], output_index=len(self.output), **more)

    def _is_in(self, kind: str) -> bool:
        return self._item is not None and self._item["type"] == kind

    def _turn_to(self, kind: str, found: list[bytes]) -> None:
        if self._is_in(kind):
            return
        self._close(found)
        if kind == "message":
            self._open({"type": kind, "role": "assistant", "content": []}, found)
            found.append(self._of_item("response.content_part.added", content_index=0, part=_part("", [])))
        else:
            self._open({"type": kind, "summary": [], "content": []}, found)

    def _open(self, item: dict[str, Any], found: list[bytes]) -> None:
        mark = f"{_KINDS[item['type']]}_{self._id.removeprefix('resp_')}{len(self.output):02d}"
        self._item = {"id": mark, "status": "in_progress", **item}
        self._text, self._logprobs = [], []
        found.append(self._told("response.output_item.added", output_index=len(self.output), item=self._item))

    def _close(self, found: list[bytes]) -> None:
        item, text = self._item, "".join(self._text)
        if item is None:
            return
        if item["type"] == "message":
            part = _part(text, self._logprobs)
            more = {"content_index": 0, "text": text, "logprobs": self._logprobs}
            found.append(self._of_item("response.output_text.done", **more))
            found.append(self._of_item("response.content_part.done", content_index=0, part=part))
            item = item | {"content": [part]}
        elif item["type"] == "function_call":
            found.append(self._of_item("response.function_call_arguments.done", name=item["name"], arguments=text))
            item = item | {"arguments": text}
        else:
            found.append(self._of_item("response.reasoning_text.done", content_index=0, text=text))
            item = item | {"content": [{"type": "reasoning_text", "text": text}]}
        is_cut = self._finish == "length"
        item |= {"status": "incomplete" if is_cut else "completed"}
        found.append(self._told("response.output_item.done", output_index=len(self.output), item=item))
        self.output.append(item)
        self._item = None


def _told_format(given: TextFormat | None) -> dict[str, Any]:
    if given is None or given.type != "json_schema":
        return {"type": given.type if given is not None else "text"}
    found = {"type": given.type, "name": given.name, "schema": given.schema or {}, "strict": bool(given.strict)}
    return found | ({"description": given.description} if given.description else {})


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(found: Usage | None) -> dict[str, Any]:
    one = found or Usage(0, 0)
    return {
        "input_tokens": one.prompt_tokens,
        "input_tokens_details": {"cached_tokens": one.cached_tokens},
        "output_tokens": one.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": one.reasoning_tokens},
        "total_tokens": one.prompt_tokens + one.completion_tokens,
    }
