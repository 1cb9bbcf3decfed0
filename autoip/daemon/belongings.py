"""Put back what belongs to an address and somebody removed: rule, source route, connected route, filter, defence."""

from __future__ import annotations

import asyncio
from typing import final

from autoip.daemon.negotiator import Negotiator
from autoip.daemon.owned_routes import REPAIR_PAUSE
from autoip.daemon.protocols import Network
from autoip.daemon.reporter import Reporter
from autoip.daemon.serial_tasks import SerialTasks
from autoip.errors import KernelRefused
from autoip.kernel.model import Link


@final
class Belongings:
    """The belongings of one interface's address.

    Args:
        reporter: of the interface.
        network: puts them back...
        requests: ...in the order of all requests of the interface.
        negotiator: has the address.
    """

    link: Link | None
    """The present link of the interface; the caller updates it."""

    def __init__(
        self,
        reporter: Reporter,
        network: Network,
        requests: SerialTasks,
        negotiator: Negotiator,
    ) -> None:
        self.link = None
        self._reporter = reporter
        self._network = network
        self._requests = requests
        self._negotiator = negotiator
        self._timer: asyncio.TimerHandle | None = None

    def lost(self) -> None:
        """Put back, after REPAIR_PAUSE, what is missing beside an address that is held: some of it was removed."""
        if self._timer is None and self._negotiator.address is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(REPAIR_PAUSE, self._request)

    def check(self) -> None:
        """As `lost`, if the filter or the defence was detached: the kernel does not report that."""
        link, sock = self.link, self._negotiator.socket
        unfiltered = link is not None and self._network.detached(link.index)
        if unfiltered or (sock is not None and sock.detached):
            self.lost()

    def _request(self) -> None:
        self._timer = None
        self._requests.request(self._put_back, once="belongings")

    async def _put_back(self) -> None:
        link, address = self.link, self._negotiator.address
        present = {(found.index, found.address) for found in await self._network.addresses()}
        if link is None or address is None or (link.index, address) not in present:
            return  # an address that is missing as well is put back with all that belongs to it
        try:
            missing = await self._network.restore(link, address)
            if (sock := self._negotiator.socket) is not None and await sock.restore():
                missing.append("defence")
        except KernelRefused as error:
            self._reporter.note(str(error))
        else:
            for name in missing:
                self._reporter.put_back(name)
