from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from inference.artifacts.inspect import inspect
from inference.artifacts.manifest import Format, Tier
from inference.artifacts.triton.config import read
from inference.artifacts.triton.translate import translate
from inference.errors import InvalidInput, ModelFailed, NotReady, Rejected
from inference.models import LoadContext, load
from inference.models.triton_python import backend_utils as pb
from inference.models.triton_python import executions, loader
from inference.protocol.oip import TensorSpec
from inference.protocol.settings import RuntimeSettings, WarmupSample
from inference.runtime import samples
from inference.runtime.runner import Runner
from inference.runtime.warmup import warm_up
from tests.support import triton

HEAD = "import numpy as np\nimport triton_python_backend_utils as pb_utils\n"
IO = """
backend: "python"
input [ { name: "A" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "B" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""


def loaded(folder: Path, **changes: Any) -> Any:
    config = read((folder / "config.pbtxt").read_text()) if (folder / "config.pbtxt").exists() else None
    settings = translate(config, folder=folder.name).settings if config else RuntimeSettings()
    settings = msgspec.structs.replace(settings, **changes)
    return load("triton_python", LoadContext(folder, settings, model=folder.name))


def made(root: Path, body: str, config: str | None = IO, **changes: Any) -> Any:
    return loaded(triton.put(root, "m", config, {"1/model.py": HEAD + body}), **changes)


def floats(*values: float) -> dict[str, Any]:
    return {"A": np.array(values, dtype=np.float32)}


def pair(a: float, b: float) -> dict[str, Any]:
    return {"INPUT0": np.full(4, a, np.float32), "INPUT1": np.full(4, b, np.float32)}


@pytest.fixture
def add_sub(tmp_path: Path) -> Any:
    return loaded(triton.put(tmp_path, "add_sub", triton.ADD_SUB_CONFIG, {"1/model.py": triton.ADD_SUB}))


def test_it_is_recognised_as_code(tmp_path: Path) -> None:
    folder = triton.put(tmp_path, "m", triton.ADD_SUB_CONFIG, {"1/model.py": triton.ADD_SUB})
    found = inspect(folder)
    assert (found.format, found.tier, found.entry) == (Format.TRITON_PYTHON, Tier.CODE, "1/model.py")


def test_the_classic_add_sub_model_answers(add_sub: Any) -> None:
    ran = Runner(add_sub).run_requests([pair(1, 2), pair(5, 3)])
    assert [one["OUTPUT0"].tolist() for one in ran.results] == [[6.0] * 4, [16.0] * 4]
    assert [one["OUTPUT1"].tolist() for one in ran.results] == [[-1.0] * 4, [2.0] * 4]


def test_an_error_of_one_request_is_its_own(add_sub: Any) -> None:
    good, bad = Runner(add_sub).run_isolated([pair(1, 1), pair(-1, 1)])
    assert good["OUTPUT0"].tolist() == [4.0] * 4
    assert isinstance(bad, InvalidInput)
    assert bad.message == "INPUT0 must not be negative"


def test_requests_come_unmerged_and_in_one_list(tmp_path: Path) -> None:
    body = """
class TritonPythonModel:
    def execute(self, requests):
        n = np.float32(len(requests))
        return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.array([[n, r.inputs()[0].shape()[0]]] * r.inputs()[0].shape()[0], dtype=np.float32))]) for r in requests]
