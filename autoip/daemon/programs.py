"""The two BPF programs of one interface: what the kernel refused, and what somebody else has detached."""

from __future__ import annotations

import logging
from typing import final

from autoip.daemon.negotiator import Negotiator
from autoip.daemon.protocols import Network
from autoip.daemon.reporter import Reporter
from autoip.kernel.model import Link

_BY_UNICAST = "the kernel sends ARP for the address by unicast; answers also go out by broadcast: "


@final
class Programs:
    """The programs of one interface.

    Args:
        reporter: of the interface.
        network: has the program at the egress.
        negotiator: has the socket, which has the program at the ingress.

    Attributes:
        refused: why the kernel's ARP does not follow section 2.5; that, and why, only a filter of tc makes it follow.
    """

    def __init__(self, reporter: Reporter, network: Network, negotiator: Negotiator) -> None:
        self.refused: tuple[str | None, str | None] = None, None
        self._logged: list[str] = []
        self._reporter = reporter
        self._network = network
        self._negotiator = negotiator

    def resume(self, refused: tuple[str | None, str | None]) -> None:
        """Go on with the `refused` of another one, which has logged it."""
        self.refused = refused
        self._logged = self.limits

    @property
    def limits(self) -> list[str]:
        """What the kernel refused on this interface, one line each."""
        (by_unicast, by_filter), sock = self.refused, self._negotiator.socket
        undefended = sock.undefended if sock is not None else None
        limits = (by_unicast and _BY_UNICAST + by_unicast, by_filter, undefended)
        return [limit for limit in limits if limit]

    async def check(self, link: Link) -> None:
        """Attach the defence again if it was detached. Log, once, what the kernel refused."""
        sock, index = self._negotiator.socket, link.index
        if sock is not None and await sock.restore():
            self._reporter.put_back("defence")
        self.refused = self._network.by_unicast(index), self._network.by_filter(index)
        self._negotiator.answers = self.refused[0] is not None
        for line in self.limits:
            if line not in self._logged:
                level = logging.WARNING if line.startswith(_BY_UNICAST) else logging.INFO
                self._reporter.log(level, line)
        self._logged = self.limits
