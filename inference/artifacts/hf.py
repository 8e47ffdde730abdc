"""Hugging Face encoder folders: JSON that we parse ourselves and safetensors. Nothing in the folder is ever run.

Any configuration that asks for code of its own (`auto_map`, `custom_code`) is refused, in every JSON file of the folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from inference.artifacts import jsons, pickles, safetensors
from inference.artifacts.paths import shown
from inference.errors import Rejected

MAX_CONFIG_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 64 << 20
MAX_LABELS = 10_000
MODEL_TYPES = frozenset({
    "albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "funnel",
    "ibert", "mobilebert", "modernbert", "mpnet", "mra", "nomic_bert", "nystromformer", "rembert", "roberta",
    "roberta-prelayernorm", "roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl", "yoso",
})  # fmt: skip
FEATURES, CLASSIFICATION = "feature-extraction", "text-classification"
CODE_KEYS = {"auto_map", "custom_code", "custom_pipelines", "trust_remote_code"}
PICKLED = "pytorch_model.bin"
SAFE = "Save the model again with save_pretrained(folder, safe_serialization=True) and upload the folder."


@dataclass(frozen=True, slots=True)
class Encoder:
    """What the loader needs to know. max_tokens: 0 when the folder does not say; pooling: "mean", "cls" or "max"."""

    task: str
    model_type: str
    hidden_size: int
    pooling: str = "mean"
    normalize: bool = False
    max_tokens: int = 0
    multi_label: bool = False
    labels: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    needs_conversion: bool = False
    notes: list[str] = field(default_factory=list)


def read(folder: Path) -> Encoder:
    """The encoder in `folder`. Raises Rejected for code, unknown architectures, bad weights or a missing tokenizer."""
    config = _config(folder)
    model_type = str(config.get("model_type", ""))
    architecture = _architecture(config)
    if model_type not in MODEL_TYPES:
        _unknown(architecture, model_type)
    notes = _check_files(folder)
    names, needs_conversion = weights(folder)
    if needs_conversion:
        notes.append(f"{PICKLED} is converted to safetensors in the sandbox; the original is never served.")
    task = _task(architecture)
    if task == FEATURES and not architecture.endswith("Model"):
        notes.append(f"{architecture} is served without its head, as sentence embeddings.")
    pooling, normalize = _pooling(folder)
    return Encoder(
        task=task,
        model_type=model_type,
        hidden_size=size(config, "hidden_size", "dim", "d_model", "embedding_size"),
        pooling=pooling,
        normalize=normalize,
        max_tokens=_max_tokens(folder, config),
        multi_label=config.get("problem_type") == "multi_label_classification",
        labels=_labels(config) if task == CLASSIFICATION else [],
        weights=names,
        needs_conversion=needs_conversion,
        notes=notes,
    )


def _config(folder: Path) -> dict[str, Any]:
    return checked_json(folder / "config.json", MAX_CONFIG_BYTES)


def checked_json(path: Path, limit_bytes: int) -> dict[str, Any]:
    """A JSON object that asks for no code of its own. Raises Rejected."""
    value = jsons.read(path, limit_bytes, remedy="Save the model again with save_pretrained.")
    for key in _keys(value):
        if key in CODE_KEYS and path.name != "tokenizer.json":
            raise Rejected(
                f"{path.name} asks for code of its own ({key})",
                remedy="Serinus runs no code out of a Hugging Face folder. Use a model of a built-in architecture, or "
                "export it with torch.export.",
                check="configuration",
            )
    return value


def _keys(value: object) -> list[str]:
    found: list[str] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            found += item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return found


def _architecture(config: dict[str, Any]) -> str:
    listed = config.get("architectures")
    if not isinstance(listed, list) or len(listed) != 1 or not isinstance(listed[0], str):
        _refuse("config.json names no architecture", "Save the model again with save_pretrained.")
    return str(listed[0])


def _unknown(architecture: str, model_type: str) -> NoReturn:
    _refuse(
        f"the architecture {shown(architecture)} (model_type {shown(model_type)}) is not one that Serinus serves",
        "Served are encoders of these model types: " + ", ".join(sorted(MODEL_TYPES)) + ". Others: torch.export.",
    )


def _task(architecture: str) -> str:
    if architecture.endswith("ForSequenceClassification"):
        return CLASSIFICATION
    if architecture.endswith(("Model", "ForMaskedLM", "ForPreTraining")):
        return FEATURES
    raise Rejected(
        f"the architecture {shown(architecture)} does a task that Serinus does not serve",
        remedy="Served are ...Model, ...ForMaskedLM (both as sentence embeddings) and ...ForSequenceClassification.",
        check="configuration",
    )


def _check_files(folder: Path) -> list[str]:
    notes: list[str] = []
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        _refuse(
            "tokenizer.json is missing",
            "Save the tokenizer beside the model: AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(folder).",
        )
    fast = checked_json(tokenizer, MAX_TOKENIZER_BYTES)
    if not isinstance(fast.get("model"), dict):
        _refuse("tokenizer.json holds no tokenizer", "Save the tokenizer again with save_pretrained.")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json" and name not in {"config.json", "tokenizer.json"} and path.stat().st_size:
            if path.name in {"vocab.json", "model.safetensors.index.json", "added_tokens.json"}:
                continue
            if "config" in name or path.stat().st_size <= MAX_CONFIG_BYTES:
                checked_extra(path)
        elif path.suffix == ".py":
            notes.append(f"{name} is ignored: no code is run from this folder.")
    return notes


def checked_extra(path: Path, limit_bytes: int = MAX_CONFIG_BYTES) -> None:
    """The same for a file that may hold another JSON value than an object."""
    if path.stat().st_size > limit_bytes:
        _refuse(f"{path.name} is larger than {limit_bytes} bytes", "Save the model again with save_pretrained.")
    value = jsons.parse(path.read_bytes(), path.name, remedy="Save the model again with save_pretrained.")
    if isinstance(value, dict):
        checked_json(path, limit_bytes)


def weights(folder: Path) -> tuple[list[str], bool]:
    """(file names, whether they must be converted to safetensors first). Raises Rejected where there are none."""
    tables = safetensors.read_folder(folder)
    if any(tables.values()):
        return sorted(tables), False
    if (folder / PICKLED).is_file():
        pickles.check_weights(folder / PICKLED, PICKLED, SAFE)
        return [PICKLED], True
    if (folder / "pytorch_model.bin.index.json").is_file():
        _refuse("the weights are pickles in several files", "Save the model again with safe_serialization=True.")
    raise Rejected(
        "the folder holds no weights (model.safetensors)",
        remedy="Save the model with save_pretrained(folder, safe_serialization=True) and upload the whole folder.",
        check="weights",
    )


def _pooling(folder: Path) -> tuple[str, bool]:
    path = folder / "1_Pooling" / "config.json"
    pooling = "mean"
    if path.is_file():
        config = checked_json(path, MAX_CONFIG_BYTES)
        modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        known = {
            "pooling_mode_mean_tokens": "mean",
            "pooling_mode_cls_token": "cls",
            "pooling_mode_max_tokens": "max",
        }
        if len(modes) != 1 or modes[0] not in known:
            _refuse("the pooling of 1_Pooling/config.json is not served", "Served are mean, cls and max pooling.")
        pooling = known[modes[0]]
    modules = folder / "modules.json"
    normalize = False
    if modules.is_file() and modules.stat().st_size <= MAX_CONFIG_BYTES:
        listed = jsons.parse(modules.read_bytes(), "modules.json")
        kinds = (
            [str(item.get("type", "")) for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        )
        normalize = any(kind.endswith(".Normalize") for kind in kinds)
        unknown = [kind for kind in kinds if kind.rsplit(".", 1)[-1] not in {"Transformer", "Pooling", "Normalize"}]
        if unknown:
            _refuse(f"modules.json asks for {shown(unknown[0])}", "Served are Transformer, Pooling and Normalize.")
    return pooling, normalize


def _max_tokens(folder: Path, config: dict[str, Any]) -> int:
    limit = size(config, "max_position_embeddings", "n_positions")
    if config.get("model_type") in {"roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "mpnet"}:
        limit = max(0, limit - 2)
    path = folder / "sentence_bert_config.json"
    if path.is_file():
        said = checked_json(path, MAX_CONFIG_BYTES).get("max_seq_length")
        if type(said) is int and said > 0:
            limit = min(limit or said, said)
    return limit


def size(config: dict[str, Any], *names: str) -> int:
    """The first of these that is there and a sensible number; 0 for none."""
    for name in names:
        value = config.get(name)
        if type(value) is int and 0 < value < 1 << 24:
            return value
    return 0


def _labels(config: dict[str, Any]) -> list[str]:
    table = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(table, dict) or not 0 < len(table) <= MAX_LABELS:
        _refuse("id2label in config.json is no table of labels", "Save the model again with save_pretrained.")
    labels = [table.get(str(index)) for index in range(len(table))]
    if any(not isinstance(label, str) or len(label) > 200 for label in labels):
        _refuse("id2label in config.json does not count from 0", "Save the model again with save_pretrained.")
    return [str(label) for label in labels]


def _refuse(reason: str, remedy: str) -> NoReturn:
    raise Rejected(reason, remedy=remedy, check="configuration")
