"""tus 1.0 at the real ASGI application, and at a real process that is killed in the middle of a chunk."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from django.conf import settings as django_settings
from django.db import connection

from registry import quarantine, uploads
from registry.models import Blob, Upload
from registry.storage import store
from tests.support.cast import Cast, make_cast

pytestmark = pytest.mark.django_db(transaction=True)
REPO = Path(__file__).resolve().parents[2]
TUS = {"Tus-Resumable": "1.0.0"}
T = TypeVar("T")
CHUNK = TUS | {"Content-Type": "application/offset+octet-stream"}


@pytest.fixture
def cast(transactional_db: None) -> Cast:
    return make_cast()


@pytest.fixture
def headers(cast: Cast) -> dict[str, str]:
    return cast.bearer("developer")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    from config.asgi import application

    transport = httpx.ASGITransport(app=application)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as found:
        yield found


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def create(client: httpx.AsyncClient, headers: dict[str, str], length: int, **metadata: str) -> str:
    pairs = ",".join(f"{name} {b64(value.encode())}" for name, value in metadata.items())
    extra = {"Upload-Length": str(length)} | ({"Upload-Metadata": pairs} if pairs else {})
    answer = await client.post("/api/uploads/", headers=headers | TUS | extra)
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


async def patch(
    client: httpx.AsyncClient, headers: dict[str, str], place: str, offset: int, data: Any, **more: str
) -> httpx.Response:
    extra = {"Upload-Offset": str(offset), **{name.replace("_", "-"): value for name, value in more.items()}}
    return await client.patch(place, headers=headers | CHUNK | extra, content=data)


async def offset_of(client: httpx.AsyncClient, headers: dict[str, str], place: str) -> int:
    answer = await client.head(place, headers=headers | TUS)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    return int(answer.headers["Upload-Offset"])


async def test_a_file_in_chunks_lies_in_the_store(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    data = os.urandom(3 << 20)
    place = await create(client, headers, len(data), filename="a.bin")
    first = await patch(client, headers, place, 0, data[: 1 << 20])
    assert (first.status_code, first.headers["Upload-Offset"]) == (204, str(1 << 20))
    assert "Upload-Expires" in first.headers
    assert await offset_of(client, headers, place) == 1 << 20
    assert (await patch(client, headers, place, 1 << 20, data[1 << 20 :])).status_code == 204
    digest = hashlib.sha256(data).hexdigest()
    shown = (await client.get(place, headers=headers)).json()
    assert (shown["sha256"], shown["offset"], shown["filename"]) == (digest, len(data), "a.bin")
    assert store().path(digest).read_bytes() == data
    assert list(uploads.quarantine().iterdir()) == []


async def test_creation_can_carry_the_whole_file(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    extra = {"Upload-Length": "5"}
    answer = await client.post("/api/uploads/", headers=headers | CHUNK | extra, content=b"hello")
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "5")
    assert store().has(hashlib.sha256(b"hello").hexdigest())
    empty = await client.post("/api/uploads/", headers=headers | TUS | {"Upload-Length": "0"})
    assert empty.status_code == 201
    assert store().has(hashlib.sha256(b"").hexdigest())


async def test_options_tell_what_is_spoken(client: httpx.AsyncClient) -> None:
    answer = await client.options("/api/uploads/")
    assert answer.status_code == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert set(answer.headers["Tus-Extension"].split(",")) >= {"creation", "checksum", "termination", "expiration"}
    assert answer.headers["Tus-Checksum-Algorithm"] == "sha256,sha1"
    assert answer.headers["Tus-Max-Size"] == str(django_settings.MAX_UPLOAD_BYTES)


async def test_a_wrong_offset_is_told_the_right_one(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    place = await create(client, headers, 10)
    await patch(client, headers, place, 0, b"abc")
    answer = await patch(client, headers, place, 2, b"cdefghij")
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, "3")
    assert answer.json()["error"]["code"] == "conflict"
    assert (await patch(client, headers, place, 3, b"defghij")).status_code == 204
    assert (await patch(client, headers, place, 10, b"")).status_code == 409


async def test_another_version_of_the_protocol_is_refused(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await client.post("/api/uploads/", headers=headers | {"Tus-Resumable": "0.2.2", "Upload-Length": "1"})
    assert (answer.status_code, answer.headers["Tus-Version"]) == (412, "1.0.0")


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
async def test_a_chunk_with_a_wrong_checksum_is_taken_back(
    client: httpx.AsyncClient, headers: dict[str, str], algorithm: str
) -> None:
    place = await create(client, headers, 6)
    good = f"{algorithm} {b64(hashlib.new(algorithm, b'abc').digest())}"
    assert (await patch(client, headers, place, 0, b"abc", Upload_Checksum=good)).status_code == 204
    bad = await patch(client, headers, place, 3, b"def", Upload_Checksum=good)
    assert (bad.status_code, bad.json()["error"]["code"]) == (460, "checksum_mismatch")
    assert await offset_of(client, headers, place) == 3
    assert (await patch(client, headers, place, 3, b"def", Upload_Checksum="md5 AAAA")).status_code == 400
    assert (await patch(client, headers, place, 3, b"def", Upload_Checksum="sha256 %%")).status_code == 400


async def test_a_file_that_is_not_what_was_declared_is_dropped(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    place = await create(client, headers, 3, sha256="0" * 64)
    assert (await patch(client, headers, place, 0, b"abc")).status_code == 460
    assert (await client.head(place, headers=headers | TUS)).status_code == 404
    assert not beside(Blob.objects.exists)
    assert list(uploads.quarantine().iterdir()) == []


async def test_more_than_the_length_is_refused_whole(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    place = await create(client, headers, 4)
    assert (await patch(client, headers, place, 0, b"abcde")).status_code == 413

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"ab"

    assert (await patch(client, headers, place, 0, endless())).status_code == 413
    assert await offset_of(client, headers, place) == 0


async def test_limits_and_bad_headers(client: httpx.AsyncClient, headers: dict[str, str], settings: Any) -> None:
    settings.MAX_UPLOAD_BYTES = 10

    async def post(**extra: str) -> int:
        named = {name.replace("_", "-"): value for name, value in extra.items()}
        return (await client.post("/api/uploads/", headers=headers | TUS | named)).status_code

    assert await post(Upload_Length="10") == 201
    assert await post(Upload_Length="11") == 413
    assert await post(Upload_Length="-1") == 400
    assert await post(Upload_Length="1e3") == 400
    assert await post(Upload_Length="9" * 40) == 400
    assert await post() == 400
    assert await post(Upload_Defer_Length="1") == 501
    assert await post(Upload_Length="1", Upload_Metadata="filename %%%") == 400
    assert await post(Upload_Length="1", Upload_Metadata=f"team {b64(b'blue')}") == 404
    assert await post(Upload_Length="1", Upload_Metadata=f"filename {b64(b'a' * 501)}") == 400
    place = await create(client, headers, 4)
    plain = headers | TUS | {"Upload-Offset": "0", "Content-Type": "application/octet-stream"}
    assert (await client.patch(place, headers=plain, content=b"abcd")).status_code == 415


async def test_termination_forgets_everything(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    place = await create(client, headers, 4)
    assert (await client.delete(place, headers=headers | TUS)).status_code == 204
    assert (await client.head(place, headers=headers | TUS)).status_code == 404
    assert list(uploads.quarantine().iterdir()) == []


async def test_an_expired_upload_is_gone(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    place = await create(client, headers, 4)

    def expire() -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE registry_upload SET expires_at = now() - interval '1 s'")

    beside(expire)
    assert (await client.head(place, headers=headers | TUS)).status_code == 410
    assert (await patch(client, headers, place, 0, b"abcd")).status_code == 410


async def test_a_lost_quarantine_file_is_gone(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    place = await create(client, headers, 4)
    uploads.file_of(place.rsplit("/", 1)[-1]).unlink()  # type: ignore[arg-type]
    assert (await client.head(place, headers=headers | TUS)).status_code == 410
    assert (await patch(client, headers, place, 0, b"abcd")).status_code == 410


async def test_a_second_writer_waits_its_turn(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    place = await create(client, headers, 4)
    with quarantine.Append(uploads.file_of(place.rsplit("/", 1)[-1])):  # type: ignore[arg-type]
        assert (await patch(client, headers, place, 0, b"abcd")).status_code == 423
    assert (await patch(client, headers, place, 0, b"abcd")).status_code == 204


async def test_a_full_disk_is_507_and_leaves_nothing(
    client: httpx.AsyncClient, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = await create(client, headers, 8)
    assert (await patch(client, headers, place, 0, b"ab")).status_code == 204
    real, calls = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real(descriptor, bytes(data)[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quarantine.os, "write", full)
    answer = await patch(client, headers, place, 2, b"cdefgh")
    monkeypatch.undo()
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    assert await offset_of(client, headers, place) == 2
    assert not (store().root / "blobs").exists()
    assert (await patch(client, headers, place, 2, b"cdefgh")).status_code == 204


@pytest.fixture
def small_disk(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """A real file system of 96 MiB under the store; 64 MiB of it are the store's reserve."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96M", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    settings.ARTIFACTS_DIR = folder
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_disk_that_fills_up_meanwhile(
    client: httpx.AsyncClient, headers: dict[str, str], small_disk: Path
) -> None:
    data = os.urandom(24 << 20)
    place = await create(client, headers, len(data))
    assert (await patch(client, headers, place, 0, data[: 8 << 20])).status_code == 204
    other = small_disk / "somebody-elses"
    with contextlib.suppress(OSError), other.open("wb") as file:
        file.write(bytes(84 << 20))
    answer = await patch(client, headers, place, 8 << 20, data[8 << 20 :])
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    assert not (store().root / "blobs").exists()
    assert await offset_of(client, headers, place) == 8 << 20
    other.unlink()
    assert (await patch(client, headers, place, 8 << 20, data[8 << 20 :])).status_code == 204
    assert store().has(hashlib.sha256(data).hexdigest())


