"""What is done for CUDA as far as it goes without a device: graphs, streams and pinned memory of a stand-in, ONNX's provider."""

import contextlib
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

from inference.artifacts.manifest import RuntimeSettings
from inference.errors import SerinusError
from inference.models import LoadContext
from inference.models.on_onnx import session
from inference.models.on_torch import compiling, tensors


class FakeCuda:
    """torch.cuda of one device: a graph's replay runs again what was captured, into the memory that it was captured with."""

    def __init__(self):
        self.capturing, self.synchronised, self.current, self.streams = None, 0, [], []

    def CUDAGraph(self):  # noqa: N802 (torch's name)
        return SimpleNamespace(again=None, replay=lambda: None)

    @contextlib.contextmanager
    def graph(self, graph):
        self.capturing = graph
        yield
        self.capturing = None

    def synchronize(self, *_):
        self.synchronised += 1

    def current_stream(self, *_):
        return SimpleNamespace(synchronize=self.synchronize)

    def Stream(self, device):  # noqa: N802
        self.streams.append(device)
        return len(self.streams)

    @contextlib.contextmanager
    def stream(self, one):
        self.current.append(one)
        yield
        self.current.pop()


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    return fake


def doubling(cuda, calls):
    def forward(x):
        out = x * 2
        if graph := cuda.capturing:
            graph.replay = lambda: out.copy_(x * 2)
        calls.append(len(x))
        return {"y": out}

    return forward


def test_one_graph_is_captured_a_bucket_and_answers_do_not_share_its_memory(cuda):
    calls = []
    graphs = compiling.ready(doubling(cuda, calls), RuntimeSettings(compile="cuda_graphs"), "cuda:0")
    first = graphs(torch.ones(2, 3))["y"]
    again = graphs(torch.full((2, 3), 5.0))["y"]
    assert (first == 2).all()
    assert (again == 10).all()
    graphs(torch.ones(4, 3))
    assert graphs.count == 2
    assert calls == [2] * (compiling.WARM_PASSES + 1) + [4] * (compiling.WARM_PASSES + 1)


def test_shapes_beyond_the_most_graphs_run_as_they_are(cuda, monkeypatch):
    monkeypatch.setattr(compiling, "MAX_GRAPHS", 1)
    graphs = compiling.Graphs(doubling(cuda, []))
    assert [float(graphs(torch.ones(rows, 1))["y"].sum()) for rows in (1, 2, 1)] == [2, 4, 2]
    assert graphs.count == 1


def test_each_thread_has_one_stream_a_device_and_leaves_it(cuda, monkeypatch):
    monkeypatch.setattr(tensors, "_streams", SimpleNamespace())
    for _ in range(2):
        with tensors.lane("cuda:0"):
            assert cuda.current == [1]
    with tensors.lane("cpu"):
        assert cuda.current == []
    assert (cuda.streams, cuda.synchronised) == (["cuda:0"], 1)


def test_inputs_go_through_pinned_memory_without_waiting(monkeypatch):
    went = []

    def pinned(tensor):
        monkeypatch.setattr(torch.Tensor, "to", lambda one, *given, **more: went.append((given, more)) or one)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    tensors.to_torch(np.ones((2, 2), np.float32), "FP32", "cuda:0")
    assert went == [(("cuda:0",), {"non_blocking": True})]


def test_onnx_takes_its_cuda_provider_with_the_devices_share(tmp_path, monkeypatch):
    context = LoadContext(tmp_path, RuntimeSettings(), "cuda:1", device_memory_bytes=1 << 30)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    (name, options), fallback = session._providers(context)
    assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {"device_id": "1", "gpu_mem_limit": str(1 << 30)}
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SerinusError, match="cuda"):
        session._providers(context)
