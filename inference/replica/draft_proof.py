"""What validation proves of a draft model: it reads the model's own tokens, and how often it would guess right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from inference.artifacts.causal import DRAFT
from inference.errors import Rejected
from inference.generation import perplexity
from inference.models.drafting import load_draft
from inference.models.language_tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from inference.models import LoadContext
    from inference.models.language import LanguageModel
    from inference.models.language_tokenizer import LanguageTokenizer
    from inference.protocol.settings import GenerationSettings
    from inference.protocol.supervision import LanguageSeen
    from inference.replica.parse import Verdict

IDLE = f'the model in {DRAFT}/ is not used: set generation.speculation to {{"method": "draft"}}'


def loaded(context: LoadContext, model: LanguageModel, tokenizer: LanguageTokenizer) -> LanguageModel | None:
    """The draft model that the settings ask for. Raises Rejected where it, or a tokenizer that it brings, does not fit."""
    found = load_draft(context, model)
    folder = context.folder / DRAFT
    if found is not None and (folder / "tokenizer.json").is_file():
        _check_tokens(tokenizer, folder)
    return found


def said(verdict: Verdict, settings: GenerationSettings, seen: LanguageSeen) -> LanguageSeen:
    """`seen` with what the draft model is; as it is where there is none."""
    speculation = settings.speculation
    if speculation is None or speculation.method != "draft":
        return seen
    if speculation.draft == "self":
        return msgspec.structs.replace(seen, draft=seen.architecture, draft_parameters=seen.parameters)
    assert verdict.draft is not None, "a draft model that was loaded was read before"
    return msgspec.structs.replace(seen, draft=verdict.draft.architecture, draft_parameters=verdict.draft.parameters)


def words(verdict: Verdict, settings: GenerationSettings, seen: LanguageSeen) -> str:
    """For the report; "" where there is nothing to say."""
    speculation = settings.speculation
    if seen.draft and speculation is not None:
        whose = f"in {DRAFT}/" if speculation.draft == "folder" else "of the same weights"
        kept = settings.quantization if speculation.quantization == "same" else speculation.quantization
        quantised = f", quantised to {kept}" if kept != "none" else ""
        return f"; draft model {whose}: {seen.draft}, {seen.draft_parameters:,} parameters{quantised}"
    return f"; {IDLE}" if verdict.draft is not None else ""


def measured(seen: LanguageSeen, model: LanguageModel, draft: LanguageModel | None, ids: Sequence[int]) -> LanguageSeen:
    """`seen` with how often both find the same token of `ids` likeliest."""
    if draft is None:
        return seen
    return msgspec.structs.replace(seen, draft_agreement=round(perplexity.agreement(model, draft, ids), 4))


def _check_tokens(tokenizer: LanguageTokenizer, folder: Path) -> None:
    own: dict[str, int] = tokenizer.backend.get_vocab(with_added_tokens=True)
    other: dict[str, int] = load_tokenizer(folder).backend.get_vocab(with_added_tokens=True)
    wrong = sum(1 for token, id_ in own.items() if other.get(token) != id_)
    if wrong:
        raise Rejected(
            f"{wrong} of the model's {len(own)} tokens have another id in the draft model's tokenizer, or none",
            remedy="use a draft model with the same tokenizer, the smallest one of the model's family",
            check="load",
        )
