"""The address that an interface tries first, and the one saved for its next start."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address
from typing import final

from autoip.daemon.address_store import AddressStore
from autoip.daemon.daemon_threads import DaemonThreads
from autoip.daemon.reporter import Reporter
from autoip.errors import StateProblem

WRITE_TIMEOUT = 2.0
"""Seconds for which the end waits for a disk that does not answer."""


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
        self._unsaved: tuple[bytes, IPv4Address] | None = None
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
        """Save the address in a thread: a slow disk does not delay the negotiation.

        One write at a time, so that a disk that hangs costs one thread; the newest address is written next.
        """
        self._unsaved = mac, address
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())

    @property
    def quiet(self) -> bool:
        """Whether nothing is being written."""
        return self._writing is None or self._writing.done()

    async def written(self) -> None:
        """Wait until the address is written, WRITE_TIMEOUT at most."""
        if self._writing is not None:
            _, waiting = await asyncio.wait([self._writing], timeout=WRITE_TIMEOUT)
            if waiting:
                text = "does not wait for the disk: the address may not be saved"
                self._reporter.log(logging.WARNING, text)

    async def _write(self) -> None:
        while self._unsaved is not None:
            arguments, self._unsaved = (*self._unsaved, self._reporter.name), None
            try:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(DaemonThreads(), self._store.save, *arguments)
            except StateProblem as problem:
                self._reporter.log(logging.WARNING, str(problem))
            except RuntimeError as problem:  # no thread is left
                self._reporter.log(logging.WARNING, f"the address is not saved: {problem}")

    def _saved_by_avahi(self, mac: bytes) -> IPv4Address | None:
        try:
            address = self._store.load_avahi(mac)
        except StateProblem as problem:
            self._reporter.log(logging.DEBUG, str(problem))
            return None
        if address is not None:
            self._reporter.log(logging.INFO, f"tries {address} first, which avahi-autoipd saved")
        return address