async def test_a_disk_without_room_refuses_at_creation(
    client: httpx.AsyncClient, headers: dict[str, str], settings: Any
) -> None:
    settings.MAX_UPLOAD_BYTES = 1 << 62
    answer = await client.post("/api/uploads/", headers=headers | TUS | {"Upload-Length": str(1 << 58)})
    assert answer.status_code == 507


async def test_a_lost_connection_keeps_what_came(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """At the ASGI interface: half of the body, then http.disconnect."""
    from config.asgi import application

    place = await create(client, headers, 10)
    messages = iter([{"type": "http.request", "body": b"abcde", "more_body": True}, {"type": "http.disconnect"}])
    answered: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        answered.append(message)

    sent = headers | CHUNK | {"Upload-Offset": "0", "Host": "localhost", "Content-Length": "10"}
    raw = [(name.lower().encode(), value.encode()) for name, value in sent.items()]
    scope = {"type": "http", "method": "PATCH", "path": place, "headers": raw, "query_string": b"", "asgi": {}}
    await application(scope, receive, send)
    assert answered == []
    assert await offset_of(client, headers, place) == 5


async def test_who_may(client: httpx.AsyncClient, cast: Cast, headers: dict[str, str]) -> None:
    place = await create(client, headers, 4)
    for name, status in (("stranger", 404), ("owner", 404), ("teammate", 404), ("root", 200)):
        assert (await client.head(place, headers=bearer(cast, name) | TUS)).status_code == status
    viewer = bearer(cast, "teammate") | TUS | {"Upload-Length": "1"}
    assert (await client.post("/api/uploads/", headers=viewer)).status_code == 403
    for bad in ({}, {"Authorization": "Bearer ser_aaaaaaaaaaaa.bbb"}, {"Cookie": "sessionid=abc"}):
        for method, path in (("POST", "/api/uploads/"), ("HEAD", place), ("PATCH", place), ("DELETE", place)):
            answer = await client.request(method, path, headers=bad | CHUNK | {"Upload-Length": "1"})
            assert answer.status_code == 401
            assert "bearer" in answer.headers["WWW-Authenticate"].lower()
    listed = (await client.get("/api/uploads/", headers=headers)).json()["results"]
    assert [row["id"] for row in listed] == [place.rsplit("/", 1)[-1]]
    assert (await client.get("/api/uploads/", headers=bearer(cast, "stranger"))).json()["results"] == []


def beside(work: Callable[[], T]) -> T:
    """Does what touches the database in a thread of its own: here an event loop is running."""

    def closing() -> T:
        try:
            return work()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(closing).result()


def bearer(cast: Cast, name: str) -> dict[str, str]:
    return beside(lambda: cast.bearer(name))


async def test_a_session_needs_its_csrf_token(client: httpx.AsyncClient, cast: Cast) -> None:
    from django.test import Client

    browser = Client()
    beside(lambda: browser.force_login(cast.developer))
    session = browser.cookies["sessionid"].value
    token = "a" * 32
    cookie = {"Cookie": f"sessionid={session}; csrftoken={token}"} | TUS | {"Upload-Length": "4"}
    refused = await client.post("/api/uploads/", headers=cookie)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    accepted = await client.post("/api/uploads/", headers=cookie | {"X-CSRFToken": token})
    assert accepted.status_code == 201
    foreign = cookie | {"X-CSRFToken": token, "Origin": "http://evil.example"}
    assert (await client.post("/api/uploads/", headers=foreign)).status_code == 403


async def test_a_foreign_host_name_is_refused(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await client.get("/api/uploads/", headers=headers | {"Host": "evil.example"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e%2f", "..%2f..%2fetc", "x" * 10_000, "0" * 36, "%00", "\u2025", "a/b", "A" * 36]
)
async def test_an_id_is_a_uuid_and_nothing_else(client: httpx.AsyncClient, headers: dict[str, str], name: str) -> None:
    for method in ("GET", "HEAD", "PATCH", "DELETE"):
        answer = await client.request(method, f"/api/uploads/{name}", headers=headers | CHUNK | {"Upload-Offset": "0"})
        assert answer.status_code in {400, 404}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def console(data: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The real console process on the tests' own database."""
    held = connection.settings_dict
    where = f"{held['HOST'] or ''}:{held['PORT']}" if not str(held["HOST"]).startswith("/") else ""
    url = f"postgresql://{held['USER']}:{held['PASSWORD']}@{where}/{held['NAME']}"
    url += f"?host={held['HOST']}" if str(held["HOST"]).startswith("/") else ""
    environment = os.environ | {
        "SERINUS_SECRET_KEY": "for this test",
        "PYTHONPATH": f"{REPO}:{REPO / 'platform'}",
        "DATABASE_URL": url,
        "SERINUS_DATA_DIR": str(data),
        "SERINUS_CONSOLE_PORT": str(port),
        "SERINUS_HOST": "127.0.0.1",
        "SERINUS_ARTIFACTS": str(django_settings.ARTIFACTS_DIR),
        "SERINUS_MAX_UPLOAD_BYTES": str(1 << 30),
    }
    process = subprocess.Popen([sys.executable, "-m", "config.server"], env=environment, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            assert process.poll() is None, "the console ended"
            assert time.monotonic() < end, "the console did not answer"
            time.sleep(0.1)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(15)


def test_a_killed_server_loses_nothing(tmp_path: Path, headers: dict[str, str]) -> None:
    """kill -9 in the middle of a chunk; the next process goes on at the offset; the content is whole."""
    port, data = free_port(), os.urandom(24 << 20)
    base = f"http://127.0.0.1:{port}"
    with console(tmp_path, port) as process:
        created = httpx.post(f"{base}/api/uploads/", headers=headers | TUS | {"Upload-Length": str(len(data))})
        place = created.headers["Location"]

        def slowly() -> Iterator[bytes]:
            for start in range(0, len(data), 1 << 20):
                if start == 12 << 20:
                    time.sleep(0.3)
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                yield data[start : start + (1 << 20)]

        with pytest.raises(httpx.HTTPError):
            httpx.patch(
                f"{base}{place}",
                headers=headers | CHUNK | {"Upload-Offset": "0", "Content-Length": str(len(data))},
                content=slowly(),
            )
    with console(tmp_path, port):
        offset = int(httpx.head(f"{base}{place}", headers=headers | TUS).headers["Upload-Offset"])
        assert 0 < offset < len(data)
        done = httpx.patch(
            f"{base}{place}",
            headers=headers | CHUNK | {"Upload-Offset": str(offset)},
            content=data[offset:],
            timeout=60,
        )
        assert done.status_code == 204
        shown = httpx.get(f"{base}{place}", headers=headers).json()
    assert shown["sha256"] == hashlib.sha256(data).hexdigest()
    assert store().path(shown["sha256"]).read_bytes() == data
    assert Upload.objects.get().sha256 == shown["sha256"]


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        environment = os.environ | {
            "SERINUS_SECRET_KEY": "for this test",
            "SERINUS_CONSOLE_PORT": port,
            "SERINUS_DATA_DIR": str(tmp_path),
        }
        environment["PYTHONPATH"] = f"{REPO}:{REPO / 'platform'}"
        done = subprocess.run(
            [sys.executable, "-m", "config.server"], env=environment, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert port in done.stderr
    assert "SERINUS_CONSOLE_PORT" in done.stderr
