"""Whether somebody else on this host has a default route: then the owned one must go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import final

from autoip.daemon.protocols import Network
from autoip.errors import KernelRefused
from autoip.kernel.model import Event, Resync, RouteAdded, RouteRemoved

LOOK_PAUSE = 0.2
"""Seconds from the end of one check of all routes to the next: a table can be long, and change often."""


@final
class ForeignDefaultRoute:
    """Follows the default routes of others, of all interfaces and tables.

    The kernel does not report routes that go with an address or a link. So after such an event, and
    after the loss of a route, all routes are checked. A new route counts at once.
    """

    exists: bool
    """Whether there is one; True until the first check."""

    def __init__(self, network: Network, changed: Callable[[], None]) -> None:
        """Do nothing until `start`. `changed`: called when `exists` has changed."""
        self.exists = True
        self._network = network
        self._changed = changed
        self._started = False
        self._due = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow.

        Raises:
            KernelRefused: the kernel does not report routes.
        """
        self._network.follow_routes()
        self._started = True
        self._check()

    def close(self) -> None:
        """End. May be called more than once."""
        self._started = False
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def happened(self, event: Event) -> None:
        """Handle an event of the kernel."""
        if not self._started:
            return
        if isinstance(event, RouteAdded):
            self._set(True)
        elif self.exists or isinstance(event, RouteRemoved | Resync):
            self._check()
        if self._task is not None:
            self._due = True  # its result may be older than the event

    def _check(self) -> None:
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
                # If an event came meanwhile, the loop checks again.
                if not self._due:
                    self._set(found)
            await asyncio.sleep(LOOK_PAUSE)
        self._task = None

    def _set(self, exists: bool) -> None:
        if self.exists != exists:
            self.exists = exists
            self._changed()
