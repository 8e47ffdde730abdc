import os

import pytest

from inference.errors import InvalidInput, NotFound, Overloaded, TooLarge
from inference.gateway.shared_memory import HELD_BODIES, MAX_REGIONS_OF_KEY, Regions

KEY = "/serinus-client-a"


@pytest.fixture
def regions(tmp_path):
    (tmp_path / KEY[1:]).write_bytes(bytes(range(100)))
    return Regions(1000, tmp_path)


def span(size, offset=0, region="r"):
    return {"shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": offset}


def test_what_is_registered_is_read_and_written(regions, tmp_path):
    regions.register("k", "r", KEY, 10, 50)
    shared = regions.of("k")
    assert bytes(shared.read(span(5, 2), "x", 0)) == bytes(range(12, 17))
    told = shared.target(span(8, 40), "y").write(memoryview(b"\xff" * 4), "y")
    assert told == {"shared_memory_region": "r", "shared_memory_offset": 40, "shared_memory_byte_size": 4}
    assert (tmp_path / KEY[1:]).read_bytes()[49:56] == bytes([49, 255, 255, 255, 255, 54, 55])
    assert regions.status("k") == [{"name": "r", "key": KEY, "offset": 10, "byte_size": 50}]


@pytest.mark.parametrize(
    "key",
    ["/etc/passwd", "/serinus-client-", "/serinus-client-../x", "serinus-client-a", "/serinus-client-a/b", "/psm_x",
     "/serinus-client-" + "a" * 101, "/serinus-client-a\0", "", "/serinus-client-missing", "/serinus-client-a\n"],
)  # fmt: skip
def test_no_other_memory_can_be_named_and_no_error_says_a_name(regions, key):
    with pytest.raises(InvalidInput, match="the region") as caught:
        regions.register("k", "r", key, 0, 10)
    assert not key or key == "/serinus-client-" or key not in str(caught.value)
    assert regions.status("k") == []


def test_what_is_no_plain_file_of_its_own_is_refused(regions, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(100))
    (tmp_path / "serinus-client-link").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", tmp_path / "serinus-client-hard")
    os.mkfifo(tmp_path / "serinus-client-pipe")
    (tmp_path / "serinus-client-folder").mkdir()
    for name in ("link", "hard", "pipe", "folder"):
        with pytest.raises(InvalidInput, match="the region cannot be opened"):
            regions.register("k", "r", f"/serinus-client-{name}", 0, 10)


@pytest.mark.parametrize(("offset", "size"), [(0, 101), (100, 1), (-1, 5), (0, 0), (2**63, 1), (51, 50)])
def test_a_region_lies_inside_its_file(regions, offset, size):
    with pytest.raises(InvalidInput):
        regions.register("k", "r", KEY, offset, size)
    regions.register("k", "r", KEY, 50, 50)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 51), (50, 1), (-1, 5), (0, 0), (0, None), (True, 1), (0, "5"), (1, 2**70)], ids=str
)
def test_a_tensor_lies_inside_its_region(regions, offset, size):
    regions.register("k", "r", KEY, 0, 50)
    with pytest.raises(InvalidInput, match="do not fit the region"):
        regions.of("k").read(span(size, offset), "x", 0)
    with pytest.raises(InvalidInput, match="do not fit the region"):
        regions.of("k").target(span(size, offset), "y")
    assert len(regions.of("k").read(span(50), "x", 0)) == 50


def test_a_region_is_only_its_keys(regions):
    regions.register("k", "r", KEY, 0, 50)
    for call in (lambda: regions.of("other").read(span(5), "x", 0), lambda: regions.of("").target(span(5), "y")):
        with pytest.raises(InvalidInput, match="the region is not registered"):
            call()
    assert regions.status("other") == []
    with pytest.raises(NotFound):
        regions.status("other", "r")
    regions.unregister("other")
    regions.unregister("other", "r")
    assert len(regions.status("k", "r")) == 1
    regions.unregister("k")
    assert regions.status("k") == []


def test_a_key_has_so_many_regions_and_no_more(regions):
    for index in range(MAX_REGIONS_OF_KEY):
        regions.register("k", f"r{index}", KEY, 0, 1)
    with pytest.raises(Overloaded):
        regions.register("k", "one-more", KEY, 0, 1)
    regions.register("other", "r", KEY, 0, 1)
    with pytest.raises(InvalidInput, match="already registered"):
        regions.register("other", "r", KEY, 0, 1)
    regions.unregister("k", "r0")
    regions.register("k", "one-more", KEY, 0, 1)


def test_descriptors_close_with_the_last_use(regions):
    before = len(os.listdir("/proc/self/fd"))
    regions.register("k", "r", KEY, 0, 50)
    target = regions.of("k").target(span(10), "y")
    regions.unregister("k", "r")
    target.write(memoryview(b"abc"), "y")  # under way when it was unregistered: still good
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del target
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_client_that_shrinks_its_region_gets_an_error_and_harms_nobody(regions, tmp_path):
    regions.register("k", "r", KEY, 0, 100)
    target = regions.of("k").target(span(100), "y")
    os.truncate(tmp_path / KEY[1:], 10)
    with pytest.raises(InvalidInput, match="do not fit the region"):
        regions.of("k").read(span(100), "x", 0)
    with pytest.raises(InvalidInput, match="the region cannot be written"):
        target.write(memoryview(bytes(100)), "y")
    assert (tmp_path / KEY[1:]).stat().st_size == 10


def test_an_output_that_does_not_fit_is_refused_in_words(regions):
    regions.register("k", "r", KEY, 0, 100)
    with pytest.raises(InvalidInput, match=r"output 'y' \(4 bytes\) should be at least 5 bytes"):
        regions.of("k").target(span(4), "y").write(memoryview(bytes(5)), "y")


def test_copies_are_bounded_each_and_together(tmp_path):
    (tmp_path / KEY[1:]).write_bytes(bytes(2000))
    regions = Regions(1000, tmp_path)
    regions.register("k", "r", KEY, 0, 2000)
    shared = regions.of("k")
    with pytest.raises(TooLarge):
        shared.read(span(1001), "x", 0)
    with pytest.raises(TooLarge):
        shared.read(span(500), "x", 501)
    held = [shared.read(span(1000), "x", 0) for _ in range(HELD_BODIES)]
    with pytest.raises(Overloaded):
        shared.read(span(1), "x", 0)
    held.pop()
    assert len(shared.read(span(1000), "x", 0)) == 1000
    held.clear()
    assert regions.held_bytes == 0


def test_regions_go_with_their_key(regions):
    regions.register("k", "r", KEY, 0, 10)
    regions.register("other", "r", KEY, 0, 10)
    regions.keep(lambda owner: owner != "k")
    assert regions.status("k") == []
    assert len(regions.status("other")) == 1
