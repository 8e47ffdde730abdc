"""The gRPC door: `inference.GRPCInferenceService` and `grpc.health.v1.Health`. It translates; the data plane decides.

Messages are read from and written to bytes here, so that a malformed one gets a typed status and large tensors are
not copied through protobuf.
"""
