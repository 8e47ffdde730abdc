"""PyTriton (Triton itself, its Python backend): `python pytriton_server.py PORT`; Open Inference Protocol v2."""

import sys

import models
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

Model = models.chosen()
model = Model()


@batch
def numbers(x):
    return [model.arrays(x)]


@batch
def texts(text):
    return [model.arrays([one.decode() for one in text[:, 0]])]


if __name__ == "__main__":
    port = int(sys.argv[1])
    is_text = Model.key == "text"
    takes = Tensor(name="text", dtype=bytes, shape=(1,)) if is_text else Tensor(name="x", dtype=np.float32, shape=(16,))
    gives = Tensor(name="y", dtype=np.float32, shape=(384,) if is_text else (4,))
    window = DynamicBatcher(max_queue_delay_microseconds=Model.window_ms * 1000)
    ports = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
    with Triton(config=TritonConfig(http_address="127.0.0.1", allow_metrics=False, **ports)) as triton:
        triton.bind(
            model_name="predict", infer_func=texts if is_text else numbers, inputs=[takes], outputs=[gives],
            config=ModelConfig(max_batch_size=Model.batch, batcher=window),
        )  # fmt: skip
        triton.serve()
