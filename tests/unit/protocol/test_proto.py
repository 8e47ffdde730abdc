from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool

from inference.protocol import proto


def _fields(messages: Any, before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for message in messages:
        name = f"{before}.{message.name}"
        for field in message.field:
            found[f"{name}.{field.name}"] = (field.number, field.type, field.label, field.type_name)
        for enum in message.enum_type:
            found |= {f"{name}.{enum.name}.{value.name}": value.number for value in enum.value}
        found |= _fields(message.nested_type, name)
    return found


def _checked_in() -> descriptor_pb2.FileDescriptorProto:
    data = (proto.FOLDER / "model_config.binpb").read_bytes()
    return descriptor_pb2.FileDescriptorSet.FromString(data).file[0]


def test_the_descriptor_is_what_the_proto_says(tmp_path: Path) -> None:
    shutil.copy(proto.FOLDER / "model_config.proto", tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{tmp_path}"]
    subprocess.run([*command, f"--descriptor_set_out={tmp_path}/o", "model_config.proto"], check=True, cwd=tmp_path)
    made = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "o").read_bytes()).file[0]
    assert made == _checked_in()


def test_it_agrees_with_the_public_definition() -> None:
    from tritonclient.grpc import model_config_pb2

    public = descriptor_pb2.FileDescriptorProto()
    model_config_pb2.DESCRIPTOR.CopyToProto(public)
    ours = _checked_in()
    assert _fields(ours.message_type) == _fields(public.message_type)
    enums = {enum.name: {v.name: v.number for v in enum.value} for enum in public.enum_type}
    assert {enum.name: {v.name: v.number for v in enum.value} for enum in ours.enum_type} == enums


def test_bytes_pass_between_our_message_and_the_clients_own_in_one_process() -> None:
    from tritonclient.grpc import model_config_pb2

    theirs = model_config_pb2.ModelConfig(name="m", max_batch_size=8)
    ours = proto.message("inference.ModelConfig").FromString(theirs.SerializeToString())
    assert (ours.name, ours.max_batch_size) == ("m", 8)
    assert type(ours).DESCRIPTOR.file.pool is not descriptor_pool.Default()
