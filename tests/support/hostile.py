"""Hostile artifacts, at least one for each class of the threat model. Each would leave `marker` behind if it worked.

Everything here is meant for a sandbox or a parser that refuses it. Makers that need a framework import it late.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import goodfiles

Maker = Callable[[Path, Path], Path]


class _Touch:
    """Unpickling an instance creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.marker), "w")


def payload(marker: Path) -> bytes:
    """A pickle that creates `marker` when it is loaded."""
    return pickle.dumps(_Touch(marker), protocol=2)


def code(marker: Path) -> str:
    """A Python expression that creates `marker` when it is evaluated."""
    return f"open('{marker}', 'w')"


# --- pickles -----------------------------------------------------------------------------------------------------


def raw_pickle(folder: Path, marker: Path) -> Path:
    """A pickle as joblib or scikit-learn users upload it."""
    return _write(folder / "model.pkl", payload(marker))


def torch_pickle(folder: Path, marker: Path) -> Path:
    """A torch zip whose data.pkl is the payload."""
    path = folder / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": payload(marker), "byteorder": b"little", "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", data)
    return path


def legacy_torch_pickle(folder: Path, marker: Path) -> Path:
    """torch.save's form before 1.6: a magic number, then pickles."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    return _write(folder / "model.pt", magic + pickle.dumps(1001, protocol=2) + payload(marker))


def sparse_weights(folder: Path, marker: Path) -> Path:
    """A state dict whose sparse tensor has indices beyond its shape: torch's weights-only reader lets it through."""
    import torch

    lies = torch.sparse_coo_tensor(torch.tensor([[999], [999]]), torch.ones(1), (9, 9), check_invariants=False)
    torch.save({"a": lies}, folder / "sparse.pt")
    return folder / "sparse.pt"


def endless_weights(folder: Path, marker: Path) -> Path:
    """A state dict whose one scalar is expanded to terabytes, which a converter would write out."""
    import torch

    torch.save({"a": torch.ones(1).expand(1 << 40)}, folder / "endless.pt")
    return folder / "endless.pt"


def pickled_encoder(folder: Path, marker: Path) -> Path:
    """A Hugging Face folder whose pytorch_model.bin is the payload: parsed, then the sandboxed converter must refuse."""
    goodfiles.encoder(folder)
    (folder / "model.safetensors").unlink()
    torch_pickle(folder, marker).rename(folder / "pytorch_model.bin")
    return folder


# --- torch.export ------------------------------------------------------------------------------------------------


def pt2_shape_expression(folder: Path, marker: Path) -> Path:
    """sympy.sympify evaluates the shape expression."""
    document = goodfiles.program()
    values = document["graph_module"]["graph"]["tensor_values"]
    values["x"]["sizes"][0] = {"as_expr": {"expr_str": code(marker), "hint": None}}
    return goodfiles.pt2(folder / "expression.pt2", document=document)


def pt2_sample_inputs(folder: Path, marker: Path) -> Path:
    """Sample inputs fall back to weights_only=False."""
    return goodfiles.pt2(
        folder / "samples.pt2", edit=lambda members: members.update({"data/sample_inputs/model.pt": payload(marker)})
    )


def pt2_pickled_weight(folder: Path, marker: Path) -> Path:
    """A weight that says use_pickle."""
    config = goodfiles.weights()
    config["config"]["w"] |= {"use_pickle": True, "tensor_meta": None}
    return goodfiles.pt2(
        folder / "weight.pt2",
        config=config,
        edit=lambda members: members.update({"data/weights/weight_0": payload(marker)}),
    )


def pt2_native_code(folder: Path, marker: Path) -> Path:
    """A member that makes torch.export.load start the AOTInductor loader."""
    native = {"data/aotinductor/model/model.so": b"\x7fELF" + str(marker).encode()}
    return goodfiles.pt2(folder / "native.pt2", edit=lambda members: members.update(native))


def pt2_custom_object(folder: Path, marker: Path) -> Path:
    """A constant that torch gives to pickle.loads."""
    constants = {
        "config": {"c": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}
    }
    members = {
        "data/constants/model_constants_config.json": json.dumps(constants).encode(),
        "data/constants/opaque_obj_0": payload(marker),
    }
    return goodfiles.pt2(folder / "object.pt2", edit=lambda found: found.update(members))


