"""What every served model is to the rooms above: named arrays in, named arrays out.

A loader turns an artifact's folder into a `Model`. Arrays are numpy arrays on the host; BYTES tensors are numpy
object arrays of `bytes`; BF16 is carried as a numpy uint16 view. The batch dimension, if the signature has one, is
the first of every input and output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from inference.artifacts.manifest import RuntimeSettings
    from inference.errors import SerinusError
    from inference.protocol.oip import Signature

    Arrays = dict[str, np.ndarray]

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What a loader may use: the artifact's read-only folder, the settings, the device ("cpu", "cuda:N", "tpu:N"),
    the number of CPU threads, the device's memory in bytes and as a part (0..1) of the whole (0 for no bound), and the
    model's name.
    """

    folder: Path
    settings: RuntimeSettings
    device: str = "cpu"
    threads: int = 1
    device_memory_bytes: int = 0
    device_memory_share: float = 0.0
    model: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request made ready for its pass. length: of its longest row; elements: of all rows (tokens, samples)."""

    inputs: Arrays
    length: int
    elements: int


class Model(Protocol):
    """A loaded model. `run` is called by one thread at a time, unless `is_shareable` is there and true.

    A model may also have: `prepare(requests) -> list[Prepared | SerinusError]`, called once a request on another thread
    before it waits, whose inputs `run` then gets; `restore(outputs, length)`, which cuts one request's outputs back;
    `pads`, true where `run` pads rows to the longest, so that similar lengths should run together;
    `work(inputs) -> (elements, padding_elements)` of one pass; `compiles`, how many programs it compiled so far;
    `forgets_inputs`, true where nothing refers to a pass's inputs once its outputs were taken: they may lie in memory
    that is then used again, and read-only;
    `lanes`, how many of its passes do best side by side where the settings name no `instances`;
    `is_straight`, true where a pass has no loops and runs no author's code: short ones need no thread of their own;
    `is_own_work`, true where the thread of a pass computes all of it and waits for no device.
    """

    signature: Signature

    def run(self, inputs: Arrays) -> Arrays:
        """One forward pass. Inputs are complete, typed and shaped as the signature says, at a batch size that is one
        of `signature.buckets` when it has any. Raises what the framework raises; the runner translates.
        """
        ...

    def close(self) -> None:
        """Gives back what the model holds."""
        ...


class RequestModel(Model, Protocol):
    """A model that is given the requests of a batch one by one and not stacked: it says `runs_requests = True`.

    answers_anything: it may refuse an input that was made up from its signature, so no warm-up can prove it. Of requests
    that came from outside it is given a `Request`, which says what else was said; it may answer with a `Response`.
    It may have `asked_in_vain`: how often it asked another model while none could be asked, which the warm-up excuses.
    """

    runs_requests: bool
    answers_anything: bool

    def run_requests(self, requests: list[Arrays]) -> list[Arrays | SerinusError]:
        """An answer or an error for each request, in their order. Called by one thread at a time."""
        ...


class StreamingModel(Model, Protocol):
    """A model whose settings say `decoupled`: a request may have any number of answers, none too. It may also have
    `streams_per_instance`: how many of its generators run side by side on one instance, 1 unless it says so.
    """

    def stream(self, inputs: Arrays, parameters: Mapping[str, Scalar]) -> Iterator[Arrays]:
        """One request's answers, one after another; each holds some of the signature's outputs, in any shape.

        `inputs` are as for `run`, never merged with another request's; `parameters` are the request's own. It is a
        generator, advanced only while its caller reads: keep nothing locked across a `yield`, and clean up in
        `finally`, for it is closed when the caller leaves or the deadline comes. Up to `instances` generators of one
        model run side by side, and one that is held for a slow reader may stand still among them; each one's steps
        come one at a time but not from one thread.
        """
        ...
