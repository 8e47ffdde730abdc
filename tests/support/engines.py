"""Engines over tiny random models, run to their end in this thread, and what transformers says to the same prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from inference.generation.draft_model import DraftModel
from inference.generation.drafts import Drafts, Payoff
from inference.generation.engine import Engine
from inference.generation.requests import Likely, Request
from inference.protocol.generation import Sampling
from inference.protocol.settings import GenerationSettings, Speculation
from tests.support import language

MARKS_END = 2


SAME, OTHER = 5, 8  # seeds of the tiny model's own weights, and of some that have nothing to do with them


@cache
def tiny(seed: int = SAME, **changes: float) -> tuple[Path, Any]:
    """(folder, the transformers model) of a tiny random Llama, made once."""
    folder = Path(mkdtemp(prefix="serinus-tiny-"))
    return folder, language.folder(folder, seed=seed, **changes)


class Always(Payoff):
    """Drafts in every iteration, whatever they cost."""

    def wants(self, sequences: int) -> bool:
        return True


def engine(*, blocks: int = 256, draft: Path | None = None, draft_blocks: int = 0, **settings: Any) -> Engine:
    """draft: the folder of a draft model, which is always used; draft_blocks: fewer of them for it."""
    from inference.models.on_torch.language import TorchLanguageModel, source_of
    from inference.replica.language_start import engine_of

    if draft is not None:
        settings.setdefault("speculation", Speculation(method="draft", tokens=3))
    chosen = GenerationSettings(**{"block_size": 8, "max_num_batched_tokens": 64, **settings})
    model = TorchLanguageModel(source_of(tiny()[0]), chosen, "cpu")
    model.allocate(blocks, chosen.block_size)
    if draft is None:
        return engine_of(model, chosen, blocks)
    guessing = TorchLanguageModel(source_of(draft), chosen, "cpu")
    guessing.allocate(blocks, chosen.block_size)
    made = engine_of(model, chosen, blocks, draft=guessing)
    assert made.drafts is not None
    made.drafts = Drafts(made.drafts.proposer, Always())
    if draft_blocks:
        drafter(made).pool.__init__(draft_blocks, chosen.block_size, caching=chosen.enable_prefix_caching)  # type: ignore[misc]
    return made


def drafter(engine: Engine) -> DraftModel:
    """The draft model of an engine that has one."""
    assert engine.drafts is not None
    assert isinstance(engine.drafts.proposer, DraftModel)
    return engine.drafts.proposer


@dataclass
class Told:
    """All that came for one choice."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likely: list[Likely] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    finish: str = ""
    stop_token: int | None = None
    cached: int = 0
    error: Any = None


def request(prompt: list[int], limit: int = 12, **more: Any) -> Request:
    names = {"stops", "grammar", "grammar_after", "priority", "salt", "bad_words"}
    own = {name: more.pop(name) for name in names & more.keys()}
    return Request(prompt, Sampling(max_tokens=limit, **{"temperature": 0.0, **more}), limit, **own)


def run(
    engine: Engine, requests: list[Request], *, during: Any = None, drafts_fail: bool = False
) -> dict[tuple[int, int], Told]:
    """Steps until nothing is left; (request, choice) -> what it said. during: called before each step. drafts_fail: that
    the engine goes on without them is expected.
    """
    found: dict[tuple[int, int], Told] = {}
    number = {id(one): at for at, one in enumerate(requests)}
    outputs = [output for one in requests for output in engine.add(one)]
    for step in range(10_000):
        for output in outputs:
            told = found.setdefault((number[id(output.run.request)], output.run.index), Told())
            assert not told.finish, "nothing comes after the end"
            assert told.error is None, "nothing comes after an error"
            told.tokens += output.tokens
            told.logprobs += output.logprobs
            told.likely += output.likely
            told.prompt_logprobs += output.prompt_logprobs
            told.finish, told.stop_token = output.finish or told.finish, output.stop_token
            told.cached, told.error = max(told.cached, output.cached), output.error
        if not engine.scheduler.running + engine.scheduler.waiting:
            assert engine.drafts is None or engine.drafts.has_failed == drafts_fail
            return found
        if during is not None:
            during(step)
        outputs = engine.step()
        check_integrity(engine)
    raise AssertionError("it does not end")


def check_integrity(engine: Engine) -> None:
    """Of all blocks, and that only whoever is there has drafts."""
    engine.scheduler.check_integrity()
    if engine.drafts is not None and isinstance(engine.drafts.proposer, DraftModel):
        engine.drafts.proposer.check_integrity()


def greedy(prompt: list[int], limit: int) -> list[int]:
    """transformers' own greedy answer, which no stop token ends."""
    import torch

    model = tiny()[1]
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, min_new_tokens=limit, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return made[0, len(prompt) :].tolist()
