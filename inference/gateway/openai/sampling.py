"""From the sampling fields of a request to a `Sampling`, every range checked."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from inference.gateway.openai import foreign
from inference.gateway.openai.checks import above as above_low
from inference.gateway.openai.checks import number, refused, token_ids
from inference.gateway.openai.problems import BadField
from inference.protocol.generation import MAX_CHOICES, MAX_TOP_LOGPROBS, Sampling, Structure
from inference.protocol.openai import ChatBody, CompletionBody, ResponseFormat, SamplingBody, StructuredOutputs

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_LIST = 1024
MAX_COMPLETION_LOGPROBS = 5
MAX_TOKENS = 1 << 24
MAX_SCHEMA_BYTES = 1 << 18
_encode = msgspec.json.Encoder().encode


def of_chat(body: ChatBody) -> Sampling:
    """Raises BadField."""
    number(body.top_logprobs, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if body.top_logprobs and not body.logprobs:
        raise BadField("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    number(body.max_completion_tokens, "max_completion_tokens", 1, MAX_TOKENS)
    number(body.max_tokens, "max_tokens", 1, MAX_TOKENS)
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return _sampling(body, most, (body.top_logprobs or 0) if body.logprobs else None)


def of_completion(body: CompletionBody) -> Sampling:
    """As many choices as `best_of` says; none of its tokens is new where `max_tokens` is 0. Raises BadField."""
    number(body.max_tokens, "max_tokens", 0, MAX_TOKENS)
    number(body.logprobs, "logprobs", 0, MAX_COMPLETION_LOGPROBS)
    number(body.best_of, "best_of", 1, MAX_CHOICES)
    wanted = body.n or 1
    best = body.best_of or wanted
    if best < wanted:
        raise BadField(f"'best_of' must be at least 'n', but {best} is less than {wanted}.", "best_of")
    if best > wanted and body.stream:
        raise BadField("'best_of' cannot be streamed: the best are only known at the end.", "best_of")
    # completions end after 16 tokens unless they say otherwise, as OpenAI has it
    most = 16 if body.max_tokens is None else body.max_tokens
    logprobs = body.logprobs if best == wanted else body.logprobs or 0
    found = _sampling(body, most, logprobs)
    prompt = body.prompt_logprobs if body.prompt_logprobs is not None else body.logprobs if body.echo else None
    return msgspec.structs.replace(found, n=best, prompt_logprobs=prompt)


def _sampling(body: SamplingBody, max_tokens: int | None, logprobs: int | None) -> Sampling:
    _check(body)
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise BadField(f"'min_tokens' is {body.min_tokens}, more than the {max_tokens} that may come.", "min_tokens")
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        top_k=_or(body.top_k, 0),
        min_p=_or(body.min_p, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        seed=body.seed,
        logit_bias=_biases(body.logit_bias),
        stop=_stops(body.stop),
        stop_token_ids=token_ids(body.stop_token_ids or [], "stop_token_ids"),
        include_stop=bool(body.include_stop_str_in_output),
        bad_words=body.bad_words or [],
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        n=body.n or 1,
        skip_special_tokens=body.skip_special_tokens is not False,
        structure=_structure(body),
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check(body: SamplingBody) -> None:
    number(body.n, "n", 1, MAX_CHOICES)
    number(body.temperature, "temperature", 0, 2)
    above_low(body.top_p, "top_p", 0, 1)
    number(body.top_k, "top_k", -1, 1 << 31)
    number(body.min_p, "min_p", 0, 1)
    above_low(body.repetition_penalty, "repetition_penalty", 0, 100)
    number(body.presence_penalty, "presence_penalty", -2, 2)
    number(body.frequency_penalty, "frequency_penalty", -2, 2)
    number(body.min_tokens, "min_tokens", 0, MAX_TOKENS)
    number(body.seed, "seed", -(1 << 63), (1 << 64) - 1)
    number(body.prompt_logprobs, "prompt_logprobs", 0, MAX_TOP_LOGPROBS)
    number(body.priority, "priority", -(1 << 31), 1 << 31)
    if body.prompt_logprobs is not None and body.stream:
        raise BadField("'prompt_logprobs' cannot be streamed: ask without 'stream'.", "prompt_logprobs")
    foreign.refuse(body, foreign.GENERATION)
    if body.stream_options is not None and not body.stream:
        raise BadField("'stream_options' needs 'stream' to be true.", "stream_options")
    for param in ("stop_token_ids", "bad_words", "logit_bias"):
        if len(getattr(body, param) or ()) > MAX_LIST:
            raise BadField(f"Invalid '{param}': at most {MAX_LIST} entries are allowed.", param)


def _stops(given: str | list[str] | None) -> list[str]:
    found = [given] if isinstance(given, str) else given or []
    if len(found) > MAX_STOPS:
        raise BadField(
            f"Invalid 'stop': array too long. Expected at most {MAX_STOPS} texts.", "stop", "array_above_max_length"
        )
    if any(len(text) > MAX_STOP_CHARS for text in found):
        raise BadField(f"Invalid 'stop': a text may have at most {MAX_STOP_CHARS} characters.", "stop")
    # an empty text would end every answer before it began; OpenAI takes it for none
    return [text for text in found if text]


def _biases(given: dict[str, float] | None) -> dict[int, float]:
    found: dict[int, float] = {}
    for name, bias in (given or {}).items():
        if not (name.isascii() and name.isdigit() and len(name) <= 9):
            raise BadField(f"Invalid key in 'logit_bias': '{name[:32]}'. Keys are token ids.", "logit_bias")
        number(bias, "logit_bias", -100, 100)
        found[int(name)] = bias
    return found


def _structure(body: SamplingBody) -> Structure | None:
    found = [one for one in (_of_format(body.response_format), _of_vllm(body.structured_outputs), _guided(body)) if one]
    if len(found) > 1:
        raise BadField("Give one of 'response_format' and 'structured_outputs', not both.", "structured_outputs")
    return found[0] if found else None


def _of_format(given: ResponseFormat | None) -> Structure | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return Structure(json_object=True)
    if given.type == "json_schema":
        if given.json_schema is None:
            raise BadField("Missing required parameter: 'response_format.json_schema'.", "response_format.json_schema")
        if given.json_schema.schema is None:
            return Structure(json_object=True)
        return Structure(json_schema=schema_text(given.json_schema.schema, "response_format.json_schema.schema"))
    raise BadField(
        f"Invalid value: '{given.type[:32]}'. Supported values are: 'text', 'json_object' and 'json_schema'.",
        "response_format.type",
    )


def schema_text(given: str | dict[str, Any], param: str) -> str:
    """A JSON schema as text. Raises BadField."""
    text = given if isinstance(given, str) else _encode(given).decode()
    if len(text) > MAX_SCHEMA_BYTES:
        raise BadField(f"'{param}' is longer than {MAX_SCHEMA_BYTES} bytes.", param)
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadField(f"'{param}' is no JSON: {error}.", param) from error
    if not isinstance(found, dict | bool):
        raise BadField(f"'{param}' is no JSON schema: an object is needed.", param)
    return text


def _guided(body: SamplingBody) -> Structure | None:
    return _of_vllm(
        StructuredOutputs(
            json=body.guided_json, regex=body.guided_regex, choice=body.guided_choice, grammar=body.guided_grammar
        )
    )


def _of_vllm(given: StructuredOutputs | None) -> Structure | None:
    if given is None:
        return None
    for name in ("structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"):
        words = "say it in the schema, or use regex, choice or grammar."
        refused(getattr(given, name), f"structured_outputs.{name}", words)
    found: list[Structure] = []
    if given.json is not None:
        found.append(Structure(json_schema=schema_text(given.json, "structured_outputs.json")))
    if given.regex:
        found.append(Structure(regex=given.regex))
    if given.choice:
        found.append(Structure(choice=given.choice))
    if given.grammar:
        found.append(Structure(grammar=given.grammar))
    if given.json_object:
        found.append(Structure(json_object=True))
    if len(found) > 1:
        raise BadField("'structured_outputs' takes exactly one of json, regex, choice, grammar and json_object.",
                       "structured_outputs")  # fmt: skip
    return found[0] if found else None


def logprob_of(value: float | None, floor: float) -> float:
    """What JSON can say of a logprob: `floor` for one that is missing, minus infinity or no number."""
    return value if value is not None and math.isfinite(value) else floor
