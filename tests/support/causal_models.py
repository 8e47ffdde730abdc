"""Small random causal models of families that our own decoder does not run, and engines over them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from inference.generation.engine import Engine
from inference.protocol.settings import GenerationSettings
from tests.support import language

SMALL = {
    "vocab_size": language.VOCABULARY, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
OLD = {
    "vocab_size": language.VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128,
    "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
FLAT = {
    "gpt2": ("GPT2LMHeadModel", OLD),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", OLD),
    "gpt_neox": ("GPTNeoXForCausalLM", SMALL),
    "opt": ("OPTForCausalLM", SMALL | {"ffn_dim": 56, "word_embed_proj_dim": 32}),
    "phi": ("PhiForCausalLM", SMALL),
    "olmo2": ("Olmo2ForCausalLM", SMALL),
    "olmo3-window": ("Olmo3ForCausalLM", SMALL | {"sliding_window": 9, "num_hidden_layers": 4}),
    "cohere2-window": ("Cohere2ForCausalLM", SMALL | {"sliding_window": 9, "num_hidden_layers": 4}),
    "granite": ("GraniteForCausalLM", SMALL),
    "mixtral": ("MixtralForCausalLM", SMALL | MOE),
    "gpt_oss-sinks": ("GptOssForCausalLM", SMALL | MOE | {"head_dim": 8, "sliding_window": 9,
                      "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", SMALL | {"num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2,
                    "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "q_lora_rank": 8,
                    "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
                    "first_k_dense_replace": 1}),
}  # fmt: skip
BY_SEQUENCES = {
    "stablelm": ("StableLmForCausalLM", SMALL),
    "falcon": ("FalconForCausalLM", {key: SMALL[key] for key in SMALL if "key_value" not in key}),
    "falcon-alibi": ("FalconForCausalLM", {key: SMALL[key] for key in SMALL if "key_value" not in key} | {"alibi": True}),
    "bloom": ("BloomForCausalLM", {key: SMALL[key] for key in ("vocab_size", "hidden_size", "initializer_range")}
              | {"n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 2}),
    "gptj": ("GPTJForCausalLM", OLD | {"rotary_dim": 4}),
    "llama4-chunks": ("Llama4ForCausalLM", SMALL | {"num_local_experts": 2, "attention_chunk_size": 8, "head_dim": 8,
                      "intermediate_size_mlp": 56}),
}  # fmt: skip
FAMILIES = FLAT | BY_SEQUENCES


@cache
def made(family: str) -> tuple[Path, Any]:
    """(folder with a tokenizer, the transformers model), made once."""
    import torch
    import transformers

    name, sizes = FAMILIES[family]
    kind = getattr(transformers, name)
    torch.manual_seed(3)
    model = kind(kind.config_class(**sizes)).eval()
    with torch.no_grad():  # norms of ones, and biases and sinks of zeros, would hide a wrong one
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "ln_" in parameter_name or parameter_name.endswith(("bias", "sinks")):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = Path(mkdtemp(prefix="serinus-causal-"))
    model.save_pretrained(folder)
    language.write_tokenizer(folder)
    return folder, model


def loaded(family: str, **settings: Any) -> Any:
    """The model as a version of it would run on the CPU."""
    from inference.models.on_torch.language import through_transformers

    return through_transformers(made(family)[0], GenerationSettings(**settings), "cpu")


def engine(model: Any, *, blocks: int = 256, draft: Any = None, **settings: Any) -> Engine:
    """A new engine over a loaded model, and a loaded draft model."""
    from inference.replica.language_start import engine_of

    chosen = GenerationSettings(**{"block_size": 8, "max_num_batched_tokens": 64, **settings})
    for one in (model, draft) if draft is not None else (model,):
        one.allocate(blocks, chosen.block_size)
    return engine_of(model, chosen, blocks, draft=draft)


def greedy(family: str, prompt: list[int], limit: int) -> list[int]:
    """transformers' own greedy answer, which no stop token ends."""
    import torch

    ids = torch.tensor([prompt])
    with torch.inference_mode():
        found = made(family)[1].generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, min_new_tokens=limit, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return list(map(int, found[0, len(prompt) :]))
