"""A decoder with LoRA adapters gives what transformers gives with the adapters' products added to its weights."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from inference.errors import InvalidInput, Rejected
from inference.models.on_torch.language import TorchLanguageModel
from inference.models.on_torch.language.quantised import quantise
from inference.models.on_torch.language.weights import SafetensorsWeights
from inference.protocol.settings import GenerationSettings
from tests.support.decoders import BLOCK, BLOCKS, Text, expected, made, random_tokens, step_of

ATTENTION = ("self_attn.q_proj", "self_attn.v_proj")
ALL = (*ATTENTION, "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
FUSED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
SETTINGS = GenerationSettings(max_adapters=4, max_adapter_rank=16)


def adapter(theirs, folder, names, *, rank=4, seed=1, spelling="lora_{}.weight", **config):
    """A random adapter of the layers whose names end so, saved as PEFT saves it; and transformers' model with it merged."""
    generator = torch.Generator().manual_seed(seed)
    merged, tensors = copy.deepcopy(theirs), {}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 3 * rank, "target_modules": list(names)} | config
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    for name, module in merged.named_modules():
        if not name.endswith(tuple(names)):
            continue
        outputs, inputs = module.weight.shape
        down, up = (torch.randn(shape, generator=generator) * 0.1 for shape in ((rank, inputs), (outputs, rank)))
        tensors[f"base_model.model.{name}.{spelling.format('A')}"] = down
        tensors[f"base_model.model.{name}.{spelling.format('B')}"] = up
        module.weight.data += scale * up @ down
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return merged


def served(folder, settings=SETTINGS):
    ours = TorchLanguageModel(SafetensorsWeights(folder), settings, "cpu")
    ours.allocate(BLOCKS, BLOCK)
    return ours


def step_with(parts):
    """parts: (text, how many new tokens, slot)."""
    step = step_of([(text, count) for text, count, _ in parts])
    step.adapters = torch.tensor([slot for _, _, slot in parts], dtype=torch.int32)
    return step


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "names"), [("llama", ALL), ("qwen3", ALL), ("gemma3", ATTENTION), ("phi3", FUSED), ("qwen2", ALL)]
)
def test_an_adapter_changes_what_merging_it_into_the_weights_changes(family, names, tmp_path):
    theirs, plain = made(family, tmp_path / "base")
    merged = adapter(theirs, tmp_path / "adapter", names)
    ours = served(tmp_path / "base")
    about = ours.load_adapter(2, tmp_path / "adapter")
    assert (about.rank, about.scale) == (4, 3.0)
    tokens = random_tokens(40, 1)
    text = Text(tokens, list(range(9)))
    found = torch.cat([ours.forward(step_with([(text, count, 2)])) for count in (1, 20, 3, 16)])
    close(found, expected(merged, tokens))
    changed = found - plain.forward(step_of([(Text(tokens, list(range(9))), 40)]))
    assert changed.abs().max() > 0.05, "the adapter hardly changes anything; the test would not see it missing"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_many_adapters_and_none_run_in_one_batch_each_as_if_alone(family, tmp_path):
    theirs, _ = made(family, tmp_path / "base")
    models = [
        theirs,
        adapter(theirs, tmp_path / "one", ALL, rank=4, seed=1),
        adapter(theirs, tmp_path / "two", ATTENTION, rank=16, seed=2, use_rslora=True),
        adapter(theirs, tmp_path / "three", ("0.mlp.down_proj", "lm_head"), rank=1, seed=3),
    ]
    ours = served(tmp_path / "base")
    for slot, name in enumerate(("one", "two", "three"), 1):
        ours.load_adapter(slot, tmp_path / name)
    slots = [0, 1, 2, 3, 1, 0, 3]
    texts = [Text(random_tokens(48, seed), list(range(6 * seed, 6 * seed + 6))) for seed in range(7)]
    found = [[] for _ in texts]
    # Decodes and chunks, short and long, some sequences not in the step at all.
    for counts in [
        (1, 1, 1, 1, 1, 1, 1), (20, 3, 1, 17, 1, 2, 1), (1, 30, 2, 1, 0, 0, 1), (0, 0, 5, 5, 0, 0, 0),
        (0, 0, 0, 0, 20, 0, 20), (1, 0, 0, 0, 0, 0, 1),
    ]:  # fmt: skip
        present = [n for n, count in enumerate(counts) if count]
        logits = ours.forward(step_with([(texts[n], counts[n], slots[n]) for n in present]))
        for n, part in zip(present, logits.split([counts[n] for n in present]), strict=True):
            found[n].append(part)
    for text, slot, parts in zip(texts, slots, found, strict=True):
        close(torch.cat(parts), expected(models[slot], text.tokens[: text.computed]))


