"""A gateway with its gRPC door, fake replicas behind it, and calls with the official messages."""

import contextlib
import struct

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from inference.gateway.grpc import wire
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, VariantRoute
from inference.protocol.settings import RuntimeSettings
from tests.support.gateway_house import HALF, MLP, TEXT, House, free_port

KEY = {"authorization": "Bearer ser_all.s2"}
FOREIGN = {"authorization": "Bearer ser_one.wrong"}
SERVICE = "/inference.GRPCInferenceService"
ANY = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP64", "BOOL"]


def same(datatype):
    return Signature(inputs=[TensorSpec("x", datatype, [-1, 2])], outputs=[TensorSpec("y", datatype, [-1, 2])])


@contextlib.contextmanager
def grpc_house():
    """The house with its gateway ready; it is closed afterwards."""
    found = House()
    for name, more in {"r1": {}, "r2": {"version": 2}, "slow": {"latency_s": 0.3}, "text": {}, "many": {}}.items():
        found.replica(name, **more)
    gateway = found.gateway(
        SERINUS_GRPC_PORT=str(free_port()),
        SERINUS_MAX_GRPC_MESSAGE_BYTES=str(8 << 20),
        SERINUS_ALLOW_CLIENT_SHM="1",
    )

    def endpoint(name, signature, *, replica="r1", timeout_ms=5000, queue_limit=512, settings=None):
        settings = settings or RuntimeSettings()
        variant = VariantRoute(1, "primary", 10_000, signature, [found.route(replica)], settings)
        return EndpointRoute(name, name, "salt", False, timeout_ms, queue_limit, [variant])

    variants = [
        VariantRoute(1, "primary", 10_000, MLP, [found.route()]),
        VariantRoute(2, "canary", 0, MLP, [found.route("r2")]),
    ]
    several = RuntimeSettings(decoupled=True)
    others = [
        endpoint("slow", MLP, replica="slow", timeout_ms=3000),
        endpoint("text", TEXT, replica="text"),
        endpoint("half", HALF, replica="text"),
        endpoint("many", MLP, replica="many", timeout_ms=60_000, settings=several),
        *(endpoint(name.lower(), same(name), replica="text") for name in ANY),
        EndpointRoute("empty", "empty", "salt", False, 300, 5, [VariantRoute(1, "primary", 10_000, MLP, [])]),
    ]
    found.publish(found.table(variants, endpoints=others))
    gateway.wait_live()
    for name in ("mlp", "slow", "text", "many"):
        gateway.wait_ready(name)
    yield found
    found.close()


def settle(house):
    """Fake replicas do what they do by themselves, whatever a test had told them."""
    for replica in house.replicas.values():
        replica.fault = None
        replica.answers, replica.ends_empty, replica.pace_s, replica.echoes = 1, False, 0.0, False


def tensor(rows=1, name="x"):
    found = triton.InferInput(name, [rows, 16], "FP32")
    found.set_data_from_numpy(np.arange(16 * rows, dtype=np.float32).reshape(rows, 16))
    return found


def raw_request(rows=1, model="mlp", identity=""):
    request = wire.INFER_REQUEST(model_name=model, id=identity)
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 16])
    request.raw_input_contents.append(struct.pack(f"<{16 * rows}f", *range(16 * rows)))
    return request


def unary(channel, name, request, answer, **more):
    call = channel.unary_unary(f"{SERVICE}/{name}", type(request).SerializeToString, wire.kind(answer).FromString)
    return call.with_call(request, timeout=10, **more)


def metadata(key=KEY, **more):
    return [*key.items(), *more.items()]


def infer(channel, request=None, key=KEY, **more):
    return unary(channel, "ModelInfer", request or raw_request(), "ModelInferResponse", metadata=metadata(key, **more))


def refused(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def fixtures():
    """`house, gateway, client, channel = fixtures()` in a test module: a house of its own for the module, its gateway,
    the official client of it, and a bare channel.
    """

    @pytest.fixture(scope="module")
    def house():
        with grpc_house() as found:
            yield found

    @pytest.fixture
    def gateway(house):
        yield house.gateways[0]
        settle(house)

    @pytest.fixture
    def client(gateway):
        with triton.InferenceServerClient(gateway.grpc_address) as found:
            yield found

    @pytest.fixture
    def channel(gateway):
        with grpc.insecure_channel(gateway.grpc_address) as found:
            yield found

    return house, gateway, client, channel
