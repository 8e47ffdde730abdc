"""Which answers are compressed, and that they come out as they went in."""

import gzip
import zlib

import pytest

from inference.gateway.encodings import LEAST_BYTES, MOST_BYTES, deflated

UNPACKED = {b"gzip": gzip.decompress, b"deflate": zlib.decompress}


@pytest.mark.parametrize("encoding", UNPACKED)
@pytest.mark.parametrize("size", [LEAST_BYTES, MOST_BYTES])
def test_an_answer_of_that_size_is_compressed(encoding, size):
    parts = [b"a" * (size - 10), memoryview(b"b" * 10)]
    headers, packed = deflated([(b"x", b"y")], parts, encoding)
    assert headers == [(b"x", b"y"), (b"content-encoding", encoding), (b"vary", b"accept-encoding")]
    assert UNPACKED[encoding](b"".join(packed)) == b"".join(parts)


@pytest.mark.parametrize(
    ("encoding", "size"), [(b"gzip", LEAST_BYTES - 1), (b"gzip", MOST_BYTES + 1), (b"", LEAST_BYTES)]
)
def test_others_go_as_they_are(encoding, size):
    parts = [b"a" * size]
    assert deflated([], parts, encoding) == ([], parts)
