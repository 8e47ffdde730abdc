"""What validation proves of a language model: it loads, foretells a text of ours, and how fast a step of it is.

An adapter is proved on paper: its matrices fit together, and it says which version it changes. Whether they fit that
version is seen where both are, in the replica that loads it.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, cast

import msgspec

from inference.artifacts import causal, lora
from inference.errors import Rejected
from inference.generation import perplexity
from inference.generation.memory import cache_size
from inference.models import LoadContext, load
from inference.models.language_tokenizer import LanguageTokenizer, load_tokenizer
from inference.protocol.generation import language_signature
from inference.protocol.settings import GenerationSettings
from inference.protocol.signatures import public_signature
from inference.protocol.supervision import LanguageSeen, Measurements
from inference.replica import amounts, draft_proof
from inference.replica.language_start import adapters_bytes
from inference.runtime import devices

if TYPE_CHECKING:
    from pathlib import Path

    from inference.models.language import LanguageModel
    from inference.protocol.settings import RuntimeSettings
    from inference.replica.parse import Verdict
    from inference.replica.sandbox import Walls
    from inference.replica.validation import Run

BATCHES = (1, 4, 16)
REPEATS = 3
BEGIN_TOKENS = 64
LARGE_PARAMETERS, LARGE_TOKENS = 1_000_000_000, 64  # a large model proves itself on less text
MAX_STEP_MS = 2_000.0
COMPARED = frozenset({"int8", "int4"})  # what changes weights


def prove(state: Run, verdict: Verdict, folder: Path, walls: Walls) -> None:
    """1. Loads. 2. Signature. 3. Perplexity on the built-in text. 4. Steps by batch size. 5. What quantising costs."""
    checklist, spec = state.checklist, state.message.spec
    settings = state.settings.generation or GenerationSettings()
    baseline = amounts.peak_bytes()
    with checklist.step("load") as step:
        began = time.perf_counter()
        tokenizer, model = load_tokenizer(folder), _loaded(state, verdict, folder, state.settings)
        draft = draft_proof.loaded(_context(state, folder, state.settings), model, tokenizer)
        load_ms = (time.perf_counter() - began) * 1e3
        seen = draft_proof.said(verdict, settings, _seen(state, verdict, folder, tokenizer, model))
        described = _described(seen) + draft_proof.words(verdict, settings, seen)
        said = "; ".join([described, *model.facts.notes])
        step.note(f"loaded in {load_ms:.0f} ms on {spec.device}, {walls.words()}: {said}")
    with checklist.step("signature") as step:
        public = public_signature(language_signature(), state.settings)
        checklist.learn(signature=public, settings=msgspec.to_builtins(state.settings))
        step.note(_spoken(seen))
    ids = _ids(tokenizer, seen)
    with checklist.step("warm-up") as step:
        seen = msgspec.structs.replace(seen, perplexity=round(perplexity.perplexity(model, ids), 4))
        seen = draft_proof.measured(seen, model, draft, ids)
        step.note(f"perplexity {seen.perplexity:.2f} on {len(ids)} tokens of a built-in text{_agreed(seen)}")
    with checklist.step("latency") as step:
        latency_ms, per_s = _latency(model, ids, settings.max_num_seqs)
        seen = msgspec.structs.replace(seen, prompt_tokens_per_s=round(per_s, 1))
        cache = cache_size(model, settings, device=spec.device, draft=draft)
        peak = max(0, amounts.peak_bytes() - baseline) + cache.bytes + adapters_bytes(model)
        model.close()
        del model, draft
        if seen.quantization in COMPARED:
            seen = _compared(state, verdict, folder, seen, ids)
        rounded = {str(rows): ms for rows, ms in latency_ms.items()}
        checklist.learn(measurements=Measurements(round(load_ms, 1), peak, rounded, seen))
        step.note(_timed(latency_ms, seen, peak))


def prove_adapter(state: Run, _verdict: Verdict, folder: Path, _walls: Walls) -> None:
    """1. Its base is named. 2. The signature is the base's kind. The rest needs the base, and is skipped."""
    checklist = state.checklist
    with checklist.step("load") as step:
        name, number = lora.base_of(state.settings.parameters)
        found = lora.read(folder)
        step.note(f"rank {found.rank}, scale {found.scale:g}, {len(found.modules)} layers; it changes {name}:{number}")
    with checklist.step("signature") as step:
        public = public_signature(language_signature(), state.settings)
        checklist.learn(signature=public, settings=msgspec.to_builtins(state.settings))
        step.note("a chat or text in, text out, as the model that it changes")
    for rest in ("warm-up", "latency"):
        with checklist.step(rest) as step:
            step.skip("an adapter runs in its base's replicas")


def _loaded(state: Run, verdict: Verdict, folder: Path, settings: RuntimeSettings) -> LanguageModel:
    return cast("LanguageModel", load(verdict.format, _context(state, folder, settings)))


def _context(state: Run, folder: Path, settings: RuntimeSettings) -> LoadContext:
    spec = state.message.spec
    return LoadContext(folder, settings, devices.select(spec.device), amounts.threads(), model=spec.model)


