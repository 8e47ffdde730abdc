"""The far end of batches: a small HTTP server that answers as OpenAI does, with faults where they are asked for."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from accounts.models import Team
from accounts.permissions import Actor
from endpoints import publish
from jobs import actions, files, store
from jobs.models import Batch, File
from registry.models import Model

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
CHAT = URLS[0]


@dataclass
class Call:
    """One request as it came; text: what it asks about; claims: of its token."""

    path: str
    text: str
    body: dict[str, Any]
    headers: dict[str, str]
    claims: dict[str, Any]
    at: float


@dataclass
class FarEnd:
    """fault: text -> how often this was asked before -> what to do instead of answering well, None for nothing."""

    secret: str
    url: str = ""
    delay_s: float = 0.0
    fault: Callable[[str, int], str | None] = lambda text, before: None
    calls: list[Call] = field(default_factory=list)
    inflight: int = 0
    most_inflight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, text: str) -> int:
        return sum(call.text == text for call in self.calls)


def claims_of(secret: str, header: str) -> dict[str, Any] | None:
    """What a good token says; None for any other credential."""
    prefix, middle, mark = [*header.removeprefix("Bearer ").split("."), "", ""][:3]
    wanted = hmac.new(secret.encode(), middle.encode(), hashlib.sha256).hexdigest()
    if prefix != "ser_tok" or not hmac.compare_digest(wanted, mark):
        return None
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    return found if found["exp"] > time.time() else None


def text_of(path: str, body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"] if path == CHAT else body.get("prompt", body.get("input")))


def answer_of(path: str, body: dict[str, Any]) -> dict[str, Any]:
    text, model, usage = text_of(path, body), body["model"], {"prompt_tokens": 1, "total_tokens": 2}
    if path == CHAT:
        message = {"role": "assistant", "content": f"echo {text}"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return {"id": "chatcmpl-1", "object": "chat.completion", "model": model, "choices": choices, "usage": usage}
    if path == "/v1/completions":
        choices = [{"index": 0, "text": f"echo {text}", "finish_reason": "stop"}]
        return {"id": "cmpl-1", "object": "text_completion", "model": model, "choices": choices, "usage": usage}
    if path == "/v1/embeddings":
        vector = base64.b64encode(struct.pack("<2f", len(text), 1.0)).decode()
        data = [{"object": "embedding", "index": 0, "embedding": vector}]
        return {"object": "list", "model": model, "data": data, "usage": usage}
    content = [{"type": "output_text", "text": f"echo {text}"}]
    return {"id": "resp_1", "object": "response", "model": model, "output": [{"type": "message", "content": content}]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    end: FarEnd

    def log_message(self, *args: object) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        claims = claims_of(self.end.secret, self.headers.get("authorization", ""))
        if claims is None or claims["e"] != body["model"].partition(":")[0]:
            self.reply(401, {"error": {"message": "who?", "type": "authentication_error", "param": None, "code": None}})
            return
        text, end = text_of(self.path, body), self.end
        with end.lock:
            before = end.asked(text)
            end.calls.append(Call(self.path, text, body, dict(self.headers.items()), claims, time.monotonic()))
            end.inflight += 1
            end.most_inflight = max(end.most_inflight, end.inflight)
        try:
            self.act(end.fault(text, before), body)
        except OSError:
            self.close_connection = True
        finally:
            with end.lock:
                end.inflight -= 1

    def act(self, fault: str | None, body: dict[str, Any]) -> None:
        time.sleep(self.end.delay_s)
        error = {"error": {"message": f"as asked: {fault}", "type": "x", "param": None, "code": "x"}}
        if fault == "drop":
            self.connection.close()
            self.close_connection = True
        elif fault == "half":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices":')
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
        elif fault and fault.startswith("wait "):
            time.sleep(float(fault.split()[1]))
            self.reply(200, answer_of(self.path, body))
        elif fault:
            status, _, after = fault.partition(" ")
            self.reply(int(status), error, {"retry-after": after} if after else {})
        else:
            self.reply(200, answer_of(self.path, body))

    def reply(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body, indent=1).encode()
        self.send_response(status)
        for name, value in ({"content-type": "application/json", "x-request-id": "r1"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is what these tests are about."""


@contextlib.contextmanager
def far_end() -> Iterator[FarEnd]:
    end = FarEnd(publish.token_secret())
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"end": end}))
    end.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield end
    finally:
        server.shutdown()
        server.server_close()


def make_endpoint(team: Any, name: str, *, access: str = "key") -> Any:
    """An endpoint's row: what lines may call is decided by rows, not by what serves them."""
    from endpoints.models import Endpoint

    model, _ = Model.objects.get_or_create(name=f"{name}-model", defaults={"team": team})
    return Endpoint.objects.create(name=name, team=team, model=model, salt="s", access=access)


def line(number: int, *, url: str = CHAT, model: str = "chat", text: str = "", **body: Any) -> dict[str, Any]:
    words = text or f"line {number}"
    asked = {CHAT: {"messages": [{"role": "user", "content": words}]}, "/v1/completions": {"prompt": words}}
    given = {"model": model, **asked.get(url, {"input": words}), **body}
    return {"custom_id": f"id-{number}", "method": "POST", "url": url, "body": given}


def upload(actor: Actor, data: bytes, team: Team | None = None) -> File:
    """A file as a client brings it."""
    owner = team or (actor.key.team if actor.key else None)
    assert owner is not None
    with store.NewFile(store.new_id("file-")) as new:
        new.write(data)
        return files.keep_file(
            actor=actor, team=owner, new=new, filename="in.jsonl", purpose="batch", life=timedelta(days=1)
        )


def begin(
    actor: Actor,
    lines: list[dict[str, Any]],
    *,
    team: Team | None = None,
    endpoint: str = CHAT,
    window: str = "24h",
) -> Batch:
    """A batch that waits for a worker."""
    file = upload(actor, jsonl(lines), team)
    return actions.create_batch(actor=actor, file=file, endpoint=endpoint, completion_window=window)


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def read_jsonl(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(row) for row in data.splitlines()]