def test_only_wanted_rows_pass_the_adapted_head(tmp_path):
    theirs, _ = made("llama", tmp_path / "base")
    one = adapter(theirs, tmp_path / "one", ("lm_head", "q_proj"), seed=1)
    two = adapter(theirs, tmp_path / "two", ("lm_head",), seed=2)
    ours = served(tmp_path / "base")
    ours.load_adapter(1, tmp_path / "one")
    ours.load_adapter(2, tmp_path / "two")
    texts = [Text(random_tokens(20, seed), list(range(3 * seed, 3 * seed + 3))) for seed in range(3)]
    step = step_with([(texts[0], 20, 1), (texts[1], 7, 0), (texts[2], 5, 2)])
    step.wanted = torch.tensor([19, 26, 31])
    wanted = [
        expected(model, text.tokens[: text.computed])[-1] for model, text in zip((one, theirs, two), texts, strict=True)
    ]
    close(ours.forward(step), torch.stack(wanted))


def test_an_adapter_comes_in_the_place_of_another_and_goes(tmp_path):
    theirs, _ = made("llama", tmp_path / "base")
    first = adapter(theirs, tmp_path / "first", ALL, seed=1)
    second = adapter(theirs, tmp_path / "second", ALL, seed=2, spelling="lora_{}.default.weight")
    ours = served(tmp_path / "base")
    ours.load_adapter(4, tmp_path / "first")
    ours.load_adapter(3, tmp_path / "second")
    tokens = random_tokens(6, 1)

    def both():
        logits = ours.forward(step_with([(Text(tokens, [0]), 6, 4), (Text(tokens, [1]), 6, 3)]))
        return logits[:6], logits[6:]

    close(torch.cat(both()), torch.cat([expected(first, tokens), expected(second, tokens)]))
    ours.load_adapter(4, tmp_path / "second")
    close(torch.cat(both()), torch.cat([expected(second, tokens)] * 2))
    ours.drop_adapter(4)
    ours.drop_adapter(4)
    with pytest.raises(InvalidInput, match="no adapter is loaded in slot 4"):
        both()


def test_slots_are_bounded_by_the_settings(tmp_path):
    theirs, plain = made("llama", tmp_path / "base")
    adapter(theirs, tmp_path / "adapter", ALL)
    ours = served(tmp_path / "base")
    for slot in (0, 5, -1):
        with pytest.raises(InvalidInput, match="slots 1 to 4"):
            ours.load_adapter(slot, tmp_path / "adapter")
    with pytest.raises(InvalidInput, match=r"set generation\.max_adapters"):
        plain.load_adapter(1, tmp_path / "adapter")
    step = step_with([(Text(random_tokens(3, 1), [0]), 3, 1)])
    with pytest.raises(InvalidInput, match="takes no adapters"):
        plain.forward(step)


@pytest.mark.parametrize(
    ("names", "changes", "words"),
    [
        (ALL, {"rank": 17}, "rank 17 is above generation.max_adapter_rank 16"),
        (("model.norm",), {}, r"changes model\.norm, which this model has not"),
        (("layers.7.mlp.up_proj",), {}, r"layers\.7\.mlp\.up_proj; this model has 3 layers"),
        (("mlp.up_proj",), {"inputs": 40}, r"up_proj is for a layer of 40 inputs and 56 outputs; this model's has 32 and 56"),
        (("mlp.up_proj",), {"value": float("nan")}, "NaN or infinity"),
    ],
)  # fmt: skip
def test_an_adapter_of_another_model_is_refused_with_the_reason(names, changes, words, tmp_path):
    made("llama", tmp_path / "base")
    rank, inputs, value = (changes.get(key, plain) for key, plain in (("rank", 4), ("inputs", 32), ("value", 1.0)))
    tensors = {}
    for name in names:
        prefix = f"base_model.model.{name if name.startswith('model') else 'model.layers.0.' + name}".replace(
            "layers.0.layers", "layers"
        )
        tensors[f"{prefix}.lora_A.weight"] = torch.full((rank, inputs), value)
        tensors[f"{prefix}.lora_B.weight"] = torch.ones(56, rank)
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(Rejected, match=words):
        served(tmp_path / "base").load_adapter(1, tmp_path / "adapter")


def test_adapters_change_a_quantised_model_too(tmp_path):
    theirs, _ = made("llama", tmp_path / "base")
    left = copy.deepcopy(theirs)
    for module in left.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = quantise(module.weight.data, 8).dense().T.contiguous()
    merged = adapter(left, tmp_path / "adapter", (*ALL, "lm_head"))
    ours = served(tmp_path / "base", GenerationSettings(max_adapters=1, quantization="int8"))
    ours.load_adapter(1, tmp_path / "adapter")
    texts = [Text(random_tokens(20, seed), list(range(3 * seed, 3 * seed + 3))) for seed in range(2)]
    found = ours.forward(step_with([(texts[0], 20, 1), (texts[1], 20, 0)]))
    close(found, torch.cat([expected(merged, texts[0].tokens), expected(left, texts[1].tokens)]))
