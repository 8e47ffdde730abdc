"""A model whose clients see other shapes than it takes and gives itself (Triton's `reshape`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from inference.artifacts.manifest import RuntimeSettings
    from inference.models.contract import Arrays, Model
    from inference.protocol.oip import Signature, TensorSpec


def inner_settings(settings: RuntimeSettings) -> RuntimeSettings:
    """The settings with the shapes that the model itself has."""

    def inner(specs: list[TensorSpec]) -> list[TensorSpec]:
        return [
            msgspec.structs.replace(spec, shape=[*batch, *settings.reshapes[spec.name]])
            if spec.name in settings.reshapes
            else spec
            for spec in specs
        ]

    batch = [-1] if settings.max_batch_size else []
    return msgspec.structs.replace(settings, inputs=inner(settings.inputs), outputs=inner(settings.outputs))


class Reshaped:
    """Shows `signature` and reshapes on the way in and out; everything else is the inner model's own."""

    def __init__(self, model: Model, settings: RuntimeSettings) -> None:
        self._model: Any = model
        self._batched = bool(model.signature.max_batch_size)
        batch = [-1] if self._batched else []
        seen = {spec.name: spec.shape for spec in (*settings.inputs, *settings.outputs)}
        self._inner = {name: (*batch, *shape) for name, shape in settings.reshapes.items()}
        self._outer = {name: tuple(seen[name]) for name in settings.reshapes}
        self.signature: Signature = msgspec.structs.replace(
            model.signature,
            inputs=[_shown(spec, seen) for spec in model.signature.inputs],
            outputs=[_shown(spec, seen) for spec in model.signature.outputs],
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, inputs: Arrays) -> Arrays:
        return self._out(self._model.run(self._in(inputs)))

    def run_requests(self, requests: list[Arrays]) -> list[Any]:
        found = self._model.run_requests([self._in(request) for request in requests])
        return [self._out(one) if isinstance(one, dict) else one for one in found]

    def stream(self, inputs: Arrays, parameters: Mapping[str, Any]) -> Iterator[Arrays]:
        for answer in self._model.stream(self._in(inputs), parameters):
            yield self._out(answer)

    def close(self) -> None:
        self._model.close()

    def _in(self, arrays: Arrays) -> Arrays:
        return self._all(arrays, self._inner)

    def _out(self, arrays: Arrays) -> Arrays:
        return self._all(arrays, self._outer)

    def _all(self, arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        found = arrays.copy()
        for name, array in arrays.items():
            found[name] = self._as(array, shapes.get(name))
        return found

    def _as(self, array: Any, shape: tuple[int, ...] | None) -> Any:
        if shape is None:
            return array
        # The batch is known, so that one more free dimension can be found.
        return array.reshape((array.shape[0], *shape[1:]) if self._batched else shape)


def _shown(spec: TensorSpec, seen: dict[str, list[int]]) -> TensorSpec:
    return msgspec.structs.replace(spec, shape=seen[spec.name]) if spec.name in seen else spec
