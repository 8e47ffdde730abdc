"""Row 4 of the fault matrix: a language model's replica killed in mid-stream, with its real supervisor and a real gateway.

However a client reads, the stream ends with the error `replica_lost` and the index of the last token that came. The
supervisor brings the replica back, and a client that has the tokens goes on where the stream broke.
"""

import json
import os
import signal

import httpx
import openai
import pytest
from websockets.sync.client import connect

from inference.protocol.generation import language_signature
from inference.protocol.routes import ReplicaRoute, VariantRoute
from inference.protocol.supervision import ReplicaSpec
from tests.support import language
from tests.support.gateway_house import House, until
from tests.support.hosts import Host, stored
from tests.support.openai_house import KEY, say
from tests.support.standby import COMPILED

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]
# Compiled before it forks, so that the replica and its successor begin with loading.
WARM = ("--preload", f"numpy,uvloop,inference.replica.entry,{COMPILED}")
START_S = 120.0
BEFORE = 5
LONG = {"temperature": 0, "max_tokens": 6000, "ignore_eos": True}
SETTINGS = {"generation": {"max_num_seqs": 8, "block_size": 16}}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    root = tmp_path_factory.mktemp("host")
    found = Host(root, WARM, SERINUS_HEARTBEAT_S="3")
    try:
        yield found.start(timeout_s=START_S)
    finally:
        found.close()


@pytest.fixture(scope="module")
def house(host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("m")
    language.folder(folder, max_position_embeddings=8192)
    files = stored(host, {path.name: path.read_bytes() for path in folder.iterdir()})
    spec = ReplicaSpec(
        id="r", generation=1, model="tiny", version=1, digest="0" * 64, format="hf_decoder", tier="data", files=files,
        signature=language_signature(), settings=SETTINGS,
    )  # fmt: skip
    host.client.converge([spec])
    ready = host.wait_ready("r", timeout_s=START_S)
    found = House()
    route = ReplicaRoute("r", 1, ready.address)
    found.publish(found.table([VariantRoute(1, "primary", 10_000, language_signature(), [route])]))
    found.gateway().wait_live().wait_ready()
    yield found
    found.close()


@pytest.fixture
def gateway(house):
    return house.gateways[0]


@pytest.fixture
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=60) as found:
        yield found


def body(**more):
    return {"model": "mlp", "messages": say("two and two"), **LONG} | more


class Official:
    """Completions by the official client, which keeps the tokens."""

    def __init__(self, client):
        self.ids, self.prompt = [], []
        asked = {"model": "mlp", "prompt": "two and two", "temperature": 0, "max_tokens": 6000, "stream": True}
        self._chunks = client.completions.create(**asked, extra_body={"return_token_ids": True, "ignore_eos": True})

    def read(self):
        choice = next(self._chunks).choices[0]
        self.prompt = getattr(choice, "prompt_token_ids", None) or self.prompt
        self.ids += choice.token_ids

    def lost(self):
        try:
            while True:
                self.read()
        except openai.APIError as error:
            return error.body


class Raw:
    """A chat's server-sent events as they are."""

    def __init__(self, gateway):
        self.tokens = 0
        head = {"Authorization": f"Bearer {KEY}"}
        asked = body(stream=True, stream_options={"continuous_usage_stats": True})
        self._client = httpx.Client(timeout=60)
        request = self._client.build_request("POST", f"{gateway.url}/v1/chat/completions", json=asked, headers=head)
        self._response = self._client.send(request, stream=True)
        self._lines = (line for line in self._response.iter_lines() if line)

    def read(self):
        found = json.loads(next(self._lines).removeprefix("data: "))
        if "error" not in found:
            self.tokens = found["usage"]["completion_tokens"]
        return found

    def lost(self):
        while "error" not in (found := self.read()):
            pass
        assert list(self._lines) == ["data: [DONE]"], "the error is the last event"
        self._client.close()
        return found["error"]


class Socket:
    """A chat on the WebSocket; the connection outlives it."""

    def __init__(self, gateway):
        self.tokens = 0
        url = gateway.url.replace("http", "ws") + "/v2/stream"
        self.socket = connect(url, additional_headers={"Authorization": f"Bearer {KEY}"})
        self.ask()

    def ask(self, **more):
        asked = body(stream_options={"continuous_usage_stats": True}, **more)
        self.socket.send(json.dumps({"type": "chat", "id": "1", "body": asked}))

    def read(self):
        frame = json.loads(self.socket.recv(timeout=60))
        if frame.get("type") == "chunk":
            self.tokens = frame["data"]["usage"]["completion_tokens"]
        return frame

    def last(self):
        while (frame := self.read()).get("type") == "chunk":
            pass
        return frame


def test_row_4_a_replica_killed_in_mid_stream_is_told_to_every_reader_and_comes_back(host, gateway, client):
    golden = client.completions.create(
        model="mlp", prompt="two and two", temperature=0, max_tokens=40, extra_body={"return_token_ids": True, "ignore_eos": True}
    )  # fmt: skip
    streams = [Official(client), Raw(gateway), Socket(gateway)]
    asked = {"model": "mlp", "input": "two and two", "temperature": 0, "max_output_tokens": 6000}
    response = client.responses.create(**asked, stream=True)
    for stream in streams:
        for _ in range(BEFORE + 1):  # the first chunk of a chat is its role
            stream.read()
    before = host.wait_ready("r")
    os.kill(before.pid, signal.SIGKILL)

    official, raw, socket = streams
    told = official.lost()
    assert (told["code"], told["type"]) == ("replica_lost", "server_error")
    assert told["last_token"] == len(official.ids) - 1 >= BEFORE
    assert str(told["last_token"]) in told["message"]
    told = raw.lost()
    assert (told["code"], told["last_token"]) == ("replica_lost", raw.tokens - 1)
    frame = socket.last()
    assert (frame["code"], frame["last_token"], frame["id"]) == ("replica_lost", socket.tokens - 1, "1")
    last = list(response)[-1]
    assert (last.type, last.response.error.code) == ("response.failed", "replica_lost")

    after = host.wait_ready("r", not_pid=before.pid, timeout_s=START_S)
    assert after.restarts == 1
    until(lambda: gateway.get("/v2/models/mlp/ready").status_code == 200, START_S)
    expected = golden.choices[0].token_ids
    assert official.ids[: len(expected)] == expected[: len(official.ids)]
    again = client.completions.create(
        model="mlp", prompt=official.prompt + official.ids[:BEFORE], temperature=0, max_tokens=40 - BEFORE,
        stream=True, extra_body={"return_token_ids": True, "ignore_eos": True},
    )  # fmt: skip
    assert [one for chunk in again for one in chunk.choices[0].token_ids] == expected[BEFORE:]
    socket.ask(max_tokens=3)
    assert socket.last()["type"] == "done", "the same connection goes on"
    socket.socket.close()
