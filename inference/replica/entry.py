"""What the fork server calls in a new child: a replica that serves one version, or a validation run.

The order is the law: lay out, close the sandbox, verify, load, warm every bucket, and only then accept.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec

from inference.artifacts.manifest import RuntimeSettings, settings_from
from inference.config import BadSetting, integer
from inference.errors import OutOfMemory, Rejected, SerinusError
from inference.models import LoadContext, load
from inference.protocol.child import StartReplica, StartValidation
from inference.protocol.generation import PLATFORM
from inference.protocol.messages import Hello
from inference.protocol.signatures import public_signature
from inference.protocol.status import ReplicaPhase
from inference.replica import executors, heartbeat, language_start
from inference.replica.control import Control
from inference.replica.ground import lay_out
from inference.replica.lifecycle import EXIT_HUNG, EXIT_NOT_LOADED, Lifecycle
from inference.replica.sandbox import Limits
from inference.replica.server import Served, Server
from inference.runtime import devices, samples
from inference.runtime.runner import Runner, is_out_of_memory
from inference.runtime.warmup import WarmUp, warm_up, warm_up_stream
from inference.runtime.work import Executor

if TYPE_CHECKING:
    from inference.replica.language import LanguageExecutor

log = logging.getLogger(__name__)
WARM_REPEATS = 2
TERM_DRAIN_S = 1.5
FLUSH_S = 0.2
GC_THRESHOLDS = (20_000, 20, 50)
DELAY = "TRITONSERVER_DELAY_SCHEDULER"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is warm, and how it is to be run. language: of a language model, whose runner only holds it."""

    runner: Runner
    settings: RuntimeSettings
    warm: WarmUp
    device: str
    language: language_start.Language | None = None


def run_replica(message: StartReplica, control_fd: int, listener_fd: int) -> int:
    """Serves until it is drained (0), cannot load (81) or hangs (86). The process is the sandbox's afterwards."""
    _log_to_stderr()
    _interrupt_nobody()
    control = Control(control_fd)
    life = Lifecycle(control)
    try:
        loaded = _prepare(message, life, control, keep=(control_fd, listener_fd))
    except BaseException as error:
        # Native panics too: the supervisor is told why, then this ends.
        log.exception("not loaded")
        life.fail(words(error))
        return EXIT_NOT_LOADED
    return _run(_serve(message, loaded, life, control, socket.socket(fileno=listener_fd)))


def run_validation(message: StartValidation, control_fd: int) -> int:
    """Validates one version and reports the verdict (see validate.py)."""
    from inference.replica.validation import run

    _log_to_stderr()
    return run(message, Control(control_fd), keep=(control_fd,))


def _interrupt_nobody() -> None:
    """Whoever has the core keeps it when a batch comes: the gateway is then not stopped in the middle of reading what
    would have been in the next one. Threads begun later are scheduled likewise. Measured in docs/benchmarks-by-hand.md.
    """
    with contextlib.suppress(AttributeError, OSError):  # another system, or one that does not let us
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def words(error: BaseException) -> str:
    """Why it could not be loaded, for a person."""
    if isinstance(error, Rejected):
        return f"{error.reason}: {error.remedy}" if error.remedy else error.reason
    if isinstance(error, SerinusError):
        return error.message
    if isinstance(error, BadSetting):
        return str(error)
    if is_out_of_memory(error):
        return OutOfMemory().message
    return f"loading failed with {type(error).__name__}"


