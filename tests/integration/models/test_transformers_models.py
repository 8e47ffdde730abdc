"""Causal models that our own decoder does not run give transformers' own answers over our blocks, or are refused."""

import json
import random

import pytest
import torch

from inference.artifacts.manifest import RuntimeSettings
from inference.errors import InvalidInput, Rejected
from inference.generation.drafts import Drafts
from inference.models import LoadContext
from inference.models.drafting import load_draft
from inference.models.language import Step
from inference.models.on_torch.language import hook, through_transformers
from inference.protocol.settings import GenerationSettings, Speculation
from tests.support import causal_models, decoders, engines, language

LIMIT = 6
MIND = random.Random(4)
PROMPTS = [[MIND.randrange(3, 300) for _ in range(size)] for size in (1, 5, 8, 23, 40, 61)]


@pytest.fixture(scope="module", params=list(causal_models.FAMILIES))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return causal_models.loaded(family)


@pytest.fixture(scope="module")
def wanted(family):
    return [causal_models.greedy(family, prompt, LIMIT) for prompt in PROMPTS]


def said(engine, **more):
    found = engines.run(engine, [engines.request(prompt, LIMIT, **more) for prompt in PROMPTS])
    assert all(told.error is None for told in found.values())
    return [found[at, 0].tokens for at in range(len(PROMPTS))]


def test_the_way_is_found_by_trying(family, model):
    assert model.way == ("flat" if family in causal_models.FLAT else "sequences")
    assert model.facts.path == "transformers"
    assert model.facts.notes[0] == "served through transformers: slower than our own decoder"
    assert len(model.facts.notes) == (1 if model.way == "flat" else 2)


def test_logits_are_those_of_transformers_in_chunks_and_mixed(family, model):
    theirs = causal_models.made(family)[1]
    texts = [
        decoders.Text(PROMPTS[at][:size], blocks)
        for at, size, blocks in ((4, 40, [9, 2, 7, 4, 30]), (3, 23, [1, 8, 3]))
    ]
    own = [decoders.expected(theirs, text.tokens) for text in texts]
    model.allocate(64, decoders.BLOCK)
    for counts in ((13, 1), (26, 1), (1, 21)):
        begins = [text.computed for text in texts]
        found = model.forward(decoders.step_of(list(zip(texts, counts, strict=True))))
        parts = [one[begin : begin + count] for one, begin, count in zip(own, begins, counts, strict=True)]
        assert (found - torch.cat(parts)).abs().max() < 1e-4


def test_alone_together_chunked_whole_and_from_the_prefix_cache(model, wanted):
    for chunk, seats in ((16, 64), (512, 64), (64, 1)):
        engine = causal_models.engine(model, max_num_batched_tokens=chunk, max_num_seqs=seats)
        assert said(engine) == wanted
        assert said(engine) == wanted
        assert engine.scheduler.prefix_hits > 0


def test_preempted_and_offloaded(model, wanted):
    engine = causal_models.engine(model, blocks=14, max_num_batched_tokens=128, enable_prefix_caching=False)
    assert said(engine) == wanted
    assert engine.scheduler.preempted > 0
    engine = causal_models.engine(model, blocks=16)
    engine.scheduler.pool.__init__(16, 8, offload=200)
    loads, load = [], model.load_blocks
    model.load_blocks = lambda blocks, saved: (loads.append(len(blocks)), load(blocks, saved))
    try:
        assert said(engine) == said(engine) == wanted
    finally:
        del model.load_blocks
    assert loads


def test_choices_begin_with_one_prompt(model, wanted):
    engine = causal_models.engine(model, enable_prefix_caching=False)
    found = engines.run(engine, [engines.request(PROMPTS[4], LIMIT, n=3)])
    assert [found[0, choice].tokens for choice in range(3)] == [wanted[4]] * 3


def with_drafts(model, draft=None, **speculation):
    """An engine whose steps have drafts whenever there are any."""
    chosen = Speculation(tokens=3, shortest_match=1, **speculation)
    engine = causal_models.engine(model, speculation=chosen, draft=draft)
    engine.drafts = Drafts(engine.drafts.proposer, engines.Always())
    return engine


def test_prompt_lookup_changes_no_token(model, wanted):
    engine = with_drafts(model)
    assert said(engine) == wanted
    assert engine.spent.drafted > 0


def test_only_wanted_rows_have_logits(model):
    text = decoders.Text(PROMPTS[3][:20], [3, 1, 2])
    step = decoders.step_of([(text, 20)])
    model.allocate(8, decoders.BLOCK)
    every = model.forward(step)
    some = Step(step.tokens, step.positions, step.slots, step.starts, step.lengths, step.tables, torch.tensor([4, 19]))
    found = model.forward(some)
    assert found.shape == (2, language.VOCABULARY)
    assert (found - every[[4, 19]]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "stablelm"], ids=["flat", "one after another"])
def test_the_same_weights_guess_through_transformers_too(name):
    """The draft model is another copy of the same class; its guesses are nearly always right."""
    folder, model = causal_models.made(name)[0], causal_models.loaded(name)
    settings = GenerationSettings(speculation=Speculation(method="draft", draft="self"))
    draft = load_draft(LoadContext(folder, RuntimeSettings(generation=settings)), model)
    assert draft.facts.path == "transformers"
    engine = with_drafts(model, draft, method="draft")
    assert said(engine) == [causal_models.greedy(name, prompt, LIMIT) for prompt in PROMPTS]
    assert engine.spent.accepted > 0.8 * engine.spent.drafted > 0


