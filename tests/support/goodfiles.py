"""Small good artifacts, written byte by byte without any framework; the hostile ones are edits of these."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Document = dict[str, Any]
Edit = Callable[[dict[str, bytes]], None]
SYMBOL = {"as_expr": {"expr_str": "Symbol('s0', positive=True, integer=True)", "hint": {"as_int": 2}}}


def meta(sizes: list[Any], strides: list[int]) -> Document:
    return {
        "dtype": 7,
        "sizes": [size if isinstance(size, dict) else {"as_int": size} for size in sizes],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": stride} for stride in strides],
        "storage_offset": {"as_int": 0},
        "layout": 7,
    }


def tree(*children: Document, kind: str | None = None, context: str | None = None) -> Document:
    return {"type": kind, "context": context, "children_spec": list(children)}


def in_spec() -> str:
    args = tree(tree(), kind="builtins.tuple", context="null")
    return json.dumps([1, tree(args, tree(kind="builtins.dict", context="[]"), kind="builtins.tuple", context="null")])


def program() -> Document:
    """The graph of `y = x + w`: x is float32 [batch, 3], w is a parameter [1, 2, 3]."""
    add = {
        "target": "torch.ops.aten.add.Tensor",
        "inputs": [
            {"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1},
            {"name": "other", "arg": {"as_tensor": {"name": "p_w"}}, "kind": 1},
        ],
        "outputs": [{"as_tensor": {"name": "add"}}],
        "metadata": {"torch_fn": "add_1;method_descriptor.add"},
        "is_hop_single_tensor_return": None,
        "name": "add",
    }
    graph = {
        "inputs": [{"as_tensor": {"name": "p_w"}}, {"as_tensor": {"name": "x"}}],
        "outputs": [{"as_tensor": {"name": "add"}}],
        "nodes": [add],
        "tensor_values": {"p_w": meta([3], [1]), "x": meta([SYMBOL, 3], [3, 1]), "add": meta([SYMBOL, 3], [3, 1])},
        "sym_int_values": {},
        "sym_bool_values": {},
        "is_single_tensor_return": False,
        "custom_obj_values": {},
        "sym_float_values": {},
    }
    call = {"inputs": [], "outputs": [], "in_spec": in_spec(), "out_spec": json.dumps([1, tree()])}
    return {
        "graph_module": {
            "graph": graph,
            "signature": {
                "input_specs": [
                    {"parameter": {"arg": {"name": "p_w"}, "parameter_name": "w"}},
                    {"user_input": {"arg": {"as_tensor": {"name": "x"}}}},
                ],
                "output_specs": [{"user_output": {"arg": {"as_tensor": {"name": "add"}}}}],
            },
            "module_call_graph": [{"fqn": "", "signature": {**call, "forward_arg_names": ["x"]}}],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": {"aten": 10},
        "range_constraints": {"s0": {"min_val": 1, "max_val": 32}},
        "schema_version": {"major": 8, "minor": 20},
        "verifiers": ["TRAINING"],
        "torch_version": "2.13.0+cpu",
        "guards_code": [],
    }


def weights() -> Document:
    payload = {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta([3], [1])}
    return {"config": {"w": payload}}


def pt2(
    path: Path, *, document: Document | None = None, config: Document | None = None, edit: Edit | None = None
) -> Path:
    """A .pt2 file as torch.export.save lays it out; `edit` may change the members before they are written."""
    members = {
        "data/weights/weight_0": struct.pack("<3f", 1.0, 2.0, 3.0),
        "data/weights/model_weights_config.json": json.dumps(config or weights()).encode(),
        "data/constants/model_constants_config.json": b'{"config": {}}',
        "models/model.json": json.dumps(document or program()).encode(),
        "data/sample_inputs/model.pt": b"",
        "archive_format": b"pt2",
        "archive_version": b"0",
        ".data/version": b"3\n",
        "byteorder": b"little",
    }
    if edit:
        edit(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"tiny/{name}", data)
    return path


def safetensors(path: Path, tensors: dict[str, list[int]] | None = None, *, header: bytes | None = None) -> Path:
    """Float32 tensors of zeros (name -> shape); `header` replaces the header's JSON."""
    table: Document = {}
    at = 0
    for name, shape in (tensors or {"w": [2, 3]}).items():
        size = 4
        for dimension in shape:
            size *= dimension
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(table).encode() if header is None else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return path


HIDDEN, LAYERS, VOCABULARY, POSITIONS = 8, 1, 32, 16


def bert_tensors(*, labels: int = 0) -> dict[str, list[int]]:
    """Names and shapes of a BERT of one layer and 8 dimensions, with a classifier when there are labels."""
    prefix = "bert." if labels else ""
    shapes = {
        "embeddings.word_embeddings.weight": [VOCABULARY, HIDDEN],
        "embeddings.position_embeddings.weight": [POSITIONS, HIDDEN],
        "embeddings.token_type_embeddings.weight": [2, HIDDEN],
        "embeddings.LayerNorm.weight": [HIDDEN],
        "embeddings.LayerNorm.bias": [HIDDEN],
        "pooler.dense.weight": [HIDDEN, HIDDEN],
        "pooler.dense.bias": [HIDDEN],
    }
    for layer in range(LAYERS):
        for name, width, depth in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", 2 * HIDDEN, HIDDEN),
            ("output.dense", HIDDEN, 2 * HIDDEN),
        ]:
            shapes[f"encoder.layer.{layer}.{name}.weight"] = [width, depth]
            shapes[f"encoder.layer.{layer}.{name}.bias"] = [width]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{layer}.{name}.weight"] = [HIDDEN]
            shapes[f"encoder.layer.{layer}.{name}.bias"] = [HIDDEN]
    named = {prefix + name: shape for name, shape in shapes.items()}
    if labels:
        named |= {"classifier.weight": [labels, HIDDEN], "classifier.bias": [labels]}
    return named


def encoder(folder: Path, *, labels: list[str] | None = None, config: Document | None = None) -> Path:
    """A Hugging Face folder with a tiny BERT (zeros) and a word-level tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: Document = {
        "architectures": ["BertForSequenceClassification" if labels else "BertModel"],
        "model_type": "bert",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 2 * HIDDEN,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    }
    if labels:
        settings["id2label"] = {str(index): label for index, label in enumerate(labels)}
        settings["label2id"] = {label: index for index, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(settings | (config or {})))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}'
    )
    safetensors(folder / "model.safetensors", bert_tensors(labels=len(labels or [])))
    return folder


def tokenizer(pre_tokenizer: Document | None = None) -> Document:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world", "a", "good", "bad", "day"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": pre_tokenizer or {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "[UNK]"},
    }
