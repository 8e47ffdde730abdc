import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.artifacts.paths import check_paths, member_path, shown, strip_top
from inference.errors import Rejected

BAD = [
    "", "/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "a/", ".", "..", "a\\b", "C:x", "a\0b", "a\nb", "a /b", " a",
    "a.", "x" * 201, "/".join(["d"] * 17), "é" * 300, unicodedata.normalize("NFD", "é"), "\udcff", "a\u202eb",
]  # fmt: skip


@pytest.mark.parametrize("path", BAD)
def test_a_path_that_could_lead_elsewhere_is_refused(path):
    with pytest.raises(Rejected) as caught:
        member_path(path)
    assert caught.value.reason
    assert caught.value.remedy


@pytest.mark.parametrize("path", ["model.onnx", "a/b/c.json", "1_Pooling/config.json", "été.txt", ".hidden", "a b.txt"])
def test_a_plain_path_stays_as_it_is(path):
    assert member_path(path) == path


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "A"], ["a", "a/b"], ["A/b", "a"], ["straße", "strasse"]])
def test_two_paths_that_could_be_one_file_are_refused(paths):
    with pytest.raises(Rejected):
        check_paths(paths)


def test_a_single_common_folder_is_stripped():
    assert strip_top(["m/a", "m/b/c"]) == "m/"
    assert strip_top(["m/a", "b"]) == ""
    assert strip_top(["m"]) == ""
    assert strip_top([]) == ""


@given(st.text(max_size=60))
def test_every_text_is_kept_or_refused(text):
    try:
        kept = member_path(text)
    except Rejected:
        return
    assert kept == text
    parts = kept.split("/")
    assert ".." not in parts
    assert "" not in parts
    assert "\0" not in kept


@given(st.text(max_size=300))
def test_what_is_shown_of_foreign_text_is_short_and_plain(text):
    assert shown(text).isascii()
    assert shown(text).isprintable()
    assert len(shown(text)) <= 84
