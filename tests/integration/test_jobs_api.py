"""Files and Batches as OpenAI's own client sees them, at the console's address; and who may see what."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from django.test import Client

from accounts.models import AuditEntry
from jobs import limits, store
from jobs.models import Batch, File
from tests.support.batches import begin, far_end, jsonl, line, make_endpoint, read_jsonl, upload
from tests.support.browser import console_server
from tests.support.cast import Cast, make_cast
from tests.support.celery_workers import celery_worker
from tests.support.database import Services

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]
LINES = [line(n, model="chat") for n in range(6)]


@pytest.fixture
def people(transactional_db: None) -> Cast:
    found = make_cast()
    make_endpoint(found.red, "chat")
    return found


@pytest.fixture
def url(people: Cast) -> Iterator[str]:
    with console_server() as found:
        yield found


def client_of(url: str, token: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)


def post(url: str, token: str, **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/files", headers={"Authorization": f"Bearer {token}"}, timeout=30, **more)


def test_the_whole_trip_with_the_openai_client(
    people: Cast, url: str, services: Services, tmp_path: Path, settings: Any
) -> None:
    client = client_of(url, people.key("developer"))
    data = jsonl(LINES)
    file = client.files.create(file=("questions.jsonl", data), purpose="batch")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(data), "questions.jsonl", "batch")
    assert client.files.content(file.id).content == data
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"for": "a test"},
    )
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"for": "a test"})
    assert batch.expires_at == batch.created_at + 24 * 3600
    with (
        far_end() as end,
        celery_worker(
            "jobs",
            tmp_path,
            services,
            redis_url=services.redis_url,
            SERINUS_GATEWAY_URL=end.url,
            SERINUS_ARTIFACTS=str(settings.ARTIFACTS_DIR),
        ),
    ):
        end.fault = lambda text, before: "400" if text == "line 3" else None
        batch = asyncio.run(_awaited(url, people.key("developer"), batch.id))
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 6, "completed": 5, "failed": 1}
    assert batch.output_file_id
    assert batch.error_file_id
    assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    assert batch.failed_at is None
    out = read_jsonl(client.files.content(batch.output_file_id).content)
    assert [row["custom_id"] for row in out] == [f"id-{n}" for n in (0, 1, 2, 4, 5)]
    assert set(out[0]) == {"id", "custom_id", "response", "error"}
    assert out[0]["response"]["body"]["choices"][0]["message"]["content"] == "echo line 0"
    (bad,) = read_jsonl(client.files.content(batch.error_file_id).content)
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("id-3", 400)


async def _awaited(url: str, token: str, batch_id: str) -> Any:
    """The batch when it has ended, as the asynchronous client sees it; sends the sweep's message, as beat would."""
    from asgiref.sync import sync_to_async

    from jobs import tasks

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=token) as client:
        for _ in range(150):
            batch = await client.batches.retrieve(batch_id)
            if batch.status == "completed":
                listed = [one.id async for one in client.batches.list(limit=1)]
                assert batch_id in listed
                return batch
            await sync_to_async(tasks.sweep)()
            await asyncio.sleep(0.3)
    raise AssertionError(f"the batch did not end: {batch}")


def test_lists_go_by_cursors(people: Cast, url: str) -> None:
    maker = people.key_actor("developer")
    names = [upload(maker, jsonl([line(n)])).public_id for n in range(5)]
    client = client_of(url, people.key("developer"))
    assert [one.id for one in client.files.list(limit=2)] == names[::-1]
    assert [one.id for one in client.files.list(limit=2, order="asc")] == names
    page = client.files.list(limit=2, after=names[3])
    assert ([one.id for one in page.data], page.has_more) == ([names[2], names[1]], True)
    assert [one.id for one in client.files.list(purpose="batch_output")] == []
    for bad in ({"limit": 0}, {"limit": "x"}, {"order": "up"}, {"after": "file-none"}):
        with pytest.raises(openai.BadRequestError):
            client.files.list(extra_query=bad)
    with pytest.raises(openai.BadRequestError):
        client.batches.list(limit=101)