def _prepare(message: StartReplica, life: Lifecycle, control: Control, *, keep: tuple[int, int]) -> Loaded:
    """1. Lays out. 2. Enters the sandbox. 3. Verifies. 4. Loads. 5. Warms."""
    spec = message.spec
    life.move(ReplicaPhase.LOADING)
    settings = delayed(settings_from(spec.settings), os.environ)  # the sandbox has an environment of its own
    ground = lay_out(message.paths, spec.files)
    walls = ground.enter(device=spec.device, limits=_limits(message), keep=keep)
    control.listen()
    log.info("sandbox: %s", walls.describe())
    ground.verify()
    device = devices.select(spec.device, spec.device_memory_share, fake=message.is_fake_device)
    bounds = (spec.device_memory_bytes, spec.device_memory_share)
    log.info("device: %s, here %s; memory share %.4f", spec.device, device, spec.device_memory_share)
    # Instances run side by side: each gets its part of the threads.
    threads = max(1, spec.threads // settings.instances)
    context = LoadContext(ground.artifact, settings, device, threads, *bounds, spec.model)
    policy = settings.nan_policy
    runner = Runner(
        load(spec.format, context), rejects_nonfinite=policy == "reject", minds_nonfinite=policy != "ignore"
    )
    life.move(ReplicaPhase.WARMING)
    if runner.signature.platform == PLATFORM:
        language = language_start.prepare(runner, context)
        most = settings.generation.max_adapters if settings.generation else 0
        language = language_start.with_adapters(language, spec.adapters, ground.adapters, control, most)
        return Loaded(runner, settings, WarmUp({}, {}), device, language)
    forget = getattr(runner.model, "forget_warm_up", _nothing)
    own = samples.read(ground.artifact, settings.warmup, batched=bool(runner.signature.max_batch_size))
    if settings.decoupled:
        warm = warm_up_stream(runner, samples=own)
        forget()
        return Loaded(runner, settings, warm, device)
    warm = warm_up(runner, repeats=WARM_REPEATS, samples=own)
    forget()
    lanes = max(settings.instances, getattr(runner.model, "lanes", 1))
    runner.grow(lanes, partial(load, spec.format, context), partial(warm_up, repeats=1))
    forget()
    return Loaded(runner, settings, warm, device)


def _nothing() -> None:
    pass


def delayed(settings: RuntimeSettings, env: Mapping[str, str]) -> RuntimeSettings:
    """The settings with the installation's TRITONSERVER_DELAY_SCHEDULER, where the version says nothing itself.

    Raises BadSetting for what is no number of requests.
    """
    wanted = integer(env, DELAY, 0, 0, 65536)
    return settings if settings.delay_until or not wanted else msgspec.structs.replace(settings, delay_until=wanted)


def _limits(message: StartReplica) -> Limits:
    size_bytes = sum(file.size_bytes for file in message.spec.files)
    return Limits(memory_bytes=message.spec.memory_bytes, mapped_bytes=2 * size_bytes)


async def _serve(message: StartReplica, loaded: Loaded, life: Lifecycle, control: Control, sock: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    def hung() -> None:
        life.fail(f"a forward pass took longer than {loaded.settings.hang_timeout_s:g} s")
        # The lane cannot be stopped, so the process is, once its callers' errors are on their way.
        loop.call_later(FLUSH_S, os._exit, EXIT_HUNG)

    # The frameworks are hundreds of thousands of objects that stay: one look at all of them takes a tenth of a second.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    meter = heartbeat.Meter(loaded.runner, loaded.device)
    server = _server(message, loaded, hung, partial(meter.memory, message.spec.device))
    if loaded.language is not None and loaded.language.adapters is not None:
        loaded.language.adapters.serve(cast("LanguageExecutor", server.executor))
        control.on_adapters(loaded.language.adapters.want)
    await server.start(sock)
    drain = _drainer(loop, server, life, end)
    control.on_drain(partial(_in_loop, loop, drain))
    loop.add_signal_handler(signal.SIGTERM, drain, TERM_DRAIN_S)
    life.move(ReplicaPhase.READY)
    beating = loop.create_task(heartbeat.beat(life, server.executor, meter))
    status = await ended
    beating.cancel()
    server.executor.stop()
    server.close()
    return status


def _server(
    message: StartReplica, loaded: Loaded, hung: Callable[[], None], memory: Callable[[], dict[str, int]]
) -> Server:
    spec, settings = message.spec, loaded.settings
    executor: Executor
    if loaded.language is not None:
        signature = loaded.runner.signature  # gateways ask by the tensors that clients do not see
        executor = language_start.executor(loaded.runner, loaded.language, settings, on_hang=hung)
    else:
        signature = public_signature(loaded.runner.signature, settings)
        executor = executors.make(loaded.runner, settings, loaded.warm, on_hang=hung, model=spec.model)
    takes = loaded.language is None and executors.forgets_inputs(loaded.runner, settings)
    hello = Hello(spec.id, spec.generation, spec.model, spec.version, settings.queue_limit, takes)
    tells = bool(getattr(loaded.runner.model, "runs_requests", False))
    counted = getattr(loaded.runner.model, "own_metrics", dict)
    return Server(Served(hello, signature, tells), executor, memory, counted)


def _drainer(
    loop: asyncio.AbstractEventLoop, server: Server, life: Lifecycle, end: Callable[[int], None]
) -> Callable[[float], None]:
    draining: list[asyncio.Task[None]] = []

    async def finish(timeout_s: float) -> None:
        await server.drain(timeout_s)
        end(0)

    def drain(timeout_s: float) -> None:
        if draining:
            # Asked again, by a signal: the supervisor's patience is at its end.
            loop.call_later(timeout_s, end, 0)
        else:
            life.move(ReplicaPhase.DRAINING)
            draining.append(loop.create_task(finish(timeout_s)))

    return drain


def _in_loop(loop: asyncio.AbstractEventLoop, act: Callable[[float], None], value: float) -> None:
    loop.call_soon_threadsafe(act, value)


def _run(main: Coroutine[Any, Any, int]) -> int:
    import uvloop

    return int(uvloop.run(main))


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
