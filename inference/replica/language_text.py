"""What a caller of a language model asked -> what the engine runs: prompt, ids, rules, grammar. Runs beside the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from inference.errors import ContextExceeded, InvalidInput, NotFound, Unsupported
from inference.generation.detokenizer import Decoders, Detokenizer
from inference.generation.formatter import Choice
from inference.generation.grammar import Grammar, Grammars
from inference.generation.reasoning import CLOSE, Reasoning, opens_reasoning, reasoning_parser_for
from inference.generation.requests import Request
from inference.generation.templates import ChatTemplates
from inference.generation.tool_grammar import forced_parser, tool_structure
from inference.generation.tools import mark_ids, names_of, tool_parser, tool_parser_for
from inference.protocol.generation import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    Chat,
    Detokenize,
    Event,
    Generate,
    Prompt,
    Sampling,
    Structure,
    Tokenize,
)
from inference.protocol.settings import GenerationSettings
from inference.runtime.work import Scalar

if TYPE_CHECKING:
    from inference.models.language import LanguageFacts
    from inference.models.language_tokenizer import LanguageTokenizer

MAX_STOP_IDS = 64
MAX_BAD_WORDS = 128


@dataclass(slots=True, eq=False)
class Prepared:
    """request: for the engine. text: the prompt's own, for `echo`. keeps_token: False where the one token that had to
    be made is not part of the answer (max_tokens 0).
    """

    asked: Generate
    request: Request
    text: str
    choices: list[Choice] = field(default_factory=list)
    keeps_token: bool = True


@dataclass(frozen=True, slots=True)
class _Manner:
    """How a chat's answer is read. names: functions that may be called; parser: of calls; thinks: `opened` where the
    prompt left the model in its thoughts.
    """

    names: list[str]
    parser: str
    structure: Structure | None
    thinks: bool
    opened: bool


@dataclass(frozen=True, slots=True)
class AdapterSlot:
    """A LoRA adapter that is loaded. number: its slot, from 1 on; digest: of its version, part of each request's salt,
    so that what a slot held before is never taken for its prefixes.
    """

    number: int
    digest: str = ""


class LanguageText:
    """Everything about text of one model. Its methods may be called by any thread.

    adapters: those that requests may name; replaced as a whole. max_context: tokens of prompt and answer together, as the cache allows.
    """

    def __init__(
        self,
        tokenizer: LanguageTokenizer,
        facts: LanguageFacts,
        settings: GenerationSettings,
        *,
        max_context: int,
        adapters: Mapping[str, AdapterSlot] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.facts = facts
        self.stops = facts.stops | tokenizer.eos_ids
        self.max_context = max_context
        self.adapters: Mapping[str, AdapterSlot] = dict(adapters or {})
        self._templates = ChatTemplates(
            settings.chat_template or tokenizer.chat_template,
            special_tokens=tokenizer.special_tokens,
            trust_request=settings.trust_request_chat_template,
        )
        self._decoders = Decoders(tokenizer)
        self._tool_parser = tool_parser_for(facts.family, self._templates.source, settings.tool_parser)
        self._thinks = reasoning_parser_for(settings.reasoning_parser, self._templates.source) == "think"
        self._close_id: int | None = tokenizer.backend.token_to_id(CLOSE)
        self.grammars: Grammars | None
        self._no_grammars = ""
        try:
            self.grammars = Grammars(tokenizer, vocabulary_size=facts.vocabulary, stops=self.stops)
        except Unsupported as error:
            self.grammars, self._no_grammars = None, error.message

    # --- requests -------------------------------------------------------------------------------------------------

    def prepare(self, asked: Generate) -> Prepared:
        """Raises InvalidInput, NotFound or Unsupported with what is wrong and what to do."""
        sampling = asked.sampling
        check_sampling(sampling, self.facts.vocabulary)
        text, ids = self.prompt(asked.prompt, special=asked.add_special_tokens)
        manner = self._manner(asked, text)
        adapter = self._adapter(asked.adapter)
        limit = self._limit(sampling, len(ids))
        grammar = self._compiled(manner.structure) if manner.structure is not None else None
        request = Request(
            ids,
            sampling,
            max(limit, 1),
            frozenset(sampling.stop_token_ids) if sampling.ignore_eos else self.stops | set(sampling.stop_token_ids),
            self._bad_words(sampling),
            grammar,
            self._close_id if grammar is not None and manner.opened else None,
            asked.priority,
            asked.salt.encode() + adapter.digest.encode(),
            adapter.number,
        )
        choices = [self._choice(sampling, ids, manner) for _ in range(sampling.n)]
        return Prepared(asked, request, text if asked.echo else "", choices, keeps_token=limit > 0)

    def prompt(self, prompt: str | list[int] | Chat, *, special: bool | None = None) -> tuple[str, list[int]]:
        """(text, ids). special: whether the tokenizer adds its special tokens; None: to a text, not to a chat, whose
        template brings them. Raises InvalidInput.
        """
        if isinstance(prompt, Chat):
            text = self._templates.render(prompt)
            return text, self._within(self.tokenizer.encode(text, add_special_tokens=bool(special)))
        if isinstance(prompt, str):
            return prompt, self._within(self.tokenizer.encode(prompt, add_special_tokens=special is not False))
        for token in prompt:
            if not 0 <= token < self.facts.vocabulary:
                raise InvalidInput(f"{token} is no token id of this model: they are 0 to {self.facts.vocabulary - 1}")
        return self.tokenizer.decode(prompt, skip_special_tokens=False), prompt

    def _within(self, ids: list[int]) -> list[int]:
        if ids and max(ids) >= self.facts.vocabulary:
            raise InvalidInput("the text has a token that the model has no embedding for")
        return ids

    def _compiled(self, structure: Structure) -> Grammar:
        if self.grammars is None:
            raise Unsupported(self._no_grammars)
        return self.grammars.compile(structure)

    def _limit(self, sampling: Sampling, prompt: int) -> int:
        most = self.max_context
        if prompt + 1 > most:
            raise ContextExceeded(
                f"This model's maximum context length is {most} tokens. However, your prompt has {prompt} tokens, "
                "which leaves no room for an answer. Please reduce the length of the prompt."
            )
        if sampling.max_tokens is None:
            return most - prompt
        if prompt + sampling.max_tokens > most:
            raise ContextExceeded(
                f"This model's maximum context length is {most} tokens. However, you requested "
                f"{prompt + sampling.max_tokens} tokens ({prompt} in the prompt, {sampling.max_tokens} in the "
                "completion). Please reduce the length of the prompt or the completion."
            )
        return sampling.max_tokens

    def _manner(self, asked: Generate, text: str) -> _Manner:
        chat = asked.prompt if isinstance(asked.prompt, Chat) else None
        structure = asked.sampling.structure
        if chat is None:
            return _Manner([], "none", structure, thinks=False, opened=False)
        names, parser = [], "none"
        if chat.tools and chat.tool_choice != "none":
            names, parser = names_of(chat.tools), self._tool_parser
        forced = tool_structure(parser, chat.tools, chat.tool_choice, self.tokenizer) if names else None
        if not names and chat.tool_choice not in {"auto", "none"}:
            raise InvalidInput(f"tool_choice {chat.tool_choice!r} needs tools")
        if forced is not None:
            if structure is not None:
                raise InvalidInput("a response format cannot be kept beside a tool_choice that forces a call")
            structure, parser = forced, forced_parser(parser)
        return _Manner(names, parser, structure, self._thinks, self._thinks and opens_reasoning(text))

    def _choice(self, sampling: Sampling, ids: list[int], manner: _Manner) -> Choice:
        detokenizer = Detokenizer(
            self._decoders,
            sampling.stop,
            include_stop=sampling.include_stop,
            skip_special_tokens=sampling.skip_special_tokens,
            keep_ids=mark_ids(manner.parser, self.tokenizer.backend),
            min_tokens=sampling.min_tokens,
            prompt_ids=ids,
        )
        reasoning = Reasoning(opened=manner.opened) if manner.thinks else None
        return Choice(detokenizer, reasoning=reasoning, tools=tool_parser(manner.parser, manner.names))

    def _bad_words(self, sampling: Sampling) -> list[list[int]]:
        """Each as it stands at the beginning of a text, and behind a space."""
        if len(sampling.bad_words) > MAX_BAD_WORDS:
            raise InvalidInput(f"{len(sampling.bad_words)} bad words are too many: {MAX_BAD_WORDS} is the most")
        found = []
        for word in sampling.bad_words:
            for form in (word, f" {word.lstrip()}"):
                ids = self.tokenizer.encode(form, add_special_tokens=False)
                if ids and ids not in found:
                    found.append(ids)
        return found

    def _adapter(self, name: str) -> AdapterSlot:
        if not name:
            return AdapterSlot(0)
        found = self.adapters.get(name)
        if found is None:
            raise NotFound(f"there is no adapter {name[:128]!r} on this replica")
        return found

    # --- the rest -------------------------------------------------------------------------------------------------

    def tokenized(self, asked: Tokenize) -> Event:
        _, ids = self.prompt(asked.prompt, special=asked.add_special_tokens)
        texts = [self.spelled(token)[0] for token in ids] if asked.return_texts else []
        return Event(prompt=Prompt(ids, texts=texts, max_tokens=self.max_context))

    def detokenized(self, asked: Detokenize) -> Event:
        text, ids = self.prompt(asked.tokens)
        return Event(prompt=Prompt(ids, text, max_tokens=self.max_context))

    def spelled(self, token: int) -> tuple[str, bytes]:
        """(text, true bytes) of one token."""
        raw = self.tokenizer.token_bytes(token)
        return raw.decode("utf-8", "replace"), raw


BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "top_k": (-1, 1 << 31),
    "repetition_penalty": (0, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "min_tokens": (0, 1 << 31),
    "max_tokens": (0, 1 << 31),
    "logprobs": (0, MAX_TOP_LOGPROBS),
    "prompt_logprobs": (0, MAX_TOP_LOGPROBS),
    "n": (1, MAX_CHOICES),
}
ABOVE_ZERO = ("top_p", "repetition_penalty")


def check_sampling(sampling: Sampling, vocabulary: int) -> None:
    """Raises InvalidInput that names the parameter."""
    for name, (low, high) in BOUNDS.items():
        value = getattr(sampling, name)
        if value is not None and not low <= value <= high:
            raise InvalidInput(f"{name} must be {low:g} to {high:g}, not {value:g}")
    for name in ABOVE_ZERO:
        if getattr(sampling, name) == 0:
            raise InvalidInput(f"{name} must be above 0")
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise InvalidInput(f"min_tokens ({sampling.min_tokens}) is more than max_tokens ({sampling.max_tokens})")
    if len(sampling.stop_token_ids) > MAX_STOP_IDS:
        raise InvalidInput(f"{len(sampling.stop_token_ids)} stop_token_ids are too many: {MAX_STOP_IDS} is the most")
    for token, value in sampling.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise InvalidInput(f"logit_bias names {token}, which is no token id: they are 0 to {vocabulary - 1}")
        if not -100 <= value <= 100:
            raise InvalidInput(f"a logit_bias is -100 to 100, not {value:g}")


def from_parameters(text: str, parameters: Mapping[str, Scalar]) -> Generate:
    """`text_input` of the Open Inference Protocol with its parameters, which have OpenAI's and vLLM's names.

    `stop` may be one text, or a JSON list of them. Raises InvalidInput for a value of a wrong type; names that are not
    known are the server's own (timeout, priority) and passed over.
    """
    known: dict[str, Any] = {name: parameters[name] for name in Sampling.__struct_fields__ if name in parameters}
    stop = known.get("stop")
    if isinstance(stop, str):
        known["stop"] = _listed(stop)
    try:
        sampling = msgspec.convert(known, Sampling, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"a parameter has a wrong type: {error}") from None
    echoes = parameters.get("exclude_input_in_output", True) in {False, "false"}
    streams = parameters.get("stream", False) in {True, "true"}
    return Generate(text, sampling, stream=streams, echo=echoes)


def _listed(stop: str) -> list[str]:
    if stop.startswith("["):
        try:
            return msgspec.json.decode(stop, type=list[str])
        except (msgspec.DecodeError, msgspec.ValidationError):
            pass
    return [stop]