def test_a_file_is_deleted_but_not_while_a_batch_reads_it(people: Cast, url: str) -> None:
    client = client_of(url, people.key("developer"))
    batch = begin(people.key_actor("developer"), LINES)
    with pytest.raises(openai.ConflictError, match="cancel it first"):
        client.files.delete(batch.input_file_name)
    assert client.batches.cancel(batch.public_id).status == "cancelling"
    assert client.batches.cancel(batch.public_id).status == "cancelling"
    Batch.objects.update(status="cancelled")
    gone = client.files.delete(batch.input_file_name)
    assert (gone.id, gone.deleted) == (batch.input_file_name, True)
    assert not store.path_of(batch.input_file_name).exists()
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(batch.input_file_name)
    Batch.objects.update(status="completed")
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.public_id)


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoint": "/v1/images"},
        {"completion_window": "soon"},
        {"completion_window": "15d"},
        {"completion_window": "0h"},
        {"metadata": {"a": 1}},
        {"metadata": {f"n{n}": "v" for n in range(17)}},
        {"metadata": {"a": "\0"}},
        {"unknown": 1},
        {"output_expires_after": {"anchor": "now", "seconds": 3600}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
        {"input_file_id": 7},
    ],
    ids=lambda changes: "-".join(f"{name} {value}" for name, value in changes.items())[:40].replace("\0", "NUL"),
)
def test_a_wrong_wish_is_refused_in_openais_envelope(people: Cast, changes: dict[str, Any]) -> None:
    file = upload(people.key_actor("developer"), jsonl(LINES))
    body = {"input_file_id": file.public_id, "endpoint": "/v1/embeddings", "completion_window": "24h", **changes}
    response = Client().post("/v1/batches", body, content_type="application/json", headers=people.bearer("developer"))
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert Batch.objects.count() == 0


def test_an_output_file_cannot_be_run(people: Cast, url: str) -> None:
    file = upload(people.key_actor("developer"), jsonl(LINES))
    File.objects.update(purpose="batch_output")
    with pytest.raises(openai.BadRequestError, match="output of a batch"):
        client_of(url, people.key("developer")).batches.create(
            input_file_id=file.public_id, endpoint="/v1/embeddings", completion_window="24h"
        )


