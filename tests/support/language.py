"""Small language models made here: Hugging Face folders with a tokenizer and a chat template, and LoRA adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 320
CORPUS = [
    "The canary sang in the window of the kitchen.",
    "def mean(values):\n    return sum(values) / len(values)",
    "two and two",
]


def tokenizer() -> Any:
    """Byte-level BPE as a `tokenizers.Tokenizer`, trained on three sentences; marks are the ids 0 to 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 20,
        special_tokens=MARKS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def folder(path: Path, *, pickled: bool = False, seed: int = 5, noise: float = 0.0, **changes: Any) -> Any:
    """A tiny random Llama as save_pretrained writes it, with its tokenizer. Returns the transformers model. noise: added
    to every weight, for one that is like another.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval()
    with torch.no_grad():
        for weight in model.parameters() if noise else ():
            weight.add_(torch.randn_like(weight) * noise)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    if pickled:
        (path / "model.safetensors").unlink()
        torch.save(model.state_dict(), path / "pytorch_model.bin")
    write_tokenizer(path)
    return model


def write_tokenizer(path: Path) -> None:
    """tokenizer.json, and its configuration with a chat template."""
    tokenizer().save(str(path / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def adapter(
    path: Path, *, rank: int = 4, seed: int = 6, modules: tuple[str, ...] = ("q_proj", "v_proj"), **changes: Any
) -> None:
    """A random LoRA for `folder`'s model, named as PEFT names it."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    outputs = {"q_proj": 32, "k_proj": 16, "v_proj": 16, "o_proj": 32}
    tensors = {}
    for layer in range(2):
        for module in modules:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, 32) * 0.1
            tensors[f"{name}.lora_B.weight"] = torch.randn(outputs[module], rank) * 0.1
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(modules), "bias": "none",
        "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "use_dora": False, "modules_to_save": None,
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(config | changes))
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})


def merged(model: Any, folder: Path) -> Any:
    """A copy of the transformers model with the adapter in `folder` added to its weights."""
    import copy

    from safetensors.torch import load_file

    found, tensors = copy.deepcopy(model), load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            up = tensors[name.replace("lora_A", "lora_B")]
            found.get_submodule(module).weight.data += config["lora_alpha"] / config["r"] * up @ down
    return found


def greedy(model: Any, text: str, count: int) -> list[int]:
    """The `count` token ids that transformers says after `text`, whatever they are."""
    import torch

    ids = torch.tensor([tokenizer().encode(text).ids])
    with torch.inference_mode():
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return list(map(int, made[0, ids.shape[1] :]))
