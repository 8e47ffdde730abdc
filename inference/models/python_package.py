"""Python packages (code tier): a folder whose `serinus_model.py` has `load(folder)`.

What it returns has `predict(inputs: dict[str, ndarray]) -> dict[str, ndarray]` and may have `signature`, a mapping like
`signature.json`; without it that file is read. For a decoupled version it has `stream(inputs, parameters)`, a generator
of such answers, in place of `predict`. Only a version that a second person approved gets this far.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from inference.errors import Rejected
from inference.models import batch
from inference.models.entry import checked, written_signature
from inference.protocol.oip import Signature

if TYPE_CHECKING:
    from pathlib import Path

    from inference.models.contract import Arrays, LoadContext, Scalar

MODULE = "serinus_model"
REMEDY = (
    f"{MODULE}.py must define load(folder), which returns an object with predict(dict) -> dict, or for a decoupled "
    "version stream(dict, parameters), a generator of dicts"
)


def load(context: LoadContext) -> PythonModel:
    """Imports the package and asks it for its model. Raises Rejected when it does not keep the agreement."""
    module = _imported(context.folder)
    maker = getattr(module, "load", None)
    if not callable(maker):
        raise Rejected(f"{MODULE}.py has no load(folder)", remedy=REMEDY, check="load")
    made = maker(context.folder)
    asked = "stream" if context.settings.decoupled else "predict"
    if not callable(getattr(made, asked, None)):
        raise Rejected(f"what {MODULE}.load returned has no {asked}", remedy=REMEDY, check="load")
    signature = msgspec.structs.replace(_signature(made, context.folder), platform="python")
    return PythonModel(made, batch.limited(signature, context.settings))


class PythonModel:
    def __init__(self, made: Any, signature: Signature) -> None:
        self._made = made
        self.signature = signature

    def run(self, inputs: Arrays) -> Arrays:
        return {str(name): np.asarray(value) for name, value in self._made.predict(inputs).items()}

    def stream(self, inputs: Arrays, parameters: Mapping[str, Scalar]) -> Iterator[Arrays]:
        for answer in self._made.stream(inputs, parameters):
            yield {str(name): np.asarray(value) for name, value in answer.items()}

    def close(self) -> None:
        closer = getattr(self._made, "close", None)
        if callable(closer):
            closer()
        self._made = None


def _imported(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location(MODULE, folder / f"{MODULE}.py")
    if spec is None or spec.loader is None or not (folder / f"{MODULE}.py").is_file():
        raise Rejected(f"there is no {MODULE}.py", remedy=REMEDY, check="load")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))  # its own modules lie beside it
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Rejected(
            f"{MODULE}.py failed on import: {type(error).__name__}: {error}", remedy=REMEDY, check="load"
        ) from error
    return module


def _signature(made: Any, folder: Path) -> Signature:
    given = getattr(made, "signature", None)
    if given is None:
        return written_signature(folder, "a Python package")
    try:
        return checked(given if isinstance(given, Signature) else msgspec.convert(given, Signature))
    except msgspec.ValidationError as error:
        raise Rejected(f"the model's signature: {error}", remedy=REMEDY, check="signature") from error
