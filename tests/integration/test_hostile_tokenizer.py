"""The hand-written encoder loads in transformers, and the hostile tokenizer does panic: the makers prove something."""

import pytest

from inference.artifacts import hf
from tests.support import goodfiles, hostile

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_tiny_encoder_is_real_and_its_tokenizer_panics(tmp_path):
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(goodfiles.encoder(tmp_path / "good"))
    assert model(torch.zeros(1, 4, dtype=torch.long)).last_hidden_state.shape == (1, 4, 8)
    folder = hostile.panicking_tokenizer(tmp_path / "bad", tmp_path / "marker")
    hf.read(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with pytest.raises(BaseException) as caught:
        tokenizer.encode(hostile.PANICS)
    assert not isinstance(caught.value, Exception)
