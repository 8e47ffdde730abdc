"""Finds the numbered folder and its config, imports the model's file, completes its config and initializes it."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import itertools
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf import json_format

from inference.artifacts.triton import config as configs
from inference.artifacts.triton import pymodel, translate
from inference.errors import Rejected
from inference.models.entry import declared_signature
from inference.models.triton_python import backend_utils
from inference.models.triton_python.completion import ModelConfig
from inference.models.triton_python.metrics import REGISTER
from inference.models.triton_python.model import TritonPythonModel

if TYPE_CHECKING:
    from inference.artifacts.manifest import RuntimeSettings
    from inference.models.contract import LoadContext
    from inference.protocol.oip import Signature

UTILS = ("triton_python_backend_utils", "c_python_backend_utils")
REMEDY = "model.py must define a class TritonPythonModel with execute(self, requests)"
READY_S, READY_STEP_S = 60.0, 0.2
PATIENCE = 0.9  # of the time after which a step is taken for hung: a silent request shall not cost the process
current_folder = Path()
_numbers = itertools.count(1)


def load(context: LoadContext) -> TritonPythonModel:
    """1. Config. 2. Import. 3. auto_complete_config. 4. initialize. 5. is_ready, where the model has it.

    Raises Rejected when the model does not keep the agreement or fails in any of them.
    """
    global current_folder  # noqa: PLW0603 (get_model_dir has no argument)
    entry = pymodel.find(context.folder)
    if entry is None:
        raise Rejected("there is no TritonPythonModel", remedy=REMEDY, check="load")
    path = context.folder / entry
    current_folder = path.parent
    config = _config(context)
    kind = _imported(path)
    signature, config = _signature(kind, config, context)
    made = _started(kind, _arguments(config, path, context))
    REGISTER.mark()
    return TritonPythonModel(
        made,
        msgspec.structs.replace(signature, platform="python"),
        name=config.name,
        version=_number(path),
        decoupled=context.settings.decoupled,
        patience_s=PATIENCE * context.settings.hang_timeout_s,
    )


def _config(context: LoadContext) -> Any:
    path = context.folder / configs.NAME
    config = configs.read(path.read_bytes()) if path.is_file() else configs.empty()
    config.name = config.name or context.model or "model"
    config.backend = "python"
    return config


def _imported(path: Path) -> Any:
    """The class. Every load has a module of its own, so that instances share nothing by accident."""
    for name in UTILS:
        sys.modules[name] = backend_utils
    for folder in (path.parent, path.parent.parent):  # as Triton has it: the version's folder, then the model's
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    # A package around it, as Triton has it, so that `from . import other` finds what lies beside it.
    package = ModuleType(f"triton_python_model_{next(_numbers)}")
    package.__path__ = [str(path.parent)]
    sys.modules[package.__name__] = package
    name = f"{package.__name__}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _failed(path.name, "on import", error) from error
    kind = getattr(module, pymodel.CLASS, None)
    if not callable(getattr(kind, "execute", None)):
        raise Rejected(f"{path.name} has no {pymodel.CLASS} with execute", remedy=REMEDY, check="load")
    return kind


def _signature(kind: Any, config: Any, context: LoadContext) -> tuple[Signature, Any]:
    """By the settings, else by config.pbtxt, else by the model's own auto_complete_config."""
    settings = context.settings
    config = _completed(kind, config)
    if declared := declared_signature(settings):
        _agrees(config, settings)
        return declared, config
    said = translate.translate(config, folder=config.name, files=[translate.FILES[translate.PYTHON]]).settings
    if said.decoupled != settings.decoupled:
        raise Rejected(
            "the model is decoupled by its config, and the version's settings say otherwise",
            remedy="set model_transaction_policy in config.pbtxt, or decoupled in the version's settings",
            check="signature",
        )
    declared = declared_signature(_with(settings, said))
    if declared is None:
        raise Rejected(
            "the model does not say what it takes and gives",
            remedy="declare input and output in config.pbtxt, or in auto_complete_config",
            check="signature",
        )
    return declared, config


def _agrees(config: Any, settings: RuntimeSettings) -> None:
    """Raises Rejected where auto_complete_config says what would be passed over."""
    if config.max_batch_size not in (0, settings.max_batch_size):
        raise Rejected(
            f"auto_complete_config sets max_batch_size {config.max_batch_size}, and {settings.max_batch_size} is declared",
            remedy="write max_batch_size into config.pbtxt, beside the inputs and outputs",
            check="signature",
        )


def _with(settings: RuntimeSettings, said: RuntimeSettings) -> RuntimeSettings:
    size = said.max_batch_size or settings.max_batch_size
    return msgspec.structs.replace(settings, inputs=said.inputs, outputs=said.outputs, max_batch_size=size)


def _completed(kind: Any, config: Any) -> Any:
    complete = getattr(kind, "auto_complete_config", None)
    if not callable(complete):
        return config
    try:
        found = complete(ModelConfig(json.loads(configs.as_json(config))))
        if not isinstance(found, ModelConfig):
            raise TypeError(f"it must return the ModelConfig that it was given, not {type(found).__name__}")
        return json_format.ParseDict(_set(found.as_dict()), configs.empty())
    except Exception as error:
        raise _failed("the model", "in auto_complete_config", error) from error


def _set(mapping: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if value not in (None, "", 0, [], {})}


def _arguments(config: Any, path: Path, context: LoadContext) -> dict[str, str]:
    kind, _, index = context.device.partition(":")
    return {
        "model_config": configs.as_json(config),
        "model_instance_kind": "CPU" if kind == "cpu" else "GPU",
        "model_instance_name": f"{config.name}_0",
        "model_instance_device_id": index or "0",
        "model_repository": str(path.parent.parent if path.parent != context.folder else context.folder),
        "model_version": str(_number(path)),
        "model_name": config.name,
    }


def _number(path: Path) -> int:
    return int(path.parent.name) if path.parent.name.isdigit() else 1


def _started(kind: Any, arguments: dict[str, str]) -> Any:
    try:
        made = kind()
        initialize = getattr(made, "initialize", None)
        if callable(initialize):
            initialize(arguments)
        is_ready = _is_ready(made)
    except Exception as error:
        raise _failed("the model", "in initialize", error) from error
    if not is_ready:
        raise Rejected(
            f"the model's is_ready() did not say True within {READY_S:g} s", remedy="see its log", check="load"
        )
    return made


def _is_ready(made: Any) -> bool:
    """Asks a model that has `is_ready` until it says so, or for READY_S."""
    asked = getattr(made, "is_ready", None)
    until = time.monotonic() + READY_S
    while callable(asked):
        found = asked()
        if inspect.iscoroutine(found):
            found = asyncio.run(found)
        if found:
            break
        if time.monotonic() > until:
            return False
        time.sleep(READY_STEP_S)
    return True


def _failed(what: str, where: str, error: Exception) -> Rejected:
    lines = str(error).strip().splitlines()
    words = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    return Rejected(f"{what} failed {where}: {words}", remedy=REMEDY, check="load")
