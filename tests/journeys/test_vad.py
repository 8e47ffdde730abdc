"""Many speakers stream speech over WebSockets to a stateful model: upload, validation, deployment, frames, answers."""

from __future__ import annotations

import json
import struct
import threading
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import connect

from serinus.demo import vad
from tests.support.house import House
from tests.support.sequences import silero_alone, silero_session

DATA = Path(__file__).resolve().parents[1] / "data"
FRAMES, CONNECTIONS, SPEAKERS_EACH = 138, 4, 8


@pytest.fixture(scope="module")
def speech() -> Any:
    with wave.open(str(DATA / "speech_fox_16k.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype("<f4") / 32768
    return samples[: FRAMES * vad.CHUNK].reshape(FRAMES, vad.CHUNK)


@pytest.fixture(scope="module")
def endpoint(house: House, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vad") / "model"
    folder.mkdir()
    vad.make(folder)
    version = house.upload("vad", folder, **vad.SETTINGS)
    assert version["status"] == "ready", version["reason"]
    house.deploy("vad", version["number"])
    return "vad"


def binary(frame: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(frame).encode()
    return struct.pack("<I", len(text)) + text + data


def parts(message: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack_from("<I", message)
    return json.loads(message[4 : 4 + size]), message[4 + size :]


def chunk(speaker: str, step: int, samples: Any) -> bytes:
    parameters = {"sequence_id": speaker, "sequence_start": step == 0, "sequence_end": step == FRAMES - 1}
    audio = {"name": "audio", "datatype": "FP32", "shape": [1, vad.CHUNK]}
    audio["parameters"] = {"binary_data_size": samples.nbytes}
    return binary({"id": f"{speaker}/{step}", "inputs": [audio], "parameters": parameters}, samples.tobytes())


def words_of(speech: Any, speaker: str) -> Any:
    """Each speaker of a connection begins somewhere else in the recording: a mixed-up state could not go unseen."""
    return np.roll(speech, -4 * (int(speaker[1:]) % 100), axis=0)


def listen(house: House, endpoint: str, first: int, speech: Any, found: dict[str, list[float]]) -> None:
    """One connection with several speakers; waits for a step's answers before the next step."""
    url = f"{house.gateway_url.replace('http', 'ws')}/v2/models/{endpoint}/stream"
    speakers = {name: words_of(speech, name) for name in (f"s{first + at}" for at in range(SPEAKERS_EACH))}
    with connect(url, additional_headers={"Authorization": f"Bearer {house.key}"}) as socket:
        for step in range(FRAMES):
            for speaker, words in speakers.items():
                socket.send(chunk(speaker, step, words[step]))
            for _ in speakers:
                message = socket.recv(30)
                assert isinstance(message, bytes)
                head, body = parts(message)
                assert "error" not in head, head
                found.setdefault(head["id"].split("/")[0], []).append(float(np.frombuffer(body, "<f4")[0]))


def test_many_speakers_over_websockets_hear_what_the_model_says_alone(house: House, endpoint: str, speech: Any) -> None:
    found: dict[str, list[float]] = {}
    threads = [
        threading.Thread(target=listen, args=(house, endpoint, 100 * at, speech, found)) for at in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert len(found) == CONNECTIONS * SPEAKERS_EACH
    session = silero_session()
    alone = [silero_alone(session, words_of(speech, f"s{at}")) for at in range(SPEAKERS_EACH)]
    for speaker, values in found.items():
        assert np.abs(np.array(values) - alone[int(speaker[1:]) % 100]).max() < 1e-5, speaker


def test_a_chunk_of_no_sequence_is_refused_with_words_that_say_what_to_do(
    house: House, endpoint: str, speech: Any
) -> None:
    url = f"{house.gateway_url.replace('http', 'ws')}/v2/models/{endpoint}/stream"
    with connect(url, additional_headers={"Authorization": f"Bearer {house.key}"}) as socket:
        socket.send(chunk("stranger", 1, speech[1]))
        message = socket.recv(30)
        assert isinstance(message, bytes)
        head, _ = parts(message)
    assert head["code"] == "invalid_input"
    assert head["error"] == (
        "inference request for sequence stranger to model 'vad' must specify the START flag on the first request of "
        "the sequence"
    )
