from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from serinus import control as control_module
from serinus import uploads
from serinus.control import Control, ControlError, Resumes


def test_a_file_is_one_part_and_a_folder_its_files(tmp_path: Path) -> None:
    (tmp_path / "m" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "m" / ".git").mkdir()
    (tmp_path / "m" / ".git" / "HEAD").write_text("x")
    assert [part.path for part in uploads.parts_of(tmp_path / "m")] == ["1_Pooling/config.json", "config.json"]
    assert [part.path for part in uploads.parts_of(tmp_path / "m" / "config.json")] == ["config.json"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_to_send_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ControlError):
        uploads.parts_of(tmp_path / name)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_FILES", 2)
    for number in range(3):
        (tmp_path / str(number)).write_text("x")
    with pytest.raises(ControlError, match="3 files"):
        uploads.parts_of(tmp_path)


def test_an_unfinished_upload_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "model.onnx"
    file.write_text("one")
    mark = Resumes.mark("http://a", file)
    Resumes().put(mark, "/api/uploads/1")
    assert Resumes().get(mark) == "/api/uploads/1"
    assert Resumes.mark("http://b", file) != mark
    file.write_text("other")
    assert Resumes.mark("http://a", file) != mark
    Resumes().drop(mark)
    assert Resumes().get(mark) is None


@pytest.mark.parametrize(
    ("code", "sent", "twice", "calls"),
    [
        ("unreachable", True, True, 3),
        ("unreachable", False, False, 3),
        ("unreachable", True, False, 1),
        ("refused", True, True, 1),
    ],
)
def test_what_may_have_been_done_is_not_done_twice(
    monkeypatch: pytest.MonkeyPatch, code: str, sent: bool, twice: bool, calls: int
) -> None:
    monkeypatch.setattr(control_module.time, "sleep", lambda _: None)
    tries: list[int] = []

    def do() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ControlError("no answer", code=code, sent=sent)
        return "done"

    control = Control("http://127.0.0.1:9", "key")
    if calls == 3:
        assert control.patiently(do, twice=twice) == "done"
    else:
        with pytest.raises(ControlError):
            control.patiently(do, twice=twice)
    assert len(tries) == calls


class TusServer:
    """Keeps uploads in memory; each answer in `troubles` replaces the answer to one PATCH, after its bytes are taken."""

    def __init__(self, *troubles: tuple[int, str]) -> None:
        self.held: dict[str, bytes] = {}
        self.troubles = list(troubles)

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if request.method == "POST":
            place = f"/api/uploads/{len(self.held)}"
            self.held[place] = b""
            return httpx.Response(201, headers={"Location": place})
        if path not in self.held:
            return _refusal(410, "gone")
        if request.method == "PATCH":
            if int(request.headers["Upload-Offset"]) != len(self.held[path]):
                return _refusal(409, "conflict")
            self.held[path] += request.content
            if self.troubles:
                status, code = self.troubles.pop(0)
                if code == "gone":
                    del self.held[path]
                    self.held["/api/uploads/lost"] = b""
                return _refusal(status, code)
        return httpx.Response(204, headers={"Upload-Offset": str(len(self.held[path]))})


def _refusal(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"code": code, "message": code}})


@pytest.mark.parametrize("trouble", [(410, "gone"), (502, "unreachable"), (503, "unavailable"), (409, "conflict")])
def test_an_upload_survives_what_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: tuple[int, str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(control_module.time, "sleep", lambda _: None)
    monkeypatch.setattr(control_module, "CHUNK_BYTES", 4)
    file = tmp_path / "model.onnx"
    file.write_bytes(b"0123456789")
    server, control = TusServer(trouble), Control("http://127.0.0.1:9", "key")
    transport = httpx.MockTransport(server.answer)
    monkeypatch.setattr(control, "_http", httpx.Client(base_url=control.url, transport=transport))
    name = control.upload(file, "model.onnx", lambda _: None)
    assert server.held[f"/api/uploads/{name}"] == b"0123456789"


def test_an_upload_that_is_refused_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "model.onnx"
    file.write_bytes(b"0123456789")
    server, control = TusServer((460, "checksum_mismatch")), Control("http://127.0.0.1:9", "key")
    transport = httpx.MockTransport(server.answer)
    monkeypatch.setattr(control, "_http", httpx.Client(base_url=control.url, transport=transport))
    with pytest.raises(ControlError, match="checksum_mismatch"):
        control.upload(file, "model.onnx", lambda _: None)
