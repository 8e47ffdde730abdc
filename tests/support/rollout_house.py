"""A gateway in the middle of a rollout: stable version 1 and candidate 2 of a tensor model ("mlp") and of a language
model ("lm"), with fake replicas behind them and every door before them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time

import grpc
import httpx
import msgspec
import pytest
import websockets

from inference.gateway.grpc import wire
from inference.protocol import generation
from inference.protocol.routes import SAMPLES_STREAM, EndpointRoute, Match, Steering, VariantRoute
from inference.protocol.samples import Sample
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import MLP, SECRET, Gateway, House, free_port, request, until

KEY = "ser_all.s2"
STABLE, CANDIDATE = "r1", "r2"


class RolloutHouse(House):
    """`begin` publishes a table with a rollout in it and waits until the gateways have it."""

    def __init__(self) -> None:
        super().__init__()
        self.since = 0
        self.replica(STABLE)
        self.replica(CANDIDATE, version=2)
        for name, version in (("lm1", 1), ("lm2", 2)):
            replica = FakeLanguage(str(self.folder / f"{name}.sock"), name=name, version=version)
            self.replicas[name] = self.run(replica.start())
        self.begin(0)
        self.door = self.gateway(SERINUS_GRPC_PORT=str(free_port())).wait_live()
        self.door.wait_ready("mlp")
        self.door.wait_ready("lm")

    def begin(
        self, weight_bp: int, *match: Match, signature=MLP, candidate=True, mlp=None, steers=True, more=(), **how
    ) -> None:
        """candidate: whether it has a replica; signature: its own; more: further replicas of it. how: of the Steering;
        mlp: of the endpoint."""
        steering = Steering("r", 1, 2, match=list(match), **how) if steers else None
        language = generation.language_signature()

        def variants(first, second, own, other):
            return [
                VariantRoute(1, "primary", 10_000 - weight_bp, own, [self.route(first)]),
                VariantRoute(
                    2,
                    "canary",
                    weight_bp,
                    other,
                    [self.route(name) for name in (second, *(more if second == CANDIDATE else ()))]
                    if candidate
                    else [],
                ),
            ]

        lm = EndpointRoute(
            "lm", "lm", "salt", False, 5000, 64,
            variants("lm1", "lm2", language, language), steering=steering,
        )  # fmt: skip
        settings = {"steering": steering, "queue_limit": 512} | (mlp or {})
        self.publish(self.table(variants(STABLE, CANDIDATE, MLP, signature), endpoints=[lm], **settings))
        for gateway in self.gateways:
            until(lambda one=gateway: f"serinus_routing_generation {self.generation}.0" in one.get("/metrics").text)
        if candidate:
            for gateway in self.gateways:
                for name in ("mlp", "lm"):
                    until(lambda one=gateway, at=name: one.get(f"/v2/models/{at}/versions/2/ready").status_code == 200)

    def quiet(self) -> None:
        """Every replica as it was made, and ready."""
        for replica in self.replicas.values():
            replica.fault, replica.faulty_share, replica.kills_at = None, 1.0, None
            replica.latency_s, replica.answers, replica.ends_empty, replica.is_invalid = 0.0, 1, False, False
            replica.seen.clear()
        until(lambda: all(replica.is_up for replica in self.replicas.values()))

    def samples(self, endpoint: str = "mlp") -> dict[str, Sample]:
        """What was counted since `forget`, by arm."""
        found: dict[str, Sample] = {}
        for _, fields in self.valkey.client.xrange(SAMPLES_STREAM):
            one = msgspec.msgpack.decode(fields[b"s"], type=Sample)
            if one.endpoint == endpoint and one.at_unix_s >= self.since:
                found[one.arm] = _added(found[one.arm], one) if one.arm in found else one
        return found

    def forget(self) -> None:
        """What has happened until now is not asked about any more."""
        time.sleep(1.0 - time.time() % 1.0 + 0.01)
        self.since = int(time.time())

    def counted(self, endpoint: str = "mlp") -> dict[str, Sample]:
        """All that has happened since, by arm, once its second is over and sent."""
        time.sleep(1.0 - time.time() % 1.0 + 0.25)
        return self.samples(endpoint)


def _added(one: Sample, other: Sample) -> Sample:
    for name in Sample.__struct_fields__[5:]:
        mine, theirs = getattr(one, name), getattr(other, name)
        if isinstance(mine, dict):
            setattr(one, name, {key: mine.get(key, 0) + theirs.get(key, 0) for key in mine.keys() | theirs.keys()})
        elif not isinstance(mine, str):
            setattr(one, name, mine + theirs)
    return one


def token(user: str, endpoint: str, source: str) -> str:
    """One of the platform's own."""
    claims = json.dumps({"u": user, "e": endpoint, "exp": time.time() + 60, "s": source}).encode()
    middle = base64.urlsafe_b64encode(claims).rstrip(b"=").decode()
    return f"ser_tok.{middle}.{hmac.new(SECRET.encode(), middle.encode(), hashlib.sha256).hexdigest()}"


class Said:
    """An answer, whichever door it came by. told: its headers or metadata, or what stands for them."""

    def __init__(self, version: str, arm: str, told: dict[str, str], error: str = "") -> None:
        self.version, self.arm, self.told, self.error = version, arm, told, error

    def __repr__(self) -> str:
        return f"Said({self.version!r}, {self.arm!r}, {self.told!r}, {self.error!r})"


def by_rest(gateway: Gateway, *, headers=None, parameters=None, number=None, key=KEY, values=None) -> Said:
    path = f"/v2/models/mlp{f'/versions/{number}' if number else ''}/infer"
    body = request(values) | ({"parameters": parameters} if parameters else {})
    return _http(gateway.post(path, key, json=body, headers=headers or {}))


