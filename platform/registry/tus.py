"""Resumable uploads by tus 1.0 (core, creation, creation-with-upload, checksum, termination, expiration) at
/api/uploads/, as a raw ASGI application: Django would spool each body to a temporary file first.

The same keys, sessions and `can()` as everywhere. The offset is the size of the quarantine file, so that nothing is
lost when this process is killed at any moment.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import format_datetime
from typing import Any

from channels.db import database_sync_to_async
from django.conf import settings
from django.db import DatabaseError

from accounts.asgi import actor_of_scope, new_request_id
from accounts.permissions import Actor, Verb
from accounts.problems import FAILED, STATUS, UNAVAILABLE, body
from accounts.teams import team_for
from inference.errors import Malformed, NotFound, Rejected, SerinusError, Unsupported
from registry import actions, uploads
from registry.models import Upload
from registry.quarantine import ALGORITHMS, Append, Checksum
from registry.tus_wire import Reply, Request, TusError, send_reply

VERSION = "1.0.0"
PREFIX = "/api/uploads/"
EXTENSIONS = "creation,creation-with-upload,checksum,termination,expiration"
CONTENT_TYPE = "application/offset+octet-stream"
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what came, from whom, about which upload ("" for all of them)."""

    request: Request
    actor: Actor
    name: str


Handler = Callable[[Call], Awaitable[Reply]]


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers one request; every error in the control API's one shape."""
    request, request_id = Request(scope, receive), new_request_id()
    try:
        reply = await _answer(request, request_id)
    except asyncio.CancelledError:
        raise
    except ConnectionResetError:
        return
    except TusError as error:
        reply = Reply(error.status, dict(error.headers), body(error.code, error.message, request_id))
    except SerinusError as error:
        remedy = getattr(error, "remedy", "")
        reply = Reply(STATUS.get(error.code, 500), {}, body(error.code, error.message, request_id, remedy=remedy))
    except DatabaseError:
        log.warning("the database does not answer an upload, request %s", request_id)
        reply = Reply(503, {"retry-after": "5"}, body("unavailable", UNAVAILABLE, request_id))
    except Exception:
        log.exception("an upload failed, request %s", request_id)
        reply = Reply(500, {}, body("internal", FAILED, request_id))
    reply.headers |= {"tus-resumable": VERSION, "x-request-id": request_id}
    if reply.status == 401:
        reply.headers["www-authenticate"] = 'Bearer realm="serinus"'
    await send_reply(send, reply, head=request.method == "HEAD")


async def _answer(request: Request, request_id: str) -> Reply:
    """1. The route. 2. Who asks. 3. The protocol's version. 4. The verb."""
    name = request.path.removeprefix(PREFIX).removesuffix("/")
    handlers = UPLOAD_HANDLERS if name else ROOT_HANDLERS
    if request.method == "OPTIONS":
        return _options(handlers)
    actor = await in_thread(actor_of_scope, request.scope, request_id)
    handler = handlers.get(request.method)
    if handler is None:
        allow = ", ".join([*handlers, "OPTIONS"])
        raise TusError(405, "method_not_allowed", f"allowed here: {allow}", {"allow": allow})
    if request.method != "GET" and request.headers.get("tus-resumable") != VERSION:
        raise TusError(412, "unsupported", f"send Tus-Resumable: {VERSION}", {"tus-version": VERSION})
    if name and not _ID.fullmatch(name):
        raise NotFound("there is no such upload")
    return await handler(Call(request, actor, name))


def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]:
    """Runs what touches the database beside, not inside, the one thread that Django's own sync code shares."""
    return database_sync_to_async(function, thread_sensitive=False)(*args, **kwargs)  # type: ignore[no-any-return]


def _options(handlers: dict[str, Handler]) -> Reply:
    return Reply(
        204,
        {
            "allow": ", ".join([*handlers, "OPTIONS"]),
            "tus-version": VERSION,
            "tus-extension": EXTENSIONS,
            "tus-max-size": str(settings.MAX_UPLOAD_BYTES),
            "tus-checksum-algorithm": ",".join(ALGORITHMS),
        },
    )


async def _list(call: Call) -> Reply:
    rows = await in_thread(lambda: [_shown(row) for row in uploads.own_uploads(call.actor)])
    return Reply(200, {}, {"results": rows})


async def _create(call: Call) -> Reply:
    if "upload-defer-length" in call.request.headers:
        raise Unsupported("send Upload-Length: a deferred length is not supported")
    length = call.request.number("upload-length")
    metadata = read_metadata(call.request.headers.get("upload-metadata", ""))
    upload: Upload = await in_thread(_begin, call.actor, length, metadata)
    headers = {"location": f"{PREFIX}{upload.id}"}
    if call.request.headers.get("content-type") == CONTENT_TYPE:
        upload, offset = await _append(call.request, call.actor, upload, 0)
        headers["upload-offset"] = str(offset)
    elif length == 0:
        upload = await _finish(call.actor, upload)
    return Reply(201, headers | _expires(upload))


