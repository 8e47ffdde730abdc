"""Which file of an artifact is the model: the only one with the usual name, else the one that inspection finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from inference.errors import Rejected
from inference.protocol.oip import DATATYPES, Signature, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from inference.artifacts.manifest import RuntimeSettings

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


def declared_signature(settings: RuntimeSettings) -> Signature | None:
    """What the settings declare, with the tensors that a stateful model has beside; None when they declare nothing.

    The largest batch is exactly the settings' own. Raises Rejected for a declaration that is not sound.
    """
    if not (settings.inputs and settings.outputs):
        return None
    given = checked(Signature(settings.inputs, settings.outputs, settings.max_batch_size, labels=settings.labels))
    # Not checked with the others: a state's batch may stand elsewhere than first.
    inputs, outputs = with_state(settings, settings.inputs, settings.outputs)
    return msgspec.structs.replace(given, inputs=inputs, outputs=outputs)


def with_state(
    settings: RuntimeSettings, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Both lists with the controls and state tensors of a stateful model that they do not name already."""
    if settings.sequence is None:
        return inputs, outputs
    batch = [-1] if settings.max_batch_size else []
    known = {spec.name for spec in (*inputs, *outputs)}
    controls = [TensorSpec(one.name, one.datatype, [*batch, 1]) for one in settings.sequence.controls]
    taken, given = [], []
    for state in settings.sequence.states:
        shape = list(state.shape)
        shape[state.batch_axis : state.batch_axis] = batch
        taken.append(TensorSpec(state.input, state.datatype, shape))
        given.append(TensorSpec(state.output, state.datatype, shape))
    return (
        [*inputs, *(spec for spec in (*controls, *taken) if spec.name not in known)],
        [*outputs, *(spec for spec in given if spec.name not in known)],
    )


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