"""
    model = made(tmp_path, body, IO + "max_batch_size: 8")
    requests = [{"A": np.zeros((rows, 2), np.float32)} for rows in (1, 3, 2)]
    found = Runner(model).run_isolated(requests)
    assert [one["B"].tolist() for one in found] == [[[3.0, float(n)]] * n for n in (1, 3, 2)]


def test_wrong_rows_of_one_answer_cost_only_that_one(tmp_path: Path) -> None:
    body = """
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.zeros((1, 2), dtype=np.float32))]) for r in requests]
"""
    model = made(tmp_path, body, IO + "max_batch_size: 8")
    one, two = Runner(model).run_isolated([{"A": np.zeros((n, 2), np.float32)} for n in (1, 2)])
    assert one["B"].shape == (1, 2)
    assert isinstance(two, ModelFailed)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("[]", "list of 1 responses, not 0"),
        ("None", "list of 1 responses, not NoneType"),
        ("[7]", "must be an InferenceResponse"),
        ('[pb_utils.InferenceResponse([pb_utils.Tensor("Z", np.zeros(2))])]', "does not declare"),
        ("[pb_utils.InferenceResponse([])]", "gave no output"),
        ('[pb_utils.InferenceResponse([pb_utils.Tensor("B", np.zeros(2))])]', "is float64, and FP32 is declared"),
    ],
    ids=["too few", "none", "no response", "undeclared", "missing", "type"],
)
def test_a_model_that_breaks_the_agreement_is_told_so(tmp_path: Path, returned: str, words: str) -> None:
    model = made(tmp_path, f"class TritonPythonModel:\n    def execute(self, requests):\n        return {returned}\n")
    (found,) = Runner(model).run_isolated([floats(1, 2)])
    assert isinstance(found, ModelFailed)
    assert words in found.message


def test_an_exception_fails_the_whole_batch_in_one_sentence(tmp_path: Path) -> None:
    model = made(
        tmp_path, "class TritonPythonModel:\n    def execute(self, requests):\n        raise KeyError('secret')\n"
    )
    found = Runner(model).run_isolated([floats(1, 2), floats(3, 4)])
    assert [type(one) for one in found] == [ModelFailed, ModelFailed]
    assert "secret" not in found[0].message


def test_a_triton_exception_keeps_its_words(tmp_path: Path) -> None:
    body = (
        "class TritonPythonModel:\n    def execute(self, r):\n        raise pb_utils.TritonModelException('no luck')\n"
    )
    (found,) = Runner(made(tmp_path, body)).run_isolated([floats(1, 2)])
    assert found.message == "no luck"


def test_nobody_can_be_called_while_nobody_asks(tmp_path: Path) -> None:
    """As at the warm-up: the request came by no connection."""
    body = "class TritonPythonModel:\n    def execute(self, r):\n        return [pb_utils.InferenceRequest(model_name='x').exec()]\n"
    waiting = body.replace("def exec", "async def exec").replace("pb_utils.I", "await pb_utils.I")
    waiting = waiting.replace("x').exec()", "x').async_exec()")
    for place, lines in (("plain", body), ("async", waiting)):
        (found,) = Runner(made(tmp_path / place, lines)).run_isolated([floats(1, 2)])
        assert isinstance(found, NotReady)
        assert found.message == executions.UNSERVED


def test_strings_and_torch_tensors_pass(tmp_path: Path) -> None:
    config = """
backend: "python"
input [ { name: "T" data_type: TYPE_STRING dims: [ -1 ] } ]
output [ { name: "U" data_type: TYPE_STRING dims: [ -1 ] }, { name: "N" data_type: TYPE_INT64 dims: [ -1 ] } ]
"""
    body = """
import torch
class TritonPythonModel:
    def execute(self, requests):
        out = []
        for r in requests:
            words = [w.decode() for w in pb_utils.get_input_tensor_by_name(r, "T").as_numpy()]
            sizes = torch.tensor([len(w) for w in words])
            out.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("U", np.array([w.upper() for w in words], dtype=np.object_)),
                pb_utils.Tensor.from_dlpack("N", sizes)]))
        return out
"""
    model = made(tmp_path, body, config)
    (found,) = Runner(model).run_isolated([{"T": np.array([b"ab", "grüß".encode()], dtype=object)}])
    assert found["U"].tolist() == [b"AB", "GRÜSS".encode()]
    assert found["N"].tolist() == [2, 4]


def test_dlpack_of_an_input_can_be_written_to_without_touching_the_frame() -> None:
    import torch

    frame = np.frombuffer(np.arange(3, dtype=np.float32).tobytes(), dtype=np.float32)
    tensor = torch.from_dlpack(pb.Tensor("x", frame))
    tensor += 1
    assert tensor.tolist() == [1, 2, 3]
    assert frame.tolist() == [0, 1, 2]


def test_arguments_of_initialize_are_tritons(tmp_path: Path) -> None:
    body = """
