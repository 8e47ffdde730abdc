"""POST /v1/files as a raw ASGI application: the file goes from the socket to its folder once, counted as it comes.

Django would take in the whole body first, whoever sends it. Its own multipart parser reads it here, in a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

from channels.db import database_sync_to_async
from django.core.exceptions import SuspiciousOperation
from django.core.files.uploadhandler import FileUploadHandler
from django.db import DatabaseError
from django.http.multipartparser import MultiPartParser, MultiPartParserError

from accounts.asgi import actor_of_scope, new_request_id
from accounts.permissions import Actor, Verb
from accounts.problems import FAILED, UNAVAILABLE
from accounts.teams import team_for
from inference.errors import InvalidInput, Malformed, SerinusError, TooLarge
from jobs import files, shapes, store
from jobs.limits import MAX_FILE_BYTES
from jobs.problems import envelope, status_of
from registry.tus_wire import Reply, Request, TusError, send_reply

PATH = "/v1/files"
SLACK_BYTES = 1 << 20  # of the form around the file
FIELDS = {"purpose", "team", "expires_after[anchor]", "expires_after[seconds]"}
log = logging.getLogger(__name__)


def takes(scope: dict[str, Any]) -> bool:
    return bool(scope["method"] == "POST" and scope["path"].rstrip("/") == PATH)


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers one upload; errors in OpenAI's envelope."""
    request, request_id = Request(scope, receive), new_request_id()
    try:
        reply = Reply(200, {}, await _take(request, request_id))
    except asyncio.CancelledError:
        raise
    except ConnectionResetError:
        return
    except TusError as error:
        reply = _refusal(error.status, error.message, error.code)
    except SerinusError as error:
        reply = _refusal(status_of(error), error.message, error.code)
    except DatabaseError:
        log.warning("the database does not answer an upload, request %s", request_id)
        reply = _refusal(503, UNAVAILABLE, "unavailable", {"retry-after": "5"})
    except Exception:
        log.exception("an upload failed, request %s", request_id)
        reply = _refusal(500, FAILED, "internal")
    reply.headers["x-request-id"] = request_id
    await send_reply(send, reply)


def _refusal(status: int, message: str, code: str, more: dict[str, str] | None = None) -> Reply:
    headers = {"connection": "close"} | (more or {})  # of the body, some may still be on its way
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="serinus"'
    return Reply(status, headers, envelope(status, message, code))


def _in_thread(function: Any, *args: Any) -> Any:
    return database_sync_to_async(function, thread_sensitive=False)(*args)


async def _take(request: Request, request_id: str) -> dict[str, Any]:
    """1. Who sends? 2. Is there room? 3. The body, as it comes. 4. The row."""
    actor: Actor = await _in_thread(actor_of_scope, request.scope, request_id)
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise Malformed("send the file as multipart/form-data, with the fields 'purpose' and 'file'")
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdigit() and len(declared) < 19 else 0
    if size > MAX_FILE_BYTES + SLACK_BYTES:
        raise TooLarge(f"a file may have at most {MAX_FILE_BYTES} bytes: split it into several batches")
    await _in_thread(_admit, actor, size)
    with store.NewFile(store.new_id("file-"), limit_bytes=MAX_FILE_BYTES) as new:
        form = Form(new)
        body = _Body(request.chunks(), asyncio.get_running_loop())
        await asyncio.to_thread(form.read, kind, body)
        shown: dict[str, Any] = await _in_thread(_keep, actor, form)
    return shown


def _admit(actor: Actor, size: int) -> None:
    """Raises Forbidden, ClientError, StorageFull. Which of several teams it is for is only said in the form."""
    if actor.key is not None:
        files.require_room(actor, actor.key.team, size)
    else:
        store.require_free(size)


def _keep(actor: Actor, form: Form) -> dict[str, Any]:
    team = team_for(actor, Verb.VIEW, form.fields.get("team", ""))
    if not form.filename:
        raise InvalidInput("the form holds no 'file'")
    purpose = form.fields.get("purpose", "")
    row = files.keep_file(
        actor=actor, team=team, new=form.new, filename=form.filename, purpose=purpose, life=_life(form.fields)
    )
    return shapes.file(row)


def _life(fields: dict[str, str]) -> timedelta:
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise InvalidInput("expires_after.anchor must be 'created_at'")
    text = fields.get("expires_after[seconds]")
    if text is not None and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidInput("expires_after.seconds must be a whole number")
    return files.life_of(int(text) if text is not None else None)


class _Body:
    """The request's body as the stream that Django's parser reads, from its thread."""

    def __init__(self, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._chunks, self._loop, self._ended, self._size = chunks, loop, False, 0

    def read(self, _size: int = -1) -> bytes:
        """The next piece, b"" at the end. Raises ConnectionResetError, TusError, TooLarge."""
        if self._ended:
            return b""
        piece = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
        self._size += len(piece)
        self._ended = not piece
        if self._size > MAX_FILE_BYTES + SLACK_BYTES:
            raise TooLarge(f"a file may have at most {MAX_FILE_BYTES} bytes: split it into several batches")
        return piece

    async def _next(self) -> bytes:
        return await anext(self._chunks, b"")


@dataclass
class Form:
    """What a multipart body brought; the file itself goes to `new`."""

    new: store.NewFile
    filename: str = ""
    fields: dict[str, str] = field(default_factory=dict)

    def read(self, content_type: str, body: _Body) -> None:
        """Raises Malformed, TooLarge, StorageFull, and what `body` raises."""
        meta = {"CONTENT_TYPE": content_type, "CONTENT_LENGTH": str(MAX_FILE_BYTES)}  # only looked at for 0
        try:
            fields, _ = MultiPartParser(meta, cast("Any", body), [_ToFolder(self)], "utf-8").parse()
        except (MultiPartParserError, SuspiciousOperation, UnicodeError) as error:
            raise Malformed("the body is no multipart form that this API reads") from error
        if unknown := sorted(set(fields) - FIELDS):
            raise InvalidInput(f"the form's field '{unknown[0][:80]}' is not known here")
        self.fields = {name: str(fields[name]) for name in fields}


class _ToFolder(FileUploadHandler):
    """Writes the one file of the form as it comes."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self._form = form

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        if self.field_name != "file" or self._form.filename:
            raise Malformed("the form must hold one file, in the field 'file'")
        self._form.filename = self.file_name or "file"

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        self._form.new.write(raw_data)

    def file_complete(self, file_size: int) -> None:
        return None
