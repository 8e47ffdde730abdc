"""What a version is made of: its files, its runtime settings, and the digest of both.

A version's digest is the sha256 of the canonical manifest, so equal content has an equal digest.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec

from inference.protocol.settings import RuntimeSettings
from inference.protocol.supervision import FileRef

__all__ = [
    "TIER_OF",
    "FileRef",
    "Format",
    "Manifest",
    "RuntimeSettings",
    "Tier",
    "canonical",
    "digest_of",
    "settings_from",
]


class Format(StrEnum):
    """Artifact formats, detected by content and never by name."""

    TORCH_EXPORT = "torch_export"
    JAX_EXPORT = "jax_export"
    ONNX = "onnx"
    HF_ENCODER = "hf_encoder"
    HF_DECODER = "hf_decoder"
    GGUF = "gguf"
    LORA = "lora"
    TORCHSCRIPT = "torchscript"
    PYTHON = "python"
    TRITON_PYTHON = "triton_python"
    TORCH_PICKLE = "torch_pickle"
    ECHO = "echo"
    PIPELINE = "pipeline"


class Tier(StrEnum):
    """How far a version's files are trusted (docs/architecture.md, decision 5)."""

    DATA = "data"
    CHECKED = "checked"
    CODE = "code"


TIER_OF: dict[Format, Tier] = {
    Format.TORCH_EXPORT: Tier.CHECKED,
    Format.JAX_EXPORT: Tier.CHECKED,
    Format.ONNX: Tier.CHECKED,
    Format.HF_ENCODER: Tier.DATA,
    Format.HF_DECODER: Tier.DATA,
    Format.GGUF: Tier.DATA,
    Format.LORA: Tier.DATA,
    Format.TORCHSCRIPT: Tier.CODE,
    Format.PYTHON: Tier.CODE,
    Format.TRITON_PYTHON: Tier.CODE,
    Format.TORCH_PICKLE: Tier.DATA,
    Format.ECHO: Tier.DATA,
    Format.PIPELINE: Tier.DATA,
}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files (sorted by path) and settings of one version."""

    files: list[FileRef]
    settings: RuntimeSettings = RuntimeSettings()


def canonical(manifest: Manifest) -> bytes:
    """The one byte form that is hashed: files sorted by path, keys in a fixed order."""
    ordered = Manifest(files=sorted(manifest.files, key=lambda f: f.path), settings=manifest.settings)
    return msgspec.json.encode(ordered, order="deterministic")


def digest_of(manifest: Manifest) -> str:
    """sha256 (hex) of the canonical manifest."""
    return hashlib.sha256(canonical(manifest)).hexdigest()


def settings_from(mapping: dict[str, object]) -> RuntimeSettings:
    """Raises msgspec.ValidationError naming the field, for an unknown one too."""
    return msgspec.convert(mapping, RuntimeSettings)