import json, os
class TritonPythonModel:
    def initialize(self, args):
        assert all(isinstance(v, str) for v in args.values()), args
        config = json.loads(args["model_config"])
        assert config["input"][0]["dims"] == [2], config
        assert config["parameters"]["k"]["string_value"] == "v"
        assert args["model_name"] == "m" and args["model_version"] == "7", args
        assert args["model_instance_kind"] == "CPU"
        place = os.path.join(args["model_repository"], args["model_version"], "weights.txt")
        self.value = float(open(place).read())
        assert pb_utils.get_model_dir().endswith("7")
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.full(2, self.value, np.float32))]) for r in requests]
"""
    config = IO + 'parameters { key: "k" value: { string_value: "v" } }'
    folder = triton.put(tmp_path, "m", config, {"7/model.py": HEAD + body, "7/weights.txt": "3.5"})
    assert loaded(folder).run(floats(0, 0))["B"].tolist() == [3.5, 3.5]


def test_auto_complete_config_declares_what_the_file_does_not(tmp_path: Path) -> None:
    body = """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "A", "data_type": "TYPE_FP32", "dims": [2]})
        config.add_output({"name": "B", "data_type": "TYPE_FP32", "dims": [2]})
        config.set_max_batch_size(4)
        config.set_dynamic_batching()
        return config
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("B", r.inputs()[0].as_numpy() * 2)]) for r in requests]
"""
    model = made(tmp_path, body, None)
    assert model.signature.max_batch_size == 4
    assert [spec.shape for spec in model.signature.inputs] == [[-1, 2]]
    assert model.run({"A": np.ones((3, 2), np.float32)})["B"].tolist() == [[2.0, 2.0]] * 3


COMPLETING = """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        %s
        return config
    def execute(self, requests):
        return []
"""
WRONG_COMPLETIONS = {
    "size": ("config.set_max_batch_size(4)", IO + "max_batch_size: 8", "max_batch_size is 8 in config.pbtxt, and 4"),
    "unwritten size": ("config.set_max_batch_size(4)", IO, "sets max_batch_size 4, and 0 is declared"),
    "scheduler": (
        "config.set_dynamic_batching()", IO + "max_batch_size: 2 sequence_batching { oldest { } }", "sequence_batching"),
    "policy": ("config.set_model_transaction_policy({'decoupled': True, 'x': 1})", IO, "only decoupled"),
    "nothing back": ("return None", IO, "must return the ModelConfig"),
    "type": (
        "config.add_input({'name': 'A', 'data_type': 'TYPE_INT8', 'dims': [2]})", IO, "declared otherwise .*data_type"),
    "property": (
        "config.add_output({'name': 'B', 'data_type': 'TYPE_FP32', 'dims': [2], 'optional': True})", IO, "may not have"),
    "missing": ("config.add_output({'name': 'B'})", IO, "must have data_type, dims"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(WRONG_COMPLETIONS))
def test_auto_complete_config_never_overrules_the_file_in_silence(tmp_path: Path, case: str) -> None:
    line, config, words = WRONG_COMPLETIONS[case]
    with pytest.raises(Rejected, match=words):
        made(tmp_path, COMPLETING % line, config)


def test_what_the_utilities_do_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="triton_python_backend_utils has no 'Magic'"):
        made(tmp_path, "pb_utils.Magic()\nclass TritonPythonModel: ...\n")
    with pytest.raises(Rejected, match="'serinus_requests' cannot begin with 'serinus_'"):
        made(tmp_path, "pb_utils.MetricFamily('serinus_requests', 'd', 0)\nclass TritonPythonModel: ...\n")


def test_utilities_of_names_types_and_bytes() -> None:
    assert pb.triton_string_to_numpy("TYPE_INT32") is np.int32
    assert pb.triton_to_numpy_type(11) is np.float32
    assert pb.numpy_to_triton_type(np.float16) == 10
    words = np.array(["a", b"bc", "grüß"], dtype=object)
    packed = pb.serialize_byte_tensor(words)
    assert pb.deserialize_bytes_tensor(packed.tobytes()).tolist() == [b"a", b"bc", "grüß".encode()]
    config = {"input": [{"name": "A"}], "model_transaction_policy": {"decoupled": True}}
    assert pb.get_input_config_by_name(config, "A") == {"name": "A"}
    assert pb.get_input_config_by_name(config, "Z") is None
    assert pb.using_decoupled_model_transaction_policy(config)


def test_a_request_and_a_response_of_the_models_own() -> None:
    tensor = pb.Tensor("A", np.zeros(2, np.float32))
    memory = pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0)
    request = pb.InferenceRequest(
        model_name="m", requested_output_names=["B"], inputs=[tensor], request_id="r", correlation_id="c",
        preferred_memory=memory, timeout=3, parameters={"k": 1},
    )  # fmt: skip
    assert (request.request_id(), request.correlation_id(), request.timeout()) == ("r", "c", 3)
    assert (request.requested_output_names(), request.parameters()) == (["B"], '{"k": 1}')
    assert pb.get_input_tensor_by_name(request, "A") is tensor
    assert request.trace().get_context() is None
    response = pb.InferenceResponse([tensor], parameters={"p": True})
    assert (response.has_error(), response.parameters()) == (False, '{"p": true}')
    assert pb.get_output_tensor_by_name(response, "A") is tensor
    with pytest.raises(pb.TritonModelException, match="'k' must be a text, a number"):
        pb.InferenceResponse([], parameters={"k": [1]})
    with pytest.raises(pb.TritonModelException, match="rescheduling"):
        request.set_release_flags(pb.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)


def test_bfloat16_passes_by_dlpack_alone(tmp_path: Path) -> None:
    config = """
