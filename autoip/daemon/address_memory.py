"""The address that an interface tries first, and the one saved for its next start."""

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
        chosen: the user's first candidate.
    """

    def __init__(self, reporter: Reporter, store: AddressStore, chosen: IPv4Address | None) -> None:
        self.leftover: IPv4Address | None = None
        """The address that a crashed instance has left on the interface."""
        self._reporter = reporter
        self._store = store
        self._chosen = chosen
        self._writing: asyncio.Task[None] | None = None

    def first(self, mac: bytes) -> IPv4Address | None:
        """Return what to try first: what the user chose, a crash left, autoip saved, or avahi-autoipd saved."""
        return self._chosen or self.leftover or self.saved(mac) or self._saved_by_avahi(mac)

    def saved(self, mac: bytes) -> IPv4Address | None:
        """Return the address saved last for this hardware address; None also for a damaged file."""
        try:
            return self._store.load(mac)
        except StateProblem as problem:
            self._reporter.log(logging.WARNING, str(problem))
            return None

    def remember(self, mac: bytes, address: IPv4Address) -> None:
        """Save the address in a thread: a slow disk does not delay the negotiation."""
        self._writing = asyncio.get_running_loop().create_task(self._write(mac, address))

    @property
    def quiet(self) -> bool:
        """Whether nothing is being written."""
        return self._writing is None or self._writing.done()

    async def written(self) -> None:
        """Wait until the address is written."""
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
