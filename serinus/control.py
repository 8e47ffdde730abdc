"""Client of the control API, for the command line."""

from __future__ import annotations

import hashlib
import json
import os
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx

from inference import config as engine

T = TypeVar("T")
CHUNK_BYTES = 8 << 20
PATIENCE_TRIES = 20  # about 45 s: a console that was killed is back within seconds
MAX_BEGINNINGS = 3
PASSING = {"unreachable", "unavailable"}  # answers that may be different in a moment
FINAL = {"ready", "rejected", "archived", "awaiting_approval"}


class ControlError(RuntimeError):
    """The control API refused or could not be reached; the message is for a person."""

    def __init__(self, message: str, *, code: str = "unreachable", remedy: str = "", sent: bool = True) -> None:
        """sent: whether the server may have done what was asked."""
        super().__init__(message)
        self.code = code
        self.remedy = remedy
        self.sent = sent


def credentials() -> dict[str, Any]:
    """What the first start wrote, or an empty mapping."""
    file = engine.data_dir() / "credentials.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found


class Control:
    """Calls the control API with a key: SERINUS_URL and SERINUS_API_KEY, else the data folder's credentials."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        saved = credentials()
        self.url = (url or os.environ.get("SERINUS_URL") or saved.get("console_url") or "").rstrip("/")
        self.key = key or os.environ.get("SERINUS_API_KEY") or saved.get("api_key") or ""
        self.gateway_url = os.environ.get("SERINUS_GATEWAY_URL") or saved.get("gateway_url") or ""
        if not self.url or not self.key:
            raise ControlError(
                "no server is known here: start one with 'serinus up', run this in its folder, "
                "or set SERINUS_URL and SERINUS_API_KEY",
                code="not_configured",
            )
        self._http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=30)

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The answer's JSON. Raises ControlError with the server's own words."""
        # None, not {}: an empty mapping would drop the query that `path` itself carries (the cursor of a next page).
        wanted = {name: value for name, value in query.items() if value is not None} or None
        answer = self.raw(method, path, json=body, params=wanted)
        return answer.json() if answer.content else {}

    def raw(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            sent = not isinstance(error, httpx.ConnectError)
            raise ControlError(f"the console at {self.url} does not answer: {error}", sent=sent) from error
        if answer.status_code >= 400:
            raise _refusal(answer)
        return answer

    @contextmanager
    def stream(self, path: str) -> Iterator[httpx.Response]:
        """A download whose bytes are read while they come. Raises ControlError."""
        try:
            with self._http.stream("GET", path) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise _refusal(answer)
                yield answer
        except httpx.HTTPError as error:
            raise ControlError(f"the download from {self.url} broke off: {error}") from error

    def patiently(self, do: Callable[[], T], *, twice: bool = True) -> T:
        """Calls `do` again while the console cannot be reached. twice: it does no harm when it happens twice."""
        for tries in range(1, PATIENCE_TRIES + 1):
            try:
                return do()
            except ControlError as error:
                if error.code not in PASSING or tries == PATIENCE_TRIES or (error.sent and not twice):
                    raise
                time.sleep(min(0.25 * tries, 3))
        raise AssertionError

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        """Every row of a listing, page by page."""
        while path:
            page = self.call("GET", path)
            if isinstance(page, list):
                yield from page
                return
            yield from page["results"]
            path = (page.get("next") or "").removeprefix(self.url)

    def upload(self, file: Path, shown_name: str, progress: Callable[[int], None]) -> str:
        """Sends one file by tus, resuming an unfinished upload of the same file; returns the upload's id.

        `progress` is called with the number of bytes that the server holds.
        """
        memory = Resumes()
        mark = memory.mark(self.url, file)
        location = memory.get(mark)
        for begun in range(1, MAX_BEGINNINGS + 1):
            offset = self.patiently(partial(self._offset, location)) if location else None
            if location is None or offset is None:
                location, offset = self.patiently(lambda: self._create(file, shown_name)), 0
                memory.put(mark, location)
            try:
                self._send(file, location, offset, progress)
                break
            except ControlError as error:
                # Killed at its last byte, a server may have the content and not the upload: it is sent anew.
                if error.code not in {"gone", "not_found"} or begun == MAX_BEGINNINGS:
                    raise
                location = None
        memory.drop(mark)
        return str(location).rstrip("/").rsplit("/", 1)[-1]

    def _create(self, file: Path, shown_name: str) -> str:
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Length": str(file.stat().st_size),
            "Upload-Metadata": "filename " + b64encode(shown_name.encode()).decode(),
        }
        return str(self.raw("POST", "/api/uploads/", headers=headers).headers["Location"])

    def _offset(self, location: str) -> int | None:
        try:
            answer = self.raw("HEAD", location, headers={"Tus-Resumable": "1.0.0"})
        except ControlError as error:
            if error.code in PASSING:
                raise
            return None
        return int(answer.headers["Upload-Offset"])

    def _send(self, file: Path, location: str, offset: int, progress: Callable[[int], None]) -> None:
        size, tries = file.stat().st_size, 0
        with file.open("rb") as source:
            while offset < size:
                source.seek(offset)
                chunk = source.read(CHUNK_BYTES)
                try:
                    offset = self._patch(location, offset, chunk)
                    tries = 0
                except ControlError as error:
                    if error.code not in PASSING | {"conflict"} or tries >= PATIENCE_TRIES:
                        raise
                    tries += 1
                    time.sleep(min(0.25 * tries, 3))
                    offset = self._known_offset(location)
                progress(offset)

    def _known_offset(self, location: str) -> int:
        found = self.patiently(partial(self._offset, location))
        if found is None:
            raise ControlError("the server no longer knows this upload", code="gone")
        return found

    def _patch(self, location: str, offset: int, chunk: bytes) -> int:
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Upload-Checksum": "sha256 " + b64encode(hashlib.sha256(chunk).digest()).decode(),
        }
        answer = self.raw("PATCH", location, headers=headers, content=chunk, timeout=120)
        return int(answer.headers["Upload-Offset"])

    def wait_version(self, model: str, number: int, seen: Callable[[dict[str, Any]], None], timeout_s: float) -> Any:
        """Polls a version until it is ready, rejected or waits for approval."""
        end = time.monotonic() + timeout_s
        while True:
            version = self.patiently(lambda: self.call("GET", f"/api/models/{model}/versions/{number}/"))
            seen(version)
            if version["status"] in FINAL:
                return version
            if time.monotonic() > end:
                raise ControlError(f"{model}:{number} is still {version['status']} after {timeout_s:.0f} s")
            time.sleep(0.25)


class Resumes:
    """Remembers unfinished uploads between runs, by server, path, size and time of change."""

    def __init__(self) -> None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._file = base / "serinus" / "uploads.json"

    @staticmethod
    def mark(url: str, file: Path) -> str:
        facts = file.stat()
        return hashlib.sha256(f"{url} {file.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()

    def _all(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def get(self, mark: str) -> str | None:
        return self._all().get(mark)

    def put(self, mark: str, location: str) -> None:
        self._save({**self._all(), mark: location})

    def drop(self, mark: str) -> None:
        self._save({key: value for key, value in self._all().items() if key != mark})

    def _save(self, content: dict[str, str]) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(content))
        except OSError:
            return  # resuming is a comfort; an unwritable home must not stop an upload


def _refusal(answer: httpx.Response) -> ControlError:
    try:
        error = answer.json()["error"]
        message = error["message"]
        if error.get("fields"):
            message += " " + json.dumps(error["fields"])
        return ControlError(message, code=error["code"], remedy=error.get("remedy", ""))
    except (ValueError, KeyError, TypeError):
        unreachable = answer.status_code >= 502
        code = "unreachable" if unreachable else "refused"
        return ControlError(f"the console answered {answer.status_code}: {answer.text[:200]}", code=code)
