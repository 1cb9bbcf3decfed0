"""Owned routes that come and go with the addresses of one interface, and are put back if removed.

Two kinds (see `kernel.onlink_routes`): to link-local destinations from a routable address, and the default route. While
the first is there, the one that the link-local address brought with it comes last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import final

from autoip.core.policy import Kind, Policy
from autoip.daemon.foreign_default_route import ForeignDefaultRoute
from autoip.daemon.protocols import Network
from autoip.daemon.reporter import Reporter
from autoip.daemon.serial_tasks import SerialTasks
from autoip.kernel.model import Link
from autoip.options import Options

REPAIR_PAUSE = 1.0
"""Seconds after which a route that somebody removed is put back."""


@final
@dataclass(slots=True)
class OwnedRoute:
    """One route.

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
    """The routes of one interface.

    Args:
        reporter: of the interface.
        network: makes and removes them...
        requests: ...in the order of all requests of the interface.
        foreign: somebody else's default route: ours goes while there is one.
        options: what the user chose.
    """

    link: Link | None
    """What the interface is now; the caller keeps it."""

    def __init__(
        self,
        reporter: Reporter,
        network: Network,
        requests: SerialTasks,
        foreign: ForeignDefaultRoute,
        options: Options,
    ) -> None:
        self.link = None
        self._onlink = OwnedRoute(network.set_onlink, network.remove_onlink)
        self._demoted = OwnedRoute(network.demote, network.promote)
        self._default = OwnedRoute(network.set_default, network.remove_default)
        self._reporter = reporter
        self._requests = requests
        self._foreign = foreign
        self._options = options
        self._repair: asyncio.TimerHandle | None = None

    def keep(self) -> tuple[tuple[int, IPv4Address] | None, ...]:
        """Return index and source of each route that there is, for `resume`."""
        return tuple(route.there for route in (self._onlink, self._demoted, self._default))

    def resume(self, kept: tuple[tuple[int, IPv4Address] | None, ...]) -> None:
        """Go on for another one."""
        self._onlink.there, self._demoted.there, self._default.there = kept

    def take_over(self, link: Link) -> None:
        """Remove what an instance that crashed has left on the link."""
        for route in (self._onlink, self._default):
            self._requests.request(partial(route.take, link.index))

    def update(self, policy: Policy, address: IPv4Address | None, *, usable: bool) -> None:
        """Have the routes that are wanted now.

        Args:
            policy: of the interface.
            address: the link-local address that is held.
            usable: whether the link can carry anything: else there are none.
        """
        # From the routable address, so that one that only lingers is kept out of new connections.
        onlink = policy.source if address or policy.kind is Kind.ROUTE_ONLY else None
        if self._set(self._onlink, onlink if usable else None):
            self._reporter.log(logging.INFO, policy.why)
        # After the route that replaces it: there is always one.
        self._set(self._demoted, address if usable and policy.yields else None)
        wanted = (
            usable
            and self._options.default_route
            and not policy.yields
            and not self._foreign.exists
        )
        if self._set(self._default, address if wanted else None):
            text = f"no default route: all is on the link, from {address}"
            self._reporter.log(logging.INFO, text)

    def _set(self, route: OwnedRoute, source: IPv4Address | None) -> bool:
        """Have the route, with this source, or not (None). Return whether it is made, or made anew."""
        wanted = None if source is None or self.link is None else (self.link.index, source)
        if wanted == route.there:
            return False
        before, route.there = route.there, wanted
        if wanted is not None and self.link is not None:
            self._requests.request(partial(route.put, self.link, wanted[1]))
            return True
        if before is not None:
            self._requests.request(partial(route.take, before[0]))
        return False

    def removed(self) -> None:
        """A route is gone: it was taken off, it went with its source, or somebody removed it."""
        if self._repair is None:
            # Not at once: who does so again and again is not fought at full speed.
            self._repair = asyncio.get_running_loop().call_later(REPAIR_PAUSE, self.put_back)

    def put_back(self) -> None:
        """Put all that there should be; they may be there."""
        self.close()
        for route in (self._onlink, self._demoted, self._default):
            if self.link is not None and route.there is not None:
                self._requests.request(partial(route.put, self.link, route.there[1]))

    def close(self) -> None:
        """Repair nothing more."""
        if self._repair is not None:
            self._repair.cancel()
            self._repair = None
