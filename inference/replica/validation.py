"""One validation run: hashes and parse stage first, then the sandbox, then everything that needs a framework.

The law: nothing of an artifact is interpreted before the sandbox is closed, and nothing of the code tier runs at all
before a person approved it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from inference.artifacts import causal, safetensors, sniff
from inference.artifacts.manifest import Format, RuntimeSettings, Tier, settings_from
from inference.artifacts.sniff import Kind
from inference.artifacts.store import hash_file
from inference.errors import OutOfMemory, Rejected
from inference.models import LoadContext, load
from inference.models.contract import Model
from inference.protocol.child import StartValidation
from inference.protocol.oip import Signature
from inference.protocol.settings import GenerationSettings
from inference.protocol.signatures import public_signature
from inference.protocol.supervision import FileRef, Measurements, TensorSeen
from inference.replica import amounts
from inference.replica.checklist import Checklist
from inference.replica.control import Control
from inference.replica.ground import Ground, lay_out
from inference.replica.parse import Verdict, verdict_of
from inference.replica.sandbox import Limits, Walls
from inference.runtime import devices, samples
from inference.runtime.runner import Runner, is_out_of_memory
from inference.runtime.tensors import Arrays
from inference.runtime.warmup import WarmUp, warm_up, warm_up_stream

log = logging.getLogger(__name__)
MEMORY_FLOOR_BYTES, MEMORY_FACTOR, LANGUAGE_FACTOR = 2 << 30, 4, 2
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
CONVERTED_NAME = "model.safetensors"
CONVERT = "convert"
LANGUAGE = frozenset({Format.HF_DECODER, Format.GGUF, Format.LORA})
MAX_TENSORS_TOLD, MAX_NAME_CHARS = 1000, 200
REPEATS = 3
MAX_PASS_MS = 5_000.0
MAX_MEASURED_PASS_MS = 2000.0


@dataclass(slots=True)
class Run:
    """What a run carries from step to step."""

    message: StartValidation
    checklist: Checklist
    ground: Ground
    settings: RuntimeSettings


def run(message: StartValidation, control: Control, *, keep: tuple[int, ...]) -> int:
    """Validates and reports; 0 whatever the verdict. The process is the sandbox's afterwards."""
    checklist = Checklist(message.spec, control)
    try:
        ready = _validate(message, checklist, control, keep)
    except BaseException as error:
        # Native panics too: whatever reading or running it raises is the verdict about the artifact.
        log.exception("rejected")
        checklist.reject(OutOfMemory() if is_out_of_memory(error) else error)
        return 0
    if ready:
        checklist.ready()
    return 0


def _validate(message: StartValidation, checklist: Checklist, control: Control, keep: tuple[int, ...]) -> bool:
    """1. files. 2. parse. 3. Is it code that nobody approved? 4. sandbox. 5. convert, load, signature, warm-up, latency.

    A run that is to convert ends after that.
    """
    with checklist.step("files") as step:
        settings = _settings(message)
        ground = lay_out(message.paths, message.spec.files)
        ground.verify()
        step.note(
            f"{len(ground.files)} file{'s' * (len(ground.files) != 1)}, {amounts.size(ground.size_bytes)}, every sha256 as uploaded"
        )
    state = Run(message, checklist, ground, settings)
    verdict = _parse(state)
    if verdict.tier == Tier.CODE and message.spec.tier != Tier.CODE:
        checklist.hold(
            f"this version holds code ({verdict.format}): nothing of it runs before a second person approved it",
            "ask an admin of the team to approve it, or export the model as torch.export, ONNX or safetensors",
        )
        return False
    only_convert = message.spec.purpose == CONVERT
    folder = _prepare_served(ground) if verdict.needs_conversion and not only_convert else ground.artifact
    limits = Limits(_memory_bytes(ground, verdict, settings), 2 * ground.size_bytes, file_bytes=_file_bytes(ground))
    walls = ground.enter(device=message.spec.device, limits=limits, keep=keep, writes_out=True)
    control.listen()
    if only_convert:
        _convert_lone(state, walls)
    else:
        _convert(state, verdict)
        _prover(verdict.format)(state, verdict, folder, walls)
    return True


def _prover(kind: str) -> Callable[[Run, Verdict, Path, Walls], None]:
    if kind in LANGUAGE:
        from inference.replica import language_proof

        return language_proof.prove_adapter if kind == Format.LORA else language_proof.prove
    return _prove


