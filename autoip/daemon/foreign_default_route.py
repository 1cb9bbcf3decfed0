"""Whether somebody else on this host has a default route: then ours is to go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import final

from autoip.daemon.protocols import Network
from autoip.errors import KernelRefused
from autoip.kernel.model import Event, Resync, RouteAdded, RouteRemoved

LOOK_PAUSE = 0.2
"""Seconds from the end of a look at all routes to the next: a table can be long, and change often."""


@final
class ForeignDefaultRoute:
    """Follows the default routes of others, of all interfaces and tables.

    The kernel does not report routes that go with an address or a link, so after such an event, as
    after the loss of any other route, all are looked at. A route that comes counts at once.
    """

    exists: bool
    """Whether there is one; True until the first look."""

    def __init__(self, network: Network, changed: Callable[[], None]) -> None:
        """Does nothing until `start`. `changed`: called when `exists` has changed."""
        self.exists = True
        self._network = network
        self._changed = changed
        self._started = False
        self._due = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Raises KernelRefused."""
        self._network.follow_routes()
        self._started = True
        self._look()

    def close(self) -> None:
        """May be called more than once."""
        self._started = False
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def happened(self, event: Event) -> None:
        """The kernel has reported this."""
        if not self._started:
            return
        if isinstance(event, RouteAdded):
            self._set(True)
        elif self.exists or isinstance(event, RouteRemoved | Resync):
            self._look()
        if self._task is not None:
            self._due = True  # what it finds may be older than the event

    def _look(self) -> None:
        self._due = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._due:
            self._due = False
            try:
                found = await self._network.other_default()
            except KernelRefused:
                self._due = True
            else:
                # Otherwise an event came meanwhile, and it is looked again.
                if not self._due:
                    self._set(found)
            await asyncio.sleep(LOOK_PAUSE)
        self._task = None

    def _set(self, exists: bool) -> None:
        if self.exists != exists:
            self.exists = exists
            self._changed()