backend: "python"
input [ { name: "A" data_type: TYPE_BF16 dims: [ -1 ] } ]
output [ { name: "B" data_type: TYPE_BF16 dims: [ -1 ] } ]
"""
    body = """
import torch
from torch.utils.dlpack import from_dlpack, to_dlpack
class TritonPythonModel:
    def execute(self, requests):
        (one,) = requests[0].inputs()
        assert one.triton_dtype() == 14 and one.shape() == (2,)
        try:
            one.as_numpy()
        except pb_utils.TritonModelException as error:
            assert "Tensor dtype is BF16 and cannot be converted to numpy" in str(error)
            doubled = from_dlpack(one.to_dlpack()) * 2
        return [pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("B", to_dlpack(doubled))])]
"""
    half_and_three = np.array([0x3F00, 0x4040], np.uint16)
    assert made(tmp_path, body, config).run({"A": half_and_three})["B"].tolist() == [0x3F80, 0x40C0]


def test_a_model_is_served_when_it_says_that_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
class TritonPythonModel:
    asked = 0
    async def is_ready(self):
        self.asked += 1
        return self.asked >= %d
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.full(2, self.asked, np.float32))])]
"""
    monkeypatch.setattr(loader, "READY_STEP_S", 0.001)
    assert made(tmp_path, body % 3).run(floats(0, 0))["B"].tolist() == [3.0, 3.0]
    monkeypatch.setattr(loader, "READY_S", 0.01)
    with pytest.raises(Rejected, match=r"is_ready\(\) did not say True"):
        made(tmp_path / "never", body % 10**9)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise OSError('no file')\n", "failed on import: OSError: no file"),
        ("class TritonPythonModel:\n    pass\n", "with execute"),
        (
            "class TritonPythonModel:\n    def initialize(self, a): 1/0\n    def execute(self, r): ...\n",
            "in initialize",
        ),
    ],
    ids=["import", "no execute", "initialize"],
)
def test_a_model_that_does_not_start_is_rejected_with_why(tmp_path: Path, body: str, words: str) -> None:
    if "class" not in body:
        body += "class TritonPythonModel: ...\n"
    with pytest.raises(Rejected, match=words):
        made(tmp_path, body)


def test_two_instances_share_no_module(tmp_path: Path) -> None:
    body = """
COUNT = [0]
class TritonPythonModel:
    def execute(self, requests):
        COUNT[0] += 1
        return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.full(2, COUNT[0], np.float32))]) for r in requests]
"""
    folder = triton.put(tmp_path, "m", IO, {"1/model.py": HEAD + body})
    one, two = loaded(folder), loaded(folder)
    one.run(floats(0, 0))
    assert two.run(floats(0, 0))["B"][0] == 1.0


# Decoupled


@pytest.fixture
def count(tmp_path: Path) -> Any:
    return loaded(triton.put(tmp_path, "count", triton.COUNT_CONFIG, {"1/model.py": triton.COUNT}))


def number(n: int) -> dict[str, Any]:
    return {"N": np.array([n], np.int32)}


@pytest.mark.parametrize("n", [0, 1, 40])
def test_a_decoupled_model_gives_as_many_answers_as_it_likes(count: Any, n: int) -> None:
    assert [int(one["I"][0]) for one in count.stream(number(n), {})] == list(range(n))


