"""torch.export programs (.pt2): linted as a zip of JSON and raw tensors, then written anew for torch to load.

`torch.export.load` runs what a file says: it evaluates shape expressions and guards, unpickles sample inputs and
weights, imports what argument trees name, starts native libraries, and generates Python code out of names. So an
uploaded file is never given to it. `sanitised` writes another archive from what the lint has parsed and checked: raw
weights, our own JSON encoding, and none of the parts that a served model does not need: no sample inputs, no guards,
no metadata, no module tree, no extra files. What torch reads is then only what the lint has seen.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from inference.artifacts import pt2_program as program
from inference.artifacts import pt2_tree as trees
from inference.artifacts.paths import shown
from inference.artifacts.pickles import foreign_globals
from inference.artifacts.pt2_schema import ExportedProgram, GraphModule, ModuleCall, ModuleCallSignature, PayloadConfig
from inference.artifacts.pt2_weights import check_payloads
from inference.artifacts.zips import open_zip, read_member
from inference.errors import Rejected
from inference.protocol.oip import Signature

MAX_ENTRIES = 50_000
MAX_JSON_BYTES = 32 << 20
MAX_SAMPLES_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"
REMEDY = "Export it again with torch.export.save(torch.export.export(model.eval(), args, dynamic_shapes=...), path)."
_DROPPED = (SAMPLES, ".data/version", ".data/serialization_id", "version")
T = TypeVar("T", ExportedProgram, PayloadConfig)
_NEEDED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}


@dataclass(frozen=True, slots=True)
class Program:
    """A linted program. `document` and the configs are what `sanitised` writes; `root` is the folder in the zip."""

    signature: Signature
    document: ExportedProgram
    weights: PayloadConfig
    constants: PayloadConfig
    root: str
    blobs: list[str]
    notes: list[str] = field(default_factory=list)


def lint(path: Path) -> Program:
    """Checks a whole .pt2 file without torch. Raises Rejected with the first rule that is broken, and the way out."""
    with open_zip(path, entries=MAX_ENTRIES) as archive:
        root, names = _members(archive)
        document = _decode(archive, root + MODEL, ExportedProgram)
        signature = program.check(document)
        weights = _decode(archive, root + WEIGHTS, PayloadConfig)
        constants = _decode(archive, root + CONSTANTS, PayloadConfig)
        _check_samples(archive, root)
        sizes = {name: archive.getinfo(root + name).file_size for name in names}
        blobs = check_payloads(weights, "data/weights/", "weight_", sizes)
        blobs += check_payloads(constants, "data/constants/", "tensor_", sizes)
    program.check_parameters(document, weights, constants)
    return Program(signature, document, weights, constants, root, blobs, program.notes(document))


def sanitised(path: Path, out: Path) -> Program:
    """Lints `path` and writes `out`, an archive that torch.export.load may be given. `out` must not exist.

    Sample inputs are an empty member, which torch takes for "none"; devices are the CPU (the loader moves the program).
    """
    linted = lint(path)
    with open_zip(path, entries=MAX_ENTRIES) as source, zipfile.ZipFile(out, "x", zipfile.ZIP_STORED) as target:
        for name in linted.blobs:
            with source.open(linted.root + name) as reader, target.open(_fresh(name), "w", force_zip64=True) as writer:
                _copy(reader, writer, name)
        target.writestr(_fresh(MODEL), msgspec.json.encode(_neutral(linted.document)))
        target.writestr(_fresh(WEIGHTS), msgspec.json.encode(program.on_cpu(linted.weights)))
        target.writestr(_fresh(CONSTANTS), msgspec.json.encode(program.on_cpu(linted.constants)))
        target.writestr(_fresh(SAMPLES), b"")
        for name, content in [*_NEEDED.items(), (".data/version", b"3\n")]:
            target.writestr(_fresh(name), content)
    return linted


def _members(archive: zipfile.ZipFile) -> tuple[str, list[str]]:
    listed = archive.infolist()
    root = listed[0].filename.split("/", 1)[0] + "/" if listed else ""
    names = []
    for info in listed:
        if not info.filename.startswith(root) or info.filename.endswith("/"):
            _refuse("the .pt2 file does not keep everything in one folder", REMEDY)
        if info.compress_type != zipfile.ZIP_STORED:
            _refuse("the .pt2 file is compressed", "Upload the file as torch.export.save wrote it.")
        names.append(info.filename.removeprefix(root))
    for name in names:
        _check_member(name)
    for name in (MODEL, WEIGHTS, CONSTANTS, *_NEEDED):
        if name not in names:
            _refuse(f"the .pt2 file has no member {name}", REMEDY)
    for name, content in _NEEDED.items():
        if read_member(archive, root + name, 64).strip() != content:
            _refuse(f"the .pt2 file's {name} is not {content.decode()}", REMEDY)
    return root, names


def _check_member(name: str) -> None:
    if name in {MODEL, WEIGHTS, CONSTANTS, *_NEEDED, *_DROPPED} or name.startswith("extra/"):
        return
    folder, _, base = name.rpartition("/")
    if (folder == "data/weights" and base.startswith("weight_") and base[7:].isdecimal()) or (
        folder == "data/constants" and base.startswith("tensor_") and base[7:].isdecimal()
    ):
        return
    if name.startswith("data/aotinductor/"):
        _refuse(
            "the .pt2 file holds native code (an AOTInductor package)",
            "Upload the program itself, written by torch.export.save(...).",
        )
    if base.endswith(".pt"):
        _refuse(f"the .pt2 file holds the pickle {shown(name)}", "Export it again with torch 2.9 or newer.")
    if folder == "data/constants":
        _refuse(f"the .pt2 file holds the custom object {shown(name)}", "Export a model of plain tensors only.")
    _refuse(f"the .pt2 file holds the unknown member {shown(name)}", REMEDY)


def _check_samples(archive: zipfile.ZipFile, root: str) -> None:
    # They are never read by anybody; a file whose samples would run code is refused all the same, and says so.
    info = archive.NameToInfo.get(root + SAMPLES)
    if info is None or not 0 < info.file_size <= MAX_SAMPLES_BYTES:
        return
    foreign = foreign_globals(read_member(archive, info.filename, MAX_SAMPLES_BYTES))
    if foreign:
        _refuse(
            f"the sample inputs of the .pt2 file are a pickle that would import {shown(foreign[0])}",
            "Export it again with plain tensors as sample inputs.",
        )


def _decode(archive: zipfile.ZipFile, name: str, kind: type[T]) -> T:
    data = read_member(archive, name, MAX_JSON_BYTES)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        _refuse(f"{shown(name.split('/', 1)[-1])} is not as torch.export writes it: {shown(str(error), 160)}", REMEDY)


def _neutral(document: ExportedProgram) -> ExportedProgram:
    module = document.graph_module
    call = program.root_call(module)
    spec = ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=trees.write(trees.parse(call.in_spec)),
        out_spec=trees.write(trees.parse(call.out_spec)),
        forward_arg_names=call.forward_arg_names,
    )
    neutral = GraphModule(
        graph=program.on_cpu(program.without_metadata(module.graph)),
        signature=module.signature,
        module_call_graph=[ModuleCall(fqn="", signature=spec)],
    )
    return msgspec.structs.replace(document, graph_module=neutral, guards_code=[], torch_version="")


def _fresh(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"model/{name}")


def _copy(reader: object, writer: object, name: str) -> None:
    try:
        while chunk := reader.read(CHUNK_BYTES):  # type: ignore[attr-defined]
            writer.write(chunk)  # type: ignore[attr-defined]
    except (zipfile.BadZipFile, EOFError):
        _refuse(f"{shown(name)} is damaged", REMEDY)


def _refuse(reason: str, remedy: str) -> NoReturn:
    raise Rejected(reason, remedy=remedy, check="program")