def test_a_draft_model_is_not_quantised_through_transformers():
    folder, model = causal_models.made("gpt2")[0], causal_models.loaded("gpt2")
    settings = GenerationSettings(speculation=Speculation(method="draft", draft="self", quantization="int8"))
    with pytest.raises(Rejected, match="quantization is for families"):
        load_draft(LoadContext(folder, RuntimeSettings(generation=settings)), model)


def test_a_block_costs_what_all_layers_keep():
    model = causal_models.loaded("deepseek_v3")
    assert model.block_bytes(16) == 3 * 4 * (12 + 6) * 16 * 4


def test_bfloat16_and_a_shorter_context():
    model = causal_models.loaded("gpt2", dtype="bfloat16", max_model_len=64)
    assert model.facts.max_context == 64
    engine = causal_models.engine(model)
    found = engines.run(engine, [engines.request(PROMPTS[3], LIMIT), engines.request(PROMPTS[5], LIMIT)])
    assert len(found[0, 0].tokens) == LIMIT
    assert isinstance(found[1, 0].error, InvalidInput)
    assert "context of this model is 64" in found[1, 0].error.message


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(folder, words, **settings):
    with pytest.raises(Rejected, match=words) as caught:
        through_transformers(folder, GenerationSettings(**settings), "cpu")
    assert caught.value.remedy


def written(folder, name, **sizes):
    import transformers

    kind = getattr(transformers, name)
    kind(kind.config_class(**sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("MambaForCausalLM", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
        ("RecurrentGemmaForCausalLM", causal_models.SMALL | {"head_dim": 8}),
        ("Lfm2ForCausalLM", causal_models.SMALL | {"layer_types": ["conv", "full_attention", "conv"]}),
    ],
)
def test_state_outside_attention_is_refused_by_name(tmp_path, name, sizes):
    refused(written(tmp_path, name, **sizes), f"{name} keeps state outside attention")


def test_a_class_that_neither_way_fits_is_refused(tmp_path):
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    refused(written(tmp_path, "OpenAIGPTLMHeadModel", **sizes), "OpenAIGPTLMHeadModel cannot be served")


def test_a_rotation_that_depends_on_the_company_is_refused(tmp_path):
    folder = written(tmp_path, "GPTNeoXForCausalLM", **causal_models.SMALL)
    held = json.loads((folder / "config.json").read_text())
    held["rope_parameters"] |= {"rope_type": "dynamic", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(held))
    refused(folder, "'dynamic' changes")


def test_logits_that_are_no_numbers_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = written(tmp_path, "GPT2LMHeadModel", **causal_models.OLD)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"] = torch.full_like(weights["transformer.ln_f.weight"], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "NaN or infinity")


def test_settings_of_our_own_decoder_are_refused():
    folder = causal_models.made("gpt2")[0]
    refused(folder, "quantization is for families", quantization="int8")
    refused(folder, "max_adapters is for families", max_adapters=2)


def test_a_step_with_adapters_is_refused():
    model = causal_models.loaded("gpt2")
    step = decoders.step_of([(decoders.Text([1, 2], [0]), 2)])
    step.adapters = torch.tensor([1], dtype=torch.int32)
    with pytest.raises(InvalidInput, match="takes no adapters"):
        model.forward(step)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "nobody"}, "does not describe"),
        ({"model_type": "vit"}, "no causal language model"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "asks for code"),
        ({"n_layer": 4}, "weights are missing"),
        ({"n_embd": 48}, "do not fit"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, change, words):
    folder = written(tmp_path, "GPT2LMHeadModel", **causal_models.OLD)
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(held | change))
    refused(folder, words)


def test_keys_that_would_fetch_something_are_not_handed_on(tmp_path):
    folder = written(tmp_path, "GPT2LMHeadModel", **causal_models.OLD)
    held = json.loads((folder / "config.json").read_text())
    more = {"transformers_weights": "x.bin", "use_kernels": True, "_attn_implementation": "kernels-community/x"}
    (folder / "config.json").write_text(json.dumps(held | more))
    model = through_transformers(folder, GenerationSettings(), "cpu")
    assert model.network.config._attn_implementation == hook.NAME
    assert not hasattr(model.network.config, "transformers_weights")


@pytest.mark.parametrize(
    ("rule", "window"),
    [
        (lambda _b, _h, q, k: k <= q, 0),
        (lambda _b, _h, q, k: (k <= q) & (k > q - 9), 9),
        (lambda _b, _h, q, k: (k <= q) & (k // 16 == q // 16), hook.UNKNOWN),
        (lambda _b, _h, q, k: k <= q + 1, hook.UNKNOWN),
        (lambda _b, _h, q, k: (k <= q) & (k != q - 1), hook.UNKNOWN),
        (lambda _b, _h, _q, _k: False, hook.UNKNOWN),
    ],
)
def test_a_window_is_read_from_the_masks_rule(rule, window):
    with hook.through(hook.Pass(None, None, 128)):
        assert hook.masked(mask_function=rule).tolist() == [[[[window]]]]