def _seen(
    state: Run, verdict: Verdict, folder: Path, tokenizer: LanguageTokenizer, model: LanguageModel
) -> LanguageSeen:
    settings = state.settings.generation or GenerationSettings()
    found = verdict.language
    if found is None or found.needs_conversion:  # what was converted can be counted now
        found = causal.read_folder(folder)
    dtype = causal.dtype_of(settings.dtype, state.message.spec.device.partition(":")[0])
    return LanguageSeen(
        architecture=found.architecture,
        parameters=found.parameters,
        layers=found.shape.layers,
        context=model.facts.max_context,
        vocabulary=model.facts.vocabulary,
        stored=found.stored,
        dtype=dtype,
        weight_bytes=model.weight_bytes,
        cache_bytes_per_1000=1000 * model.block_bytes(perplexity.BLOCK_SIZE) // perplexity.BLOCK_SIZE,
        has_chat_template=bool(settings.chat_template or tokenizer.chat_template),
        path=model.facts.path,
        quantization=settings.quantization,
    )


def _ids(tokenizer: LanguageTokenizer, seen: LanguageSeen) -> list[int]:
    """The built-in text, as much of it as the model's context holds and its size makes bearable."""
    ids = tokenizer.encode(perplexity.TEXT)
    if len(ids) < 2 or max(ids) >= seen.vocabulary:
        raise Rejected(
            "the tokenizer does not fit the model: it makes ids that the model has no embedding for",
            remedy="upload the tokenizer that belongs to these weights",
            check="warm-up",
        )
    most = LARGE_TOKENS if seen.parameters > LARGE_PARAMETERS else len(ids)
    return ids[: min(most, seen.context)]


def _compared(state: Run, verdict: Verdict, folder: Path, seen: LanguageSeen, ids: list[int]) -> LanguageSeen:
    """`seen` with the perplexity of the same weights as they are."""
    generation = msgspec.structs.replace(state.settings.generation or GenerationSettings(), quantization="none")
    plain = _loaded(state, verdict, folder, msgspec.structs.replace(state.settings, generation=generation))
    found = perplexity.perplexity(plain, ids)
    plain.close()
    return msgspec.structs.replace(seen, perplexity_plain=round(found, 4))


def _latency(model: LanguageModel, ids: list[int], largest: int) -> tuple[dict[int, float], float]:
    """(sequences -> median ms of one step of all of them, prompt tokens per second of one alone)."""
    text = ids[: max(1, min(BEGIN_TOKENS, model.facts.max_context - REPEATS - 1))]
    found: dict[int, float] = {}
    per_s, blocks = 0.0, -(-(len(text) + REPEATS + 1) // perplexity.BLOCK_SIZE)
    for many in BATCHES:
        if many > largest or any(ms > MAX_STEP_MS for ms in found.values()):
            break
        model.allocate(many * blocks, perplexity.BLOCK_SIZE)
        prompt_ms = _step_ms(model, [text] * many, 0, blocks)
        times = [_step_ms(model, [text[:1]] * many, len(text) + done, blocks) for done in range(REPEATS + 1)]
        found[many] = round(statistics.median(times[1:]), 3)
        per_s = max(per_s, many * len(text) / prompt_ms * 1e3)
    return found, per_s


def _step_ms(model: LanguageModel, texts: list[list[int]], begin: int, blocks: int) -> float:
    last = len(texts[0])
    wanted = range(last - 1, last * len(texts), last)
    step = perplexity.step_of(texts, begin, wanted=wanted, blocks=blocks)
    began = time.perf_counter()
    model.forward(step).cpu()
    return (time.perf_counter() - began) * 1e3


def _described(seen: LanguageSeen) -> str:
    how = "our own decoder" if seen.path == "decoder" else "its class of transformers"
    kept = f"stored as {seen.stored}, loaded as {seen.dtype}" if seen.stored else f"loaded as {seen.dtype}"
    quantised = f" and quantised to {seen.quantization}" if seen.quantization in COMPARED else ""
    sizes = f"{seen.parameters:,} parameters, {seen.layers} layers, context {seen.context:,} tokens"
    room = f"{amounts.size(seen.weight_bytes)} of weights, {amounts.size(seen.cache_bytes_per_1000)} for 1,000 tokens"
    return f"{seen.architecture} by {how}, {sizes}, {kept}{quantised}; {room}"


def _agreed(seen: LanguageSeen) -> str:
    return f"; the draft model guesses {seen.draft_agreement:.0%} of the model's likeliest tokens" if seen.draft else ""


def _spoken(seen: LanguageSeen) -> str:
    template = "with its chat template" if seen.has_chat_template else "without a chat template: completions only"
    return f"text in, text out; {template}"


def _timed(latency_ms: dict[int, float], seen: LanguageSeen, peak: int) -> str:
    listed = ", ".join(f"{ms:g} ms at {rows}" for rows, ms in latency_ms.items())
    said = f"one step takes {listed}; {seen.prompt_tokens_per_s:g} prompt tokens/s; memory with a full cache and all adapters {amounts.size(peak)}"
    if seen.perplexity_plain:
        change = seen.perplexity / seen.perplexity_plain - 1
        said += f"; {seen.quantization} weights change perplexity {seen.perplexity_plain:.2f} to {seen.perplexity:.2f} ({change:+.1%})"
    return said