def test_what_others_made_does_not_exist(people: Cast, url: str) -> None:
    batch = begin(people.key_actor("developer"), LINES)
    foreign, narrow = (
        client_of(url, people.key("stranger")),
        client_of(url, people.key("developer", endpoints=["chat"])),
    )
    for client in (foreign, narrow):
        assert client.files.list().data == []
        assert client.batches.list().data == []
        for ask in (
            lambda one=client: one.files.retrieve(batch.input_file_name),
            lambda one=client: one.files.content(batch.input_file_name),
            lambda one=client: one.files.delete(batch.input_file_name),
            lambda one=client: one.batches.retrieve(batch.public_id),
            lambda one=client: one.batches.cancel(batch.public_id),
            lambda one=client: one.batches.create(
                input_file_id=batch.input_file_name, endpoint="/v1/embeddings", completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
    viewer = client_of(url, people.key("teammate"))
    assert [one.id for one in viewer.batches.list().data] == [batch.public_id]
    with pytest.raises(openai.PermissionDeniedError):
        viewer.batches.cancel(batch.public_id)
    with pytest.raises(openai.AuthenticationError):
        client_of(url, "ser_nonenonenone.secret").files.list()
    own = narrow.files.create(file=("a.jsonl", jsonl(LINES)), purpose="batch")
    assert [one.id for one in narrow.files.list().data] == [own.id]


def test_an_upload_is_hashed_audited_and_bounded(people: Cast, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    token = people.key("developer")
    data = jsonl(LINES)
    found = post(url, token, data={"purpose": "batch"}, files={"file": ("a/../b.jsonl", data)})
    assert found.status_code == 200, found.text
    assert found.json()["sha256"] == hashlib.sha256(data).hexdigest()
    assert found.json()["filename"] == "b.jsonl"
    assert AuditEntry.objects.filter(verb="upload_file", object_name=found.json()["id"]).count() == 1
    monkeypatch.setattr("jobs.uploading.MAX_FILE_BYTES", 1000)
    monkeypatch.setattr("jobs.uploading.SLACK_BYTES", 500)
    long = b"x" * 1001
    assert post(url, token, data={"purpose": "batch"}, files={"file": ("a", long)}).status_code == 413
    assert post(url, token, data={"purpose": "batch"}, files={"file": ("a", long * 3)}).status_code == 413
    chunks = io.BytesIO(_form(long * 3))
    endless = post(url, token, content=chunks, params={})
    assert endless.status_code == 400  # no multipart at all
    kind = {"Authorization": f"Bearer {token}", "Content-Type": "multipart/form-data; boundary=b"}
    sent = httpx.post(f"{url}/v1/files", content=iter([_form(long * 3)]), headers=kind, timeout=30)
    assert sent.status_code == 413, "without a declared length"
    fits = post(url, token, data={"purpose": "batch"}, files={"file": ("a", b"x" * 1000)})
    assert fits.status_code == 200
    assert {path.name for path in store.folder().iterdir()} == set(File.objects.values_list("public_id", flat=True))


def _form(data: bytes) -> bytes:
    return (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + data + b"\r\n--b--\r\n"
    )


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a", b"x")}}, 400),
        ({"data": {"purpose": "batch"}, "files": {"file": ("a", b"")}}, 400),
        ({"data": {"purpose": "batch"}, "files": {"other": ("a", b"x")}}, 400),
        ({"data": {"purpose": "batch"}, "files": [("file", ("a", b"x")), ("file", ("b", b"y"))]}, 400),
        ({"data": {"purpose": "batch", "odd": "1"}, "files": {"file": ("a", b"x")}}, 400),
        ({"data": {"purpose": "batch", "expires_after[seconds]": "5"}, "files": {"file": ("a", b"x")}}, 400),
        ({"data": {"purpose": "batch", "team": "blue"}, "files": {"file": ("a", b"x")}}, 404),
        ({"json": {"purpose": "batch"}}, 400),
        ({"content": b"--b\r\nbroken", "params": {}}, 400),
    ],
    ids=["purpose", "empty", "field", "two", "unknown", "life", "team", "json", "broken"],
)
def test_a_wrong_form_is_refused(people: Cast, url: str, parts: dict[str, Any], status: int) -> None:
    found = post(url, people.key("developer"), **parts)
    assert found.status_code == status, found.text
    assert set(found.json()["error"]) == {"message", "type", "param", "code"}
    assert list(store.folder().iterdir()) == []


def test_nobody_unknown_uploads(people: Cast, url: str) -> None:
    assert httpx.post(f"{url}/v1/files", files={"file": ("a", b"x")}).status_code == 401
    assert post(url, "ser_nonenonenone.secret", files={"file": ("a", b"x")}).status_code == 401


def test_a_session_uploads_with_its_csrf_token_only(people: Cast, url: str) -> None:
    browser = Client()
    browser.force_login(people.developer, backend="accounts.login.LimitedBackend")
    browser.get("/jobs/")
    cookies = {name: held.value for name, held in browser.cookies.items()}
    parts: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("a", jsonl(LINES))}}
    assert httpx.post(f"{url}/v1/files", cookies=cookies, **parts).status_code == 403
    token = {"X-CSRFToken": cookies["csrftoken"]}
    assert httpx.post(f"{url}/v1/files", cookies=cookies, headers=token, **parts).status_code == 200
    assert File.objects.get().person == people.developer


def test_a_team_has_a_share(people: Cast, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    token = people.key("developer")
    monkeypatch.setattr("jobs.files.MAX_TEAM_BYTES", 150)
    parts: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("a", b"x" * 100)}}
    monkeypatch.setattr("jobs.uploading._admit", lambda actor, size: None)
    assert post(url, token, **parts).status_code == 200
    assert "share" in post(url, token, **parts).json()["error"]["message"]
    monkeypatch.setattr("jobs.actions.MAX_ACTIVE_BATCHES", 1)
    client = client_of(url, token)
    wish: dict[str, Any] = {"input_file_id": File.objects.get().public_id, "endpoint": "/v1/embeddings"}
    client.batches.create(completion_window="24h", **wish)
    with pytest.raises(openai.RateLimitError):
        client.batches.create(completion_window="24h", **wish)


def test_a_client_that_leaves_half_way_leaves_nothing(people: Cast, url: str) -> None:
    import socket

    host, port = url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {people.key('developer')}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as sender:
        sender.sendall(head.encode() + _form(b"x" * 5000)[:3000])
        _until(lambda: list(store.folder().iterdir()))
    _until(lambda: not list(store.folder().iterdir()))
    assert File.objects.count() == 0


def _until(true: Any) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_limits_are_openais() -> None:
    assert (limits.MAX_LINES, limits.MAX_FILE_BYTES) == (50_000, 200 << 20)
    assert json.loads(jsonl([line(0)]))["method"] == "POST"
