"""Which address an interface tries first, and what it remembers for its next start."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address
from typing import final

from autoip.daemon.address_store import AddressStore
from autoip.daemon.reporter import Reporter
from autoip.errors import StateProblem


@final
class AddressMemory:
    """The memory of one interface.

    Args:
        reporter: of the interface.
        store: the files.
        chosen: what the user wants to be tried first.
    """

    def __init__(self, reporter: Reporter, store: AddressStore, chosen: IPv4Address | None) -> None:
        self.leftover: IPv4Address | None = None
        """What an instance that crashed has left on the interface."""
        self._reporter = reporter
        self._store = store
        self._chosen = chosen
        self._writing: asyncio.Task[None] | None = None

    def first(self, mac: bytes) -> IPv4Address | None:
        """What to try first: what the user chose, a crash left, autoip saved, avahi-autoipd saved."""
        return self._chosen or self.leftover or self.saved(mac) or self._saved_by_avahi(mac)

    def saved(self, mac: bytes) -> IPv4Address | None:
        """What was remembered last for this hardware address; a damaged file counts as none."""
        try:
            return self._store.load(mac)
        except StateProblem as problem:
            self._reporter.log(logging.WARNING, str(problem))
            return None

    def remember(self, mac: bytes, address: IPv4Address) -> None:
        """Save the address. A slow disk does not hold up the negotiation."""
        self._writing = asyncio.get_running_loop().create_task(self._write(mac, address))

    @property
    def quiet(self) -> bool:
        """Whether nothing is being written."""
        return self._writing is None or self._writing.done()

    async def written(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def _write(self, mac: bytes, address: IPv4Address) -> None:
        try:
            await asyncio.to_thread(self._store.save, mac, address, self._reporter.name)
        except StateProblem as problem:
            self._reporter.log(logging.WARNING, str(problem))

    def _saved_by_avahi(self, mac: bytes) -> IPv4Address | None:
        try:
            address = self._store.load_avahi(mac)
        except StateProblem as problem:
            self._reporter.log(logging.DEBUG, str(problem))
            return None
        if address is not None:
            self._reporter.log(logging.INFO, f"tries {address} first, which avahi-autoipd saved")
        return address
