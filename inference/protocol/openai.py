"""Requests of OpenAI's API as clients send them, with the fields that vLLM adds; what is not named here is ignored. The
classes `Foreign...` name what is known and not served.

A field that may be left out may also be null, as OpenAI has it. Ranges are no part of these shapes: who reads a request
checks them, in OpenAI's words.
"""

from __future__ import annotations

from typing import Any

import msgspec

Object = dict[str, Any]
Texts = str | list[str]


class StreamOptions(msgspec.Struct):
    """continuous_usage_stats: every chunk has the usage so far (vLLM)."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(msgspec.Struct):
    """`name` is for people; a schema that is left out allows any object."""

    name: str = ""
    schema: Object | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct):
    """type: "text", "json_object" or "json_schema"."""

    type: str
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct):
    """What the text must be; exactly one of these (vLLM)."""

    json: str | Object | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None
    whitespace_pattern: Any = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None


class Function(msgspec.Struct):
    """A function that the model may call; parameters: a JSON schema."""

    name: str
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    type: str = "function"
    function: Function | None = None


class ForeignGeneration(msgspec.Struct, kw_only=True):
    """Of vLLM's generations."""

    use_beam_search: bool | None = None
    allowed_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None
    logits_processors: Any = None
    logprob_token_ids: Any = None
    spaces_between_special_tokens: bool | None = None
    thinking_token_budget: int | None = None
    repetition_detection: Any = None
    watermarking: bool | None = None
    prompt_embeds: Any = None
    return_tokens_as_token_ids: bool | None = None
    return_prompt_text: bool | None = None
    guided_whitespace_pattern: Any = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None
    vllm_xargs: Any = None


class ForeignResponse(ForeignGeneration, kw_only=True):
    """Of vLLM's responses, or of its chats where responses have it not."""

    n: int | None = None
    echo: bool | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[Object] | None = None
    enable_response_messages: bool | None = None
    previous_input_messages: Any = None
    previous_response: Any = None


class ForeignEmbedding(msgspec.Struct, kw_only=True):
    """Of embeddings, scores and rankings of vLLM, Jina and Cohere."""

    truncate_prompt_tokens: int | None = None
    max_tokens_per_doc: int | None = None
    normalize: bool | None = None
    use_activation: bool | None = None
    add_special_tokens: bool | None = None
    embed_dtype: str | None = None
    endianness: str | None = None
    messages: Any = None
    instruction: Any = None


class SamplingBody(ForeignGeneration, kw_only=True):
    """What chat completions and completions have in common."""

    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: Texts | None = None
    max_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    response_format: ResponseFormat | None = None
    # vLLM's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | Object | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    prompt_logprobs: int | None = None
    priority: int | None = None
    cache_salt: str | None = None
    echo: bool | None = None
    return_token_ids: bool | None = None


class ChatBody(SamplingBody, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[Object] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Object | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    best_of: int | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    chat_template: str | None = None
    chat_template_kwargs: Object | None = None
    documents: list[Object] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CompletionBody(SamplingBody, kw_only=True):
    """`POST /v1/completions`. prompt: a text, texts, token ids, or lists of token ids."""

    prompt: str | list[str | int | list[int]] | None = None
    suffix: str | None = None
    logprobs: int | None = None
    best_of: int | None = None


class EmbeddingBody(ForeignEmbedding, kw_only=True):
    """`POST /v1/embeddings`. encoding_format: "float" or "base64"."""

    model: str = ""
    input: str | list[str | int | list[int]] | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    priority: int | None = None


class ScoreBody(ForeignEmbedding, kw_only=True):
    """`POST /v1/score`: how near each text_2 is to text_1. queries and documents: vLLM's later names for them."""

    model: str = ""
    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    priority: int | None = None


class RerankBody(ForeignEmbedding, kw_only=True):
    """`POST /v1/rerank`, as Jina and Cohere have it."""

    model: str = ""
    query: str | None = None
    documents: list[str | Object] | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    priority: int | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """`POST /tokenize`: of a prompt or of a chat."""

    model: str = ""
    prompt: str | None = None
    messages: list[Object] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    tools: list[Tool] | None = None
    chat_template: str | None = None
    chat_template_kwargs: Object | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    model: str = ""
    tokens: list[int] | None = None


class TextFormat(msgspec.Struct):
    """Of a response's text: "text", "json_object" or "json_schema" with its schema beside."""

    type: str = "text"
    name: str = ""
    schema: Object | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(msgspec.Struct):
    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None


class ResponseTool(msgspec.Struct):
    """A function tool of the responses API, whose fields are not nested."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class ResponseBody(ForeignResponse, kw_only=True):
    """`POST /v1/responses`. input: a text, or messages, function calls and their outputs."""

    model: str = ""
    input: str | list[Object] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | Object | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    truncation: str | None = None
    prompt: Any = None
    conversation: Any = None
    user: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    # vLLM's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Texts | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    chat_template: str | None = None
    chat_template_kwargs: Object | None = None