def _begin(actor: Actor, length: int, metadata: dict[str, str]) -> Upload:
    team = team_for(actor, Verb.UPLOAD, metadata.get("team", ""))
    filename = metadata.get("filename") or metadata.get("name") or "file"
    sha256 = metadata.get("sha256", "")
    return actions.begin_upload(actor=actor, team=team, filename=filename, length=length, sha256=sha256)


async def _find(actor: Actor, name: str) -> Upload:
    upload: Upload | None = await in_thread(uploads.find_upload, actor, uuid.UUID(name))
    if upload is None:
        raise NotFound("there is no such upload")
    if await in_thread(uploads.is_expired, upload):
        raise _gone()
    return upload


def _gone() -> TusError:
    return TusError(410, "gone", "this upload has expired: begin a new one")


async def _offset(actor: Actor, upload: Upload) -> tuple[Upload, int]:
    """(upload, bytes that are here). Finishes an upload whose server was killed after the last byte."""
    try:
        offset = await asyncio.to_thread(uploads.offset_of, upload)
    except FileNotFoundError:
        raise _gone() from None
    if offset == upload.length and not upload.sha256:
        upload = await _finish(actor, upload)
    return upload, offset


async def _head(call: Call) -> Reply:
    upload, offset = await _offset(call.actor, await _find(call.actor, call.name))
    headers = {"upload-offset": str(offset), "upload-length": str(upload.length)}
    return Reply(200, headers | _expires(upload))


async def _get(call: Call) -> Reply:
    upload, _ = await _offset(call.actor, await _find(call.actor, call.name))
    return Reply(200, {}, await asyncio.to_thread(_shown, upload))


async def _patch(call: Call) -> Reply:
    if call.request.headers.get("content-type") != CONTENT_TYPE:
        raise TusError(415, "unsupported", f"send Content-Type: {CONTENT_TYPE}")
    wanted = call.request.number("upload-offset")
    upload = await _find(call.actor, call.name)
    if upload.sha256:
        raise _wrong_offset(upload.length)
    upload, offset = await _append(call.request, call.actor, upload, wanted)
    return Reply(204, {"upload-offset": str(offset)} | _expires(upload))


async def _delete(call: Call) -> Reply:
    upload = await _find(call.actor, call.name)
    await in_thread(actions.cancel_upload, actor=call.actor, upload=upload)
    return Reply(204, {})


def _wrong_offset(offset: int) -> TusError:
    return TusError(409, "conflict", f"the offset is {offset}", {"upload-offset": str(offset)})


async def _append(request: Request, actor: Actor, upload: Upload, wanted: int) -> tuple[Upload, int]:
    """Takes the body in at `wanted`; answers (upload, new offset).

    1. Locks the quarantine file against a second writer. 2. Compares the offset. 3. Streams. 4. A chunk with a wrong
    checksum, beyond the length, or without room on the disk is taken back whole; what a lost connection sent stays.
    5. After the last byte moves the file into the store.
    """
    checksum = Checksum.read(request.headers.get("upload-checksum", ""))
    with await asyncio.to_thread(_open, upload) as file:
        if file.offset != wanted:
            raise _wrong_offset(file.offset)
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > upload.length - file.offset:
            raise TusError(413, "too_large", "that is more than the upload's length")
        await file.take(request, upload.length, checksum)
        offset = file.offset
        if offset == upload.length:
            return await _finish(actor, upload), offset
    return await in_thread(actions.renew_upload, upload), offset


def _open(upload: Upload) -> Append:
    try:
        return Append(uploads.file_of(upload.id))
    except FileNotFoundError:
        raise _gone() from None


async def _finish(actor: Actor, upload: Upload) -> Upload:
    try:
        done: Upload = await in_thread(actions.complete_upload, actor=actor, upload=upload)
    except FileNotFoundError:
        raise _gone() from None
    except Rejected as error:
        await in_thread(actions.cancel_upload, actor=actor, upload=upload)
        raise TusError(460, "checksum_mismatch", error.message) from error
    return done


def _expires(upload: Upload) -> dict[str, str]:
    return {"upload-expires": format_datetime(upload.expires_at, usegmt=True)}


def _shown(upload: Upload) -> dict[str, Any]:
    try:
        offset = uploads.offset_of(upload)
    except FileNotFoundError:
        offset = 0
    return {
        "id": str(upload.id),
        "filename": upload.filename,
        "length": upload.length,
        "offset": offset,
        "sha256": upload.sha256 or None,
        "team": upload.team.name,
        "expires_at": upload.expires_at.isoformat(),
    }


def read_metadata(text: str) -> dict[str, str]:
    """Upload-Metadata: "name base64,name base64". Raises Malformed."""
    found: dict[str, str] = {}
    for pair in text.split(",") if text.strip() else []:
        name, _, value = pair.strip().partition(" ")
        try:
            found[name] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise Malformed("Upload-Metadata holds a value that is no base64 of UTF-8 text") from error
    return found


ROOT_HANDLERS: dict[str, Handler] = {"GET": _list, "POST": _create}
UPLOAD_HANDLERS: dict[str, Handler] = {"GET": _get, "HEAD": _head, "PATCH": _patch, "DELETE": _delete}
