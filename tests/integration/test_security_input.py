"""Hostile ids, names, bodies and markup: typed refusals, nothing touched, nothing leaked."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.conf import settings
from django.db import OperationalError
from django.test import Client

from accounts.models import AuditEntry
from accounts.names import SLUG
from registry.models import Model
from tests.support.cast import Cast
from tests.support.contents import new_version, sent
from tests.support.hygiene import LEAKS
from tests.support.routes import ROUTES, fill

HOSTILE = [
    "..", "../..", "..%2f..%2f", "%2e%2e%2f", "%00", "a%00b", "/etc/passwd", "%2fetc%2fpasswd", "\u2025", "\uff0e\uff0e",
    "a" * 10_000, "<img src=x onerror=alert(1)>", "'; DROP TABLE accounts_user;--", "-1", "0", "9" * 30, "nan", "{{7*7}}",
]  # fmt: skip


def call(method: str, path: str, headers: dict[str, str], body: Any = None) -> Any:
    client = Client(raise_request_exception=False)
    data = body if isinstance(body, bytes) else json.dumps(body)
    return client.generic(method, path, data, content_type="application/json", headers=headers)


def check(response: Any, *, allowed: tuple[int, ...]) -> None:
    assert response.status_code in allowed, (response.status_code, response.content[:300])
    text = response.content.decode()
    assert not LEAKS.search(text.replace("/etc/passwd", "")), text[:300]
    if response.status_code >= 400 and response["Content-Type"].startswith("application/json"):
        error = json.loads(text)["error"]
        # the repository calls answer in their protocol's own shape: one string
        assert isinstance(error, str) or set(error) <= {"code", "message", "remedy", "request_id", "fields"}


def tree_hash(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A neighbour of the store that nobody may touch."""
    folder = settings.ARTIFACTS_DIR.parent / "canary"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("untouched")
    return folder


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda text: text[:12])
def test_no_id_is_a_path(cast: Cast, canary: Path, hostile: str) -> None:
    before, headers = tree_hash(canary), cast.bearer("root")
    browser = Client(raise_request_exception=False)
    browser.force_login(cast.root, backend="accounts.login.LimitedBackend")
    harmless = re.fullmatch(SLUG, hostile)  # a name that nothing has yet
    new_version(cast.actor("owner"), cast.red)
    good = {"key_id": "a" * 12, "team": "red", "username": "owner", "model": "digits", "number": 1, "alias": "a",
            "name": "digits", "adapter": "fr", "pk": 1, "golden": 1, "webhook": 1, "key": "a" * 12, "replica": "0" * 8 + "-0000-4000-8000-" + "0" * 12, "rollout": "0" * 8 + "-0000-4000-8000-" + "0" * 12}  # fmt: skip
    # A form of the console tells what is wrong on the page that it goes back to.
    allowed = (301, 302, 400, 404, 405, *((200, 409) if harmless else ()))
    for route, entry in ROUTES.items():
        for place in (name for name in good if f"<{name}>" in route):
            path = fill(route, good | {place: quote(hostile, safe="%") if "%" in hostile else quote(hostile, safe="")})
            for method, wanted in entry.methods.items():
                if entry.page:
                    response = browser.post(path, wanted.body or {}) if method == "POST" else browser.get(path)
                else:
                    response = call(method, path, headers, wanted.body)
                check(response, allowed=allowed)
    assert tree_hash(canary) == before


@pytest.mark.parametrize("hostile", [*HOSTILE, "a\0b", "\ud800"], ids=lambda text: ascii(text)[:12])
def test_no_name_is_a_path_or_breaks_a_row(cast: Cast, canary: Path, hostile: str) -> None:
    headers, before = cast.bearer("owner"), tree_hash(canary)
    upload = sent(cast.actor("root"), cast.red, b"{}")
    bodies = [
        ("POST", "/api/models/", {"name": hostile}),
        ("POST", "/api/models/m/versions/", {"files": [{"path": hostile, "upload": str(upload.id)}]}),
        ("POST", "/api/models/m/versions/", {"files": [{"path": "f", "upload": hostile}]}),
        ("POST", "/api/models/m/versions/", {"files": [{"path": "f", "sha256": hostile}]}),
        (
            "POST",
            "/api/models/m/versions/",
            {"files": [{"path": "f", "upload": str(upload.id)}], "alias": f"/{hostile}"},
        ),
        ("POST", "/api/models/m/versions/", {"files": [{"path": "f", "sha256": "0" * 64}], "runtime": {hostile: 1}}),
        ("POST", "/api/keys/", {"name": "k", "endpoints": [f"/{hostile}"]}),
        ("POST", "/api/users/", {"username": f"/{hostile}", "password": "correct horse battery"}),
        ("GET", f"/api/audit/?since={quote(hostile, errors='replace')}", None),
        ("GET", f"/api/models/?cursor={quote(hostile, errors='replace')}", None),
    ]
    for method, path, body in bodies:
        response = call(method, path, headers, body)
        check(response, allowed=(201, 400, 404, 422) if method == "POST" else (200, 400, 404))
        if response.status_code == 201:
            assert response.json().get("name", response.json().get("model")) in {hostile, "m"}
    assert tree_hash(canary) == before
    stored = {path.parent.parent.name for path in settings.ARTIFACTS_DIR.rglob("*") if path.is_file()}
    assert stored <= {"blobs"}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"NaN", b'{"name": NaN}', b'{"name": "a", "name": "b"}', b"\xff\xfe",
        b'{"name": "\\ud800"}', b'{"name": "\\u0000"}', b"[" * 100_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b'{"name": {"a": 1}}', b'{"name": ["x"]}', b'{"unknown": 1, "name": "x"}', b'{"name": ' + b"9" * 5_000 + b"}",
    ],
    ids=lambda body: ascii(body[:16]),
)  # fmt: skip
def test_bad_json_is_a_typed_refusal(cast: Cast, body: bytes) -> None:
    headers = cast.bearer("root")
    for path in ("/api/models/", "/api/keys/", "/api/users/", "/api/models/m/versions/"):
        check(call("POST", path, headers, body), allowed=(400,))
    assert not Model.objects.exists()


