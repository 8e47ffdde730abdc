"""The parse stage: what is in this folder, may it be served, and how far is it trusted. Bounded; runs nothing.

Files are known by their content. Names count only where the name is the convention: config.json of a Hugging Face
folder, serinus_model.py of a Python package, a Python file with TritonPythonModel, echo.json, pipeline.json, and draft/
for the model that guesses ahead of a language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from inference.artifacts import (
    causal,
    echo,
    hf,
    lora,
    onnx,
    pickles,
    pipelines,
    pt2,
    pysource,
    sniff,
    stablehlo,
    torchscript,
)
from inference.artifacts.archive import is_litter
from inference.artifacts.manifest import TIER_OF, Format, Tier
from inference.artifacts.paths import check_paths, shown
from inference.artifacts.sniff import Kind
from inference.artifacts.triton import pymodel
from inference.errors import Rejected
from inference.protocol.oip import Signature
from inference.protocol.pipelines import ENTRY as PIPELINE_ENTRY
from inference.protocol.pipelines import MAX_BYTES as PIPELINE_BYTES

MAX_FILES = 2000
_SAFE = {"model.safetensors", "model.safetensors.index.json"}


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the parse stage found.

    entry: the main file's path inside the folder ("config.json" of a Hugging Face folder). task: of Hugging Face folders
    and GGUF files; labels: of classifiers; language: of language models. signature: when the file tells it without its framework, else None and the loader tells.
    needs_conversion: weights must become safetensors (in the sandbox) before the version can be loaded. draft: the draft
    model in the folder of that name, beside a language model.
    """

    format: Format
    tier: Tier
    entry: str
    notes: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    task: str = ""
    signature: Signature | None = None
    needs_conversion: bool = False
    language: causal.Language | None = None
    draft: causal.Language | None = None


def inspect(folder: Path) -> Inspection:
    """Detects the format of an artifact's folder and checks it by that format's rules. Raises only Rejected."""
    paths = _files(folder)
    inside = f"{causal.DRAFT}/"
    own = [path for path in paths if not path.startswith(inside)]
    guessing = [path.removeprefix(inside) for path in paths if path.startswith(inside)]
    if not (_may_be_language(own) and _may_be_language(guessing)):
        return _inspected(folder, paths)
    found = _inspected(folder, own)
    if found.language is None:
        return found
    draft = causal.read_draft(folder, found.language)
    note = f"with a draft model in {inside}: {draft.architecture}, {draft.parameters:,} parameters"
    return replace(found, notes=[*found.notes, note], draft=draft)


def _may_be_language(paths: list[str]) -> bool:
    return "config.json" in paths or any(path.endswith(".gguf") for path in paths)


def _inspected(folder: Path, paths: list[str]) -> Inspection:
    if named := _by_name(folder, paths):
        return named
    found: list[tuple[str, Kind]] = [
        (path, kind) for path in paths if (kind := sniff.kind_of(folder / path)) is not Kind.COMPANION
    ]
    models = [(path, kind) for path, kind in found if kind in READERS]
    if "config.json" in paths and (not models or _SAFE & set(paths)):
        others = [path for path, _ in models]
        return _decoder(folder, others) if causal.is_causal(folder) else _encoder(folder, others)
    if len(models) > 1:
        _several([path for path, _ in models])
    if not models and PIPELINE_ENTRY in paths:
        raise Rejected(f"{PIPELINE_ENTRY} is not alone here", remedy="A pipeline is that one file: upload it alone.")
    if not models:
        _refuse_pickle(folder, found)
        sniff.refuse(paths, found)
    path, kind = models[0]
    return READERS[kind](folder, path)


def _by_name(folder: Path, paths: list[str]) -> Inspection | None:
    """The formats whose main file's name is the convention; None when none of them is there."""
    if pysource.ENTRY in paths:
        return _code(Format.PYTHON, pysource.ENTRY, pysource.check(folder))
    if entry := pymodel.find(folder, paths):
        return _code(Format.TRITON_PYTHON, entry, [pymodel.NOTE])
    if echo.ENTRY in paths:
        echo.check(folder / echo.ENTRY)
        return Inspection(Format.ECHO, TIER_OF[Format.ECHO], echo.ENTRY)
    if paths == [PIPELINE_ENTRY]:
        return _pipeline(folder)
    if lora.CONFIG in paths and "config.json" not in paths:
        return _adapter(folder)
    return None


