from __future__ import annotations

from pathlib import Path

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
