"""The loaders on a real GPU: the same answers as on the CPU, and the process sees one device only."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu

SCRIPT = """
import sys
from pathlib import Path
from inference.runtime import devices
local = devices.select("cuda:0", 0.5)
import numpy as np
from inference.artifacts.manifest import RuntimeSettings
from inference.models import LoadContext, load
from inference.runtime import warmup
from inference.runtime.runner import Runner
from tests.support import artifacts
maker = getattr(artifacts, sys.argv[2])
reference = maker(Path(sys.argv[3]))
context = LoadContext(Path(sys.argv[3]), RuntimeSettings(max_batch_size=8), local, device_memory_share=0.5)
runner = Runner(load(sys.argv[1], context))
warmup.warm_up(runner, repeats=1)
name = runner.signature.inputs[0].name
inputs = {name: artifacts.texts("a bird", "sings")} if name == "text" else {name: np.ones((2, 6), np.float32)}
found, wanted = runner.run(inputs), reference(inputs)
assert all(np.allclose(found[key], wanted[key], atol=1e-3) for key in wanted), (found, wanted)
assert runner.compiles_after_ready == 0
"""


@pytest.mark.parametrize(
    ("name", "maker"),
    [("torch_export", "torch_export"), ("jax_export", "jax_export"), ("hf_encoder", "bert_classifier")],
)
def test_it_answers_as_on_the_cpu(tmp_path, name, maker):
    subprocess.run([sys.executable, "-c", SCRIPT, name, maker, str(tmp_path)], check=True, timeout=300)


LANGUAGE = """
import sys
from pathlib import Path
from inference.runtime import devices
local = devices.select("cuda:0", 0.5)
import torch
from inference.artifacts.manifest import RuntimeSettings
from inference.models import LoadContext, load
from inference.protocol.settings import GenerationSettings
from tests.support import decoders
settings = dict(pair.split("=") for pair in sys.argv[4:])
theirs, _ = decoders.made(sys.argv[1], Path(sys.argv[2]))
generation = GenerationSettings(
    dtype=settings.get("dtype", "auto"), kv_cache_dtype=settings.get("kv_cache_dtype", "auto"), max_num_seqs=4,
    cuda_graphs="cuda_graphs" in settings,
)
context = LoadContext(Path(sys.argv[2]), RuntimeSettings(generation=generation), local)
ours = load("hf_decoder", context)
assert ours.is_tiled
assert ours.dtype is (torch.float32 if "dtype" in settings else torch.bfloat16)
ours.allocate(decoders.BLOCKS, decoders.BLOCK)
texts = [decoders.Text(decoders.random_tokens(size, size), blocks) for size, blocks in ((60, [9, 2, 7, 4, 1, 3, 5, 6]), (33, [20, 30, 25, 40, 33]))]
own = [decoders.expected(theirs, text.tokens) for text in texts]
worst = 0.0
for counts in ((40, 1), (1, 20), *((1, 1),) * 10, (9, 2)):
    begins = [text.computed for text in texts]
    found = ours.forward(decoders.step_of(list(zip(texts, counts)))).cpu()
    wanted = torch.cat([one[begin : begin + count] for one, begin, count in zip(own, begins, counts)])
    worst = max(worst, float((found - wanted).norm() / wanted.norm()))
print("relative error", worst)
assert worst < float(sys.argv[3]), worst
assert (ours.graphs is not None) == ("cuda_graphs" in settings)
"""


@pytest.mark.parametrize("graphs", [(), ("cuda_graphs=1",)], ids=["plain", "graphs"])
@pytest.mark.parametrize(
    ("tolerance", "settings"),
    [("1e-4", ("dtype=float32",)), ("0.03", ()), ("0.15", ("kv_cache_dtype=fp8",))],
    ids=["float32", "bfloat16", "fp8"],
)
@pytest.mark.parametrize("family", ["llama", "mistral-window", "qwen3", "gemma2"])
def test_a_decoder_gives_transformers_logits(tmp_path, family, tolerance, settings, graphs):
    command = [sys.executable, "-c", LANGUAGE, family, str(tmp_path), tolerance, *settings, *graphs]
    subprocess.run(command, check=True, timeout=300)
