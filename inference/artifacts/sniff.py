"""What a file is, by its first bytes and its members; and what to tell a person whose file cannot be served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from inference.artifacts import onnx, pickles, safetensors, stablehlo
from inference.artifacts.paths import shown
from inference.errors import Rejected

HEAD_BYTES = 4096


class Kind(StrEnum):
    """Kinds of file that are told apart. COMPANION: text, JSON and other small things that may lie beside a model."""

    PT2 = "pt2"
    JAX = "jax"
    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    SAFETENSORS = "safetensors"
    TORCH_PICKLE = "torch pickle"
    PICKLE = "pickle"
    KERAS = "keras"
    HDF5 = "hdf5"
    GGUF = "gguf"
    NUMPY = "numpy"
    TFLITE = "tflite"
    NATIVE = "native"
    AOTI = "aotinductor"
    ARCHIVE = "archive"
    HTML = "html"
    LFS = "lfs"
    COMPANION = "companion"
    EMPTY = "empty"
    UNKNOWN = "unknown"


_MAGIC = [
    (b"\x89HDF\r\n\x1a\n", Kind.HDF5),
    (b"GGUF", Kind.GGUF),
    (b"\x93NUMPY", Kind.NUMPY),
    (b"\x7fELF", Kind.NATIVE),
    (b"MZ", Kind.NATIVE),
    (b"\x1f\x8b", Kind.ARCHIVE),
    (b"BZh", Kind.ARCHIVE),
    (b"\xfd7zXZ", Kind.ARCHIVE),
    (b"7z\xbc\xaf", Kind.ARCHIVE),
    (b"Rar!", Kind.ARCHIVE),
    (b"\x28\xb5\x2f\xfd", Kind.ARCHIVE),
    (b"version https://git-lfs", Kind.LFS),
]

_ENCODER = (
    "Upload it inside its Hugging Face folder (config.json and tokenizer.json beside it): its weights are then "
    "converted to safetensors in the sandbox. Or export the model with torch.export.save(...)."
)
CONVERT = (
    "Convert it here (the button on this version's page, or `serinus convert`): its tensors are written as safetensors "
    "in the sandbox. Then put model.safetensors beside its config.json and tokenizer.json, or load it into the module "
    "and export that with torch.export.save(...)."
)
STATE_DICT = (
    "Save the weights alone: torch.save(model.state_dict(), path), or safetensors.torch.save_model(model, path). "
    "Better, export the model with torch.export.save(...)."
)
PICKLE = "this is a torch pickle: weights without a model, in a format that can run code"
_SAYS: dict[Kind, tuple[str, str]] = {
    Kind.SAFETENSORS: (
        "these are weights without a model: there is no config.json",
        "Upload the whole Hugging Face folder (config.json, tokenizer.json, model.safetensors), or export the model.",
    ),
    Kind.TORCH_PICKLE: (PICKLE, _ENCODER),
    Kind.PICKLE: (
        "this is a Python pickle (as joblib and scikit-learn write it): loading it would run whatever it says",
        "Export the model to ONNX (skl2onnx for scikit-learn), or upload a Python package with serinus_model.py.",
    ),
    Kind.KERAS: ("this is a Keras model", "Export it: model.export(..., format='onnx'), and upload the .onnx file."),
    Kind.HDF5: (
        "this is an HDF5 file, as Keras writes it",
        "Load it in Keras and export it: model.export(..., format='onnx').",
    ),
    Kind.NUMPY: ("these are NumPy arrays, not a model", "Export the model with torch.export, jax.export or to ONNX."),
    Kind.TFLITE: ("this is a TensorFlow Lite model", "Convert it to ONNX with tf2onnx and upload the .onnx file."),
    Kind.NATIVE: ("this is native machine code", "Export the model with torch.export, jax.export or to ONNX."),
    Kind.AOTI: (
        "this is an AOTInductor package: native machine code",
        "Upload the program itself, written by torch.export.save(...), instead of the compiled package.",
    ),
    Kind.ARCHIVE: (
        "this is a packed archive inside the upload",
        "Upload one .zip, .tar or .tar.gz file alone, or the files themselves.",
    ),
    Kind.HTML: (
        "this is a web page, not a model: the download it came from has probably failed",
        "Download the model again and look at the file's size.",
    ),
    Kind.LFS: ("this is a Git LFS pointer, not the file itself", "Fetch the file with `git lfs pull` and upload that."),
    Kind.EMPTY: ("the file is empty", "Export the model again and upload the new file."),
}
SERVED = (
    "Served are: torch.export (.pt2), jax.export, ONNX, Hugging Face folders of encoders and language models with "
    "safetensors, GGUF, LoRA adapters, and, with the right to upload code, TorchScript and Python packages."
)


def kind_of(path: Path) -> Kind:
    """Reads at most the first 4 KiB, and the directory of a zip file. Raises Rejected for a damaged zip file."""
    size = path.stat().st_size
    if size == 0:
        return Kind.EMPTY if path.suffix not in {".txt", ".md", ".py", ".json"} else Kind.COMPANION
    with path.open("rb") as source:
        head = source.read(HEAD_BYTES)
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(path)
    return _by_structure(path, head, size)


def _by_structure(path: Path, head: bytes, size: int) -> Kind:
    marks: list[tuple[Kind, Callable[[], bool]]] = [
        (Kind.TORCH_PICKLE, lambda: pickles.is_legacy_torch(head)),
        (Kind.PICKLE, lambda: pickles.is_pickle(head)),
        (Kind.TFLITE, lambda: head[4:8] == b"TFL3"),
        (Kind.ARCHIVE, lambda: head[257:262] == b"ustar"),
        (Kind.SAFETENSORS, lambda: safetensors.looks_like(head, size)),
        (Kind.JAX, lambda: stablehlo.looks_like(path)),
        (Kind.ONNX, lambda: onnx.looks_like(path)),
    ]
    return next((kind for kind, fits in marks if fits()), None) or _text_kind(head)


def _zip_kind(path: Path) -> Kind:
    names = pickles.members(path)
    marks = [
        (Kind.PT2, "models/model.json" in names),
        (Kind.AOTI, any(name.startswith(("data/aotinductor/", "aotinductor/")) for name in names)),
        (Kind.PT2, "archive_format" in names),
        (Kind.TORCHSCRIPT, pickles.is_torchscript(names)),
        (Kind.TORCH_PICKLE, pickles.is_torch_zip(names)),
        (Kind.KERAS, "model.weights.h5" in names),
        (Kind.NUMPY, bool(names) and all(name.endswith(".npy") for name in names)),
    ]
    return next((kind for kind, fits in marks if fits), Kind.ARCHIVE)


def _text_kind(head: bytes) -> Kind:
    if b"\0" in head:
        return Kind.UNKNOWN
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return Kind.UNKNOWN
        text = head[: error.start].decode()
    start = text.lstrip()[:64].lower()
    if start.startswith(("<!doctype html", "<html", "<?xml", "<error")):
        return Kind.HTML
    return Kind.COMPANION


def refuse(paths: list[str], found: Sequence[tuple[str, Kind]]) -> NoReturn:
    """Raises Rejected for a folder without a model, by the most telling of its files."""
    order = list(_SAYS)
    telling = sorted(
        ((path, kind) for path, kind in found if kind in _SAYS), key=lambda item: (order.index(item[1]), item[0])
    )
    if telling:
        path, kind = telling[0]
        reason, remedy = _SAYS[kind]
        raise Rejected(f"{shown(path)}: {reason}", remedy=remedy, check="format")
    unknown = [path for path, kind in found if kind is Kind.UNKNOWN]
    if unknown:
        raise Rejected(
            f"{shown(unknown[0])} is of no format that Serinus knows, or it is damaged", remedy=SERVED, check="format"
        )
    raise Rejected(f"there is no model among the {len(paths)} files", remedy=SERVED, check="format")
