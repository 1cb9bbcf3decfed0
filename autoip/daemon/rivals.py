"""Other programs that manage link-local addresses of an interface: found, and named once for each label."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import final

from autoip.daemon import diagnosis, processes
from autoip.daemon.reporter import Reporter
from autoip.kernel.model import Address

LABELS_MAX = 8
"""Programs, by the labels of their addresses, that are told of an interface."""


@final
class Rivals:
    """Those of one interface.

    Args:
        teller: told of each.
    """

    def __init__(self, teller: Reporter) -> None:
        self._teller = teller
        self._told: set[str | None] = set()
        self._task: asyncio.Task[None] | None = None

    def look(self, addresses: Callable[[], Iterable[Address]]) -> None:
        """See whether one of these addresses tells of such a program.

        Args:
            addresses: those of the interface now that are not ours; asked again after each find.
        """
        if self._task is not None:
            return
        for address in addresses():
            if not diagnosis.is_foreign(address) or address.label in self._told:
                continue
            if len(self._told) < LABELS_MAX:
                self._told.add(address.label)
                self._task = asyncio.get_running_loop().create_task(self._name(address, addresses))
            return

    async def ended(self) -> None:
        """Wait for what is under way."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _name(self, address: Address, addresses: Callable[[], Iterable[Address]]) -> None:
        try:
            running = await asyncio.to_thread(processes.running)
        except OSError:
            running = []  # no /proc here
        self._teller.note(diagnosis.foreign(address, self._teller.name, running))
        self._task = None
        self.look(addresses)
