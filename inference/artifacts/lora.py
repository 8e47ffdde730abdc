"""LoRA adapters as PEFT writes them: adapter_config.json beside adapter_model.safetensors. Data, read by us alone.

An adapter is a version of its own, bound to a version of the model that it changes by the setting `parameters.base`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from inference.artifacts import hf, safetensors
from inference.artifacts.paths import shown
from inference.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base"  # the key in a version's `parameters`
MAX_RANK = 512
REMEDY = "Save the adapter again with PEFT: model.save_pretrained(folder), as plain LoRA on linear layers."
HOW = 'Name the version that it changes in the settings: {"parameters": {"base": "NAME:NUMBER"}}.'
UNSERVED = {  # what would change the arithmetic, unless it says so
    "use_dora": False, "fan_in_fan_out": False, "bias": "none", "layer_replication": None, "modules_to_save": None,
    "alora_invocation_tokens": None, "rank_pattern": {}, "alpha_pattern": {}, "lora_bias": False,
    "trainable_token_indices": None,
}  # fmt: skip
_PART = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_BASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,63}:[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class Adapter:
    """rank: r; scale: what its product is multiplied by; modules: the linear layers it changes, by transformers' names."""

    rank: int
    scale: float
    parameters: int
    modules: list[str] = field(default_factory=list)
    base_name: str = ""


def read(folder: Path) -> Adapter:
    """The adapter in `folder`. Raises Rejected for other kinds of adapters and for tensors that do not fit together."""
    config = hf.checked_json(folder / CONFIG, hf.MAX_CONFIG_BYTES)
    if config.get("peft_type") != "LORA":
        _refuse(f"the adapter is of the kind {shown(str(config.get('peft_type')))}; LoRA is served")
    for key, plain in UNSERVED.items():
        if config.get(key, plain) not in (plain, None, False, [], {}):
            _refuse(f"the adapter uses {key}, which is not served")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 0 < rank <= MAX_RANK:
        _refuse(f"the adapter's rank (r) is no number from 1 to {MAX_RANK}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
        _refuse("the adapter's lora_alpha is no number")
    if not (folder / WEIGHTS).is_file():
        _refuse(f"{WEIGHTS} is missing", "Save the adapter with safe_serialization=True and upload the whole folder.")
    table = safetensors.read(folder / WEIGHTS)
    return Adapter(
        rank=rank,
        scale=alpha / (rank**0.5 if config.get("use_rslora") else rank),
        parameters=sum((one.end - one.begin) // safetensors.ITEM_BYTES[one.dtype] for one in table.values()),
        modules=_modules(table, rank),
        base_name=str(config.get("base_model_name_or_path") or "")[:200],
    )


def base_of(parameters: Mapping[str, Any]) -> tuple[str, int]:
    """(model, number) of the version that an adapter with these settings changes. Raises Rejected when unsaid."""
    said = parameters.get(BASE)
    if not isinstance(said, str) or not _BASE.fullmatch(said):
        raise Rejected("the adapter does not say which version it changes", remedy=HOW, check="configuration")
    name, _, number = said.partition(":")
    return name, int(number)


def _modules(table: dict[str, safetensors.Tensor], rank: int) -> list[str]:
    halves: dict[str, dict[str, safetensors.Tensor]] = {}
    for name, tensor in table.items():
        found = _PART.fullmatch(name)
        if found is None:
            _refuse(f"the adapter holds {shown(name)}, which is no part of a LoRA on a linear layer")
        if tensor.dtype not in {"F32", "F16", "BF16"} or len(tensor.shape) != 2:
            _refuse(f"the adapter's tensor {shown(name)} is no matrix of floating-point numbers")
        halves.setdefault(found[1], {})[found[2]] = tensor
    for module, parts in halves.items():
        if set(parts) != {"A", "B"} or parts["A"].shape[0] != rank or parts["B"].shape[1] != rank:
            _refuse(f"the two matrices of {shown(module)} do not fit the rank {rank}")
    if not halves:
        _refuse("the adapter changes no layer")
    return sorted(halves)


def _refuse(reason: str, remedy: str = REMEDY) -> NoReturn:
    raise Rejected(reason, remedy=remedy, check="configuration")
