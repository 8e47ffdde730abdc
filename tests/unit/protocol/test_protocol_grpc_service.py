"""Our own definition of the service: the wire format of the public one, and compiled as it is checked in."""

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from inference.protocol import proto

FILES = ("model_config", "grpc_service")


@pytest.mark.parametrize("name", ["grpc_service", "health", "model_config"])
def test_the_compiled_file_is_that_of_the_source(name, tmp_path):
    out = tmp_path / "found.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={out}", f"{name}.proto"]
    subprocess.run(command, cwd=proto.FOLDER, check=True, timeout=60)
    kept = descriptor_pb2.FileDescriptorSet.FromString((proto.FOLDER / f"{name}.binpb").read_bytes())
    assert descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()) == kept, "run `make proto`"


def messages(found, prefix=""):
    for one in found:
        yield prefix + one.name, one
        yield from messages(one.nested_types, f"{prefix}{one.name}.")


def fields(kind):
    return {
        (
            field.name,
            field.number,
            field.type,
            field.is_repeated,
            field.message_type.full_name if field.message_type else "",
            field.containing_oneof.name if field.containing_oneof else "",
        )
        for field in kind.fields
    }


def test_messages_and_calls_are_those_of_the_public_definition():
    from tritonclient.grpc import service_pb2

    own = proto.pool_of(*FILES).FindFileByName("grpc_service.proto")
    ours, theirs = (dict(messages(file.message_types_by_name.values())) for file in (own, service_pb2.DESCRIPTOR))
    assert ours.keys() == theirs.keys()
    for name in sorted(theirs):
        assert fields(ours[name]) == fields(theirs[name]), name
    calls, wanted = (
        {
            (call.name, call.input_type.full_name, call.output_type.full_name, *streams(call))
            for call in file.services_by_name["GRPCInferenceService"].methods
        }
        for file in (own, service_pb2.DESCRIPTOR)
    )
    assert calls == wanted
    assert len(calls) == 20


def streams(call):
    found = descriptor_pb2.MethodDescriptorProto()
    call.CopyToProto(found)
    return found.client_streaming, found.server_streaming


def test_nothing_enters_the_default_pool():
    code = (
        "from inference.gateway.grpc import wire, health\n"
        "from google.protobuf import descriptor_pool\n"
        "for name in ('grpc_service.proto', 'health.proto', 'model_config.proto'):\n"
        "    try:\n"
        "        descriptor_pool.Default().FindFileByName(name)\n"
        "    except KeyError:\n"
        "        continue\n"
        "    raise SystemExit(name)\n"
        "import tritonclient.grpc\n"
        "assert wire.INFER_REQUEST is not tritonclient.grpc.service_pb2.ModelInferRequest\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert descriptor_pool.Default() is not proto.pool_of(*FILES)
