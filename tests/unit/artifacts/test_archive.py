import io
import random
import tarfile
import time
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.artifacts import archive
from inference.artifacts.archive import Kind, Limits
from inference.artifacts.store import Store
from inference.errors import Rejected
from tests.support import goodfiles, hostile

FILES = {"model/config.json": b"{}", "model/deep/weights.bin": bytes(range(256)) * 100, "model/empty": b""}


def pack(path, kind, files=FILES):
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            target.mkdir("model")
            for name, data in files.items():
                target.writestr(name, data)
        return path
    with tarfile.open(path, {"tar": "w", "pax": "w", "tar.gz": "w:gz"}[kind], format=_format(kind)) as target:
        folder = tarfile.TarInfo("model")
        folder.type = tarfile.DIRTYPE
        target.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return path


def _format(kind):
    return tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT


LIMITS = Limits()


def unpacked(path, limits=LIMITS):
    found = {}
    archive.unpack(path, lambda name, chunks: found.__setitem__(name, b"".join(chunks)), limits)
    return found


@pytest.mark.parametrize("kind", ["zip", "tar", "pax", "tar.gz"])
def test_a_packed_folder_comes_out_whole(tmp_path, kind):
    assert unpacked(pack(tmp_path / "x", kind)) == FILES


@pytest.mark.parametrize("kind", ["zip", "tar", "pax", "tar.gz"])
def test_a_packed_folder_streams_into_the_store_without_its_top(tmp_path, kind):
    store = Store(tmp_path / "store", reserve_bytes=0)
    refs = archive.unpack_into(store, pack(tmp_path / "x", kind))
    assert [ref.path for ref in refs] == ["config.json", "deep/weights.bin", "empty"]
    store.lay_out(refs, tmp_path / "laid")
    store.verify(refs, tmp_path / "laid")
    assert (tmp_path / "laid" / "deep" / "weights.bin").read_bytes() == FILES["model/deep/weights.bin"]


@pytest.mark.parametrize("kind", ["tar", "pax"])
def test_long_and_foreign_names_survive_a_tar(tmp_path, kind):
    files = {"d" * 90 + "/" + "f" * 90 + ".bin": b"1", "été/model.bin": b"2"}
    assert unpacked(pack(tmp_path / "x", kind, files)) == files


def test_what_desktops_add_is_left_out(tmp_path):
    files = {"m/model.onnx": b"1", "__MACOSX/m/._model.onnx": b"2", "m/.DS_Store": b"3"}
    assert unpacked(pack(tmp_path / "x", "zip", files)) == {"m/model.onnx": b"1"}


@pytest.mark.parametrize("name", hostile.ARCHIVES)
def test_a_hostile_archive_is_refused(tmp_path, name):
    folder, marker = tmp_path / "in", tmp_path / "marker"
    folder.mkdir()
    path = hostile.ARCHIVES[name](folder, marker)
    before = sorted(tmp_path.rglob("*"))
    start = time.monotonic()
    with pytest.raises(Rejected) as caught:
        unpacked(path)
    assert time.monotonic() - start < 5
    assert caught.value.reason
    assert caught.value.remedy
    assert not marker.exists()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.95])
def test_a_truncated_archive_is_refused(tmp_path, kind, part):
    data = random.Random(7).randbytes(100_000)
    path = hostile.truncated(pack(tmp_path / "x", kind, {"model.bin": data}), part)
    with pytest.raises(Rejected):
        unpacked(path)


def test_the_limit_on_entries_is_exact(tmp_path):
    path = pack(tmp_path / "x", "zip", {f"{index}": b"" for index in range(4)})
    assert len(unpacked(path, Limits(entries=5))) == 4
    with pytest.raises(Rejected, match="entries"):
        unpacked(path, Limits(entries=4))  # the folder is an entry too


def test_the_limit_on_bytes_is_exact(tmp_path):
    path = pack(tmp_path / "x", "tar", {"a": bytes(1000), "b": bytes(1000)})
    size = path.stat().st_size
    assert unpacked(path, Limits(total_bytes=size))
    with pytest.raises(Rejected, match="unpacks to more"):
        unpacked(path, Limits(total_bytes=1999))


def test_an_encrypted_zip_is_refused(tmp_path):
    path = pack(tmp_path / "x", "zip", {"a": b"1"})
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(Rejected, match="encrypted"):
        unpacked(path)


def test_overlapping_members_are_refused(tmp_path):
    path = pack(tmp_path / "x", "zip", {"a": b"1" * 100, "b": b"2" * 100})
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 42 : at + 46] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(Rejected, match="overlap"):
        unpacked(path)


def test_a_model_that_is_a_zip_itself_is_not_unpacked(tmp_path):
    assert archive.kind_of(goodfiles.pt2(tmp_path / "m.pt2")) is None
    assert archive.kind_of(hostile.torch_pickle(tmp_path, tmp_path / "marker")) is None
    assert archive.kind_of(pack(tmp_path / "z", "zip")) is Kind.ZIP
    assert archive.kind_of(pack(tmp_path / "t", "tar")) is Kind.TAR
    (tmp_path / "text").write_text("hello")
    assert archive.kind_of(tmp_path / "text") is None
    with pytest.raises(Rejected):
        unpacked(tmp_path / "text")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["zip", "tar", "pax"]),
    edits=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=8),
)
def test_a_damaged_archive_is_unpacked_or_refused_and_nothing_else(tmp_path, kind, edits):
    data = bytearray(pack(tmp_path / "x", kind, {"m/a.bin": b"abc" * 50, "m/b": b"d"}).read_bytes())
    for at, value in edits:
        data[at % len(data)] = value
    path = tmp_path / "edited"
    path.write_bytes(data)
    try:
        found = unpacked(path)
    except Rejected:
        return
    assert all(".." not in name and not name.startswith("/") for name in found)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40))
def test_any_name_is_kept_as_it_is_or_refused(tmp_path, name):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as target:
        target.addfile(tarfile.TarInfo(name), io.BytesIO())
    try:
        found = unpacked(path)
    except Rejected:
        return
    assert set(found) <= {name, name.removeprefix("./")}
