"""BentoML: `bentoml serve bentoml_server:Predict -p PORT`, answers at /predict. Its adaptive batching takes a list a
request and has no window; `max_latency_ms` is high, so that it queues where the others do instead of answering 503.
"""

import bentoml
import models

Model = models.chosen()
OPTIONS = {
    "workers": 1,
    "traffic": {"timeout": 60, "max_concurrency": 2000},
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
}


@bentoml.service(**OPTIONS)
class Predict:
    def __init__(self):
        self.model = Model()

    if Model.key == "x":

        @bentoml.api(batchable=True, max_batch_size=Model.batch, max_latency_ms=10_000, batch_dim=0)
        def predict(self, x: list[list[float]]) -> list[list[float]]:
            return self.model.lists(x)

    else:

        @bentoml.api(batchable=True, max_batch_size=Model.batch, max_latency_ms=10_000, batch_dim=0)
        def predict(self, text: list[str]) -> list[list[float]]:
            return self.model.lists(text)
