"""Hugging Face encoders: text in, sentence embeddings or class scores out; the tokenizer runs here.

Classes come from transformers' own registry by `config.json`, weights from safetensors mapped into memory; nothing of
the folder is ever run. `text` is BYTES [-1], one text a row; clients that send [n, 1] are understood. Embeddings are
pooled and normalised as the folder's sentence-transformers files say; without those: mean-pooled, L2-normalised.

A request is tokenised once, before it waits (`prepare`); its ids then go through the pass as `ids`, one array a row. On a
CPU the rows of a batch are laid end to end instead of padded, where that proves to give the same answers (see packing).
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from inference.artifacts import hf
from inference.errors import InvalidInput, Rejected, SerinusError
from inference.models import batch
from inference.models.contract import Prepared
from inference.models.on_torch import fused, packed_heads, packing, tensors
from inference.models.tokenizer import BatchTokenizer
from inference.protocol.oip import Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from inference.models.contract import Arrays, LoadContext

MAX_BATCH = 32
FALLBACK_TOKENS = 512
# More lanes than a replica's share of the cores: lanes wait for nobody, so what neighbours leave idle is used.
MOST_LANES = 4
LEGACY_NAMES = {".gamma": ".weight", ".beta": ".bias"}
# What could make transformers fetch or run something that is not its own.
DROPPED_KEYS = {"auto_map", "custom_code", "attn_implementation", "quantization_config", "use_kernels"}


def load(context: LoadContext) -> EncoderModel:
    """Builds the architecture, maps the weights, reads the tokenizer. Raises Rejected."""
    tensors.settle(context)
    encoder = hf.read(context.folder)
    config = _config(context.folder, encoder.model_type)
    task = context.settings.task or encoder.task
    network = _network(config, task)
    _fill(network, _weights(context.folder, encoder.weights), headless=task == hf.FEATURES)
    network.float() if context.device == "cpu" else network.to(context.device)
    tokenizer = BatchTokenizer(
        context.folder / "tokenizer.json",
        max_tokens=encoder.max_tokens or FALLBACK_TOKENS,
        pad_id=getattr(config, "pad_token_id", None),
    )
    head = _classifier(config, encoder) if task == hf.CLASSIFICATION else _pooler(context.folder, encoder)
    labels = context.settings.labels or encoder.labels if task == hf.CLASSIFICATION else []
    signature = Signature(
        inputs=[TensorSpec("text", "BYTES", [-1])],
        outputs=[_output(config, task)],
        max_batch_size=batch.max_batch(context.settings, None) if context.settings.max_batch_size else MAX_BATCH,
        platform="hf_encoder",
        labels=labels,
    )
    model = EncoderModel(network, tokenizer, head, signature, context.device)
    model.bucket_lengths = sorted(context.settings.bucket_lengths)
    if context.device == "cpu" and not model.bucket_lengths:
        model.pack(encoder.max_tokens or FALLBACK_TOKENS, is_classifier=task == hf.CLASSIFICATION)
        if model.packed and context.settings.instances == 1:
            model.lanes = _lanes(context.threads)
            torch.set_num_threads(1)
    return model


def _packed(network: Any, pad_id: int, max_tokens: int) -> packing.Way | None:
    way = packing.proven(network, pad_id, max_tokens)
    return fused.proven(network, way, pad_id, max_tokens) or way


def _lanes(threads: int) -> int:
    return max(threads, min(MOST_LANES, len(os.sched_getaffinity(0))))


class EncoderModel:
    """One network; passes may run side by side."""

    is_shareable = True

    def __init__(self, network: Any, tokenizer: BatchTokenizer, head: Any, signature: Signature, device: str) -> None:
        self._network = network.eval()
        self._tokenizer = tokenizer
        self._head = head
        self._device = device
        self.signature = signature
        self.lanes = 1
        self.packed: packing.Way | None = None
        self._logits: packed_heads.Logits | None = None
        self.bucket_lengths: list[int] = []

    def pack(self, max_tokens: int, *, is_classifier: bool) -> None:
        """From now on rows are laid end to end, where that proves to give the same answers."""
        pad_id = self._tokenizer.pad_id
        if is_classifier:
            self._logits = packed_heads.proven(self._network, pad_id, max_tokens)
        if self._logits or not is_classifier:
            self.packed = _packed(self._network.base_model, pad_id, max_tokens)

    @property
    def pads(self) -> bool:
        """Whether rows are padded to their batch's longest, so that similar lengths should run together."""
        return self.packed is None

    def prepare(self, requests: Sequence[Arrays]) -> list[Prepared | SerinusError]:
        """Each request's token ids; the error of the one whose text cannot be read."""
        texts = [request["text"].reshape(-1).tolist() for request in requests]
        try:
            ids = iter(self._tokenizer.ids([text for one in texts for text in one]))
            return [_prepared([next(ids) for _ in one]) for one in texts]
        except InvalidInput as error:
            return [error] if len(requests) == 1 else [self.prepare([request])[0] for request in requests]

    def work(self, inputs: Arrays) -> tuple[int, int]:
        """(tokens that a pass over these inputs computes, those of them that are padding)."""
        if "ids" not in inputs:
            return 0, 0
        sizes = [one.size for one in inputs["ids"]]
        real = sum(sizes)
        whole = real if self._packs(sizes) else len(sizes) * self._padded_length(sizes)
        return whole, whole - real

    def run(self, inputs: Arrays) -> Arrays:
        given = inputs.get("ids")
        ids = self._tokenizer.ids(inputs["text"].reshape(-1).tolist()) if given is None else list(given)
        with torch.inference_mode(), tensors.lane(self._device):
            packed = self.packed if self._packs([one.size for one in ids]) else None
            output = self._packed_pass(packed, ids) if packed else self._padded_pass(ids)
            return {self.signature.outputs[0].name: _fp32(output)}

    def close(self) -> None:
        self._network = None

    def _packs(self, sizes: list[int]) -> bool:
        return self.packed is not None and max(sizes) >= self.packed.from_tokens

    def _padded_pass(self, ids: list[Any]) -> torch.Tensor:
        together, mask = self._tokenizer.padded(ids, self._padded_length([one.size for one in ids]))
        held = tensors.to_torch(mask, "INT64", self._device)
        found = self._network(input_ids=tensors.to_torch(together, "INT64", self._device), attention_mask=held)
        output: torch.Tensor = self._head(found, held)
        return output

    def _packed_pass(self, packed: packing.Way, ids: list[Any]) -> torch.Tensor:
        hidden = packed.hidden(self._network.base_model, ids)
        if self._logits:
            scores: torch.Tensor = self._head(packed_heads.Scored(self._logits(hidden)), None)
            return scores
        rows = [self._head(packing.Hidden(one[None]), torch.ones(1, len(one), dtype=torch.long)) for one in hidden]
        return torch.cat(rows)

    def _padded_length(self, sizes: list[int]) -> int:
        longest = max(sizes)
        return next((size for size in self.bucket_lengths if size >= longest), longest)


