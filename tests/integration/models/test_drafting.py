"""Which model guesses: the folder's or the version's own weights, quantised as the settings say."""

import pytest

from inference.artifacts.manifest import RuntimeSettings
from inference.errors import Rejected
from inference.models import LoadContext
from inference.models.drafting import load_draft
from inference.models.on_torch.language import TorchLanguageModel, source_of
from inference.models.on_torch.language.quantised import Quantised
from inference.protocol.settings import GenerationSettings, Speculation
from tests.support import language


@pytest.fixture
def folder(tmp_path):
    language.folder(tmp_path)
    language.folder(tmp_path / "draft", seed=8, num_hidden_layers=1)
    return tmp_path


def guessing(folder, own="none", **speculation):
    generation = GenerationSettings(quantization=own, speculation=Speculation(**speculation))
    model = TorchLanguageModel(source_of(folder), GenerationSettings(), "cpu")
    return load_draft(LoadContext(folder, RuntimeSettings(generation=generation)), model)


def test_prompt_lookup_has_no_model(folder):
    assert guessing(folder, method="ngram") is None


def test_the_folders_model_or_the_versions_own(folder):
    assert len(guessing(folder, method="draft").layers) == 1
    assert len(guessing(folder, method="draft", draft="self").layers) == 2


@pytest.mark.parametrize(
    ("own", "wanted", "is_quantised"),
    [("none", "same", False), ("int8", "same", True), ("int8", "none", False), ("none", "int8", True), ("gguf", "same", False)],
)  # fmt: skip
def test_it_is_quantised_apart(folder, own, wanted, is_quantised):
    """A version that keeps the weights of its GGUF file may have a folder as its draft model."""
    found = guessing(folder, own, method="draft", quantization=wanted)
    assert isinstance(found.head, Quantised) == is_quantised


def test_another_vocabulary_is_refused_at_load_too(folder):
    language.folder(folder / "draft", vocab_size=300)
    with pytest.raises(Rejected, match="300 tokens, the model one of 320"):
        guessing(folder, method="draft")
