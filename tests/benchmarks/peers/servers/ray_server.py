"""Ray Serve: `python ray_server.py PORT`, answers at /predict."""

import os
import sys
import threading

import models
import ray
from ray import serve

Model = models.chosen()
HERE = os.path.dirname(os.path.abspath(__file__))


@serve.deployment(num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Predict:
    def __init__(self):
        self.model = Model()

    @serve.batch(max_batch_size=Model.batch, batch_wait_timeout_s=Model.window_ms / 1e3)
    async def together(self, inputs):
        return self.model.lists(inputs)

    async def __call__(self, request):
        return {"y": await self.together((await request.json())[Model.key])}


if __name__ == "__main__":
    carried = {name: os.environ[name] for name in ("PEER_WORKLOAD", "PEER_MINILM") if name in os.environ}
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": HERE, **carried}},
    )  # fmt: skip
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config=quiet)
    serve.run(Predict.bind(), route_prefix="/predict", logging_config=quiet)
    threading.Event().wait()
