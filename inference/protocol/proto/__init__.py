"""Messages that other people's programs define: our .proto files, and beside each its compiled descriptor (.binpb).

The law: nothing here enters protobuf's own default pool. Other packages of one process (tritonclient) bring the same
messages of package `inference`, and two copies in one pool end the process.

A .binpb is made by `python -m grpc_tools.protoc -I. --descriptor_set_out=NAME.binpb NAME.proto` in this folder; a test
compares it with its .proto.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["MODEL_CONFIG", "message", "pool_of"]

FOLDER = Path(__file__).parent
MODEL_CONFIG = "model_config"


@cache
def pool_of(*names: str) -> descriptor_pool.DescriptorPool:
    """A pool of its own with these files; a file stands behind those that it imports."""
    pool = descriptor_pool.DescriptorPool()
    for name in names:
        data = (FOLDER / f"{name}.binpb").read_bytes()
        for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
            pool.Add(file)
    return pool


@cache
def message(full_name: str, *names: str) -> Any:
    """The class of a message ("inference.ModelConfig") out of the pool of these files (model_config)."""
    pool = pool_of(*(names or (MODEL_CONFIG,)))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))
