"""Small random decoders of each family, in transformers and in ours, and steps over texts with caches in blocks."""

import torch

from inference.models.language import Step
from inference.models.on_torch.language import TorchLanguageModel
from inference.models.on_torch.language.weights import SafetensorsWeights
from inference.protocol.settings import GenerationSettings

BLOCK, BLOCKS = 8, 64
SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 500.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1000.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 2.5, 3.0],
        "original_max_position_embeddings": 64, "rope_theta": 1000.0}  # fmt: skip
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-tied-biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1000.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral-window": ("Mistral", {"sliding_window": 11, "head_dim": 8}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2, "pad_token_id": 0}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3", {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24}),
    "phi3": ("Phi3", {"pad_token_id": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}),
    "phi3-longrope": ("Phi3", {"pad_token_id": 0, "rope_parameters": LONG, "original_max_position_embeddings": 64}),
}  # fmt: skip


def made(family, folder):
    """A random model in transformers, saved; and ours, loaded from the same files."""
    import transformers

    name, more = FAMILIES[family]
    config_class = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    torch.manual_seed(3)
    theirs = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, config_class)(**SMALL | more)).eval()
    with torch.no_grad():  # norms of ones would hide a wrong one
        for parameter_name, parameter in theirs.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(folder)
    ours = TorchLanguageModel(SafetensorsWeights(folder), GenerationSettings(), "cpu")
    ours.allocate(BLOCKS, BLOCK)
    return theirs, ours


class Text:
    """One sequence of a test: its tokens, how far they are computed, its blocks."""

    def __init__(self, tokens, blocks):
        self.tokens, self.blocks, self.computed = tokens, blocks, 0


def step_of(parts):
    """parts: (text, how many new tokens); wants the logits of all of them."""
    tokens, positions, slots, starts, lengths = [], [], [], [0], []
    for text, count in parts:
        places = range(text.computed, text.computed + count)
        tokens += [text.tokens[place] for place in places]
        positions += places
        slots += [text.blocks[place // BLOCK] * BLOCK + place % BLOCK for place in places]
        text.computed += count
        starts.append(len(tokens))
        lengths.append(text.computed)
    width = max(len(text.blocks) for text, _ in parts)
    tables = [text.blocks + [0] * (width - len(text.blocks)) for text, _ in parts]
    longs = [torch.tensor(one) for one in (tokens, positions, slots)]
    ints = [torch.tensor(one, dtype=torch.int32) for one in (starts, lengths, tables)]
    return Step(*longs, *ints, torch.arange(len(tokens)))


def expected(theirs, tokens):
    with torch.no_grad():
        return theirs(torch.tensor([tokens])).logits[0].float()


def random_tokens(count, seed):
    return torch.randint(0, SMALL["vocab_size"], (count,), generator=torch.Generator().manual_seed(seed)).tolist()
