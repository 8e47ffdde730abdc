"""Files and batches at a real gateway process: what goes through to the console, and in how much memory."""

import contextlib
import hashlib
import json
import select
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import openai
import pytest

from tests.support.gateway_house import House

KEY = "ser_all.s2"


class Console(BaseHTTPRequestHandler):
    """Answers what it was sent: method, path, key, size and digest of the body; /content gives 3 MB."""

    protocol_version = "HTTP/1.1"
    pace_s = 0.0

    def answer(self):
        left, size, digest, parts = int(self.headers.get("content-length", 0)), 0, hashlib.sha256(), b""
        if "break" in self.path:
            self.close_connection = True
            return None
        while left:
            piece = self.rfile.read(min(left, 65536))
            if not piece:
                return None
            left, size = left - len(piece), size + len(piece)
            digest.update(piece)
            parts = (parts + piece)[:4096]
            time.sleep(type(self).pace_s)
        if self.headers.get("authorization") == "Bearer ser_one.s1":
            told = {"message": "no", "type": "permission_error", "param": None, "code": "forbidden"}
            return self.say(403, json.dumps({"error": told}).encode())
        if self.path.endswith("/content"):
            return self.say(200, b"x" * 3_000_000, "application/octet-stream")
        if "page" in self.path:
            return self.say(500, b"<html>", "text/html")
        name = self.path.partition("?")[2]
        text = (f'{{"id":"file-1","object":"file","bytes":{size},"filename":"{digest.hexdigest()}","purpose":"batch",'
                f'"status":"{self.command} {self.headers["content-type"]} {name}"}}')  # fmt: skip
        return self.say(200, text.encode())

    do_GET = do_POST = do_DELETE = answer  # noqa: N815

    def say(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def house():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Console)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = House()
    found.replica()
    found.publish(found.table())
    found.gateway(SERINUS_CONSOLE_URL=f"http://127.0.0.1:{server.server_port}", SERINUS_MAX_BODY_BYTES=str(1 << 20))
    found.gateway()
    for gateway in found.gateways:
        gateway.wait_live().wait_ready()
    yield found
    found.close()
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(house):
    with openai.OpenAI(base_url=f"{house.gateways[0].url}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def memory_of(gateway) -> int:
    """Resident bytes of its process."""
    with open(f"/proc/{gateway.process.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_the_official_client_uploads_lists_and_reads(client):
    small = client.files.create(file=("a.jsonl", b'{"a":1}\n'), purpose="batch")
    assert small.id == "file-1"
    assert small.status.startswith("POST multipart/form-data; boundary=")
    assert "limit=3" in httpx.get(
        f"{client.base_url}files?limit=3", headers={"Authorization": f"Bearer {KEY}"}
    ).json()["status"]  # fmt: skip
    assert len(client.files.content("file-1").read()) == 3_000_000
    assert client.batches.cancel("batch_1").status.startswith("POST")
    assert client.files.delete("file-1").id == "file-1"


def test_an_upload_far_larger_than_a_body_goes_through_in_little_memory(house):
    gateway, size = house.gateways[0], 48 << 20
    before, most = memory_of(gateway), 0
    digest = hashlib.sha256()

    def parts():
        nonlocal most
        for number in range(size >> 16):
            piece = bytes([number % 251]) * (1 << 16)
            digest.update(piece)
            most = max(most, memory_of(gateway))
            yield piece

    Console.pace_s = 0.0005
    try:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Length": str(size), "Content-Type": "multipart/form-data"}
        answer = httpx.post(gateway.url + "/v1/files", content=parts(), headers=headers, timeout=60)
    finally:
        Console.pace_s = 0.0
    assert answer.status_code == 200, answer.text
    assert (answer.json()["bytes"], answer.json()["filename"]) == (size, digest.hexdigest())
    assert most - before < 16 << 20


def test_the_consoles_refusal_reaches_the_client(house):
    answer = house.gateways[0].post("/v1/files", key="ser_one.s1", content=b"x" * 3_000_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


def test_a_console_that_breaks_off_ends_the_upload_and_its_connection(house):
    size, sent = 1 << 30, 0
    with socket.create_connection(("127.0.0.1", house.gateways[0].port), timeout=10) as peer:
        peer.sendall(b"POST /v1/files?break=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode()
                     + b"\r\nContent-Length: %d\r\n\r\n" % size)  # fmt: skip
        while not select.select([peer], [], [], 0)[0] and sent < size:
            sent += peer.send(b"x" * 65536)
        text = b""
        with contextlib.suppress(ConnectionResetError):  # what it had not read is thrown away
            while part := peer.recv(65536):
                text += part
    head, _, body = text.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in head
    assert b'"code":"not_ready"' in body
    assert sent < 64 << 20


def test_a_key_is_needed_and_a_page_for_people_is_told_as_an_error(house):
    first, second = house.gateways
    for path in ("/v1/files", "/v1/batches/batch_1"):
        answer = httpx.get(first.url + path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    answer = first.get("/v1/batches/page")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "The console refused the call."
    assert second.get("/v1/files").status_code == 503
    assert "SERINUS_CONSOLE_URL" in second.get("/v1/files").json()["error"]["message"]


def test_a_connection_goes_on_after_an_upload(house):
    with httpx.Client(base_url=house.gateways[0].url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        for _ in range(3):
            answer = client.post("/v1/files", content=b"y" * 2_000_000)
            assert answer.json()["bytes"] == 2_000_000
            assert client.get("/v1/models").status_code == 200
