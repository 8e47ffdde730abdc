"""One iteration of a language model: schedule, forward, sample, commit. Knows no event loop and no text.

The law: every request that was added gets outputs until each of its choices has ended, by a stop token, its length, an
error, or because it was dropped; the tokens of a choice do not depend on what else runs. All is called by one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from inference.errors import InvalidOutput, ModelFailed, OutOfMemory, SerinusError
from inference.generation.asked import Asked, asked_of, before_stop, guesses_of, ints
from inference.generation.grammar import MaskWanted
from inference.generation.plan import Flat, Plan, flatten
from inference.generation.requests import Output, Request, Run
from inference.generation.sampler import Rows, Sampled, Sampler
from inference.generation.scheduler import Counts, Scheduler
from inference.generation.sequence import Sequence, Status
from inference.generation.steps import step_of
from inference.models.language import LanguageModel
from inference.runtime.runner import is_out_of_memory

if TYPE_CHECKING:
    from inference.generation.drafts import Drafts
    from inference.generation.grammar import Grammars, Masks

log = logging.getLogger(__name__)
MASK_WAIT_S = 30.0


@dataclass(slots=True)
class Spent:
    """Sums over the iterations so far: how many there were, and nanoseconds of each part."""

    iterations: int = 0
    scheduling_ns: int = 0
    forward_ns: int = 0
    sampling_ns: int = 0
    prompt_tokens: int = 0
    drafted: int = 0
    accepted: int = 0


class Engine:
    """Owns scheduler, sampler and cache of one model. drafts: who guesses tokens ahead, None for nobody. sampler: the one
    that `drafts` draws by too, None for a new one.
    """

    def __init__(
        self,
        model: LanguageModel,
        scheduler: Scheduler,
        *,
        grammars: Grammars | None = None,
        drafts: Drafts | None = None,
        sampler: Sampler | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.model = model
        self.scheduler = scheduler
        self.spent = Spent()
        self.drafts = drafts
        self.sampler = sampler or Sampler(model.facts.vocabulary, str(getattr(model, "device", "cpu")))
        self.grammars = grammars
        self._clock = clock
        self._runs: dict[int, Run] = {}
        self._host: dict[int, torch.Tensor] = {}
        self._next_id = 0
        self._masks = ThreadPoolExecutor(1, "masks")

    @property
    def has_work(self) -> bool:
        """Whether a step would do something: held choices wait for their callers."""
        return any(not run.sequence.held for run in self._runs.values())

    # --- coming and going -----------------------------------------------------------------------------------------

    def add(self, request: Request) -> list[Output]:
        """It waits. Where it can never fit, one output with the InvalidInput."""
        run = self._new_run(request, 0)
        try:
            self.scheduler.add(run.sequence)
        except SerinusError as error:
            run.has_ended = True
            return [Output(run, error=error)]
        self._enter(run)
        return []

    def drop(self, request: Request) -> None:
        """Nobody wants more of it: its blocks are free at once."""
        for run in request.runs:
            self.end(run)

    def end(self, run: Run) -> None:
        """Nobody wants more of this choice."""
        if not run.has_ended:
            run.has_ended = True
            self.scheduler.finish(run.sequence)
            del self._runs[run.sequence.id]
            self.sampler.remove(run.slot)
            if self.drafts is not None:
                self.drafts.leave(run.sequence)

    def hold(self, request: Request, *, held: bool) -> None:
        """The caller reads slowly (or does again): its choices stand still."""
        for run in request.runs:
            run.sequence.held = held

    def fail_all(self, error: SerinusError) -> list[Output]:
        """Ends everything with `error`."""
        return self._fail(list(self._runs.values()), error)

    def forget(self) -> None:
        """Sums and prefixes of the warm-up are nobody's."""
        self.spent = Spent()
        self.scheduler.counts = Counts()
        self.scheduler.pool.forget()
        if self.drafts is not None:
            self.drafts.forget()

    def close(self) -> None:
        self._masks.shutdown(wait=False, cancel_futures=True)
        if self.drafts is not None:
            self.drafts.close()
        self.model.close()

    def _new_run(self, request: Request, index: int) -> Run:
        self._next_id += 1
        sequence = Sequence(
            self._next_id,
            request.prompt,
            request.limit,
            request.priority,
            request.salt,
            request.adapter,
            every_logit=request.sampling.prompt_logprobs is not None and not index,
        )
        run = Run(request, index, sequence)
        sequence.request = run
        return run

    def _enter(self, run: Run) -> None:
        request = run.request
        request.runs.append(run)
        run.added_ns = self._clock()
        self._runs[run.sequence.id] = run
        run.slot = self.sampler.add(
            request.sampling,
            request.prompt,
            choice=run.index,
            banned=tuple(request.stops),
            bad_words=request.bad_words,
            output=run.sequence.output,
        )
        if request.grammar is not None:
            run.matcher = request.grammar.matcher()
            run.matches = request.grammar_after is None
        if self.drafts is not None:
            self.drafts.enter(run.sequence)

    # --- an iteration ---------------------------------------------------------------------------------------------

    def step(self) -> list[Output]:
        """One iteration over whoever can run. An error of the model ends all that were in it, and nobody else."""
        began = self._clock()
        if self.drafts is not None:
            ready = (run.sequence for run in self._runs.values() if self._may_draft(run))
            self.drafts.propose(ready, self.scheduler.draft_room)
        plan = self.scheduler.schedule()
        if not plan.items:
            return []
        flat = flatten(plan)
        asked = asked_of(plan, flat)
        masks = self._start_masks(asked, len(flat.wanted))
        scheduled = self._clock()
        for item in plan.items:
            if item.sequence.request.queued_ns < 0:
                item.sequence.request.queued_ns = scheduled - item.sequence.request.added_ns
        try:
            logits = self._forward(plan, flat)
        except BaseException as error:  # noqa: BLE001 (a boundary: whatever native code raises ends its callers only)
            failed = self._fail([item.sequence.request for item in plan.items], _translated(error))
            self.scheduler.restart()
            return failed
        forwarded = self._clock()
        outputs = self._take(plan, asked, logits, masks)
        self._count(plan, (began, scheduled, forwarded, self._clock()))
        return outputs

    def _may_draft(self, run: Run) -> bool:
        can_mask = run.matcher is None or self.grammars is not None
        return can_mask and not run.sequence.held and not self.sampler.has_memory(run.slot)

    def _count(self, plan: Plan, times: tuple[int, int, int, int]) -> None:
        began, scheduled, forwarded, done = times
        spent = self.spent
        spent.iterations += 1
        spent.scheduling_ns += scheduled - began
        spent.forward_ns += forwarded - scheduled
        spent.sampling_ns += done - forwarded
        spent.prompt_tokens += plan.prompt_tokens
        spent.drafted += plan.draft_tokens
        if self.drafts is not None:
            self.drafts.timed(plan, (done - began) / 1e9)

    def _forward(self, plan: Plan, flat: Flat) -> torch.Tensor:
        model = self.model
        if plan.saves:
            saved = model.save_blocks([block for block, _ in plan.saves])
            for index, (_, slot) in enumerate(plan.saves):
                self._host[slot] = saved[index].clone()
        if plan.copies:
            model.copy_blocks(plan.copies)
        if plan.loads:
            kept = torch.stack([self._host[slot] for slot, _ in plan.loads])
            model.load_blocks([block for _, block in plan.loads], kept)
        return model.forward(step_of(flat))

    def _start_masks(self, asked: list[Asked], rows: int) -> Future[Masks] | None:
        """Which tokens each grammar allows next, and after each draft, worked out while the forward pass runs."""
        wanted = [
            MaskWanted(one.run.matcher, one.first_new, before_stop(one.run.request.stops, one.item.drafts))
            for one in asked
            if one.item.wants_logits and one.run.matcher is not None and one.run.matches
        ]
        if not wanted or self.grammars is None:
            return None
        return self._masks.submit(_filled, self.grammars, wanted, rows)

    # --- what it gave ---------------------------------------------------------------------------------------------

    def _take(self, plan: Plan, asked: list[Asked], logits: torch.Tensor, masks: Future[Masks] | None) -> list[Output]:
        outputs: list[Output] = []
        told: dict[int, Output] = {}
        for one in asked:
            if one.item.sequence.every_logit:
                self._tell_prompt(one, logits, told)
        choosing = [one for one in asked if one.item.wants_logits]
        filled = masks.result(MASK_WAIT_S) if masks is not None else None
        chosen, forked = self._choose(choosing, logits, filled)
        new: dict[int, list[int]] = {}
        at = 0
        for one in choosing:
            drafts = one.item.drafts
            output = told.pop(one.run.sequence.id, None) or Output(one.run)
            self._accept(one.run, drafts, chosen, at, output)
            at += 1 + len(drafts)
            new[one.run.sequence.id] = output.tokens
            outputs.append(output)
        outputs += told.values()
        self.scheduler.commit(plan, [new.get(item.sequence.id, []) for item in plan.items])
        for output in outputs:
            self.sampler.observe(output.run.slot, output.tokens)
            output.cached = output.run.sequence.cached
        for parent, children in forked:
            outputs += self._fork(parent, children, chosen)
        for output in outputs:
            if output.finish or output.error is not None:
                self.end(output.run)
        return outputs

    def _choose(
        self, choosing: list[Asked], logits: torch.Tensor, masks: Masks | None
    ) -> tuple[Sampled, list[tuple[Run, list[tuple[Run, int]]]]]:
        """Samples all rows at once: those of the runs, then those of the choices that begin with this one's prompt."""
        rows: list[int] = []
        slots: list[int] = []
        numbers: list[int] = []
        masked: list[int] = []
        forked: list[tuple[Run, list[tuple[Run, int]]]] = []
        guesses = guesses_of(choosing)
        for one in choosing:
            run, many = one.run, 1 + len(one.item.drafts)
            if run.matcher is not None and run.matches:
                masked += range(len(rows), len(rows) + many)
            rows += range(one.first_new, one.first_new + many)
            slots += [run.slot] * many
            numbers += range(run.made, run.made + many)
        for one in choosing:
            run = one.run
            if run.index == 0 and run.made == 0 and run.request.sampling.n > 1 and len(run.request.runs) == 1:
                children = []
                for index in range(1, run.request.sampling.n):
                    child = self._new_run(run.request, index)
                    self._enter(child)
                    children.append((child, len(rows)))
                    if child.matcher is not None and child.matches:
                        masked.append(len(rows))
                    rows.append(one.first + one.count - 1)
                    slots.append(child.slot)
                    numbers.append(0)
                forked.append((run, children))
        if not rows:
            return Sampled([], [], []), []
        held = ints(masked) if masks is not None else None
        wanted = Rows(ints(rows), ints(slots), ints(numbers), masks, held, guesses)
        return self.sampler.sample(logits, wanted), forked

    def _accept(self, run: Run, drafts: list[int], chosen: Sampled, at: int, output: Output) -> None:
        """Takes the drafts that are what was sampled in their place, and the token after them, up to the answer's end.

        Where a grammar begins, the rows behind were sampled without it, and are not used.
        """
        matched = run.matches
        for index in range(1 + len(drafts)):
            token = chosen.tokens[at + index]
            if token < 0:
                output.error = InvalidOutput("the model's logits hold NaN or infinity")
                return
            output.tokens.append(token)
            own, likely = chosen.logprobs[at + index], chosen.top[at + index]
            if own is not None and likely is not None:
                output.logprobs.append(own)
                output.likely.append(likely)
            self._judge(run, token, output)
            if output.finish or output.error is not None or index == len(drafts) or drafts[index] != token:
                break
            if run.matches is not matched:
                break
            self.spent.accepted += 1
        if drafts and self.drafts is not None:
            self.drafts.judged(len(output.tokens) - 1)

    def _judge(self, run: Run, token: int, output: Output) -> None:
        """Whether the answer ends with this token, which is not in the sequence yet."""
        request = run.request
        made = run.made + len(output.tokens)
        if run.matcher is not None and run.matches and token not in request.stops:
            if not run.matcher.accept(token):
                output.error = ModelFailed(f"the structure cannot be kept: {run.matcher.failed[:300]}")
                return
            if run.matcher.is_done:
                output.finish = "stop"
        elif token == request.grammar_after:
            run.matches = True
        if token in request.stops and made > request.sampling.min_tokens:
            output.finish, output.stop_token = "stop", token
        elif not output.finish and made >= request.limit:
            output.finish = "length"

    def _fork(self, parent: Run, children: list[tuple[Run, int]], chosen: Sampled) -> list[Output]:
        """The other choices of a request, each with a first token of its own."""
        found = []
        for child, at in children:
            output = Output(child, cached=parent.sequence.cached)
            self._accept(child, [], chosen, at, output)
            child.sequence.output += output.tokens
            child.sequence.cached = parent.sequence.cached
            child.sequence.held = parent.sequence.held
            if parent.sequence.status is Status.RUNNING and not output.finish and output.error is None:
                self.scheduler.fork(parent.sequence, [child.sequence])
            self.sampler.observe(child.slot, output.tokens)
            found.append(output)
        return found

    def _tell_prompt(self, one: Asked, logits: torch.Tensor, told: dict[int, Output]) -> None:
        """Log-probabilities of the prompt's tokens that this chunk foretells, each once."""
        run, request = one.run, one.run.request
        start = one.item.start
        first = max(request.prompt_told, start + 1)
        last = min(start + one.count + 1, len(request.prompt))
        if first < last:
            rows = logits[one.first + first - 1 - start : one.first + last - 1 - start]
            top = request.sampling.prompt_logprobs or 0
            own, ids, values = self.sampler.logprobs(rows, request.prompt[first:last], top)
            told[run.sequence.id] = Output(run, prompt_logprobs=own, prompt_likely=list(zip(ids, values, strict=True)))
            request.prompt_told = last
        if one.item.wants_logits:
            one.item.sequence.every_logit = False

    def _fail(self, runs: Iterable[Run], error: SerinusError) -> list[Output]:
        found = []
        for run in list(runs):
            if not run.has_ended:
                found.append(Output(run, error=type(error)(error.message)))
                self.end(run)
        return found


def _filled(grammars: Grammars, wanted: list[MaskWanted], rows: int) -> Masks:
    masks = grammars.masks(rows)
    grammars.fill(wanted, masks)
    return masks


def _translated(error: BaseException) -> SerinusError:
    if isinstance(error, SerinusError):
        return error
    log.error("the model raised %s", type(error).__name__, exc_info=error)
    return OutOfMemory() if is_out_of_memory(error) else ModelFailed()
