"""Models as a Triton repository has them, each in a real sandboxed replica, behind one real gateway with both its ports."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from inference.artifacts.triton import repository
from inference.artifacts.triton.translate import ENSEMBLE
from inference.models.entry import declared_signature
from inference.protocol import routes
from inference.protocol.oip import Signature
from inference.protocol.routes import EndpointRoute, PipelineRoute, ReplicaRoute, RoutingTable, StepRoute, VariantRoute
from inference.protocol.signatures import public_signature
from tests.support.gateway_house import Gateway, free_port, key, until
from tests.support.replica_process import Replica

FORMATS = {"onnxruntime": "onnx", "python": "triton_python"}
PLATFORMS = {"onnx": "onnxruntime_onnx", "triton_python": "python"}  # as validation finds them
HEADERS = {"authorization": "Bearer ser_all.s2"}


class TritonPlace:
    """An endpoint of its name for each model of the folder, read as an import reads it. env: of single replicas; teams: of
    models that are not those of all others.
    """

    def __init__(
        self,
        work: Path,
        root: Path,
        env: dict[str, dict[str, str]] | None = None,
        teams: dict[str, str] | None = None,
    ) -> None:
        self._teams = teams or {}
        self.replicas: list[Replica] = []
        self._work = work
        self._makers: dict[str, Callable[[], Replica]] = {}
        models = [repository.model(root, name) for name in repository.names(root)]
        graphs = [model for model in models if model.translated.backend == ENSEMBLE]
        plain = [model for model in models if model not in graphs]
        endpoints = [self._endpoint(work, model, (env or {}).get(model.name, {})) for model in plain]
        endpoints += [self._graph(model, {one.name: one.variants[0] for one in endpoints}) for model in graphs]
        for replica in self.replicas:  # they load side by side
            replica.ready()
        (work / "gateway").mkdir()
        table = RoutingTable(1, endpoints, [key("all", "s2", ["*"])])
        (work / "gateway" / "routes.json").write_bytes(routes.encode(table))
        self.gateway = Gateway(work, "", SERINUS_GRPC_PORT=str(free_port())).wait_live()
        until(lambda: self.gateway.get("/v2/health/ready").status_code == 200, 30)
        self.http = triton_http.InferenceServerClient(f"127.0.0.1:{self.gateway.port}", concurrency=8)
        self.grpc = triton_grpc.InferenceServerClient(self.gateway.grpc_address)

    def _endpoint(self, work: Path, model: repository.RepositoryModel, env: dict[str, str]) -> EndpointRoute:
        settings = model.translated.settings
        folder = work / f"{model.name}-files"
        for part in model.versions[-1].parts:
            place = folder / part.path
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(part.file, place)
        kind = FORMATS[model.translated.backend]
        given: dict[str, Any] = msgspec.to_builtins(settings)
        make = partial(Replica, work / model.name, folder, kind, given, name=model.name, env=env, model=model.name)
        self._makers[model.name] = make
        replica = make()
        self.replicas.append(replica)
        declared = declared_signature(settings)
        assert declared is not None
        public = msgspec.structs.replace(public_signature(declared, settings), platform=PLATFORMS[kind])
        route = ReplicaRoute(model.name, 1, f"unix:{replica.path}")
        return self._served(model.name, VariantRoute(1, "primary", 10_000, public, [route], settings))

    def _served(self, name: str, variant: VariantRoute) -> EndpointRoute:
        team = self._teams.get(name, "home")
        return EndpointRoute(name, name, "salt", False, 20_000, 64, [variant], team=team)

    def _graph(self, model: repository.RepositoryModel, steps: dict[str, VariantRoute]) -> EndpointRoute:
        found, settings = [], model.translated.settings
        for step in model.translated.steps:
            served = steps[step.model]
            maps = step.input_map, step.output_map
            found.append(StepRoute(step.name, step.model, 1, served.signature, *maps, served.replicas))
        signature = Signature(settings.inputs, settings.outputs, settings.max_batch_size, platform="ensemble")
        variant = VariantRoute(1, "primary", 10_000, signature, pipeline=PipelineRoute(found))
        return self._served(model.name, variant)

    def replica(self, model: str) -> Replica:
        return next(one for one in self.replicas if one.root == self._work / model)

    def log(self, model: str) -> str:
        return (self._work / model / "log").read_text()

    def restart(self, model: str) -> None:
        """Kills the model's replica; another takes its place."""
        at = list(self._makers).index(model)
        self.replicas[at].close()
        shutil.rmtree(self.replicas[at].root)
        self.replicas[at] = self._makers[model]().ready()

    def close(self) -> None:
        self.http.close()
        self.grpc.close()
        self.gateway.stop(signal.SIGKILL)
        for one in self.replicas:
            one.close()
