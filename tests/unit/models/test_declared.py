from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from inference.artifacts.manifest import RuntimeSettings
from inference.errors import Rejected
from inference.models import LoadContext, load
from inference.protocol.oip import TensorSpec
from inference.protocol.settings import ControlInput, SequenceSettings, StateTensor
from inference.runtime.runner import Runner
from tests.support import triton


def onnx(folder: Path, *, batch: Any = "n", **settings: Any) -> Any:
    (folder / "model.onnx").write_bytes(triton.onnx_bytes(2.0, batch=batch))
    return load("onnx", LoadContext(folder, RuntimeSettings(**settings)))


def spec(name: str, shape: list[int], datatype: str = "FP32") -> list[TensorSpec]:
    return [TensorSpec(name, datatype, shape)]


def test_a_batch_is_exactly_what_is_declared(tmp_path: Path) -> None:
    model = onnx(tmp_path, inputs=spec("x", [-1, 4]), outputs=spec("y", [-1, 4]), max_batch_size=3)
    assert model.signature.max_batch_size == 3


def test_no_batch_where_none_is_declared(tmp_path: Path) -> None:
    model = onnx(tmp_path, inputs=spec("x", [-1, 4]), outputs=spec("y", [-1, 4]))
    assert model.signature.max_batch_size == 0
    assert Runner(model).run({"x": np.ones((5, 4), np.float32)})["y"].shape == (5, 4)


@pytest.mark.parametrize(
    ("batch", "settings", "words"),
    [
        ("n", {"inputs": spec("z", [-1, 4])}, "'z' is declared, and the model has"),
        ("n", {"inputs": spec("x", [-1, 4], "INT32")}, "declared as INT32"),
        ("n", {"inputs": spec("x", [-1, 5])}, r"declared as \[-1, 5\]"),
        ("n", {"inputs": spec("x", [4])}, r"declared as \[4\]"),
        ("n", {"outputs": spec("y", [-1, 4, 1])}, r"output 'y' is declared as \[-1, 4, 1\]"),
        (2, {"inputs": spec("x", [-1, 4]), "max_batch_size": 2}, "no free first dimension"),
    ],
    ids=["name", "datatype", "size", "rank", "output", "fixed batch"],
)
def test_a_declaration_that_the_model_does_not_keep_is_refused(
    tmp_path: Path, batch: Any, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(Rejected, match=words):
        onnx(tmp_path, batch=batch, **settings)


def test_clients_see_the_declared_shape_and_the_model_its_own(tmp_path: Path) -> None:
    model = onnx(
        tmp_path,
        inputs=spec("x", [-1, 2, 2]),
        outputs=spec("y", [-1, 1, 4]),
        max_batch_size=4,
        reshapes={"x": [4], "y": [4]},
        labels=["a", "b", "c", "d"],
    )
    assert [one.shape for one in model.signature.inputs] == [[-1, 2, 2]]
    assert model.signature.labels == ["a", "b", "c", "d"]
    x = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    found = Runner(model).run({"x": x})["y"]
    assert found.shape == (2, 1, 4)
    assert found.ravel().tolist() == (2 * x).ravel().tolist()


def test_reshaped_python_models_keep_their_requests_apart(tmp_path: Path) -> None:
    config = """
    backend: "python" max_batch_size: 4
    input { name: "A" data_type: TYPE_FP32 dims: 1 reshape { } }
    output { name: "B" data_type: TYPE_FP32 dims: [ 1 ] reshape { } }
    """
    body = """
    import numpy as np
    import triton_python_backend_utils as pb_utils
    class TritonPythonModel:
        def execute(self, requests):
            out = []
            for r in requests:
                a = r.inputs()[0].as_numpy()
                assert a.ndim == 1, a.shape
                out.append(pb_utils.InferenceResponse([pb_utils.Tensor("B", a + len(requests))]))
            return out
    """
    from inference.artifacts.triton.config import read
    from inference.artifacts.triton.translate import translate

    folder = triton.put(tmp_path, "m", config, {"1/model.py": body})
    settings = translate(read(config), folder="m").settings
    model = load("triton_python", LoadContext(folder, settings))
    found = Runner(model).run_isolated([{"A": np.ones((n, 1), np.float32)} for n in (1, 2)])
    assert [one["B"].tolist() for one in found] == [[[3.0]], [[3.0], [3.0]]]


# TorchScript


@pytest.mark.parametrize(
    ("names", "arguments", "order"),
    [
        (["b", "a"], ["a", "b"], ["a", "b"]),
        (["INPUT__1", "INPUT__0"], ["x", "y"], ["INPUT__0", "INPUT__1"]),
        (["mask__1", "ids__0"], ["x", "y"], ["ids__0", "mask__1"]),
        (["p", "q"], ["x", "y"], ["p", "q"]),
        (["a"], ["a", "b"], ["a"]),
        (["b", "a"], [], ["b", "a"]),
    ],
    ids=["arguments", "indexes", "prefixes", "places", "optional", "no schema"],
)
def test_declared_names_say_where_a_tensor_goes(names: list[str], arguments: list[str], order: list[str]) -> None:
    from inference.models.on_torch.torchscript import input_order

    assert input_order(names, arguments) == order


def test_indexes_must_be_whole() -> None:
    from inference.models.on_torch.torchscript import indexed_order, input_order

    assert indexed_order(["O__0"]) == ["O__0"]
    for names in (["I__0", "I__2"], ["I__0", "J__0"], ["I__1"]):
        with pytest.raises(Rejected, match="each once"):
            indexed_order(names)
    with pytest.raises(Rejected, match="forward takes 1"):
        input_order(["a", "b"], ["a"])


@pytest.mark.parametrize("names", [("INPUT__0", "INPUT__1"), ("a", "b"), ("first", "second")])
def test_a_torchscript_program_needs_no_signature_file(tmp_path: Path, names: tuple[str, str]) -> None:
    triton.torchscript(tmp_path / "model.pt")
    settings = RuntimeSettings(
        # Declared the other way round where a name says the place.
        inputs=[TensorSpec(name, "FP32", [-1, 3]) for name in (names if "first" in names else reversed(names))],
        outputs=[TensorSpec(f"OUTPUT__{index}", "FP32", [-1, 3]) for index in (1, 0)],
        max_batch_size=4,
    )
    model = load("torchscript", LoadContext(tmp_path, settings))
    assert model.signature.max_batch_size == 4
    a, b = np.full((2, 3), 5, np.float32), np.full((2, 3), 3, np.float32)
    found = Runner(model).run(dict(zip(names, (a, b), strict=True)))
    assert found["OUTPUT__0"].tolist() == (a + b).tolist()
    assert found["OUTPUT__1"].tolist() == (a - b).tolist()


def test_a_stateful_declaration_holds_its_controls_and_states(tmp_path: Path) -> None:
    from inference.models.entry import declared_signature

    settings = RuntimeSettings(
        inputs=spec("x", [-1, 4]),
        outputs=spec("y", [-1, 4]),
        max_batch_size=2,
        sequence=SequenceSettings(
            controls=[ControlInput("START", "start", "INT32")],
            states=[StateTensor("h", "hn", "FP32", [2, 64], batch_axis=1)],
        ),
    )
    found = declared_signature(settings)
    assert found is not None
    assert [(one.name, one.shape) for one in found.inputs] == [
        ("x", [-1, 4]), ("START", [-1, 1]), ("h", [2, -1, 64])
    ]  # fmt: skip
    assert declared_signature(msgspec.structs.replace(settings, inputs=[])) is None
