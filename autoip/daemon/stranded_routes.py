"""Routes that only the owned address keeps alive: they go with the last other address, as without this daemon."""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial
from ipaddress import IPv4Address
from typing import final

from autoip.daemon.protocols import Network
from autoip.daemon.reporter import Reporter
from autoip.daemon.serial_tasks import SerialTasks
from autoip.kernel.model import Address, Link


@final
class StrandedRoutes:
    """The stranded routes of one interface.

    Args:
        reporter: of the interface.
        network: finds and removes them...
        requests: ...in the order of all requests of the interface.
    """

    def __init__(self, reporter: Reporter, network: Network, requests: SerialTasks) -> None:
        self._reporter = reporter
        self._network = network
        self._requests = requests
        self.others_on: int | None = None
        """The index of the interface, if it has other addresses."""

    def update(
        self, link: Link | None, others: Collection[Address], owned: IPv4Address | None
    ) -> None:
        """Remove stranded routes if the last other address is gone.

        Args:
            link: the present link of the interface.
            others: its addresses that are not owned.
            owned: the address that this daemon has, or may have, put there.
        """
        before = self.others_on
        self.others_on = link.index if link is not None and others else None
        gone = link is not None and before == link.index and not others
        # Without an owned address the kernel has removed them itself.
        if gone and before is not None and owned is not None:
            self._requests.request(partial(self._remove, before, owned))

    async def _remove(self, index: int, owned: IPv4Address) -> None:
        if removed := await self._network.remove_stranded(index, owned):
            text = f"removed with the last other address: {', '.join(removed)}"
            self._reporter.log(logging.INFO, text)
