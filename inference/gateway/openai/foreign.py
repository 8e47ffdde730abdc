"""Fields of other servers that would change the answer and are not served here: refused by name, since to ignore them would
be to answer something else. What changes nothing (hints, names of users, settings of back ends) is ignored, as is any
field that nobody knows.
"""

from __future__ import annotations

from typing import Any

from inference.gateway.openai.checks import refused
from inference.protocol.openai import ForeignEmbedding, ForeignGeneration, ForeignResponse

OFF = (None, False)
# field -> (values that ask for nothing, what to do instead)
_Table = dict[str, tuple[tuple[Any, ...], str]]
GENERATION: _Table = {
    "use_beam_search": (OFF, "beam search has no streamed form; use 'n', or 'best_of' of completions."),
    "allowed_token_ids": ((None, []), "use 'logit_bias', or 'structured_outputs' with 'choice'."),
    "truncate_prompt_tokens": ((None,), "shorten the prompt; /tokenize counts its tokens."),
    "logits_processors": ((None, []), "use 'logit_bias', 'bad_words' or 'structured_outputs'."),
    "logprob_token_ids": ((None, []), "ask for 'top_logprobs'."),
    "spaces_between_special_tokens": ((None, True), "special tokens stand in the text as they are."),
    "thinking_token_budget": (
        (None, -1),
        "use 'max_completion_tokens', or what the model's template takes in 'chat_template_kwargs'.",
    ),
    "repetition_detection": ((None,), "use 'repetition_penalty', 'frequency_penalty' or 'stop'."),
    "watermarking": (OFF, "nothing is hidden in the answers here."),
    "prompt_embeds": ((None, []), "send the prompt as text or token ids."),
    "return_tokens_as_token_ids": (OFF, "use 'return_token_ids'."),
    "return_prompt_text": (OFF, "use 'return_token_ids', and /detokenize."),
    "guided_whitespace_pattern": ((None,), "say in the grammar or the regular expression what may stand between."),
    "kv_transfer_params": ((None,), "prompt and answer are computed by one replica."),
    "ec_transfer_params": ((None,), "prompt and answer are computed by one replica."),
    "vllm_xargs": ((None, {}), "there are no extensions here that would read them."),
}
RESPONSES: _Table = {
    "n": ((None, 1), "use /v1/chat/completions."),
    "echo": (OFF, "use /v1/chat/completions."),
    "prompt_logprobs": ((None,), "use /v1/chat/completions."),
    "return_token_ids": (OFF, "use /v1/chat/completions."),
    "add_generation_prompt": ((None, True), "use /v1/chat/completions."),
    "continue_final_message": (OFF, "use /v1/chat/completions."),
    "documents": ((None, []), "use /v1/chat/completions."),
    "enable_response_messages": (OFF, "use /v1/chat/completions with 'return_token_ids'."),
    "previous_input_messages": ((None, []), "send them in 'input', or use 'previous_response_id'."),
    "previous_response": ((None,), "send its items in 'input', or use 'previous_response_id'."),
}
EMBEDDINGS: _Table = {
    "truncate_prompt_tokens": (
        (None, -1),
        "cut the text yourself; one that is too long is cut to what the model reads.",
    ),
    "max_tokens_per_doc": ((None,), "cut the documents yourself."),
    "normalize": ((None, True), "vectors come as the model gives them."),
    "use_activation": ((None, True), "vectors come as the model gives them."),
    "add_special_tokens": ((None, True), "send token ids to leave them out."),
    "embed_dtype": ((None, "float32"), "numbers are float32."),
    "endianness": ((None, "native", "little"), "numbers are little-endian."),
    "messages": ((None, []), "send 'input'."),
    "instruction": ((None, ""), "put it before the text."),
}


def refuse(body: ForeignGeneration | ForeignResponse | ForeignEmbedding, table: _Table) -> None:
    """Raises BadField for the first field of `table` that asks for something."""
    for name, (nothing, words) in table.items():
        if getattr(body, name) not in nothing:
            refused(True, name, words)