def test_a_decoupled_model_is_told_when_its_caller_left(tmp_path: Path) -> None:
    body = """
class TritonPythonModel:
    seen = 0
    def execute(self, requests):
        sender = requests[0].get_response_sender()
        while not requests[0].is_cancelled():
            self.seen += 1
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("B", np.zeros(2, np.float32))]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
    model = made(tmp_path, body, IO + "model_transaction_policy { decoupled: true }")
    stream = model.stream(floats(0, 0), {})
    next(stream)
    time.sleep(0.3)
    assert model._made.seen < 25, "a reader that does not read holds the model back"
    stream.close()
    end = time.monotonic() + 5
    while model._executing.locked() and time.monotonic() < end:
        time.sleep(0.01)
    assert not model._executing.locked()


def test_a_failing_decoupled_model_ends_its_stream_with_an_error(tmp_path: Path) -> None:
    body = """
class TritonPythonModel:
    def execute(self, requests):
        requests[0].get_response_sender().send(pb_utils.InferenceResponse([pb_utils.Tensor("B", np.zeros(2, np.float32))]))
        raise ValueError("broken")
"""
    model = made(tmp_path, body, IO + "model_transaction_policy { decoupled: true }")
    stream = model.stream(floats(0, 0), {})
    assert next(stream)["B"].tolist() == [0.0, 0.0]
    with pytest.raises(ModelFailed):
        next(stream)


def test_a_decoupled_model_that_falls_silent_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    body = "class TritonPythonModel:\n    def execute(self, requests):\n        return None\n"
    model = made(tmp_path, body, IO + "model_transaction_policy { decoupled: true }", hang_timeout_s=0.2)
    with pytest.raises(ModelFailed, match="no further answer"):
        list(model.stream(floats(0, 0), {}))


def test_parameters_of_a_streamed_request_reach_the_model(tmp_path: Path) -> None:
    body = """
import json
class TritonPythonModel:
    def execute(self, requests):
        value = json.loads(requests[0].parameters())["temperature"]
        requests[0].get_response_sender().send(
            pb_utils.InferenceResponse([pb_utils.Tensor("B", np.full(2, value, np.float32))]), flags=1)
"""
    model = made(tmp_path, body, IO + "model_transaction_policy { decoupled: true }")
    assert [one["B"].tolist() for one in model.stream(floats(0, 0), {"temperature": 0.5})] == [[0.5, 0.5]]


def test_streams_of_several_callers_do_not_enter_execute_together(tmp_path: Path) -> None:
    body = """
import time
class TritonPythonModel:
    inside = 0
    def execute(self, requests):
        self.inside += 1
        assert self.inside == 1
        time.sleep(0.02)
        self.inside -= 1
        requests[0].get_response_sender().send(
            pb_utils.InferenceResponse([pb_utils.Tensor("B", np.zeros(2, np.float32))]), flags=1)
"""
    model = made(tmp_path, body, IO + "model_transaction_policy { decoupled: true }")
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(len(list(model.stream(floats(0, 0), {}))))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [1] * 5


# Warm-up


PICKY = """
class TritonPythonModel:
    def execute(self, requests):
        for r in requests:
            if r.inputs()[0].as_numpy()[0] != 7:
                raise ValueError("seven, please")
        return [pb_utils.InferenceResponse([pb_utils.Tensor("B", r.inputs()[0].as_numpy())]) for r in requests]
"""


def test_a_model_that_refuses_made_up_inputs_is_served_all_the_same(tmp_path: Path) -> None:
    runner = Runner(made(tmp_path, PICKY))
    assert warm_up(runner).latency_ms == {}
    assert runner.run(floats(7, 1))["B"].tolist() == [7.0, 1.0]


def test_its_own_sample_must_go_through(tmp_path: Path) -> None:
    spec = [TensorSpec("A", "FP32", [2])]
    good = [WarmupSample("seven", inputs=spec, data={"A": "warmup/a"})]
    folder = triton.put(tmp_path, "m", IO, {"1/model.py": HEAD + PICKY, "warmup/a": np.full(2, 7, "<f4").tobytes()})
    runner = Runner(loaded(folder))
    warm_up(runner, samples=samples.read(folder, good, batched=False))
    bad = [WarmupSample("zero", inputs=spec, data={"A": "zero"})]
    with pytest.raises(Rejected, match="own warm-up sample 'zero'"):
        warm_up(runner, samples=samples.read(folder, bad, batched=False))
    with pytest.raises(Rejected, match="no file"):
        samples.read(folder, [WarmupSample("x", inputs=spec, data={"A": "warmup/b"})], batched=False)