def pt2_legacy_weights(folder: Path, marker: Path) -> Path:
    """The legacy pickle of all weights, which torch prefers when it is there."""
    return goodfiles.pt2(
        folder / "legacy.pt2", edit=lambda members: members.update({"data/weights/model.pt": payload(marker)})
    )


def pt2_guards(folder: Path, marker: Path) -> Path:
    """Guards are written into a function that .module() executes, when there are honest sample inputs."""
    import torch

    samples = io.BytesIO()
    torch.save(((torch.zeros(2, 3),), {}), samples)
    document = goodfiles.program()
    document["guards_code"] = [f"{code(marker)} is not None"]
    return goodfiles.pt2(
        folder / "guards.pt2",
        document=document,
        edit=lambda members: members.update({"data/sample_inputs/model.pt": samples.getvalue()}),
    )


def pt2_names(folder: Path, marker: Path) -> Path:
    """The name of an input is written into generated Python code as it is."""
    text = json.dumps(goodfiles.program())
    name = f"x={code(marker)}"
    document = json.loads(text.replace('"name": "x"', json.dumps({"name": name})[1:-1]))
    values = document["graph_module"]["graph"]["tensor_values"]
    values[name] = values.pop("x")
    document["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [name]
    return goodfiles.pt2(folder / "names.pt2", document=document)


def pt2_tree(folder: Path, marker: Path) -> Path:
    """An argument tree whose defaultdict names a factory: torch imports whatever module it says."""
    document = goodfiles.program()
    context = {"default_factory_module": "this", "default_factory_name": "s", "dict_context": '["y"]'}
    spec = goodfiles.tree(goodfiles.tree(), kind="collections.defaultdict", context=context)
    document["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, spec])
    return goodfiles.pt2(folder / "tree.pt2", document=document)


def pt2_file_operator(folder: Path, marker: Path) -> Path:
    """An ATen operator that maps a file of the host and creates it."""
    document = goodfiles.program()
    node = document["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.aten.from_file.default"
    node["inputs"] = [
        {"name": "filename", "arg": {"as_string": str(marker)}, "kind": 1},
        {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
        {"name": "size", "arg": {"as_int": 3}, "kind": 1},
    ]
    return goodfiles.pt2(folder / "from_file.pt2", document=document)


def pt2_outside(folder: Path, marker: Path) -> Path:
    """A weight whose strides reach outside of its data."""
    config = goodfiles.weights()
    config["config"]["w"]["tensor_meta"]["strides"] = [{"as_int": 1 << 30}]
    return goodfiles.pt2(folder / "outside.pt2", config=config)


# --- code tier ---------------------------------------------------------------------------------------------------


def torchscript_writer(folder: Path, marker: Path) -> Path:
    """TorchScript of stock operators that writes a file in its forward pass."""
    import torch

    class Writer(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.from_file(self.name, shared=True, size=1, dtype=torch.float32)

    path = folder / "writer.pt"
    torch.jit.save(torch.jit.script(Writer(str(marker))), str(path))
    return path


def python_package(folder: Path, marker: Path, *, body: str = "") -> Path:
    """A Python package that writes the marker when it is imported; `body` is put into predict."""
    text = f"open({str(marker)!r}, 'w').close()\n\n\ndef load(folder):\n    return Model()\n\n\nclass Model:\n"
    text += f"    def predict(self, inputs):\n        {body or 'return inputs'}\n"
    return _write(folder / "serinus_model.py", text.encode())


HANGS = "import time; time.sleep(1e9)"
ALLOCATES = "kept = []\n        while True:\n            kept.append(bytearray(1 << 26))"
SEGFAULTS = "import ctypes; ctypes.string_at(0)"


def connects(address: str) -> str:
    """A body of predict that connects to a unix socket, and raises when it is kept from it."""
    return f"import socket; socket.socket(socket.AF_UNIX).connect({address!r}); return inputs"


# --- jax.export --------------------------------------------------------------------------------------------------


def stablehlo_callback(folder: Path, marker: Path) -> Path:
    """A program that calls the Python callback target with a pointer of its own making; calling it ends the process.

    The list of switched-off safety checks is emptied, as an attacker would. It passes the parse stage: only the walk
    over its operations tells.
    """
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import export

    target = "xla_ffi_python_cpu_callback"

    def call(x: Any) -> Any:
        return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(x.shape, x.dtype))(x, index=np.uint64(1 << 40))

    allowed = [export.DisabledSafetyCheck.custom_call(target)]
    shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    exported = export.export(jax.jit(call), disabled_checks=allowed, platforms=["cpu"])(shape)
    clean = dataclasses.replace(exported, disabled_safety_checks=())
    return _write(folder / "callback.jax", bytes(clean.serialize()))


def stablehlo_unchecked(folder: Path, marker: Path) -> Path:
    """The same with the switched-off safety checks left in: the parse stage sees them."""
    import jax
    import jax.numpy as jnp
    from jax import export

    checks = [export.DisabledSafetyCheck.custom_call("xla_ffi_python_cpu_callback")]
    exported = export.export(jax.jit(jnp.sin), disabled_checks=checks)(jax.ShapeDtypeStruct((2, 3), jnp.float32))
    return _write(folder / "unchecked.jax", bytes(exported.serialize()))


# --- safetensors -------------------------------------------------------------------------------------------------


def _header(table: str) -> Callable[[Path, Path], Path]:
    def make(folder: Path, marker: Path) -> Path:
        goodfiles.encoder(folder)
        goodfiles.safetensors(folder / "model.safetensors", {"w": [2, 3]}, header=table.encode())
        return folder

    return make


def _entry(offsets: str, shape: str = "[2, 3]", dtype: str = "F32") -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}'


SAFETENSORS: dict[str, Maker] = {
    "duplicate keys": _header(f'{{"w": {_entry("[0, 24]")}, "w": {_entry("[0, 24]")}}}'),
    "path as name": _header(f'{{"../../etc/passwd": {_entry("[0, 24]")}}}'),
    "overlap": _header(f'{{"a": {_entry("[0, 24]")}, "b": {_entry("[0, 24]")}}}'),
    "hole": _header(f'{{"a": {_entry("[8, 24]", "[4]")}}}'),
    "trailing bytes": _header(f'{{"a": {_entry("[0, 8]", "[2]")}}}'),
    "negative offset": _header(f'{{"a": {_entry("[-24, 0]")}}}'),
    "past the end": _header(f'{{"a": {_entry("[0, 48]", "[4, 3]")}}}'),
    "shape overflow": _header(f'{{"a": {_entry("[0, 24]", "[4611686018427387904, 4, 3]")}}}'),
    "unknown dtype": _header(f'{{"a": {_entry("[0, 24]", "[2, 3]", "OBJECT")}}}'),
    "boolean offsets": _header(f'{{"a": {_entry("[false, 24]")}}}'),
    "not a number": _header(f'{{"a": {_entry("[0, NaN]")}}}'),
    "deep nesting": _header("[" * 100_000),
    "no object": _header("[]"),
    "many tensors": _header("{" + ",".join(f'"t{i}": {_entry("[0, 0]", "[0]")}' for i in range(20_001)) + "}"),
}


def safetensors_huge_header(folder: Path, marker: Path) -> Path:
    """A header length of 2^62."""
    goodfiles.encoder(folder)
    _write(folder / "model.safetensors", struct.pack("<Q", 1 << 62) + b"{}")
    return folder


# --- Hugging Face ------------------------------------------------------------------------------------------------


def auto_map(folder: Path, marker: Path) -> Path:
    """A configuration that asks for code of its own, with the code beside it."""
    _write(goodfiles.encoder(folder) / "modeling.py", f"open({str(marker)!r}, 'w')\n".encode())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Evil"}}))
    return folder


def auto_map_of_tokenizer(folder: Path, marker: Path) -> Path:
    """The same by way of the tokenizer's configuration."""
    goodfiles.encoder(folder)
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Tokenizer", null]}}')
    return folder


def panicking_tokenizer(folder: Path, marker: Path) -> Path:
    """A tokenizer that panics (a BaseException) on PANICS, by the retry limit of its regular expression."""
    goodfiles.encoder(folder)
    split = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(goodfiles.tokenizer(split)))
    return folder


PANICS = "a" * 60 + "!"


# --- archives ----------------------------------------------------------------------------------------------------


def zip_slip(folder: Path, marker: Path) -> Path:
    path = folder / "slip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("../" * 12 + str(marker).lstrip("/")), "out")
    return path


def zip_absolute(folder: Path, marker: Path) -> Path:
    path = folder / "absolute.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(str(marker)), "out")
    return path


def zip_bomb(folder: Path, marker: Path) -> Path:
    """128 MiB in about 128 KiB."""
    path = folder / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros.bin", "w") as member:
        for _ in range(128):
            member.write(bytes(1 << 20))
    return path


def zip_entries(folder: Path, marker: Path) -> Path:
    path = folder / "entries.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(2001):
            archive.writestr(f"{index}.txt", "")
    return path


def zip_link(folder: Path, marker: Path) -> Path:
    path = folder / "link.zip"
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, str(marker))
    return path


def zip_twice(folder: Path, marker: Path) -> Path:
    """Two members whose names differ in case only."""
    path = folder / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.onnx", "1")
        archive.writestr("Model.onnx", "2")
    return path


def zip_lying(folder: Path, marker: Path) -> Path:
    """A directory that says a member is small; its data is not."""
    path = zip_bomb(folder, marker).rename(folder / "lying.zip")
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    return path


def _tar(name: str, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Callable[[Path, Path], Path]:
    def make(folder: Path, marker: Path) -> Path:
        path = folder / name
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            for info, data in members:
                info.size = len(data)
                info.linkname = info.linkname and str(marker)
                archive.addfile(info, io.BytesIO(data))
        return path

    return make


def _member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "marker" if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
    return info


tar_symlink = _tar("symlink.tar", (_member("out", tarfile.SYMTYPE), b""), (_member("out"), b"written through"))
tar_hardlink = _tar("hardlink.tar", (_member("out", tarfile.LNKTYPE), b""))
tar_device = _tar("device.tar", (_member("null", tarfile.CHRTYPE), b""))
tar_fifo = _tar("fifo.tar", (_member("pipe", tarfile.FIFOTYPE), b""))
tar_slip = _tar("slip.tar", (_member("a/../../../../../out"), b"out"))
tar_bomb = _tar("bomb.tar.gz", (_member("zeros.bin"), bytes(64 << 20)), mode="w:gz")

ARCHIVES: dict[str, Maker] = {
    "zip slip": zip_slip,
    "zip absolute path": zip_absolute,
    "zip bomb": zip_bomb,
    "zip with too many entries": zip_entries,
    "zip link": zip_link,
    "zip case twins": zip_twice,
    "zip with a lying directory": zip_lying,
    "tar symlink": tar_symlink,
    "tar hard link": tar_hardlink,
    "tar device": tar_device,
    "tar fifo": tar_fifo,
    "tar slip": tar_slip,
    "tar bomb": tar_bomb,
}
PT2: dict[str, Maker] = {
    "sample inputs": pt2_sample_inputs,
    "shape expression": pt2_shape_expression,
    "pickled weight": pt2_pickled_weight,
    "native code": pt2_native_code,
    "custom object": pt2_custom_object,
    "legacy weights": pt2_legacy_weights,
    "names": pt2_names,
    "argument tree": pt2_tree,
    "file operator": pt2_file_operator,
    "outside of the data": pt2_outside,
}
# Disarmed instead of refused: the loader never sees these parts (see artifacts.pt2.sanitised).
PT2_DISARMED: dict[str, Maker] = {"guards": pt2_guards}
PICKLES: dict[str, Maker] = {
    "pickle": raw_pickle,
    "torch pickle": torch_pickle,
    "legacy torch pickle": legacy_torch_pickle,
}
# Refused by the converter in the sandbox, if not before.
CONVERSIONS: dict[str, Maker] = {
    **PICKLES,
    "sparse weights": sparse_weights,
    "endless weights": endless_weights,
}
ENCODERS: dict[str, Maker] = {
    "auto_map": auto_map,
    "auto_map of the tokenizer": auto_map_of_tokenizer,
    "huge header": safetensors_huge_header,
    **SAFETENSORS,
}


def truncated(path: Path, part: float = 0.5) -> Path:
    """Cuts a file to a part of its size."""
    os.truncate(path, int(path.stat().st_size * part))
    return path


def flipped(path: Path) -> Path:
    """Changes one bit of a file, so that its sha256 is no longer the one it was stored under."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    return path


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