def _parse(state: Run) -> Verdict:
    with state.checklist.step("parse") as step:
        verdict = verdict_of(state.ground.artifact)
        state.checklist.learn(format=verdict.format, tier=verdict.tier or state.message.spec.tier, task=verdict.task)
        if state.message.spec.purpose == CONVERT and verdict.format == Format.TORCH_PICKLE:
            step.note("a torch pickle that names nothing but tensors")
            return verdict
        if verdict.reason:
            raise Rejected(verdict.reason, remedy=verdict.remedy, check=verdict.check)
        step.note("; ".join([f"{verdict.format}, trust tier {verdict.tier}", *verdict.notes])[:1000])
    return verdict


def _convert(state: Run, verdict: Verdict) -> None:
    with state.checklist.step("convert") as step:
        if not verdict.needs_conversion:
            step.skip("nothing to convert")
            return
        source = next(state.ground.artifact / file.path for file in state.ground.files if _is_pickle(file.path))
        made = _write_safetensors(state, source)
        step.note(f"{source.name} became {made.path} ({amounts.size(made.size_bytes)}); the original is never served")


def _convert_lone(state: Run, walls: Walls) -> None:
    with state.checklist.step("convert") as step:
        files = [state.ground.artifact / file.path for file in state.ground.files]
        source = next((file for file in files if sniff.kind_of(file) is Kind.TORCH_PICKLE), None)
        if source is None:
            raise Rejected("there is no torch pickle here", remedy="nothing needs converting", check="convert")
        made = _write_safetensors(state, source)
        table = safetensors.read(state.ground.out / made.path)
        shown = [
            TensorSeen(name[:MAX_NAME_CHARS], held.dtype, list(held.shape)) for name, held in sorted(table.items())
        ]
        state.checklist.learn(tensors=shown[:MAX_TENSORS_TOLD], tensor_count=len(table))
        step.note(
            f"{source.name} became {made.path}: {len(table)} tensors, {amounts.size(made.size_bytes)}; {walls.words()}"
        )


def _write_safetensors(state: Run, source: Path) -> FileRef:
    from inference.models.convert import to_safetensors

    target = state.ground.out / CONVERTED_NAME
    to_safetensors(source, target)
    digest, size_bytes = hash_file(target)
    made = FileRef(CONVERTED_NAME, size_bytes, digest)
    state.checklist.learn(converted=[made])
    return made


def _prove(state: Run, verdict: Verdict, folder: Path, walls: Walls) -> None:
    checklist, spec = state.checklist, state.message.spec
    baseline = amounts.peak_bytes()
    with checklist.step("load") as step:
        began = time.perf_counter()
        context = LoadContext(folder, state.settings, devices.select(spec.device), amounts.threads(), model=spec.model)
        model = load(verdict.format, context)
        load_ms = (time.perf_counter() - began) * 1e3
        step.note(f"loaded in {load_ms:.0f} ms on {spec.device}, {walls.words()}")
    with checklist.step("signature") as step:
        public = public_signature(_checked(model, spec.device), state.settings)
        checklist.learn(signature=public)
        step.note(_described(public))
    runner = Runner(model)
    with checklist.step("warm-up") as step:
        own = samples.read(folder, state.settings.warmup, batched=bool(model.signature.max_batch_size))
        if state.settings.decoupled:
            warm = warm_up_stream(runner, samples=own)
        else:
            warm = warm_up(runner, repeats=REPEATS, samples=own)
        ran = ", ".join(map(str, warm.latency_ms))
        step.note(
            f"ran at batch {ran}" if ran else "it refuses inputs made from its signature, so nothing was measured"
        )
    with checklist.step("latency") as step:
        latency_ms = warm.latency_ms if state.settings.decoupled else measure(runner, warm)
        largest = state.settings.max_batch_size or choose_max_batch(model.signature, latency_ms)
        _settle(state, public, largest)
        peak = max(0, amounts.peak_bytes() - baseline)
        rounded = {str(rows): ms for rows, ms in latency_ms.items()}
        checklist.learn(measurements=Measurements(round(load_ms, 1), peak, rounded))
        listed = ", ".join(f"{ms:g} ms at {rows}" for rows, ms in latency_ms.items())
        step.note(f"{listed}; peak memory {amounts.size(peak)} above standby; largest batch {largest}")


