"""ModelConfig -> how we run it. A pure function: the message and the folder's name in, one value out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inference.artifacts.triton import scheduling, tensors
from inference.artifacts.triton.refusals import check, check_parameters, refuse
from inference.errors import Rejected
from inference.protocol.settings import RuntimeSettings

ONNX, PYTORCH, PYTHON, ENSEMBLE = "onnxruntime", "pytorch", "python", "ensemble"
FILES = {ONNX: "model.onnx", PYTORCH: "model.pt", PYTHON: "model.py"}
PLATFORMS = {"onnxruntime_onnx": ONNX, "pytorch_libtorch": PYTORCH, "ensemble": ENSEMBLE}
AUTO_MAX_BATCH = 4  # what Triton takes for an ONNX model that batches and says nothing
CACHE_BYTES = 64 << 20
MAX_INSTANCES = 64
DEVICES = {0: "any", 1: "cuda", 2: "cpu", 3: "any"}  # KIND_AUTO, KIND_GPU, KIND_CPU, KIND_MODEL
SERVED = "served are onnxruntime (model.onnx), pytorch (TorchScript, model.pt), python (model.py) and ensembles"


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which numbered folders are served: the newest `latest`, all (0), or exactly `specific`."""

    latest: int = 1
    specific: tuple[int, ...] = ()

    def chosen(self, available: Iterable[int]) -> list[int]:
        """Ascending; of `specific` those that there are."""
        found = sorted(set(available))
        if self.specific:
            return [number for number in found if number in self.specific]
        return found[-self.latest :] if self.latest else found


@dataclass(frozen=True, slots=True)
class Step:
    """One model of an ensemble; version -1 is its newest. The maps: the model's tensor -> the graph's."""

    name: str
    model: str
    version: int
    input_map: dict[str, str]
    output_map: dict[str, str]


@dataclass(frozen=True, slots=True)
class Translated:
    """What a config.pbtxt says. backend: one of ONNX, PYTORCH, PYTHON, ENSEMBLE; filename: inside a numbered folder.

    settings.inputs and .outputs hold the declared signature. device, replicas: where and how often it is deployed.
    label_file: of the version's labels, "" without. steps, inflight: of an ensemble.
    """

    backend: str
    filename: str
    settings: RuntimeSettings
    policy: VersionPolicy = VersionPolicy()
    device: str = "any"
    replicas: int = 1
    label_file: str = ""
    steps: tuple[Step, ...] = ()
    inflight: int = 0
    notes: tuple[str, ...] = ()
    extra_files: tuple[str, ...] = field(default=())


def translate(config: Any, *, folder: str, files: Sequence[str] = ()) -> Translated:
    """The whole meaning of `config` for the model in `folder`, whose numbered folders hold `files`.

    1. Backend and file. 2. What is refused by name. 3. Settings. 4. Where it runs. Raises Rejected naming the field.
    """
    if config.name and config.name != folder:
        raise refuse("name", f"it is '{config.name}', and the model's folder is called '{folder}'")
    backend = backend_of(config, files)
    notes = check(config, backend)
    notes += check_parameters(sorted(config.parameters), backend)
    settings = _settings(config, backend)
    device, replicas, instances, placed = _instances(config.instance_group)
    settings = msgspec.structs.replace(settings, instances=instances)
    label_file = _label_file(config.output)
    extra = [name for sample in settings.warmup for name in sample.data.values() if "/" in name]
    extra += [
        state.initial_file for state in (settings.sequence.states if settings.sequence else []) if state.initial_file
    ]
    return Translated(
        backend=backend,
        filename=config.default_model_filename or FILES.get(backend, ""),
        settings=settings,
        policy=_policy(config.version_policy),
        device=device,
        replicas=replicas,
        label_file=label_file,
        steps=_steps(config.ensemble_scheduling),
        inflight=config.ensemble_scheduling.max_inflight_requests,
        notes=(*notes, *placed, *_unmerged(config, backend)),
        extra_files=tuple(dict.fromkeys(extra)),
    )


def backend_of(config: Any, files: Sequence[str] = ()) -> str:
    """By backend, platform, or, where neither is said, the file that is there. Raises Rejected."""
    if config.HasField("ensemble_scheduling") or config.platform == "ensemble":
        if config.platform not in ("", "ensemble") or config.backend:
            raise refuse("ensemble_scheduling", "it is for the platform 'ensemble', which has no backend")
        if not config.ensemble_scheduling.step:
            raise refuse("ensemble_scheduling", "an ensemble has at least one step")
        return ENSEMBLE
    if config.platform and config.platform not in PLATFORMS:
        raise refuse("platform", f"'{config.platform}' is not served; {SERVED}")
    named = config.backend or PLATFORMS.get(config.platform, "")
    if named and named not in FILES:
        raise refuse("backend", f"'{named}' is not served; {SERVED}")
    if named:
        return named
    found = [backend for backend, file in FILES.items() if file in files]
    if len(found) != 1:
        raise refuse("backend", f"it is not set, and the files do not tell: {SERVED}")
    return found[0]


