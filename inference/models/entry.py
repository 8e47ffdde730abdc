"""Which file of an artifact is the model: the only one with the usual name, else the one that inspection finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from inference.errors import Rejected
from inference.protocol.oip import DATATYPES, Signature

if TYPE_CHECKING:
    from pathlib import Path

SIGNATURE_FILE = "signature.json"
EXAMPLE = (
    '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}], '
    '"outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}], "max_batch_size": 64}'
)


def entry_file(folder: Path, *suffixes: str) -> Path:
    """The model's main file. A name decides only where it leaves no choice; otherwise the content does.

    Raises Rejected when the artifact holds no model.
    """
    from inference.artifacts.inspect import inspect

    usual = [path for path in folder.iterdir() if path.suffix in suffixes and path.is_file()]
    return usual[0] if len(usual) == 1 else folder / inspect(folder).entry


def written_signature(folder: Path, kind: str) -> Signature:
    """`signature.json`, for formats that do not know their own inputs. Raises Rejected when it is missing or wrong."""
    path = folder / SIGNATURE_FILE
    if not path.is_file():
        raise Rejected(
            f"{kind} does not say what it takes and gives",
            remedy=f"put a {SIGNATURE_FILE} beside it: {EXAMPLE}",
            check="signature",
        )
    try:
        return checked(msgspec.json.decode(path.read_bytes(), type=Signature))
    except msgspec.MsgspecError as error:
        raise Rejected(f"{SIGNATURE_FILE}: {error}", remedy=f"write it like {EXAMPLE}", check="signature") from error


def checked(signature: Signature) -> Signature:
    """`signature` if it is sound. Raises Rejected naming what is not."""
    specs = [*signature.inputs, *signature.outputs]
    if not signature.inputs or not signature.outputs:
        raise Rejected("the signature has no input or no output", remedy=f"write it like {EXAMPLE}", check="signature")
    for spec in specs:
        if spec.datatype not in DATATYPES:
            raise Rejected(
                f"{spec.name}: unknown datatype {spec.datatype!r}", remedy="use FP32, ...", check="signature"
            )
        if any(size < -1 for size in spec.shape):
            raise Rejected(f"{spec.name}: bad shape {spec.shape}", remedy="-1 is a free dimension", check="signature")
        if signature.max_batch_size and (not spec.shape or spec.shape[0] != -1):
            raise Rejected(
                f"{spec.name}: a batched tensor's shape begins with -1, not {spec.shape}",
                remedy="begin every shape with -1, or set max_batch_size to 0",
                check="signature",
            )
    return signature
