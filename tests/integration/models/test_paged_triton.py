"""The CUDA path's attention kernel against the compiled one of the CPU path: on a GPU, else in Triton's interpreter."""

import os
import random
import sys

import pytest
import torch

from inference.models.on_torch.language import attention, kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and "triton" in sys.modules:
    pytest.skip("triton was imported before the interpreter could be chosen", allow_module_level=True)
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read where triton's own kernels and ours are defined
pytest.importorskip("triton", reason="triton comes with CUDA builds of torch; pip install triton runs this here")
from inference.generation.drafts import Drafts  # noqa: E402
from inference.models.on_torch.language import TorchLanguageModel, decode_graphs, paged_triton, source_of  # noqa: E402  # noqa: E402
from inference.protocol.settings import GenerationSettings, Speculation  # noqa: E402
from inference.replica.language_start import engine_of  # noqa: E402
from tests.support import decoders, engines  # noqa: E402

os.environ.pop("TRITON_INTERPRET", None)


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # it looks again when a kernel runs


WIDTHS = {"few heads": (4, 2, 8), "one head of keys": (6, 1, 16), "no groups": (3, 3, 24), "large": (8, 2, 64)}
SHAPES = {
    "plain": attention.Shape(0.3, 0, 0.0),
    "window": attention.Shape(0.3, 7, 0.0),
    "wide window": attention.Shape(0.3, 90, 0.0),
    "soft cap": attention.Shape(0.8, 0, 3.0),
    "both": attention.Shape(0.8, 11, 3.0),
}
BLOCK = 16