def _settings(config: Any, backend: str) -> RuntimeSettings:
    size = config.max_batch_size
    if not 0 <= size <= 4096:
        raise refuse("max_batch_size", f"{size} is not from 0 to 4096")
    declared = bool(config.input or config.output)
    if not declared and not size and backend == ONNX:
        size = AUTO_MAX_BATCH
    batched = bool(size)
    found: dict[str, Any] = {
        "max_batch_size": size,
        "inputs": tensors.specs(config.input, "input", batched),
        "outputs": tensors.specs(config.output, "output", batched),
        "reshapes": tensors.reshapes(config.input, "input") | tensors.reshapes(config.output, "output"),
        "warmup": tensors.warmup(config.model_warmup, batched=batched),
        "decoupled": config.model_transaction_policy.decoupled,
        "parameters": {name: value.string_value for name, value in sorted(config.parameters.items())},
    }
    if backend in (PYTORCH, ENSEMBLE) and not (config.input and config.output):
        raise refuse("input", f"the model's inputs and outputs must be declared for {backend}")
    if config.HasField("dynamic_batching"):
        found |= scheduling.dynamic(config.dynamic_batching, size)
    if config.HasField("sequence_batching"):
        found["sequence"] = scheduling.sequence(config.sequence_batching, size)
        found["preserve_ordering"] = config.sequence_batching.oldest.preserve_ordering
    if config.response_cache.enable:
        _check_cache(config)
        found["response_cache_bytes"] = CACHE_BYTES
    return _made(found)


def _made(found: dict[str, Any]) -> RuntimeSettings:
    """Raises Rejected where a value is outside of what we allow, by our own field's name."""
    try:
        return msgspec.convert(msgspec.to_builtins(RuntimeSettings(**found)), RuntimeSettings)
    except msgspec.ValidationError as error:
        raise Rejected(
            f"config.pbtxt says more than is allowed here: {error}",
            remedy="Choose a smaller value; docs/triton.md has the limits.",
        ) from error


def _check_cache(config: Any) -> None:
    if config.model_transaction_policy.decoupled or config.HasField("sequence_batching"):
        raise refuse("response_cache", "answers of decoupled models and of sequences are never cached")


def _policy(policy: Any) -> VersionPolicy:
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return VersionPolicy(latest=0)
    if kind == "specific":
        if not policy.specific.versions or min(policy.specific.versions) < 1:
            raise refuse("version_policy.specific", "it must name versions, from 1 on")
        return VersionPolicy(specific=tuple(sorted(policy.specific.versions)))
    return VersionPolicy(latest=policy.latest.num_versions or 1)


def _instances(groups: Sequence[Any]) -> tuple[str, int, int, list[str]]:
    """(device, replicas, instances in each replica, notes)."""
    if not groups:
        return "any", 1, 1, []
    kinds = {DEVICES[group.kind] for group in groups}
    if len(kinds) != 1:
        raise refuse("instance_group.kind", "groups of several kinds in one model are not built: keep one kind")
    device, gpus = kinds.pop(), sorted({gpu for group in groups for gpu in group.gpus})
    if device == "cpu" and gpus:
        raise refuse("instance_group.gpus", "a group of KIND_CPU has none")
    if gpus and len({tuple(sorted(group.gpus)) for group in groups}) != 1:
        raise refuse("instance_group.gpus", "groups on several sets of GPUs are not built: keep one set")
    instances = sum(group.count or 1 for group in groups)
    if not 1 <= instances <= MAX_INSTANCES or any(group.count < 0 for group in groups):
        raise refuse("instance_group.count", f"from 1 to {MAX_INSTANCES} instances are built")
    if not gpus:
        return device, 1, instances, []
    if len(gpus) == 1:
        return f"cuda:{gpus[0]}", 1, instances, []
    note = f"one replica for each of the GPUs {gpus}: placement chooses which free ones they are"
    return "cuda", len(gpus), instances, [note]


def _label_file(outputs: Sequence[Any]) -> str:
    named = {output.name: output.label_filename for output in outputs if output.label_filename}
    if len(set(named.values())) > 1:
        raise refuse("output.label_filename", f"one label file for a model is built, not {len(set(named.values()))}")
    return next(iter(named.values()), "")


def _steps(ensemble: Any) -> tuple[Step, ...]:
    models = [step.model_name for step in ensemble.step]
    found = []
    for index, step in enumerate(ensemble.step):
        if not step.input_map or not step.output_map:
            raise refuse("ensemble_scheduling.step", f"step {index} must map its inputs and outputs")
        if step.model_version == 0 or step.model_version < -1:
            raise refuse("ensemble_scheduling.step.model_version", "it is -1 or a version's number, and must be set")
        unique = models.count(step.model_name) == 1
        name = step.model_name if unique else f"{step.model_name}_{index}"
        maps = dict(sorted(step.input_map.items())), dict(sorted(step.output_map.items()))
        found.append(Step(name, step.model_name, step.model_version, *maps))
    return tuple(found)


def _unmerged(config: Any, backend: str) -> list[str]:
    if backend == ENSEMBLE or config.max_batch_size < 2 or config.WhichOneof("scheduling_choice"):
        return []
    return ["dynamic_batching is not set: requests may share a batch all the same, their answers are their own"]
