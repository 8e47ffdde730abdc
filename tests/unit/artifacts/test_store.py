import errno
import hashlib
import os
import stat
import threading

import pytest

from inference.artifacts import store as module
from inference.artifacts.store import Store
from inference.errors import Malformed, NotFound, Rejected, StorageFull, TooLarge
from inference.protocol.supervision import FileRef
from tests.support import hostile

TEXT = b"weights" * 1000
DIGEST = hashlib.sha256(TEXT).hexdigest()
REF = FileRef("deep/model.bin", len(TEXT), DIGEST)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", reserve_bytes=0)


def leftovers(store):
    return list((store.root / "tmp").glob("*"))


def test_a_blob_is_named_by_its_digest_and_cannot_be_written(store):
    assert store.put_stream([TEXT[:10], b"", TEXT[10:]]) == (DIGEST, len(TEXT))
    path = store.path(DIGEST)
    assert path == store.root / "blobs" / DIGEST[:2] / DIGEST
    assert path.read_bytes() == TEXT
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert leftovers(store) == []


def test_equal_content_is_stored_once(store):
    store.put_stream([TEXT])
    first = store.path(DIGEST).stat().st_ino
    assert store.put_stream([TEXT]) == (DIGEST, len(TEXT))
    assert store.path(DIGEST).stat().st_ino == first
    assert len(list(store.root.rglob("*/*/*"))) == 1


def test_a_wrong_digest_publishes_nothing(store):
    with pytest.raises(Rejected, match="sha256") as caught:
        store.put_stream([TEXT], sha256="0" * 64)
    assert caught.value.check == "hashes"
    assert not store.has(DIGEST)
    assert leftovers(store) == []


def test_a_stream_that_breaks_leaves_nothing(store):
    def broken():
        yield TEXT
        raise ConnectionError

    with pytest.raises(ConnectionError):
        store.put_stream(broken())
    assert leftovers(store) == []
    assert not store.has(DIGEST)


def test_a_stream_over_its_limit_is_refused(store):
    assert store.put_stream([TEXT], limit_bytes=len(TEXT))
    with pytest.raises(TooLarge):
        store.put_stream([TEXT, b"x"], limit_bytes=len(TEXT))
    assert leftovers(store) == []


def test_adopting_takes_the_file_away(store, tmp_path):
    upload = tmp_path / "upload"
    upload.write_bytes(TEXT)
    assert store.adopt(upload, sha256=DIGEST) == (DIGEST, len(TEXT))
    assert not upload.exists()
    upload.write_bytes(TEXT)
    store.adopt(upload)
    assert not upload.exists()


def test_adopting_the_wrong_content_leaves_it_where_it_is(store, tmp_path):
    upload = tmp_path / "upload"
    upload.write_bytes(TEXT)
    with pytest.raises(Rejected):
        store.adopt(upload, sha256="0" * 64)
    assert upload.read_bytes() == TEXT


def test_a_full_disk_is_a_typed_error_and_leaves_nothing(store, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(StorageFull) as caught:
        store.put_stream([TEXT])
    assert caught.value.code == "storage_full"
    assert leftovers(store) == []


def test_a_disk_that_is_nearly_full_is_not_filled(tmp_path):
    greedy = Store(tmp_path, reserve_bytes=1 << 62)
    with pytest.raises(StorageFull):
        greedy.put_stream([TEXT])
    with pytest.raises(StorageFull):
        greedy.require_free(1)
    assert leftovers(greedy) == []


def test_a_layout_links_to_the_blobs_and_verifies(store, tmp_path):
    store.put_stream([TEXT])
    store.lay_out([REF], tmp_path / "artifact")
    laid = tmp_path / "artifact" / "deep" / "model.bin"
    assert laid.is_symlink()
    assert laid.read_bytes() == TEXT
    store.verify([REF], tmp_path / "artifact")
    assert store.targets([REF, REF]) == [store.path(DIGEST)]


def test_a_copied_layout_shares_nothing(store, tmp_path):
    store.put_stream([TEXT])
    store.lay_out([REF], tmp_path / "artifact", copy=True)
    laid = tmp_path / "artifact" / "deep" / "model.bin"
    assert laid.stat().st_ino != store.path(DIGEST).stat().st_ino
    assert not laid.is_symlink()
    store.verify([REF], tmp_path / "artifact")


def test_one_flipped_bit_is_found(store, tmp_path):
    store.put_stream([TEXT])
    store.lay_out([REF], tmp_path / "artifact")
    hostile.flipped(store.path(DIGEST))
    with pytest.raises(Rejected, match="artifact changed"):
        store.verify([REF], tmp_path / "artifact")


def test_a_truncated_blob_is_not_laid_out(store, tmp_path):
    store.put_stream([TEXT])
    store.path(DIGEST).chmod(0o644)
    os.truncate(store.path(DIGEST), 10)
    with pytest.raises(Rejected, match="artifact changed"):
        store.lay_out([REF], tmp_path / "artifact")


def test_a_missing_blob_or_file_is_told(store, tmp_path):
    with pytest.raises(NotFound):
        store.lay_out([REF], tmp_path / "artifact")
    with pytest.raises(Rejected, match="missing"):
        store.verify([REF], tmp_path)


@pytest.mark.parametrize("path", ["../out", "/out", "a//b"])
def test_a_layout_stays_in_its_folder(store, tmp_path, path):
    store.put_stream([TEXT])
    with pytest.raises(Rejected):
        store.lay_out([FileRef(path, len(TEXT), DIGEST)], tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "../" + "0" * 61])
def test_only_a_digest_names_a_blob(store, digest):
    with pytest.raises(Malformed):
        store.path(digest)


def test_garbage_goes_after_its_grace(store):
    store.put_stream([TEXT])
    assert store.collect([DIGEST, "1" * 64]) == 0
    assert store.has(DIGEST)
    assert store.collect([DIGEST], grace_s=0) == len(TEXT)
    assert not store.has(DIGEST)


def test_asking_for_a_blob_again_renews_its_grace(store):
    store.put_stream([TEXT])
    os.utime(store.path(DIGEST), (1, 1))
    store.put_stream([TEXT])
    assert store.collect([DIGEST]) == 0


def test_leftovers_of_killed_writers_are_swept(store):
    store.put_stream([TEXT])
    orphan = store.root / "tmp" / "put-dead"
    orphan.write_bytes(b"x")
    assert store.sweep() == 0
    os.utime(orphan, (1, 1))
    assert store.sweep() == 1
    assert leftovers(store) == []


def test_many_writers_of_one_content_agree(store):
    found = []
    threads = [threading.Thread(target=lambda: found.append(store.put_stream([TEXT] * 20))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert leftovers(store) == []
