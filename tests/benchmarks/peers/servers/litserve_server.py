"""LitServe: `python litserve_server.py PORT`, answers at /predict."""

import sys

import litserve
import models

Model = models.chosen()


class Predict(litserve.LitAPI):
    def setup(self, device):
        self.model = Model()

    def decode_request(self, request):
        return request[Model.key]

    def batch(self, inputs):
        return list(inputs)

    def predict(self, x):
        return self.model.lists(x)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"y": output}


if __name__ == "__main__":
    api = Predict(max_batch_size=Model.batch, batch_timeout=Model.window_ms / 1e3)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False, access_log=False
    )
