"""MLServer: `mlserver start FOLDER`, where FOLDER holds the settings that peers.py writes; Open Inference Protocol v2."""

import models
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceResponse

Model = models.chosen()


class Predict(MLModel):
    async def load(self):
        self.model = Model()
        return True

    async def predict(self, payload):
        first = payload.inputs[0]
        given = NumpyCodec.decode_input(first) if Model.key == "x" else StringCodec.decode_input(first)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("y", self.model.arrays(given))]
        )
