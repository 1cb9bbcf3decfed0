"""The address that an interface tries first, and the one saved for its next start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import final

from autoip.daemon.address_store import AddressStore
from autoip.daemon.reporter import Reporter
from autoip.errors import StateProblem
from autoip.kernel.daemon_threads import DaemonThreads
from autoip.options import MAC, Options

SAVE_INTERVAL = 900.0
"""Seconds between two writes: a disk must not wear out because another host takes each address."""

WRITE_TIMEOUT = 2.0
"""Seconds for which the end waits for a disk that does not answer."""


@final
class AddressMemory:
    """The memory of one interface.

    Args:
        reporter: of the interface.
        store: the files.
        options: the user's choices, with the first candidates and the pool.
    """

    def __init__(self, reporter: Reporter, store: AddressStore, options: Options) -> None:
        self.leftover: IPv4Address | None = None
        """The address that a crashed instance has left on the interface."""
        self._reporter = reporter
        self._store = store
        self._options = options
        self._unsaved: tuple[bytes, IPv4Address] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._may_write_at = 0.0  # by the event loop's clock
        self._waiting: tuple[bytes, IPv4Address] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def first(self, mac: bytes) -> Sequence[IPv4Address]:
        """Return what to try first: what the user chose, else what a crash left, autoip or avahi-autoipd saved."""
        pool = self._options.pool
        if chosen := self._options.ip:
            return [pool.of_mac(mac) if address == MAC else address for address in chosen]
        address = self.leftover or self.saved(mac) or self._saved_by_avahi(mac)
        if address is None:
            return ()
        if not pool.allows(address):
            text = f"does not try {address} again, which is excluded or not in the range"
            self._reporter.log(logging.INFO, text)
            return ()
        return (address,)

    def saved(self, mac: bytes) -> IPv4Address | None:
        """Return the address saved last for this hardware address; None also for a damaged file."""
        try:
            return self._store.load(mac)
        except StateProblem as problem:
            self._reporter.log(logging.WARNING, str(problem))
            return None

    def remember(self, mac: bytes, address: IPv4Address) -> None:
        """Save the address in a thread: a slow disk does not delay the negotiation.

        SAVE_INTERVAL after the last write at the earliest, and not at all if `forget` is called before.
        """
        self.forget()
        self._waiting = mac, address
        self._timer = asyncio.get_running_loop().call_at(self._may_write_at, self._save)

    def forget(self) -> None:
        """Do not save the address any more, if it waits for that: another host took it."""
        self._waiting = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _save(self) -> None:
        """Write at once what waits: one write at a time, so that a disk that hangs costs one thread."""
        if self._waiting is not None:
            loop = asyncio.get_running_loop()
            self._may_write_at = loop.time() + SAVE_INTERVAL
            self._unsaved = self._waiting
            self.forget()
            if self.quiet:
                self._writing = loop.create_task(self._write())

    @property
    def quiet(self) -> bool:
        """Whether nothing is being written."""
        return self._writing is None or self._writing.done()

    async def written(self) -> None:
        """Wait until the address is written, WRITE_TIMEOUT at most; do not wait for SAVE_INTERVAL."""
        self._save()
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
        if address is not None and self._options.pool.allows(address):
            self._reporter.log(logging.INFO, f"tries {address} first, which avahi-autoipd saved")
        return address
