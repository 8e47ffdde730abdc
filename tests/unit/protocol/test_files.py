"""A file is there whole or not at all."""

from __future__ import annotations

import pytest

from inference.protocol import files


@pytest.mark.parametrize("durable", [False, True])
def test_it_takes_the_place_of_what_was_there_and_only_its_owner_reads_it(tmp_path, durable):
    path = tmp_path / "folder" / "file"
    files.put(path, b"one", durable=durable)
    files.put(path, b"two", durable=durable)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["file"]


def test_what_cannot_be_put_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    with pytest.raises(OSError):
        files.put(tmp_path / "taken", b"x")
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]
