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