def ragged(seed, heads, kv_heads, width):
    """Sequences of which some decode and others bring a chunk, over blocks in no order."""
    mind = random.Random(seed)
    pairs = [(1, mind.randint(1, 200)) for _ in range(3)] + [(n, n + mind.randint(0, 90)) for n in (2, 9, 40)]
    mind.shuffle(pairs)
    blocks = list(range(1, 80))
    mind.shuffle(blocks)
    needed = [-(-length // BLOCK) for _, length in pairs]
    tables = torch.zeros(len(pairs), max(needed), dtype=torch.int32)
    for row, count in enumerate(needed):
        tables[row, :count] = torch.tensor([blocks.pop() for _ in range(count)])
    starts = torch.tensor([0, *(count for count, _ in pairs)]).cumsum(0).to(torch.int32)
    lengths = torch.tensor([length for _, length in pairs], dtype=torch.int32)
    tensors = torch.Generator().manual_seed(seed)
    queries = torch.randn(int(starts[-1]), heads, width, generator=tensors)
    keys, values = (torch.randn(80, kv_heads, BLOCK, width, generator=tensors) for _ in range(2))
    return queries, keys, values, starts, lengths, tables


def found_of(given, shape, *, dtype=torch.float32, kept=torch.float32):
    queries, keys, values, starts, lengths, tables = given
    spans = list(zip(starts[:-1].tolist(), starts[1:].tolist(), lengths.tolist(), strict=True))
    longest = max(end - begin for begin, end, _ in spans)
    tokens = paged_triton.tokens_of_a_tile(queries.shape[1] // keys.shape[1], longest)
    tiles = paged_triton.tiles_of(spans, tokens)
    given = [queries.to(dtype), keys.to(kept), values.to(kept), starts, lengths, tables, tiles]
    return paged_triton.attend(*(one.to(DEVICE) for one in given), tokens, shape).cpu()


def wanted_of(given, shape):
    queries, keys, values, starts, lengths, tables = given
    out = torch.empty_like(queries)
    arrays = [one.numpy() for one in (queries, keys, values, starts, lengths, tables, out)]
    kernels.attend(*arrays, shape.scale, shape.window, shape.softcap, torch.arange(len(lengths)).numpy())
    return out


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_it_is_the_attention_of_the_cpu_path(widths, shape):
    given = ragged(len(SHAPES) + widths[2], *widths)
    torch.testing.assert_close(found_of(given, shape), wanted_of(given, shape), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("kept", "error"), [(torch.bfloat16, 0.02), (attention.FP8, 0.2)], ids=["bfloat16", "fp8"])
def test_narrower_keys_and_values(kept, error):
    """Queries are float32 here where the interpreter runs: its products know no bfloat16."""
    given = ragged(5, 4, 2, 32)
    rounded = [one.to(kept).float() if one.dim() == 4 else one for one in given]
    found = found_of(given, SHAPES["plain"], kept=kept)
    torch.testing.assert_close(found, wanted_of(rounded, SHAPES["plain"]), atol=2e-5, rtol=1e-4)
    assert 0 < (found - wanted_of(given, SHAPES["plain"])).abs().max() < error


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter's products know no bfloat16")
def test_bfloat16_queries():
    given = ragged(5, 4, 2, 32)
    rounded = [one.bfloat16().float() if one.is_floating_point() else one for one in given]
    found = found_of(given, SHAPES["plain"], dtype=torch.bfloat16, kept=torch.bfloat16)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), wanted_of(rounded, SHAPES["plain"]), atol=0.03, rtol=0.03)


def test_a_step_of_decodes_has_one_tile_a_sequence():
    spans = [(0, 1, 9), (1, 2, 40), (2, 3, 1)]
    tokens = paged_triton.tokens_of_a_tile(4, 1)
    assert paged_triton.tiles_of(spans, tokens).tolist() == [[0, 0], [1, 0], [2, 0]]
    assert paged_triton.tiles_of([(0, 40, 40)], paged_triton.tokens_of_a_tile(4, 40)).tolist() == [
        [0, 0],
        [0, 16],
        [0, 32],
    ]


# --- a whole decoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2"])
def test_a_decoder_gives_transformers_logits_through_it(family, tmp_path):
    theirs, ours = decoders.made(family, tmp_path)
    ours.is_tiled = True
    texts = [
        decoders.Text(decoders.random_tokens(size, size), blocks) for size, blocks in ((31, [9, 2, 7, 4]), (12, [1, 8]))
    ]
    own = [decoders.expected(theirs, text.tokens) for text in texts]
    for counts in ((20, 1), (1, 10), (10, 1)):
        begins = [text.computed for text in texts]
        found = ours.forward(decoders.step_of(list(zip(texts, counts, strict=True))))
        parts = [one[begin : begin + count] for one, begin, count in zip(own, begins, counts, strict=True)]
        torch.testing.assert_close(found, torch.cat(parts), atol=1e-4, rtol=0)


def replayed_by_hand(run):
    """In the place of a CUDA graph: the same tensors in and out, computed anew at each replay."""
    logits = run()
    return lambda: logits.copy_(run()), logits


def test_recorded_steps_give_the_logits_of_others(tmp_path):
    theirs, ours = decoders.made("llama", tmp_path)
    ours.is_tiled, ours._graphs_up_to = True, 3
    ours.record(replayed_by_hand)
    texts = [
        decoders.Text(decoders.random_tokens(size, size), [3 * n, 3 * n + 2, 3 * n + 1])
        for n, size in enumerate((20, 9, 14))
    ]
    own = [decoders.expected(theirs, text.tokens) for text in texts]
    ours.forward(decoders.step_of([(text, 6) for text in texts]))  # chunks are not recorded
    replays = []
    fill = ours.graphs._fill
    ours.graphs._fill = lambda batch, step, count: (
        replays.append((len(batch.tokens), count)),
        fill(batch, step, count),
    )
    for running in ((0, 1, 2), (1,), (0, 2), (2, 1, 0)):
        begins = [texts[at].computed for at in running]
        found = ours.forward(decoders.step_of([(texts[at], 1) for at in running]))
        wanted = torch.stack([own[at][begin] for at, begin in zip(running, begins, strict=True)])
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert replays == [(4, 3), (1, 1), (2, 2), (4, 3)]


def test_recorded_steps_and_drafts_go_together():
    """A step with drafts is no step of decodes alone, and runs without its recording; the tokens are transformers'."""
    settings = GenerationSettings(
        block_size=8, max_num_seqs=2, enable_prefix_caching=False, speculation=Speculation(tokens=2, shortest_match=1)
    )
    ours = TorchLanguageModel(source_of(engines.tiny()[0]), settings, "cpu")
    ours.allocate(13, 8)
    ours.is_tiled, ours._graphs_up_to = True, 2
    ours.record(replayed_by_hand)
    engine = engine_of(ours, settings, 12)  # the thirteenth block is nobody's
    engine.drafts = Drafts(engine.drafts.proposer, engines.Always())
    replays, fill = [], ours.graphs._fill
    ours.graphs._fill = lambda batch, step, count: (replays.append(count), fill(batch, step, count))
    prompts = [[5, 6, 7, 5, 6], [40, 41, 42, 43, 44, 45, 46, 47, 48]]
    found = engines.run(engine, [engines.request(prompt, 12) for prompt in prompts])
    assert [found[at, 0].tokens for at in range(2)] == [engines.greedy(prompt, 12) for prompt in prompts]
    assert replays
    assert engine.spent.drafted > 0


def test_sizes_of_recorded_steps():
    assert decode_graphs.sizes_up_to(1) == [1]
    assert decode_graphs.sizes_up_to(3) == [1, 2, 4]
    assert decode_graphs.sizes_up_to(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert decode_graphs.sizes_up_to(65)[-1] == 96