def by_generate(gateway: Gateway, *, headers=None, parameters=None, number=None, key=KEY, values=None) -> Said:
    path = f"/v2/models/mlp{f'/versions/{number}' if number else ''}/generate_stream"
    body = {"x": values or [float(i) for i in range(16)]} | (parameters or {})
    return _http(gateway.post(path, key, json=body, headers=headers or {}))


def by_openai(
    gateway: Gateway, *, headers=None, parameters=None, number=None, key=KEY, stream=False, text="hi"
) -> Said:
    body = {"model": f"lm@{number}" if number else "lm", "messages": [{"role": "user", "content": text}]}
    return _http(gateway.post("/v1/chat/completions", key, json=body | {"stream": stream}, headers=headers or {}))


def by_sse(gateway: Gateway, **more) -> Said:
    return by_openai(gateway, stream=True, **more)


def _http(response: httpx.Response) -> Said:
    told = dict(response.headers)
    error = response.text if response.status_code != 200 else ""
    return Said(told.get("x-model-version", ""), told.get("x-rollout-arm", ""), told, error)


def grpc_request(parameters=None, number=None, values=None):
    found = wire.INFER_REQUEST(model_name="mlp", model_version=str(number or ""))
    given = found.inputs.add(name="x", datatype="FP32", shape=[1, 16])
    given.contents.fp32_contents.extend(values or [float(i) for i in range(16)])
    for name, value in (parameters or {}).items():
        found.parameters[name].string_param = str(value)
    return found


def by_grpc(gateway: Gateway, *, headers=None, parameters=None, number=None, key=KEY, values=None) -> Said:
    metadata = [("authorization", f"Bearer {key}"), *((n.lower(), v) for n, v in (headers or {}).items())]
    with grpc.insecure_channel(gateway.grpc_address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            wire.INFER_REQUEST.SerializeToString,
            wire.kind("ModelInferResponse").FromString,
        )
        try:
            answer, made = call.with_call(grpc_request(parameters, number, values), timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            return Said("", "", {}, f"{error.code().name}: {error.details()}")
        told = dict(made.trailing_metadata())
        return Said(answer.model_version, told.get("x-rollout-arm", ""), told)


def by_grpc_stream(gateway: Gateway, *, headers=None, parameters=None, number=None, key=KEY, values=None) -> Said:
    metadata = [("authorization", f"Bearer {key}"), *((n.lower(), v) for n, v in (headers or {}).items())]
    with grpc.insecure_channel(gateway.grpc_address) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            wire.INFER_REQUEST.SerializeToString,
            wire.kind("ModelStreamInferResponse").FromString,
        )
        answers = list(call(iter([grpc_request(parameters, number, values)]), timeout=20, metadata=metadata))
    first = answers[0]
    if first.error_message:
        return Said("", "", {}, first.error_message)
    told = {name: value.string_param for name, value in first.infer_response.parameters.items()}
    return Said(first.infer_response.model_version, told.get("rollout_arm", ""), told)


def by_websocket(gateway: Gateway, *, headers=None, parameters=None, number=None, key=KEY, values=None) -> Said:
    async def ask() -> Said:
        url = f"ws://127.0.0.1:{gateway.port}/v2/models/mlp/stream"
        protocols = ["serinus.v1", f"serinus.key.{key}"]
        async with websockets.connect(url, subprotocols=protocols, additional_headers=headers or {}) as socket:
            body = request(values, "a") | ({"parameters": parameters} if parameters else {})
            await socket.send(json.dumps(body | ({"version": number} if number else {})))
            found = json.loads(await asyncio.wait_for(socket.recv(), 20))
        if "error" in found:
            return Said("", "", {}, f"{found['code']}: {found['error']}")
        return Said(found["model_version"], found["parameters"].get("rollout_arm", ""), found["parameters"])

    return asyncio.run(ask())


def by_chat_frame(gateway: Gateway, *, headers=None, number=None, key=KEY, text="hi") -> Said:
    async def ask() -> Said:
        url = f"ws://127.0.0.1:{gateway.port}/v2/models/lm/stream"
        protocols = ["serinus.v1", f"serinus.key.{key}"]
        async with websockets.connect(url, subprotocols=protocols, additional_headers=headers or {}) as socket:
            body = {"model": f"lm@{number}" if number else "lm", "messages": [{"role": "user", "content": text}]}
            await socket.send(json.dumps({"type": "chat", "id": "a", "body": body}))
            while True:
                found = json.loads(await asyncio.wait_for(socket.recv(), 20))
                if "error" in found:
                    return Said("", "", {}, f"{found['code']}: {found['error']}")
                if found["type"] == "done":
                    return Said(found["model_version"], found["rollout_arm"], found)

    return asyncio.run(ask())


TENSOR_DOORS = {
    "rest": by_rest, "generate": by_generate, "grpc": by_grpc, "grpc_stream": by_grpc_stream, "websocket": by_websocket,
}  # fmt: skip
LANGUAGE_DOORS = {"openai": by_openai, "sse": by_sse, "chat frame": by_chat_frame}
DOORS = TENSOR_DOORS | LANGUAGE_DOORS


def fixtures():
    """`opened, house = fixtures()` in a test module: a house of its own for the module, quiet at each test's begin."""

    @pytest.fixture(scope="module")
    def opened():
        found = RolloutHouse()
        yield found
        found.close()

    @pytest.fixture
    def house(opened):
        opened.quiet()
        return opened

    return opened, house


def says(answer):
    """Version and arm of an answer that is no error."""
    assert not answer.error, answer
    return answer.version, answer.arm
