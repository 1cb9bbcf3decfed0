"""The interfaces that are served as they appear: which they are, and when each is added and dropped.

An interface that another process serves is left to that process until it ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol, final

from autoip.errors import AlreadyRunning, AutoipError
from autoip.kernel.model import Link
from autoip.log import NOTICE
from autoip.options import CONTAINERS

RETRY = 30.0
"""Seconds after which an interface of another process is tried again, if the end of that process is not reported."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which interfaces are wanted.

    Attributes:
        rules: patterns of names, and whether to serve what they match; the last one that matches decides.
    """

    rules: tuple[tuple[str, bool], ...]

    def wants(self, link: Link) -> bool:
        """Return whether to serve the interface."""
        wanted = False
        for pattern, serve in self.rules:
            if fnmatchcase(link.name, pattern) and not (serve and _left_out(link, pattern)):
                wanted = serve
        return wanted


def _left_out(link: Link, pattern: str) -> bool:
    """Return whether only the interface's own name would mean it: no ARP, a port, or of a container engine."""
    if pattern == link.name:
        return False
    made = (prefix for prefix in CONTAINERS if link.name.startswith(prefix))
    return (
        not link.speaks_arp
        or link.is_port
        or any(not pattern.startswith(prefix) for prefix in made)
    )


class Daemon(Protocol):
    """What serves interfaces."""

    async def add(self, name: str) -> None:
        """Serve one more interface. Raises AutoipError."""

    async def drop(self, name: str) -> None:
        """Stop serving an interface, and remove what it owns."""


@final
class _Other:
    """The process that serves an interface: `ended` is called when it has ended, or after RETRY."""

    def __init__(self, error: AlreadyRunning, ended: Any) -> None:
        self.error = error
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(RETRY, ended)
        self._descriptor: int | None = None
        if error.pid is not None:
            with suppress(OSError):  # it has ended, or is in another pid namespace
                self._descriptor = os.pidfd_open(error.pid)
                self._loop.add_reader(self._descriptor, ended)

    def close(self) -> None:
        self._timer.cancel()
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)


@final
class Served:
    """Has the daemon serve the wanted interfaces, one change at a time.

    Args:
        selection: the wanted ones.
        daemon: serves them.
        log: the program's logger.
    """

    def __init__(self, selection: Selection, daemon: Daemon, log: logging.Logger) -> None:
        self._selection = selection
        self._daemon = daemon
        self._log = log
        self._wanted: frozenset[str] = frozenset()
        # Those that somebody has stopped as well, and those that were refused: until they have been away.
        self._served: set[str] = set()
        self._left: set[str] = set()
        self._others: dict[str, _Other] = {}
        self._logged: dict[str, int | None] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def summary(self) -> list[str]:
        """Which interfaces other processes serve, one line each."""
        return [str(other.error) for other in self._others.values()]

    @property
    def names(self) -> Sequence[str]:
        """The served interfaces, and those that somebody has stopped and that have not been away since."""
        return sorted(self._served)

    @property
    def quiet(self) -> bool:
        """Whether nothing is being added or dropped."""
        return self._task is None or self._task.done()

    def resume(self, names: Iterable[str]) -> None:
        """Go on with the `names` of another one."""
        self._served.update(names)

    def follow(self, links: Iterable[Link]) -> None:
        """Serve the wanted ones among these links, and no others."""
        self._wanted = frozenset(link.name for link in links if self._selection.wants(link))
        self._left &= self._wanted
        for name in self._others.keys() - self._wanted:
            self._forget(name)
        self._wake()

    async def settled(self) -> None:
        """Wait until all wanted interfaces are served that can be."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Add and drop nothing more."""
        self._closed = True
        for name in [*self._others]:
            self._forget(name)
        await self.settled()

    def _wake(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while (change := self._next()) is not None:
            await change

    def _next(self) -> Coroutine[Any, Any, None] | None:
        if self._closed:
            return None
        for name in sorted(self._served - self._wanted):
            return self._drop(name)
        for name in sorted(self._wanted - self._served - self._left - self._others.keys()):
            return self._add(name)
        return None

    async def _drop(self, name: str) -> None:
        self._served.discard(name)
        await self._daemon.drop(name)

    async def _add(self, name: str) -> None:
        try:
            await self._daemon.add(name)
        except AlreadyRunning as error:
            self._leave_to(error)
            return
        except AutoipError as error:
            self._log.error("%s", error)
            self._left.add(name)
            return
        except Exception:  # noqa: BLE001 (a bug costs only this interface)
            self._log.exception("%s: internal error, is not served", name)
            self._left.add(name)
            return
        self._served.add(name)
        self._logged.pop(name, None)

    def _leave_to(self, error: AlreadyRunning) -> None:
        name = error.interface
        if self._closed or name not in self._wanted:
            return
        if self._logged.get(name, -1) != error.pid:
            self._logged[name] = error.pid
            self._log.log(NOTICE, "%s; serves it when that process ends", error)
        self._others[name] = _Other(error, lambda: self._retry(name))

    def _retry(self, name: str) -> None:
        self._forget(name)
        self._wake()

    def _forget(self, name: str) -> None:
        self._others.pop(name).close()
