"""Stateful, decoupled and cached versions in a real replica process: Silero VAD on real speech, sums, repeats."""

import random
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from inference.protocol.messages import Answer, Ask, Cancel, Fault, Goodbye, Pause, Resume, SequenceControl
from tests.support import artifacts, sequences
from tests.support.replica_process import Replica, validated

DATA = Path(__file__).resolve().parents[1] / "data"
SPEAKERS, CHUNK = 32, 512
SUMMING = {"sequence": {"states": [sequences.STATE], "max_idle_us": 60_000_000}}


@pytest.fixture
def serve(tmp_path):
    made = []

    def start(folder, kind, settings):
        made.append(Replica(tmp_path / f"replica{len(made)}", folder, kind, settings))
        return made[-1].ready()

    yield start
    for replica in made:
        replica.close()


@pytest.fixture
def summing(tmp_path):
    return sequences.summing_onnx(tmp_path / "summing")


@pytest.fixture(scope="module")
def vad(tmp_path_factory):
    """The demo's own folder and settings."""
    pytest.importorskip("onnx")
    from serinus.demo import vad

    try:
        vad.source()
    except SystemExit:
        pytest.skip(vad.REMEDY)
    folder = tmp_path_factory.mktemp("vad") / "vad"
    folder.mkdir()
    vad.make(folder)
    return folder, vad.SETTINGS


@pytest.fixture(scope="module")
def speech():
    with wave.open(str(DATA / "speech_fox_16k.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype("f4") / 32768
    count = len(samples) // CHUNK
    return samples[: count * CHUNK].reshape(count, CHUNK)


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "silero_vad.npz") as file:
        return file["prob"]


@pytest.fixture(scope="module")
def session(vad):
    return sequences.silero_session()


def test_32_speakers_at_once_get_what_each_gets_alone(serve, vad, session, speech, golden):
    folder, settings = vad
    assert len(speech) == len(golden) == 138
    alone = sequences.silero_alone(session, speech)
    assert np.abs(alone - golden).max() < 1e-3
    wire = serve(folder, "onnx", settings).connect()
    chance, at = random.Random(7), dict.fromkeys(range(1, SPEAKERS + 1), 0)
    found = {speaker: [] for speaker in at}
    # Each speaker begins somewhere else in the recording, so that a mixed-up state could not go unseen.
    shift = {speaker: (speaker - 1) * 4 for speaker in at}
    frames = {speaker: np.roll(speech, -shift[speaker], axis=0) for speaker in at}
    sizes, count = [], len(speech)
    while at:
        asked = chance.sample(sorted(at), chance.randint(1, len(at)))
        for speaker in asked:
            step = at[speaker]
            control = SequenceControl(speaker, step == 0, step == count - 1)
            wire.ask(speaker * 1000 + step, "audio", frames[speaker][step][None], control)
            at[speaker] += 1
        for _ in asked:
            answer, values = wire.answer()
            assert isinstance(answer, Answer), answer
            assert [t.name for t in answer.tensors] == ["speech"]
            sizes.append(answer.batch_size)
            found[answer.id // 1000].append(float(values[0, 0]))
        at = {speaker: step for speaker, step in at.items() if step < count}
    assert max(sizes) > 8
    for speaker, values in found.items():
        expected = alone if speaker == 1 else sequences.silero_alone(session, frames[speaker])
        assert np.abs(np.array(values) - expected).max() < 1e-5, speaker
    assert np.abs(np.array(found[1]) - golden).max() < 1e-3
    assert (np.array(found[1]) > 0.5).sum() == 88


def test_the_untouched_graph_is_served_too(serve, vad, tmp_path, speech, golden):
    """Clients then send the context themselves; the rate is a constant, the state's batch stands second."""
    from serinus.demo.vad import source

    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(source().read_bytes())
    state = vad[1]["sequence"]["states"][0]
    settings = {"constants": {"sr": 16_000}, "sequence": {"states": [state]}, "max_batch_size": 4}
    wire = serve(folder, "onnx", settings).connect()
    padded = np.concatenate([np.zeros(64, "f4"), speech.ravel()])
    for step in range(12):
        given = padded[step * CHUNK : step * CHUNK + 64 + CHUNK][None]
        wire.ask(step, "input", given, SequenceControl("me", step == 0))
    found = [float(wire.answer()[1][0, 0]) for _ in range(12)]
    assert np.abs(np.array(found) - golden[:12]).max() < 1e-3


def test_validation_reports_what_clients_see(vad, tmp_path):
    folder, settings = vad
    seen = validated(tmp_path / "v", folder, settings)
    assert seen.state == "ready", seen.reason
    assert [(spec.name, spec.shape) for spec in seen.signature.inputs] == [("audio", [-1, CHUNK])]
    assert [spec.name for spec in seen.signature.outputs] == ["speech"]
    assert seen.signature.max_batch_size == 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"states": [{**sequences.STATE, "input": "other"}]}, "no such state input; it has sum_in, x"),
        ({"states": [{**sequences.STATE, "shape": [2]}]}, "does not fit the model's"),
        ({"states": [{**sequences.STATE, "datatype": "FP64"}]}, "is FP64 in the settings and FP32 in the model"),
        ({"states": [{**sequences.STATE, "initial_file": "../x"}]}, "must lie inside the artifact"),
        ({"controls": [{"name": "x", "kind": "correlation_id"}]}, "is one of BYTES"),
    ],
    ids=["name", "shape", "datatype", "path", "control"],
)
def test_settings_that_do_not_fit_the_model_are_refused_by_name(summing, tmp_path, change, words):
    given = {"sequence": {"states": [sequences.STATE], **change}}
    seen = validated(tmp_path / "v", summing, given)
    assert seen.state == "rejected"
    assert words in seen.reason


