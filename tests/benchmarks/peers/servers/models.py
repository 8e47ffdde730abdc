"""The two models, the same code and weights behind every server; runs in the peers' environments, so it imports little."""

from __future__ import annotations

import os

import torch


class Mlp:
    """W1: rows of 16 floats -> rows of 4."""

    key, batch, window_ms = "x", 64, 2

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()

    @torch.inference_mode()
    def arrays(self, rows):
        return self.net(torch.as_tensor(rows, dtype=torch.float32)).numpy()

    def lists(self, rows):
        return self.arrays(rows).tolist()


class MiniLm:
    """W2: sentences -> rows of 384 floats; mean pooling, unit length, padded to the longest of the batch."""

    key, batch, window_ms = "text", 32, 5

    def __init__(self) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoModel

        folder = os.environ["PEER_MINILM"]
        torch.set_num_threads(2)
        self.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.tokenizer.enable_truncation(256)
        self.tokenizer.enable_padding(pad_id=0)

    @torch.inference_mode()
    def arrays(self, texts):
        found = self.tokenizer.encode_batch(list(texts))
        ids = torch.tensor([one.ids for one in found])
        mask = torch.tensor([one.attention_mask for one in found])
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1).numpy()

    def lists(self, texts):
        return self.arrays(texts).tolist()


def chosen():
    """The model's class that PEER_WORKLOAD names."""
    return {"w1": Mlp, "w2": MiniLm}[os.environ["PEER_WORKLOAD"]]
