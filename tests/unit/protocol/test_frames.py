from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import Malformed, TooLarge
from inference.protocol import frames, messages

PINGS = st.lists(st.tuples(st.integers(0, 2**40), st.binary(max_size=200)), max_size=8)


@given(PINGS, st.lists(st.integers(1, 64), min_size=1))
def test_frames_survive_any_cutting(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(frames.encode(messages.Ping(token), body) for token, body in sent)
    decoder: frames.Decoder[messages.ToReplica] = frames.Decoder(messages.ToReplica)
    got, at, turn = [], 0, 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        got += decoder.feed(stream[at : at + step])
        at, turn = at + step, turn + 1
    assert [(message.token, bytes(body)) for message, body in got] == sent


@given(st.binary(min_size=8, max_size=64))
def test_noise_is_refused_with_a_typed_error_or_waits_for_more(noise: bytes) -> None:
    decoder: frames.Decoder[messages.ToReplica] = frames.Decoder(messages.ToReplica, max_body_bytes=1 << 10)
    try:
        decoder.feed(noise)
    except (Malformed, TooLarge):
        return


def test_a_frame_over_the_limit_is_refused_before_it_arrives() -> None:
    decoder: frames.Decoder[messages.ToReplica] = frames.Decoder(messages.ToReplica, max_body_bytes=10)
    with pytest.raises(TooLarge):
        decoder.feed(frames.encode_head(messages.Ping(1), 11))