def _prepared(ids: list[Any]) -> Prepared:
    together = np.empty(len(ids), dtype=object)
    for row, one in enumerate(ids):
        together[row] = one
    sizes = [one.size for one in ids]
    return Prepared({"ids": together}, max(sizes), sum(sizes))


def _config(folder: Path, model_type: str) -> Any:
    held = json.loads((folder / "config.json").read_bytes())
    given = {
        key: value
        for key, value in held.items()
        if key not in DROPPED_KEYS and not key.startswith("_") and key not in {"model_type", "transformers_version"}
    }
    try:
        return AutoConfig.for_model(model_type, **given)
    except Exception as error:
        raise _rejected(f"config.json does not describe a {model_type} model: {str(error)[:200]}") from error


def _network(config: Any, task: str) -> Any:
    maker: Any = AutoModelForSequenceClassification if task == hf.CLASSIFICATION else AutoModel
    last: Exception | None = None
    # Older architectures have no sdpa; ours is sdpa that can also keep packed rows apart.
    for attention in (packing.ATTENTION, "sdpa", "eager"):
        try:
            return maker.from_config(config, attn_implementation=attention)
        except Exception as error:  # noqa: BLE001 (told below, whatever transformers raised)
            last = error
    raise _rejected(f"the architecture of config.json cannot be built: {str(last)[:200]}") from last


def _weights(folder: Path, names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        try:
            shard = load_file(folder / name)
        except Exception as error:
            raise _rejected(f"{name} cannot be read: {str(error)[:200]}") from error
        if found.keys() & shard.keys():
            raise _rejected("two weight files hold the same tensor")
        found |= shard
    return found


def _fill(network: Any, weights: dict[str, Any], *, headless: bool) -> None:
    """Assigns the mapped weights, whatever prefix they were saved under. Raises Rejected for missing or misfit ones."""
    prefix, wanted = network.base_model_prefix + ".", set(network.state_dict())
    state = {}
    for name, tensor in weights.items():
        for old, new in LEGACY_NAMES.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name  # noqa: PLW2901
        state[name.removeprefix(prefix) if name not in wanted else name] = tensor
    try:
        result = network.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise _rejected(f"the weights do not fit config.json: {str(error).splitlines()[-1].strip()[:200]}") from error
    missing = [name for name in result.missing_keys if not (headless and "pooler" in name)]
    if missing:
        raise _rejected(f"{len(missing)} weights are missing, {missing[0]} first")


def _output(config: Any, task: str) -> TensorSpec:
    if task == hf.CLASSIFICATION:
        return TensorSpec("scores", "FP32", [-1, int(config.num_labels)])
    return TensorSpec("embedding", "FP32", [-1, int(config.hidden_size)])


def _classifier(config: Any, encoder: hf.Encoder) -> Any:
    def scores(result: Any, _mask: torch.Tensor | None) -> torch.Tensor:
        logits: torch.Tensor = result.logits.float()
        if encoder.multi_label:
            return torch.sigmoid(logits)
        return logits if config.num_labels == 1 else torch.softmax(logits, dim=-1)

    return scores


def _pooler(folder: Path, encoder: hf.Encoder) -> Any:
    pool = POOLINGS[encoder.pooling]
    normalize = encoder.normalize or not (folder / "modules.json").is_file()

    def embedding(result: Any, mask: torch.Tensor) -> torch.Tensor:
        pooled = pool(result.last_hidden_state.float(), mask.unsqueeze(-1))
        return functional.normalize(pooled, dim=-1) if normalize else pooled

    return embedding


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def _cls(hidden: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(mask == 0, float("-inf")).amax(1)


POOLINGS = {"mean": _mean, "cls": _cls, "max": _max}


def _fp32(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return tensors.to_numpy(tensor.float())


def _rejected(reason: str) -> Rejected:
    return Rejected(reason, remedy="save the model again with save_pretrained(folder)", check="load")
