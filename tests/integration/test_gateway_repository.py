"""Model control at the gateway: passed on to a console, here a real HTTP server that says what it was told."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from tests.support.gateway_house import House, free_port

HEADERS = {"Authorization": "Bearer ser_all.s2"}
HEADERS_GRPC = {"authorization": "Bearer ser_all.s2"}


class Console(BaseHTTPRequestHandler):
    seen: list[tuple[str, str, str | None, bytes]] = []
    answer: tuple[int, bytes] = (200, b"[]")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        type(self).seen.append((self.command, self.path, self.headers.get("Authorization"), body))
        status, text = type(self).answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Console)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found.gateway(SERINUS_CONSOLE_URL=f"http://127.0.0.1:{server.server_port}/", SERINUS_GRPC_PORT=str(free_port()))
    found.gateway(SERINUS_CONSOLE_URL=f"http://127.0.0.1:{free_port()}")
    found.publish(found.table())
    for gateway in found.gateways:
        gateway.wait_live().wait_ready()
    yield found
    found.close()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def gateway(house):
    Console.seen.clear()
    Console.answer = (200, b"[]")
    return house.gateways[0]


def test_index_load_and_unload_reach_the_console_with_the_callers_key(gateway):
    index = [{"name": "mlp", "version": "1", "state": "READY", "reason": ""}]
    Console.answer = (200, json.dumps(index).encode())
    with http.InferenceServerClient(f"127.0.0.1:{gateway.port}") as client:
        assert client.get_model_repository_index(headers=HEADERS) == index
        Console.answer = (200, b"")
        client.load_model("mlp", headers=dict(HEADERS), config='{"max_batch_size":"16"}')
        client.unload_model("mlp", headers=dict(HEADERS))
    assert [(path, given) for _, path, given, _ in Console.seen] == [
        ("/v2/repository/index", "Bearer ser_all.s2"),
        ("/v2/repository/models/mlp/load", "Bearer ser_all.s2"),
        ("/v2/repository/models/mlp/unload", "Bearer ser_all.s2"),
    ]
    assert json.loads(Console.seen[1][3]) == {"parameters": {"config": '{"max_batch_size":"16"}'}}
    assert gateway.post("/v2/repository/r1/models/mlp/load", content=b"{}").status_code == 501
    assert len(Console.seen) == 3
    assert Console.seen[-1][1] == "/v2/repository/r1/models/mlp/load"
    assert "model_repository" in gateway.get("/v2").json()["extensions"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error":"failed to load \'mlp\', no such version"}', "failed to load 'mlp', no such version"),
        (b'{"error":{"code":"forbidden","message":"You have no right to that."}}', "You have no right to that."),
        (b"<html>", "The console refused the call."),
        (b"[1]", "The console refused the call."),
    ],
    ids=["ours", "control", "page", "list"],
)
def test_a_refusal_comes_in_this_doors_shape(gateway, body, words):
    Console.answer = (403, body)
    response = gateway.post("/v2/repository/models/mlp/load", content=b"{}")
    assert (response.status_code, response.json()) == (403, {"error": words})
    with (
        http.InferenceServerClient(f"127.0.0.1:{gateway.port}") as client,
        pytest.raises(InferenceServerException, match=words.split(",")[0]),
    ):
        client.load_model("mlp", headers=dict(HEADERS))


def test_who_is_unknown_here_does_not_reach_the_console(gateway):
    assert gateway.post("/v2/repository/index", key="ser_all.wrong", content=b"{}").status_code == 401
    assert gateway.post("/v2/repository/index", key="", content=b"{}").status_code == 401
    for path in ("/v2/repository/models/../load", "/v2/repository/models/a%2Fb/load", "/v2/repository/models/mlp/drop"):
        assert gateway.post(path, content=b"{}").status_code == 404
    assert Console.seen == []


def test_redirects_are_not_followed_and_answers_are_bounded(gateway):
    Console.answer = (302, b"")
    assert gateway.post("/v2/repository/index", content=b"{}").status_code == 502
    assert len(Console.seen) == 1
    Console.answer = (200, bytes(9 << 20))
    assert gateway.post("/v2/repository/index", content=b"{}").status_code == 503
    assert gateway.post("/v2/repository/index", content=b" " * (9 << 20)).status_code == 413


def test_without_the_console_it_is_a_typed_503_and_predictions_go_on(house):
    away = house.gateways[1]
    begin = time.monotonic()
    response = away.post("/v2/repository/index", content=b"{}")
    assert response.status_code == 503
    assert "console cannot be reached" in response.json()["error"]
    assert response.headers["retry-after"] == "5"
    assert time.monotonic() - begin < 5
    assert away.post().status_code == 200


def test_over_grpc_it_is_the_same_console(gateway):
    with grpc.InferenceServerClient(gateway.grpc_address) as client:
        Console.answer = (200, json.dumps([{"name": "mlp", "version": "1", "state": "READY", "reason": ""}]).encode())
        found = client.get_model_repository_index(headers=HEADERS_GRPC).models
        assert [(one.name, one.version, one.state) for one in found] == [("mlp", "1", "READY")]
        Console.answer = (200, b"")
        client.load_model("mlp", headers=HEADERS_GRPC, config='{"max_batch_size":"16"}', files={"file:1/a": b"\0x"})
        client.unload_model("mlp", headers=HEADERS_GRPC)
        Console.answer = (409, b'{"error":{"message":"failed to load \'mlp\', it is broken"}}')
        with pytest.raises(InferenceServerException, match="failed to load 'mlp', it is broken") as caught:
            client.load_model("mlp", headers=HEADERS_GRPC)
        assert caught.value.status() == "StatusCode.ABORTED"
    asked = [(path, key, json.loads(body)) for _, path, key, body in Console.seen]
    key = "Bearer ser_all.s2"
    assert asked == [
        ("/v2/repository/index", key, {"ready": False}),
        (
            "/v2/repository/models/mlp/load",
            key,
            {"parameters": {"config": '{"max_batch_size":"16"}', "file:1/a": "AHg="}},
        ),
        ("/v2/repository/models/mlp/unload", key, {"parameters": {"unload_dependents": False}}),
        ("/v2/repository/models/mlp/load", key, {"parameters": {}}),
    ]
