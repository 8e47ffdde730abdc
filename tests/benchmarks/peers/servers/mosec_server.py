"""mosec: `python mosec_server.py --address 127.0.0.1 --port PORT`, answers at /inference."""

import models
from mosec import Server, Worker

Model = models.chosen()


class Predict(Worker):
    def __init__(self):
        self.model = Model()

    def forward(self, data):
        return [{"y": row} for row in self.model.lists([one[Model.key] for one in data])]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Predict, num=1, max_batch_size=Model.batch, max_wait_time=Model.window_ms)
    server.run()
