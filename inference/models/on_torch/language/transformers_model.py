"""Causal language models that our own decoder does not know, run by transformers' classes over our blocks: slower.

Which architectures take part is listed nowhere. A model is tried through the attention interface, all sequences in one
flat batch, and where that is not its own answer, sequence by sequence through its cache; the way whose logits are those
that the model gives without us is taken, and without one the model is refused. Nothing of the folder is ever run: the
class is transformers' own for `model_type`, and it sees numbers and tensors only.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when transformers is imported

import torch
from safetensors.torch import load_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
from transformers.cache_utils import Cache, DynamicCache

from inference.artifacts import hf
from inference.errors import InvalidInput, Rejected, SerinusError
from inference.models.language import LanguageFacts, Step
from inference.models.on_torch.language import attention, hook, trials
from inference.models.on_torch.language.layer_cache import LayerCache, LayerShape
from inference.protocol.generation import language_signature

log = logging.getLogger(__name__)
Tensor = torch.Tensor
# What could make transformers fetch or run something that is not its own, or keep its weights elsewhere.
DROPPED_KEYS = frozenset({
    "auto_map", "custom_code", "attn_implementation", "quantization_config", "use_kernels", "kernel_config",
    "fusion_config", "transformers_weights", "distributed_config", "experts_implementation", "model_type",
    "transformers_version", "dtype", "torch_dtype",
})  # fmt: skip
GROWING_ROPES = frozenset({"dynamic", "longrope"})
PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
FALLBACK_CONTEXT = 2048
SERVED = (
    "Served are decoders whose only memory of the text are the keys and values of attention: the Llama family by our own "
    "decoder, others through transformers. For this one, export a forward pass with torch.export."
)


class TransformersModel:
    """A causal model of transformers with a cache in blocks. path: "flat", or "sequences" where it has no other way."""

    def __init__(self, folder: Path, *, device: str, dtype: torch.dtype, context: int = 0) -> None:
        """Raises Rejected. context: the longest text, 0 for the model's own."""
        self.device, self.dtype = device, dtype
        config = _config(folder)
        self.network = _network(folder, config, dtype).to(device)
        text = config.get_text_config()
        own = hf.size(vars(text), "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len") or FALLBACK_CONTEXT
        self.context = min(context or own, own)
        self._names = frozenset(inspect.signature(self.network.forward).parameters)
        self._is_hooked = False
        self.shapes: list[LayerShape] = []
        self.windows: list[int] = []
        self.cache: LayerCache | None = None
        self.way = trials.choose(self, {"flat": self._is_flat, "sequences": lambda: True})
        self.signature = language_signature()
        self.facts = self._facts(folder, config)

    # --- the contract of a language model -------------------------------------------------------------------------

    @property
    def weight_bytes(self) -> int:
        return sum(one.nbytes for one in self.network.parameters())

    def block_bytes(self, block_size: int) -> int:
        return LayerCache.block_bytes(self.shapes, block_size, self.dtype)

    def allocate(self, blocks: int, block_size: int) -> None:
        self.cache = None
        self.cache = LayerCache(self.shapes, blocks, block_size, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def forward(self, step: Step) -> Tensor:
        """Logits, float32 [L, vocabulary]. Raises InvalidInput for a step that names adapters."""
        if step.adapters is not None and step.adapters.any():
            raise InvalidInput("a model that is served through transformers takes no adapters")
        is_compiled = self.device == "cpu" and self.dtype is torch.float32
        batch = attention.batch_of(step, self.device, is_compiled=is_compiled)
        found = self._flat(batch) if self.way == "flat" else self._by_sequences(batch)
        return found.float()

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        assert self.cache is not None
        self.cache.copy(pairs)

    def save_blocks(self, blocks: Sequence[int]) -> Tensor:
        assert self.cache is not None
        return self.cache.save(blocks)

    def load_blocks(self, blocks: Sequence[int], saved: Tensor) -> None:
        assert self.cache is not None
        self.cache.load(blocks, saved)

    def close(self) -> None:
        self.cache = None

    # --- both ways ------------------------------------------------------------------------------------------------

    def try_way(self, way: str) -> None:
        """Takes that way from now on, and learns the layers' shapes on it. Raises whatever the model raises."""
        self.way, self.cache = way, None
        token = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        places = torch.arange(2, device=self.device)[None]
        if way == "flat":
            self.network.set_attn_implementation(hook.NAME)
            self._is_hooked = True
            first = hook.Pass(None, None, self.context)
            with hook.through(first):
                self._called(token, places, torch.ones_like(token), use_cache=False)
            self.shapes, self.windows = first.shapes, first.windows
            if first.window != self._window:
                raise ValueError("it keeps its sliding window to itself")
        else:
            self._let_go()
            seen = DynamicCache()
            self._called(token, places, torch.ones_like(token), use_cache=True, past_key_values=seen)
            self.shapes = [_shape_of(layer) for layer in seen.layers]

    @torch.inference_mode()
    def own_logits(self, tokens: list[int]) -> Tensor:
        """What the model says to these tokens without us, [tokens, vocabulary]."""
        self._let_go()
        given = torch.tensor([tokens], device=self.device)
        places = torch.arange(len(tokens), device=self.device)[None]
        found = self._called(given, places, torch.ones_like(given), use_cache=False)
        logits: Tensor = found.logits[0]
        return logits.float()

    def _flat(self, batch: attention.Batch) -> Tensor:
        one = hook.Pass(self.cache, batch, self.context, self.windows)
        more: dict[str, Any] = {"logits_to_keep": batch.wanted} if "logits_to_keep" in self._names else {}
        with hook.through(one):
            found = self._called(
                batch.tokens[None], batch.positions[None], torch.ones_like(batch.tokens)[None], use_cache=False, **more
            )
        logits: Tensor = found.logits[0]
        return logits if more else logits[batch.wanted]

    def _by_sequences(self, batch: attention.Batch) -> Tensor:
        assert self.cache is not None
        every = []
        for number, (begin, end, length) in enumerate(batch.spans):
            table, slots, past = batch.tables[number], batch.slots[begin:end], length - (end - begin)
            layers: list[Any] = [
                hook.PagedLayer(self.cache, n, table, slots=slots, past=past) for n in range(len(self.shapes))
            ]
            found = self._called(
                batch.tokens[None, begin:end],
                batch.positions[None, begin:end],
                torch.ones(1, length, dtype=torch.int64, device=self.device),
                use_cache=True,
                past_key_values=Cache(layers=layers),
            )
            every.append(found.logits[0])
        return torch.cat(every)[batch.wanted]

    def _called(self, tokens: Tensor, places: Tensor, mask: Tensor, **more: Any) -> Any:
        named = {"position_ids": places} if "position_ids" in self._names else {}
        return self.network(input_ids=tokens, attention_mask=mask, **named, **more)

    def _let_go(self) -> None:
        """Back to the model's own attention."""
        if self._is_hooked:
            self._is_hooked = False
            self.network.set_attn_implementation(_attention_of(type(self.network)))

    @property
    def _window(self) -> int:
        """How many tokens a token of the layers with a sliding window sees, 0 where that is all of them."""
        text = self.network.config.get_text_config()
        window = getattr(text, "sliding_window", None) or 0
        has_some = "sliding_attention" in (getattr(text, "layer_types", None) or ())
        return window if has_some and window < self.context else 0

    def _is_flat(self) -> bool:
        return bool(getattr(self.network, "_supports_attention_backend", False)) and "position_ids" in self._names

    def _facts(self, folder: Path, config: Any) -> LanguageFacts:
        told = [config.eos_token_id, _generation(folder).get("eos_token_id")]
        ids = {one for part in told for one in (part if isinstance(part, list) else [part]) if type(one) is int}
        bos = config.bos_token_id if type(config.bos_token_id) is int else None
        vocabulary = int(self.network.get_output_embeddings().weight.shape[0])
        notes = ["served through transformers: slower than our own decoder"]
        if self.way == "sequences":
            notes.append("it has no door for our attention: sequences run one after another, which is slower still")
        family = str(config.model_type)
        return LanguageFacts(family, vocabulary, self.context, frozenset(ids), bos, "transformers", notes)


def _config(folder: Path) -> Any:
    held = hf.checked_json(folder / "config.json", hf.MAX_CONFIG_BYTES)
    given = {key: value for key, value in held.items() if key not in DROPPED_KEYS and not key.startswith("_")}
    name = str(held.get("model_type", ""))
    try:
        config = AutoConfig.for_model(name, **given)
    except Exception as error:
        raise _rejected(f"config.json does not describe a {name} model: {str(error)[:200]}") from error
    kinds = set(_held(held, ("rope_type", "type"), of=("rope_parameters", "rope_scaling")))
    if kinds & GROWING_ROPES:
        raise _rejected(
            f"the rotary scaling {min(kinds & GROWING_ROPES)!r} changes with the longest text of a batch, so that an "
            "answer would depend on its company",
        )
    return config


def _held(value: object, keys: tuple[str, ...], *, of: tuple[str, ...], inside: bool = False) -> Iterator[str]:
    """All texts under `keys`, within whatever lies under the names `of`."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if inside and key in keys and isinstance(part, str):
                yield part
            yield from _held(part, keys, of=of, inside=inside or key in of)


def _network(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    """The model with its weights, in evaluation mode. Raises Rejected."""
    kind = _class_of(config)
    weights: dict[str, Tensor] = {}
    for name in hf.weights(folder)[0]:
        try:
            weights |= load_file(folder / name)
        except Exception as error:
            raise _rejected(f"{name} cannot be read: {str(error)[:200]}") from error
    try:
        network, told = kind.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=dtype,
            attn_implementation=_attention_of(kind),
            output_loading_info=True,
        )
    except SerinusError:
        raise
    except Exception as error:
        raise _rejected(f"the weights do not fit config.json: {str(error).strip()[:300]}") from error
    if missing := sorted(told["missing_keys"]):
        raise _rejected(f"{len(missing)} weights are missing, {missing[0]} first")
    return network.eval().requires_grad_(False)


def _class_of(config: Any) -> Any:
    """The class that transformers has. Raises Rejected for none, and for one that keeps state beside attention's."""
    try:
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise _rejected(f"transformers knows no causal language model of the type {config.model_type!r}") from None
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ()) - PLAIN_LAYERS
    if getattr(kind, "_is_stateful", False) or layers:
        more = f" ({', '.join(sorted(layers))} layers)" if layers else ""
        raise _rejected(f"{kind.__name__} keeps state outside attention{more}: it has no place in blocks")
    if getattr(config, "is_encoder_decoder", False):
        raise _rejected(f"{kind.__name__} is the half of an encoder and decoder")
    return kind


def _attention_of(kind: Any) -> str:
    return "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"


def _shape_of(layer: Any) -> LayerShape:
    if layer.keys is None or layer.keys.dim() != 4:
        raise ValueError("one of its layers keeps no keys and values")
    return LayerShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3])


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    held = json.loads(path.read_bytes()) if path.is_file() else {}
    return held if isinstance(held, dict) else {}


def _rejected(reason: str) -> Rejected:
    return Rejected(reason, remedy=SERVED, check="load")
