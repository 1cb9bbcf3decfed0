"""Routes of ours that come and go with the addresses of one interface, and are put back if removed.

Two kinds (see `onlink`): to link-local destinations from a routable address, and the default route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import final

from autoip.daemon.serial_tasks import SerialTasks
from autoip.kernel.model import Link
from autoip.kernel.network import Network

REPAIR_PAUSE = 1.0
"""Seconds after which a route that somebody removed is put back."""


@final
@dataclass(slots=True)
class OwnedRoute:
    """One of them.

    Attributes:
        put: has the kernel have it, with this source.
        take: has the kernel not have it, by the interface of this index.
        there: index and source of what it has, or will have when all requests are done.
    """

    put: Callable[[Link, IPv4Address], Awaitable[object]]
    take: Callable[[int], Awaitable[object]]
    there: tuple[int, IPv4Address] | None = None


@final
class OwnedRoutes:
    """Those of one interface.

    Args:
        netlink: makes and removes them...
        worker: ...in the order of all requests of the interface.
    """

    def __init__(self, netlink: Network, worker: SerialTasks) -> None:
        self.onlink = OwnedRoute(netlink.set_onlink, netlink.remove_onlink)
        self.default = OwnedRoute(netlink.set_default, netlink.remove_default)
        self._worker = worker
        self._link: Link | None = None
        self._repair: asyncio.TimerHandle | None = None

    def link_changed(self, link: Link | None) -> None:
        """The interface is this link now."""
        self._link = link

    def take_over(self, link: Link) -> None:
        """Remove what an instance that crashed has left on the link."""
        for route in (self.onlink, self.default):
            self._worker.request(partial(route.take, link.index))

    def keep(self, route: OwnedRoute, source: IPv4Address | None) -> bool:
        """Have the route, with this source, or not (None).  Whether it is made, or made anew."""
        wanted = None if source is None or self._link is None else (self._link.index, source)
        if wanted == route.there:
            return False
        before, route.there = route.there, wanted
        if wanted is not None and self._link is not None:
            self._worker.request(partial(route.put, self._link, wanted[1]))
            return True
        if before is not None:
            self._worker.request(partial(route.take, before[0]))
        return False

    def removed(self) -> None:
        """One is gone: by our doing, with its source, or by somebody's."""
        if self._repair is None:
            # Not at once: who does so again and again is not fought at full speed.
            self._repair = asyncio.get_running_loop().call_later(REPAIR_PAUSE, self.put_back)

    def put_back(self) -> None:
        """Put all that there should be; they may be there."""
        self.close()
        for route in (self.onlink, self.default):
            if self._link is not None and route.there is not None:
                self._worker.request(partial(route.put, self._link, route.there[1]))

    def close(self) -> None:
        """Repair nothing more."""
        if self._repair is not None:
            self._repair.cancel()
            self._repair = None
