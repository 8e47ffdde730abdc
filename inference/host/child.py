"""One forked child as the supervisor holds it: its control socket, its pidfd, its end.

What a child says is not trusted: a frame that cannot be read, or a flood of them, ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator

from inference.errors import ClientError
from inference.host import wire
from inference.host.exits import Exit
from inference.host.processes import resident_bytes
from inference.host.standby import Birth, ForkServerProcess
from inference.protocol.child import AdapterAt, Drain, FromChild, SetAdapters, StartReplica, StartValidation

STATUS_WAIT_S = 2.0
TELL_S = 5.0
MAX_REPORTS_PER_S = 500
_LAST_READS = 64


class Child:
    """From fork to burial. Its one owner reads `reports` and awaits `exit`; anybody may `kill` or `drain` it."""

    def __init__(self, birth: Birth, control: socket.socket) -> None:
        self.pid = birth.pid
        self._birth = birth
        self._control = control
        self._inbox: wire.Inbox[FromChild] = wire.Inbox(FromChild)
        self._cause = ""
        self._said: asyncio.Queue[FromChild | None] = asyncio.Queue()
        self._window = (0.0, 0)
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._loop.add_reader(birth.pidfd, self._on_end)
        self._loop.add_reader(control, self._on_report)

    @classmethod
    async def fork(
        cls, server: ForkServerProcess, message: StartReplica | StartValidation, listener: socket.socket | None = None
    ) -> Child:
        """Raises NotReady when the fork server fails."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        try:
            with theirs:
                extra = [] if listener is None else [listener.fileno()]
                birth = await server.fork(message, [theirs.fileno(), *extra])
        except BaseException:
            ours.close()
            raise
        return cls(birth, ours)

    async def reports(self) -> AsyncIterator[FromChild]:
        """What the child says, its last words too, until it ends or closes its control socket."""
        while (report := await self._said.get()) is not None:
            yield report

    async def exit(self) -> Exit:
        """How it ended. Closes what belongs to it."""
        try:
            await self._ended
            status: int | None = None
            with contextlib.suppress(TimeoutError):
                status = await asyncio.wait_for(asyncio.shield(self._birth.status), STATUS_WAIT_S)
            return Exit(status, self._cause)
        finally:
            self._close()

    def kill(self, cause: str) -> None:
        """End it now; `cause` is the sentence that its exit will be told with."""
        self._cause = self._cause or cause
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def drain(self, timeout_s: float) -> None:
        """Ask it to finish. A child whose socket is full is not listening: the caller's clock ends it."""
        with contextlib.suppress(OSError):
            wire.send(self._control, Drain(timeout_s), [])

    async def set_adapters(self, adapters: list[AdapterAt]) -> None:
        """Tell it which adapters to have. Raises OSError, or TimeoutError when it does not listen. One at a time."""
        async with asyncio.timeout(TELL_S):
            await wire.send_soon(self._control, SetAdapters(adapters), [])

    def resident_bytes(self) -> int:
        return resident_bytes(self.pid)

    def _signal(self, number: signal.Signals) -> None:
        if self._birth.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._birth.pidfd, number)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._birth.pidfd)
        for _ in range(_LAST_READS):
            if not self._on_report():
                break
        self._said.put_nowait(None)
        self._ended.set_result(None)

    def _on_report(self) -> bool:
        """Queue what has arrived. False when nothing more can be read now."""
        try:
            messages = self._inbox.receive(self._control)
        except BlockingIOError:
            return False
        except ClientError as error:
            self.kill(f"the process was ended because it sent what cannot be read: {error.message}")
            messages = None
        except OSError:
            messages = None
        if messages is None:
            self._loop.remove_reader(self._control)
            self._said.put_nowait(None)
            return False
        self._count(len(messages))
        for message, _ in messages:
            self._said.put_nowait(message)
        return True

    def _count(self, messages: int) -> None:
        began, count = self._window
        now = self._loop.time()
        self._window = (began, count + messages) if now - began < 1.0 else (now, messages)
        if self._window[1] > MAX_REPORTS_PER_S:
            self.kill("the process was ended because it flooded its supervisor with reports")

    def _close(self) -> None:
        if self._birth.pidfd < 0:
            return
        self._loop.remove_reader(self._birth.pidfd)
        self._loop.remove_reader(self._control)
        self._inbox.close()
        self._control.close()
        os.close(self._birth.pidfd)
        self._birth.pidfd = -1
