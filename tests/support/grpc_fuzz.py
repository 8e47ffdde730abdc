"""Malformed gRPC messages: seeded mutations of good ones, sent to every call of a gateway. A soak sends more of them:
`python -m tests.support.grpc_fuzz HOST:PORT [COUNT] [SEED]`.
"""

from __future__ import annotations

import contextlib
import random
import struct
import sys
from collections import Counter

import grpc

from inference.gateway.grpc import health, wire
from inference.protocol.proto import message

SERVICE = "inference.GRPCInferenceService"
TYPED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def golden(model: str = "mlp") -> dict[str, list[bytes]]:
    """Good messages by call."""
    raw = wire.INFER_REQUEST(model_name=model, model_version="1", id="7")
    raw.inputs.add(name="x", datatype="FP32", shape=[1, 16])
    raw.raw_input_contents.append(struct.pack("<16f", *range(16)))
    raw.parameters["timeout"].int64_param = 10**6
    raw.parameters["sequence_id"].string_param = "s"
    raw.outputs.add(name="y").parameters["classification"].int64_param = 2
    typed = wire.INFER_REQUEST(model_name=model)
    typed.inputs.add(name="x", datatype="FP32", shape=[1, 16]).contents.fp32_contents.extend(range(16))
    large = wire.INFER_REQUEST(model_name=model)
    large.inputs.add(name="x", datatype="FP32", shape=[1200, 16])
    large.raw_input_contents.append(bytes(1200 * 64))
    infers = [one.SerializeToString() for one in (raw, typed, large)]
    found = {f"/{SERVICE}/ModelInfer": infers, f"/{SERVICE}/ModelStreamInfer": infers}
    for method in wire.pool().FindServiceByName(SERVICE).methods:
        request = message(method.input_type.full_name, *wire.FILES)()
        for field in request.DESCRIPTOR.fields:
            if field.name in {"name", "model_name"}:
                setattr(request, field.name, model)
            elif field.name == "version":
                request.version = "1"
        if method.name == "TraceSetting":
            request.settings["trace_rate"].value.append("7")
        if method.name == "LogSettings":
            request.settings["log_verbose_level"].uint32_param = 0
        found.setdefault(f"/{SERVICE}/{method.name}", [request.SerializeToString()])
    found["/grpc.health.v1.Health/Check"] = [health.REQUEST(service=model).SerializeToString()]
    return found


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, put in, taken out, doubled or cut off."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(min(len(found), 200) if found and chance.random() < 0.8 else len(found) + 1 or 1)
        match chance.randrange(6):
            case 0 | 1:
                found[at : at + 1] = bytes([chance.randrange(256)])
            case 2:
                found[at:at] = chance.randbytes(chance.randint(1, 9))
            case 3:
                del found[at : at + chance.randint(1, 9)]
            case 4:
                found[at:at] = found[at : at + chance.randint(1, 40)]
            case _:
                del found[at:]
        if not found:
            break
    return bytes(found)


def fuzz(address: str, count: int, seed: int, key: str) -> Counter[str]:
    """Sends `count` mutations; answers how many had which status. Raises AssertionError for one without a typed one."""
    chance = random.Random(seed)
    good = golden()
    # half of them are infer calls, which read the most
    calls = sorted(good) + [f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelStreamInfer"] * (len(good) // 2)
    seen: Counter[str] = Counter()
    with grpc.insecure_channel(address) as channel:
        for number in range(count):
            name = chance.choice(calls)
            data = mutated(chance.choice(good[name]), chance)
            answers = channel.stream_stream(name)(iter([data]), metadata=[("x-api-key", key)], timeout=10)
            with contextlib.suppress(grpc.RpcError):
                list(answers)
            code = answers.code()
            assert code in TYPED, (seed, number, name, data.hex(), code, answers.details())
            seen[code.name] += 1
    return seen


if __name__ == "__main__":
    more = [*sys.argv[2:], None, None]
    print(fuzz(sys.argv[1], int(more[0] or 5000), int(more[1] or 1), "ser_all.s2"))