def test_unknown_fields_are_named(cast: Cast) -> None:
    response = call("POST", "/api/models/", cast.bearer("owner"), {"name": "m", "taks": "x"})
    assert response.json()["error"]["fields"] == {"taks": ["There is no such field."]}


def test_other_content_types_are_refused(cast: Cast) -> None:
    client = Client()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = client.generic("POST", "/api/models/", "name=x", content_type=kind, headers=cast.bearer("owner"))
        assert response.status_code in {400, 415}


def test_a_body_beyond_the_limit_is_refused(cast: Cast, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    response = call("POST", "/api/models/", cast.bearer("owner"), {"name": "m", "description": "x" * 1000})
    check(response, allowed=(413,))
    assert response.json()["error"]["code"] == "too_large"


def test_markup_in_names_and_reasons_is_only_text(cast: Cast) -> None:
    """The API answers JSON that no browser takes for a page; the admin escapes."""
    evil = "<img src=x onerror=alert(1)>"
    response = call("POST", "/api/keys/", cast.bearer("owner"), {"name": evil})
    assert response.status_code == 201
    assert response["Content-Type"] == "application/json"
    assert response["X-Content-Type-Options"] == "nosniff"
    client = Client()
    client.force_login(cast.root)
    page = client.get("/admin/accounts/apikey/")
    assert evil.encode() not in page.content
    assert b"&lt;img src=x" in page.content
    assert "script-src 'self'" in page["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/api/me/", "/api/models/", "/api/nope/", "/nope"])
def test_a_failing_server_says_one_fixed_sentence(cast: Cast, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    headers = cast.bearer("owner")
    client = Client(raise_request_exception=False)

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("secret detail in /root/secret.py")

    monkeypatch.setattr("accounts.middleware.ActorMiddleware.__call__", broken)
    response = client.get(path, headers=headers)
    assert response.status_code == 500
    assert b"secret" not in response.content
    assert b"request" in response.content.lower(), "the page names the request id that the log has"


@pytest.mark.parametrize("place", ["accounts.authentication.find_key", "accounts.middleware.actor_of_user"])
def test_a_database_that_is_away_is_a_503(cast: Cast, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    headers = cast.bearer("owner")
    client = Client(raise_request_exception=False)
    if place.endswith("user"):
        client.force_login(cast.owner)
        headers = {}

    def away(*args: object) -> None:
        raise OperationalError("connection to server at /run/postgresql failed")

    monkeypatch.setattr(place, away)
    response = client.get("/api/me/", headers=headers)
    assert response.status_code == 503
    assert response["Retry-After"]
    assert response.json()["error"]["code"] == "unavailable"
    assert b"postgresql" not in response.content


def test_an_unknown_and_a_revoked_key_look_the_same(cast: Cast) -> None:
    """And both cost one digest and one comparison in constant time."""
    from accounts import actions
    from accounts.models import ApiKey

    token = cast.key("owner")
    actions.revoke_key(actor=cast.actor("owner"), key=ApiKey.objects.get(pk=token[4:16]))
    bodies = set()
    for bad in (token, "ser_" + "0" * 12 + ".x", token[:16] + ".x", "nonsense", "", "ser_é.x"):
        response = call("GET", "/api/me/", {"Authorization": f"Bearer {bad}"})
        assert response.status_code == 401
        error = response.json()["error"]
        bodies.add((error["code"], error["message"]))
    assert len(bodies) == 1
    assert not AuditEntry.objects.filter(actor_kind="anonymous").exists()


def test_the_digest_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, cast: Cast) -> None:
    import hmac

    from accounts import authentication, keys

    compared: list[str] = []
    real = hmac.compare_digest

    def counting(a: str, b: str) -> bool:
        compared.append(b)
        return real(a, b)

    monkeypatch.setattr(keys.hmac, "compare_digest", counting)
    assert authentication.find_key("ser_000000000000.secret") is None
    assert authentication.find_key(cast.key("owner")) is not None
    assert len(compared) == 2
