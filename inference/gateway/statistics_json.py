"""What versions did, in the shape of Triton's statistics extension: pure, from the sums that replicas tell."""

from __future__ import annotations

from typing import Any

from inference.protocol.statistics import BatchStatistics, Duration, ModelStatistics, ResponseStatistics

_INFERENCE = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)
_BATCH = ("compute_input", "compute_infer", "compute_output")


def model_statistics(name: str, version: str, found: ModelStatistics) -> dict[str, Any]:
    """One element of "model_stats": Triton's `ModelStatistics` in JSON, `name` being the endpoint's."""
    return {
        "name": name,
        "version": version,
        "last_inference": found.last_inference_ms,
        "inference_count": found.inference_count,
        "execution_count": found.execution_count,
        "inference_stats": {field: _duration(getattr(found, field)) for field in _INFERENCE},
        "response_stats": {str(place): _response(one) for place, one in sorted(found.responses.items())},
        "batch_stats": [_batch(size, batch) for size, batch in sorted(found.batches.items())],
        "memory_usage": [_memory(device, size) for device, size in sorted(found.memory.items())],
    }


def _duration(found: Duration) -> dict[str, int]:
    return {"count": found.count, "ns": found.ns}


def _response(found: ResponseStatistics) -> dict[str, Any]:
    return {field: _duration(getattr(found, field)) for field in found.__struct_fields__}


def _batch(size: int, found: BatchStatistics) -> dict[str, Any]:
    return {"batch_size": size} | {field: _duration(getattr(found, field)) for field in _BATCH}


def _memory(device: str, size_bytes: int) -> dict[str, Any]:
    kind, _, number = device.partition(":")
    return {
        "type": "GPU" if kind == "cuda" else kind.upper(),
        "id": int(number) if number.isdigit() else 0,
        "byte_size": size_bytes,
    }