def _files(folder: Path) -> list[str]:
    paths: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(folder).as_posix()
        if not path.is_file():
            raise Rejected(f"{shown(name)} is not a plain file", remedy="Upload plain files only.", check="paths")
        if not is_litter(name):
            paths.append(name)
        if len(paths) > MAX_FILES:
            raise Rejected(f"there are more than {MAX_FILES} files", remedy="Leave out what the model does not need.")
    if not paths:
        raise Rejected("nothing was uploaded", remedy="Upload a model file or a folder with one.")
    return check_paths(paths)


def _encoder(folder: Path, others: list[str]) -> Inspection:
    encoder = hf.read(folder)
    ignored = [f"{shown(path)} is ignored: the safetensors weights are served." for path in others[:8]]
    return Inspection(
        Format.HF_ENCODER,
        TIER_OF[Format.HF_ENCODER],
        "config.json",
        notes=encoder.notes + ignored,
        labels=encoder.labels,
        task=encoder.task,
        needs_conversion=encoder.needs_conversion,
    )


def _decoder(folder: Path, others: list[str]) -> Inspection:
    found = causal.read_folder(folder)
    ignored = [f"{shown(path)} is ignored: the safetensors weights are served." for path in others[:8]]
    return _language(Format.HF_DECODER, "config.json", found, ignored)


def _gguf(folder: Path, path: str) -> Inspection:
    return _language(Format.GGUF, path, causal.read_gguf(folder / path), [])


def _language(kind: Format, entry: str, found: causal.Language, more: list[str]) -> Inspection:
    return Inspection(
        kind,
        TIER_OF[kind],
        entry,
        notes=found.notes + more,
        task=causal.TASK,
        needs_conversion=found.needs_conversion,
        language=found,
    )


def _adapter(folder: Path) -> Inspection:
    found = lora.read(folder)
    note = f"a LoRA of rank {found.rank} on {len(found.modules)} layers, {found.parameters:,} parameters"
    return Inspection(Format.LORA, TIER_OF[Format.LORA], lora.CONFIG, notes=[note], task=causal.TASK)


def _pipeline(folder: Path) -> Inspection:
    # What its steps are, only the registry knows: it never has a host validate or serve one.
    with (folder / PIPELINE_ENTRY).open("rb") as source:
        pipelines.check_graph(pipelines.read(source.read(PIPELINE_BYTES + 1)))
    return Inspection(Format.PIPELINE, TIER_OF[Format.PIPELINE], PIPELINE_ENTRY)


def _torch_export(folder: Path, path: str) -> Inspection:
    program = pt2.lint(folder / path)
    return Inspection(
        Format.TORCH_EXPORT, TIER_OF[Format.TORCH_EXPORT], path, notes=program.notes, signature=program.signature
    )


def _jax_export(folder: Path, path: str) -> Inspection:
    program = stablehlo.read(folder / path)
    notes = program.notes + stablehlo.check_weights(folder)
    return Inspection(Format.JAX_EXPORT, TIER_OF[Format.JAX_EXPORT], path, notes=notes)


def _onnx(folder: Path, path: str) -> Inspection:
    graph = onnx.read(folder / path)
    return Inspection(Format.ONNX, TIER_OF[Format.ONNX], path, notes=graph.notes, signature=graph.signature)


def _torchscript(_folder: Path, path: str) -> Inspection:
    return _code(Format.TORCHSCRIPT, path, [torchscript.NOTE])


def _code(kind: Format, entry: str, notes: list[str]) -> Inspection:
    return Inspection(kind, TIER_OF[kind], entry, notes=notes)


READERS = {
    Kind.PT2: _torch_export,
    Kind.JAX: _jax_export,
    Kind.ONNX: _onnx,
    Kind.TORCHSCRIPT: _torchscript,
    Kind.GGUF: _gguf,
}


def _refuse_pickle(folder: Path, found: Sequence[tuple[str, Kind]]) -> None:
    """A torch pickle of weights and no other weights: cannot be served, but converted when a person asks for it."""
    pickled = [path for path, kind in found if kind is Kind.TORCH_PICKLE]
    if len(pickled) != 1 or any(kind is Kind.SAFETENSORS for _, kind in found):
        return
    name = shown(pickled[0])
    pickles.check_weights(folder / pickled[0], name, sniff.STATE_DICT)
    raise Rejected(f"{name}: {sniff.PICKLE}", remedy=sniff.CONVERT, check="format", format=Format.TORCH_PICKLE.value)


def _several(paths: list[str]) -> NoReturn:
    listed = ", ".join(shown(path) for path in paths[:4])
    raise Rejected(f"there is more than one model here: {listed}", remedy="Upload one model per version.")
