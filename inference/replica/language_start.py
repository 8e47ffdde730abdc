"""A loaded language model -> an engine that is warm: tokenizer, cache, scheduler, and a few passes of every kind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from inference.protocol.settings import GenerationSettings
from inference.replica import sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from inference.artifacts.manifest import RuntimeSettings
    from inference.generation.drafts import Drafts
    from inference.generation.engine import Engine
    from inference.generation.requests import Output
    from inference.generation.sampler import Sampler
    from inference.models.contract import LoadContext
    from inference.models.language import LanguageModel
    from inference.protocol.supervision import AdapterSpec
    from inference.replica.control import Control
    from inference.replica.language import LanguageExecutor
    from inference.replica.language_adapters import LanguageAdapters, Slots
    from inference.replica.language_text import LanguageText
    from inference.runtime.runner import Runner

log = logging.getLogger(__name__)
WARM_TOKENS = 4
WARM_PROMPTS = (1, 24, 4)  # several at once, of different lengths, so that every kernel is compiled before READY


@dataclass(frozen=True, slots=True)
class Language:
    engine: Engine
    text: LanguageText
    adapters: LanguageAdapters | None = None


def prepare(runner: Runner, context: LoadContext) -> Language:
    """Raises Rejected for a tokenizer or a draft model that does not fit, or where there is no room for keys and values."""
    from inference.generation.memory import cache_size
    from inference.models.drafting import load_draft
    from inference.models.language_tokenizer import load_tokenizer
    from inference.replica.language_text import LanguageText

    model = cast("LanguageModel", runner.model)
    settings = context.settings.generation or GenerationSettings()
    tokenizer = load_tokenizer(context.folder)
    draft = load_draft(context, model)
    size = cache_size(
        model,
        settings,
        device=context.device,
        device_bytes=context.device_memory_bytes,
        left_bytes=sandbox.memory_left(),
        reserved_bytes=adapters_bytes(model),
        draft=draft,
    )
    model.allocate(size.blocks, settings.block_size)
    log.info("%d blocks of %d tokens, %d bytes, for keys and values", size.blocks, settings.block_size, size.bytes)
    if draft is not None:
        draft.allocate(size.blocks, settings.block_size)
    engine = engine_of(model, settings, size.blocks, host_blocks=size.host_blocks, draft=draft)
    text = LanguageText(tokenizer, model.facts, settings, max_context=engine.scheduler.max_context)
    engine.grammars = text.grammars
    _warm(engine)
    runner.mark_ready()
    return Language(engine, text)


def adapters_bytes(model: LanguageModel) -> int:
    """What the adapters that the model has room for may take in all, 0 for one that takes none."""
    return int(getattr(model, "adapters_bytes", 0))


def with_adapters(
    language: Language, wanted: Sequence[AdapterSpec], folder: Path, control: Control, most: int
) -> Language:
    """`language` with those adapters loaded, out of `folder`/DIGEST, into the `most` slots that its version has."""
    from inference.protocol.child import AdapterAt, AdaptersReport
    from inference.replica.language_adapters import LanguageAdapters

    if not most:
        return language
    model = cast("Slots", language.engine.model)
    adapters = LanguageAdapters(
        model, language.text, folder, most=most, told=lambda seen: control.tell(AdaptersReport(seen))
    )
    adapters.load_first([AdapterAt(one.name, one.digest) for one in wanted])
    return replace(language, adapters=adapters)


def engine_of(
    model: LanguageModel,
    settings: GenerationSettings,
    blocks: int,
    *,
    host_blocks: int = 0,
    draft: LanguageModel | None = None,
) -> Engine:
    """An engine over a cache of so many blocks, which are allocated; those of the draft model too."""
    from inference.generation.blocks import BlockPool
    from inference.generation.engine import Engine
    from inference.generation.sampler import Sampler
    from inference.generation.scheduler import Limits, Scheduler

    limits = Limits(
        settings.max_num_batched_tokens,
        settings.max_num_seqs,
        model.facts.max_context,
        settings.long_prefill_token_threshold,
    )
    pool = BlockPool(blocks, settings.block_size, caching=settings.enable_prefix_caching, offload=host_blocks)
    sampler = Sampler(model.facts.vocabulary, str(getattr(model, "device", "cpu")))
    drafts = _drafts_of(settings, sampler, draft, blocks)
    return Engine(model, Scheduler(limits, pool), drafts=drafts, sampler=sampler)


def _drafts_of(
    settings: GenerationSettings, sampler: Sampler, draft: LanguageModel | None, blocks: int
) -> Drafts | None:
    from inference.generation.blocks import BlockPool
    from inference.generation.draft_model import DraftModel
    from inference.generation.drafts import Drafts, Ngrams

    speculation = settings.speculation
    if speculation is None:
        return None
    if speculation.method == "ngram":
        return Drafts(Ngrams(speculation))
    assert draft is not None, "a draft model is loaded before its engine is made"
    pool = BlockPool(blocks, settings.block_size, caching=settings.enable_prefix_caching)
    budget = settings.max_num_batched_tokens
    return Drafts(DraftModel(draft, pool, sampler, tokens=speculation.tokens, budget=budget))


def executor(
    runner: Runner, language: Language, settings: RuntimeSettings, *, on_hang: Callable[[], None]
) -> LanguageExecutor:
    """Called in the event loop that it will belong to."""
    from inference.replica.language import LanguageBounds, LanguageExecutor

    generation = settings.generation or GenerationSettings()

    def busy(seconds: float) -> None:
        runner.measures.runs += 1
        runner.measures.busy_s += seconds

    bounds = LanguageBounds(settings.queue_limit, generation.max_queued_tokens, settings.hang_timeout_s)
    return LanguageExecutor(language.engine, language.text, bounds, on_hang=on_hang, on_busy=busy)


def _warm(engine: Engine) -> None:
    """A few requests through the engine itself: chunks and single tokens, greedy and sampled."""
    from inference.generation.requests import Request
    from inference.protocol.generation import Sampling

    began = time.perf_counter()
    longest = max(1, engine.scheduler.max_context - WARM_TOKENS)
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_tokens=WARM_TOKENS, temperature=temperature, top_p=0.9, seed=1)
        for size in WARM_PROMPTS:
            outputs = engine.add(Request([1] * min(size, longest), sampling, WARM_TOKENS, salt=b"warm-up"))
            _check(outputs)
        while engine.has_work:
            _check(engine.step())
    engine.forget()
    log.info("warm after %.1f s", time.perf_counter() - began)


def _check(outputs: list[Output]) -> None:
    for output in outputs:
        if output.error is not None:
            raise output.error
