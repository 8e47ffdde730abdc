"""What a decoder looks like, read from a `config.json` in transformers' form. Pure: numbers in, numbers out.

Both forms of the rotary settings are read: `rope_theta` with `rope_scaling`, and transformers 5's `rope_parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inference.errors import Rejected

FAMILIES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "gemma3", "phi3"}
)  # fmt: skip
GEMMA = frozenset({"gemma2", "gemma3_text"})
ROPES = frozenset({"default", "linear", "dynamic", "llama3", "yarn", "longrope"})
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
}
REMEDY = "Save the model again with save_pretrained of a current transformers, or serve another one."


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """theta: base; kind: one of ROPES; share: part of the head's width that is rotated; scaling: the kind's own numbers;
    context, original: largest and trained number of positions.
    """

    theta: float = 10_000.0
    kind: str = "default"
    share: float = 1.0
    scaling: Mapping[str, Any] = field(default_factory=dict)
    context: int = 2048
    original: int = 2048


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Sizes and switches of one decoder. windows: by layer, 0 for full attention, else how many tokens a token sees
    (itself included). ropes: by layer, the index in `rope_kinds`, or -1 for none. Softcaps and scales: 0 for none.
    """

    family: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    context: int
    norm_eps: float
    activation: str
    windows: tuple[int, ...]
    ropes: tuple[int, ...]
    rope_kinds: tuple[RopeSpec, ...]
    tied: bool
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_plus_one: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    final_softcap: float = 0.0


def knows(config: Mapping[str, Any]) -> bool:
    """Whether `config` is of a family that our own decoder runs."""
    return config.get("model_type") in FAMILIES


def spec_of(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder that `config` describes. Raises Rejected naming what is missing or not known."""
    family = str(config.get("model_type", ""))
    if family == "gemma3" and isinstance(config.get("text_config"), Mapping):
        return spec_of(dict(config["text_config"]) | {"model_type": "gemma3_text"})
    if family not in FAMILIES:
        raise _rejected(f"the decoder {family!r} is not one of {', '.join(sorted(FAMILIES))}")
    heads, layers = _size(config, "num_attention_heads"), _size(config, "num_hidden_layers")
    width = _size(config, "hidden_size")
    head_width = int(config.get("head_dim") or width // heads)
    is_gemma = family in GEMMA
    return DecoderSpec(
        family=family,
        vocabulary=_size(config, "vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=head_width,
        inner=_size(config, "intermediate_size"),
        context=_size(config, "max_position_embeddings"),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        activation=_activation(config),
        windows=_windows(config, family, layers),
        ropes=_ropes(config, family, layers),
        rope_kinds=_rope_kinds(config, family),
        tied=bool(config.get("tie_word_embeddings", is_gemma)),
        attention_bias=bool(config.get("attention_bias", False)) or family == "qwen2",
        output_bias=bool(config.get("attention_bias", False)) and family != "qwen2",
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family in {"qwen3", "gemma3_text"},
        norm_plus_one=is_gemma,
        post_norms=is_gemma,
        embedding_scale=width**0.5 if is_gemma else 1.0,
        attention_scale=float(config.get("query_pre_attn_scalar") or head_width) ** -0.5
        if is_gemma
        else head_width**-0.5,
        attention_softcap=float(config.get("attn_logit_softcapping") or 0) if is_gemma else 0.0,
        final_softcap=float(config.get("final_logit_softcapping") or 0) if is_gemma else 0.0,
    )


def _activation(config: Mapping[str, Any]) -> str:
    name = str(config.get("hidden_activation") or config.get("hidden_act") or "silu")
    if name not in ACTIVATIONS:
        raise _rejected(f"the activation {name!r} is not known")
    return ACTIVATIONS[name]


def _windows(config: Mapping[str, Any], family: str, layers: int) -> tuple[int, ...]:
    window = int(config.get("sliding_window") or 0)
    if not window or (family in {"qwen2", "qwen3", "smollm3"} and not config.get("use_sliding_window")):
        return (0,) * layers
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if family == "gemma2":
        return tuple(0 if layer % 2 else window for layer in range(layers))
    if family == "gemma3_text":
        every = int(config.get("sliding_window_pattern") or 6)
        return tuple(0 if (layer + 1) % every == 0 else window for layer in range(layers))
    if family in {"qwen2", "qwen3"}:
        first = int(config.get("max_window_layers") or 0)
        return tuple(window if layer >= first else 0 for layer in range(layers))
    return (window,) * layers


def _ropes(config: Mapping[str, Any], family: str, layers: int) -> tuple[int, ...]:
    if family == "gemma3_text":
        return tuple(1 if window else 0 for window in _windows(config, family, layers))
    if family == "smollm3":
        listed = config.get("no_rope_layers")
        if isinstance(listed, list) and len(listed) == layers:
            return tuple(0 if rotated else -1 for rotated in listed)
        every = int(config.get("no_rope_layer_interval") or 4)
        return tuple(-1 if (layer + 1) % every == 0 else 0 for layer in range(layers))
    return (0,) * layers


def _rope_kinds(config: Mapping[str, Any], family: str) -> tuple[RopeSpec, ...]:
    given = config.get("rope_parameters")
    if isinstance(given, Mapping) and any(isinstance(part, Mapping) for part in given.values()):
        parts = [given.get("full_attention"), given.get("sliding_attention")]
        return tuple(_rope(config, part) for part in parts if isinstance(part, Mapping))
    if isinstance(given, Mapping):
        return (_rope(config, given),)
    scaling = config.get("rope_scaling") or {}
    theta = float(config.get("rope_theta") or 10_000.0)
    full = _rope(config, {"rope_theta": theta} | dict(scaling))
    if family != "gemma3_text":
        return (full,)
    return full, _rope(config, {"rope_theta": float(config.get("rope_local_base_freq") or 10_000.0)})


def _rope(config: Mapping[str, Any], given: Mapping[str, Any]) -> RopeSpec:
    kind = str(given.get("rope_type") or given.get("type") or "default")
    kind = "longrope" if kind == "su" else kind
    if kind not in ROPES:
        raise _rejected(f"the rotary scaling {kind!r} is not one of {', '.join(sorted(ROPES))}")
    context = _size(config, "max_position_embeddings")
    original = int(
        given.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or context
    )
    share = float(given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    return RopeSpec(float(given.get("rope_theta") or 10_000.0), kind, share, dict(given), context, original)


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise _rejected(f"config.json has no usable {name!r} ({value!r})")
    return value


def _rejected(reason: str) -> Rejected:
    return Rejected(reason, remedy=REMEDY, check="configuration")