def test_state_may_begin_with_a_file_of_the_artifact(serve, summing):
    (summing / "begin.bin").write_bytes(np.array([100], "<f4").tobytes())
    given = {"sequence": {"states": [{**sequences.STATE, "initial_file": "begin.bin"}]}}
    wire = serve(summing, "onnx", given).connect()
    wire.ask(1, "x", np.ones((1, 1), "f4"), SequenceControl(5, start=True))
    assert wire.answer()[1].tolist() == [[101]]


def test_a_sequence_goes_on_over_another_connection_and_ends_with_typed_errors(serve, summing):
    replica = serve(summing, "onnx", SUMMING)
    one, other = replica.connect(), replica.connect()
    one.ask(1, "x", np.full((1, 1), 2, "f4"), SequenceControl("a", start=True))
    assert one.answer()[1].tolist() == [[2]]
    other.ask(1, "x", np.full((1, 1), 3, "f4"), SequenceControl("a", end=True))
    assert other.answer()[1].tolist() == [[5]]
    one.ask(2, "x", np.full((1, 1), 3, "f4"), SequenceControl("a"))
    fault, _ = one.answer()
    assert isinstance(fault, Fault)
    assert fault.code == "invalid_input"
    assert fault.message == (
        "inference request for sequence a to model 'm' must specify the START flag on the first request of the sequence"
    )
    one.ask(3, "x", np.full((1, 1), 3, "f4"))
    assert "must specify a non-zero or non-empty correlation ID" in one.answer()[0].message
    one.ask(4, "sum_in", np.full((1, 1), 3, "f4"), SequenceControl("b", start=True))
    assert "unexpected inference input 'sum_in'" in one.answer()[0].message


def test_draining_lets_an_open_sequence_finish(serve, summing):
    replica = serve(summing, "onnx", SUMMING)
    wire = replica.connect()
    wire.ask(1, "x", np.full((1, 1), 2, "f4"), SequenceControl(1, start=True))
    wire.answer()
    replica.drain(20.0)
    assert isinstance(wire.next()[0], Goodbye)
    wire.ask(2, "x", np.full((1, 1), 2, "f4"), SequenceControl(2, start=True))
    assert wire.answer()[0].code == "draining"
    wire.ask(3, "x", np.full((1, 1), 3, "f4"), SequenceControl(1, end=True))
    assert wire.answer()[1].tolist() == [[5]]
    began = time.monotonic()
    assert replica.process.wait(20) == 0
    assert time.monotonic() - began < 15


@pytest.fixture
def repeating(serve, tmp_path):
    artifacts.echo(tmp_path / "echo", repeat=3, sleep_ms=2)
    return serve(tmp_path / "echo", "echo", {"decoupled": True})


def test_a_decoupled_model_answers_as_often_as_it_likes(repeating):
    wire = repeating.connect()
    for parameters, count in (({}, 3), ({"repeat": 0}, 0), ({"repeat": 5}, 5)):
        wire.ask(1, "input", np.ones((1, 4), "f4"), parameters=parameters)
        found = [wire.answer() for _ in range(count + 1)]
        assert [message.final for message, _ in found] == [False] * count + [True]
        assert [values[0, 0] for _, values in found[:-1]] == list(range(1, count + 1))
        assert found[-1][0].tensors == []
    wire.send(Ask(9))
    told = wire.next()[0].statistics
    assert (told.success.count, told.execution_count, told.in_flight) == (3, 3, 0)
    counts = {place: (one.success.count, one.empty_response.count) for place, one in told.responses.items()}
    assert counts == {0: (2, 1), 1: (2, 0), 2: (2, 0), 3: (1, 1), 4: (1, 0), 5: (0, 1)}
    assert told.responses[0].compute_infer.ns >= 4e6  # two answers of 2 ms each


def test_who_is_held_gets_nothing_until_he_reads_and_who_leaves_stops_the_model(repeating):
    wire = repeating.connect()
    wire.ask(1, "input", np.ones((1, 4), "f4"), parameters={"repeat": 1_000_000})
    for _ in range(3):
        wire.answer()
    wire.send(Pause(1))
    wire.send(Ask(9))
    while not hasattr(message := wire.next()[0], "statistics"):
        assert message.id == 1
    wire.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        wire.next()
    wire.sock.settimeout(20)
    wire.send(Resume(1))
    assert wire.answer()[1] is not None
    wire.send(Cancel(1))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        wire.send(Ask(10))
        while not hasattr(message := wire.next()[0], "statistics"):
            pass
        if message.statistics.in_flight == 0:
            break
    assert message.statistics.in_flight == 0


def test_the_deadline_ends_a_stream_with_a_typed_error(repeating):
    wire = repeating.connect()
    wire.ask(1, "input", np.ones((1, 4), "f4"), parameters={"repeat": 1_000_000}, timeout_ms=100)
    while isinstance(message := wire.answer()[0], Answer):
        pass
    assert message.code == "deadline_exceeded"


def test_a_cached_answer_says_so(serve, tmp_path):
    artifacts.echo(tmp_path / "echo", factor=2)
    wire = serve(tmp_path / "echo", "echo", {"response_cache_bytes": 100_000}).connect()
    found = []
    for number in range(2):
        wire.ask(number, "input", np.ones((1, 4), "f4"))
        found.append(wire.answer())
    assert [message.is_cached for message, _ in found] == [False, True]
    assert found[0][1].tolist() == found[1][1].tolist()
    wire.send(Ask(9))
    told = wire.next()[0].statistics
    assert (told.cache_hit.count, told.cache_miss.count, told.success.count, told.execution_count) == (1, 1, 2, 1)