def measure(runner: Runner, warm: WarmUp) -> dict[int, float]:
    """Batch size -> median ms of one pass: what the warm-up measured, and powers of two between, while they are quick."""
    latency_ms = dict(warm.latency_ms)
    largest = runner.signature.max_batch_size
    rows = 2
    if getattr(runner.model, "answers_anything", False):
        return latency_ms
    while not runner.signature.buckets and rows < largest and latency_ms[max(1, rows // 2)] < MAX_MEASURED_PASS_MS:
        latency_ms[rows] = _median_ms(runner, {name: np.repeat(a, rows, axis=0) for name, a in warm.sample.items()})
        rows *= 2
    return dict(sorted(latency_ms.items()))


def choose_max_batch(signature: Signature, latency_ms: dict[int, float]) -> int:
    """The signature's own largest batch, unless a pass of it takes longer than any caller would wait; 0 where nothing
    is batched.

    Not the batch with the best throughput: it is a limit that callers see, and must not hang on how busy the machine
    was while it was measured. How large batches really get is the batcher's to decide.
    """
    if not signature.max_batch_size:
        return 0
    return max((rows for rows, ms in latency_ms.items() if ms <= MAX_PASS_MS), default=1)


def _settle(state: Run, signature: Signature, largest: int) -> None:
    if signature.max_batch_size:
        buckets = [size for size in signature.buckets if size <= largest]
        largest = min(largest, signature.max_batch_size)
        signature = msgspec.structs.replace(signature, max_batch_size=largest, buckets=buckets or signature.buckets)
    settings = msgspec.structs.replace(state.settings, max_batch_size=largest)
    state.checklist.learn(signature=signature, settings=msgspec.to_builtins(settings))


def _settings(message: StartValidation) -> RuntimeSettings:
    try:
        return settings_from(message.spec.settings)
    except msgspec.ValidationError as error:
        raise Rejected(f"the settings are wrong: {error}", remedy="see docs/formats.md", check="files") from error


def _checked(model: Model, device: str) -> Signature:
    signature = model.signature
    kind = device.partition(":")[0]
    if signature.platforms and kind not in signature.platforms:
        raise Rejected(
            f"the program was exported for {', '.join(signature.platforms)}, and this host validates on {kind}",
            remedy="export it for several platforms: jax.export.export(f, platforms=['cpu', 'cuda', 'tpu'])",
            check="signature",
        )
    return signature


def _described(signature: Signature) -> str:
    def listed(specs: list[object]) -> str:
        return ", ".join(re.sub(r"\s+", "", str(spec)) for spec in specs)

    inputs = listed([f"{spec.name}:{spec.datatype}{spec.shape}" for spec in signature.inputs])
    outputs = listed([f"{spec.name}:{spec.datatype}{spec.shape}" for spec in signature.outputs])
    return f"{inputs} -> {outputs}"


def _prepare_served(ground: Ground) -> Path:
    # Made before the sandbox closes; the link to what is converted leads nowhere until it has been.
    for file in ground.files:
        if not _is_pickle(file.path):
            place = ground.served / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to((ground.artifact / file.path).resolve())
    (ground.served / CONVERTED_NAME).symlink_to(ground.out / CONVERTED_NAME)
    return ground.served


def _median_ms(runner: Runner, inputs: Arrays) -> float:
    times = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        runner.run(inputs)
        times.append((time.perf_counter() - began) * 1e3)
    return round(float(np.median(times[1:])), 3)


def _memory_bytes(ground: Ground, verdict: Verdict, settings: RuntimeSettings) -> int:
    known = max(MEMORY_FLOOR_BYTES, MEMORY_FACTOR * ground.size_bytes)
    if verdict.language is None:
        return known
    # A quantised file is several times as large once it is loaded, and its layers are put together from parts.
    generation = settings.generation or GenerationSettings()
    dtype = causal.dtype_of(generation.dtype, "cpu")
    loaded = verdict.language.weight_bytes(dtype)
    if generation.speculation is not None and generation.speculation.method == "draft":
        guessing = verdict.draft if generation.speculation.draft == "folder" else verdict.language
        loaded += guessing.weight_bytes(dtype) if guessing is not None else 0
    return max(known, LANGUAGE_FACTOR * loaded + MEMORY_FLOOR_BYTES)


def _file_bytes(ground: Ground) -> int:
    return max(256 << 20, 2 * ground.size_bytes)


def _is_pickle(path: str) -> bool:
    return path.endswith(PICKLE_SUFFIXES)
