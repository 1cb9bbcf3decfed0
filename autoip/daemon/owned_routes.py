"""Owned routes that come and go with the addresses of one interface, and are put back if removed.

Two kinds (see `kernel.onlink_routes`): to link-local destinations from a routable address, and the default route. While
the first is there, the route of the link-local address itself has the last metric.
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
from autoip.daemon.negotiator import Negotiator
from autoip.daemon.protocols import Network
from autoip.daemon.reporter import Reporter
from autoip.daemon.serial_tasks import SerialTasks
from autoip.kernel.model import Link
from autoip.options import Options

REPAIR_PAUSE = 0.5
"""Seconds after which what somebody removed beside an address is put back: not at once, so that a program that removes
it again and again is not fought at full speed."""


def source(policy: Policy, negotiator: Negotiator) -> IPv4Address | None:
    """Return the source address of what goes to link-local destinations by an interface; None: nothing does."""
    held = negotiator.address
    has_route = negotiator.attached and (held is not None or policy.kind is Kind.ROUTE_ONLY)
    return (policy.source or held) if has_route else None


@final
@dataclass(slots=True)
class OwnedRoute:
    """One route.

    Attributes:
        put: adds it, with this source.
        take: removes it from the interface of this index.
        there: index and source when all requests are done; None: not there.
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
        foreign: whether others have a default route: then the owned one goes.
        options: what the user chose.
    """

    link: Link | None
    """The present link of the interface; the caller updates it."""

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
        """Remove what a crashed instance has left on the link."""
        for route in (self._onlink, self._default):
            self._requests.request(partial(route.take, link.index))

    def update(self, policy: Policy, negotiator: Negotiator) -> None:
        """Add and remove routes as the policy demands now for the negotiator's address.

        There are none while the link carries no frames.
        """
        address, usable = negotiator.address, negotiator.attached
        # From the routable address, so that new connections do not use a lingering one.
        onlink = policy.source if address or policy.kind is Kind.ROUTE_ONLY else None
        if self._set(self._onlink, onlink if usable else None):
            self._reporter.log(logging.INFO, policy.why)
        # After its replacement is there, so that there is always a route.
        self._set(self._demoted, address if usable and policy.yields else None)
        wanted = (
            usable
            and self._options.default_route
            and not policy.yields
            and not self._foreign.exists
        )
        if self._set(self._default, address if wanted else None):
            text = f"added an on-link default route with source {address}"
            self._reporter.log(logging.INFO, text)

    def _set(self, route: OwnedRoute, source: IPv4Address | None) -> bool:
        """Add the route with this source, or remove it (None). Return whether it is added or replaced."""
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
        """Put the routes back after REPAIR_PAUSE: one is gone."""
        if self._repair is None:
            # Not at once: a program that removes it again and again is not fought at full speed.
            self._repair = asyncio.get_running_loop().call_later(REPAIR_PAUSE, self.put_back)

    def put_back(self) -> None:
        """Put back all routes that should be there; they may still be there."""
        self.close()
        for route in (self._onlink, self._demoted, self._default):
            if self.link is not None and route.there is not None:
                self._requests.request(partial(route.put, self.link, route.there[1]))

    def close(self) -> None:
        """Repair nothing more."""
        if self._repair is not None:
            self._repair.cancel()
            self._repair = None
