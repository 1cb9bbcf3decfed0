"""A reload: the program from its file goes on in this process, and nothing of what it serves is lost.

In order: the new program is tried out in a child; what is under way (requests, scripts, answers) comes to its end; the
thread of the ARP sockets ends, so that from then on frames wait in the sockets; what has come so far is handled; then
comes the exec. Until then all goes on as before, and after a refusal as well.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, Protocol, final

from autoip.daemon.handover import Handover
from autoip.daemon.protocols import ArpListener
from autoip.daemon.sd_notify import Notifier

QUIET_TIME = 15.0
"""Seconds in which what is under way must end: a script may take 10."""
_QUIET_PAUSE = 0.005
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""They wait from just before the exec until the new program handles them."""


class Executable(Protocol):
    """See `executable.Executable`."""

    async def refusal(self, data: bytes) -> str | None: ...
    def execute(self, given: Handover) -> NoReturn: ...


class Daemon(Protocol):
    """What is handed over."""

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way, and it serves."""

    def keep(self) -> Handover:
        """All that it has."""

    def handle_frames(self) -> None:
        """Handle the conflicts that wait in the listener's queue."""


@final
class Reload:
    """The reloads of one process, one at a time.

    Args:
        daemon: goes on in the new program.
        executable: the new program.
        listener: of the daemon's ARP sockets.
        notifier: to the service manager.
        log: the program's logger.
    """

    def __init__(
        self,
        daemon: Daemon,
        executable: Executable | None,
        listener: ArpListener,
        notifier: Notifier,
        log: logging.Logger,
    ) -> None:
        self._daemon = daemon
        self._executable = executable
        self._listener = listener
        self._notifier = notifier
        self._log = log
        self._task: asyncio.Task[str] | None = None
        self._again = False

    def request(self) -> asyncio.Task[str]:
        """Begin to reload, with the configuration as it is now.

        Returns:
            a task that gives why it was refused. A reload that is done has no end in this program.
        """
        self._again = True  # what was read before may be old
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return self._task

    async def _run(self) -> str:
        self._notifier.reloading()
        refusal = "this process cannot execute itself"
        if self._executable is not None:
            refusal = await self._attempt(self._executable)
        self._log.error("reload refused, all goes on as before: %s", refusal)
        self._notifier.reloaded()
        return refusal

    async def _attempt(self, executable: Executable) -> str:
        """Raise nothing; return only if the reload is refused."""
        clock = asyncio.get_running_loop().time
        while self._again:
            self._again = False
            refusal = await executable.refusal(self._daemon.keep().emit())
            if refusal is not None:
                return refusal
            end = clock() + QUIET_TIME
            while not self._again:
                if self._daemon.quiet and (failure := await self._execute(executable)):
                    return failure
                if clock() > end:
                    return f"what is under way did not end within {QUIET_TIME:g} s"
                await asyncio.sleep(_QUIET_PAUSE)
        raise AssertionError

    async def _execute(self, executable: Executable) -> str:
        """Execute the program. Return why that failed; empty: something new is under way."""
        with _signals_wait():
            for _ in range(3):
                await asyncio.sleep(0)  # the loop calls the handlers of signals that have come
            self._listener.pause()
            try:
                self._daemon.handle_frames()
                # From here to the exec nothing can happen.
                if self._daemon.quiet and not self._again:
                    executable.execute(self._daemon.keep())
            except OSError as error:
                return f"{error.strerror or error}"
            finally:
                self._listener.resume()
        return ""


@contextmanager
def _signals_wait() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
