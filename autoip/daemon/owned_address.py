"""The address that is on an interface by our doing: put there and taken off, and known for what it is.

What is, or may be, there is written down first (`instance`), so that nothing of ours outlives a crash
unnoticed.  Nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from enum import Enum
from ipaddress import IPv4Address
from typing import final

from autoip.daemon.lock_file import Held, LockFile
from autoip.daemon.reporter import Reporter
from autoip.errors import KernelRefused
from autoip.kernel import tcp_connections
from autoip.kernel.model import Address, Link
from autoip.kernel.network import Network

_RESET_TIMEOUT = 1.0
"""Seconds that the reset of connections may take: the other host wants the address."""
_NOT_RESET = "TCP connections from an address that is given up are not reset"
_NO_RESET = {
    errno.EOPNOTSUPP: "the kernel lacks CONFIG_INET_DIAG_DESTROY",
    errno.ENOENT: "the kernel lacks CONFIG_INET_DIAG",
}
_BY_UNICAST = "the kernel sends ARP for the address by unicast; answers also go out by broadcast: "


class Place(Enum):
    """Where an address is."""

    HERE = "on this interface"
    ELSEWHERE = "on another interface of this host, which has the better right to it"
    NOWHERE = "not on this interface"


@final
class OwnedAddress:
    """What one interface has by our doing.

    Args:
        teller: of the interface.
        instance: keeps the record.
        netlink: requests to the kernel.
    """

    def __init__(self, teller: Reporter, instance: LockFile, netlink: Network) -> None:
        self.owned: Held | None = None
        """What is, or may be, on an interface by our doing."""
        self.by_unicast: str | None = None
        """Why the kernel's own ARP for the address is not what section 2.5 demands."""
        self._disowned: Held | None = None  # what was so last, until the kernel tells
        self._not_reset: str | None = None  # why connections were not
        self._teller = teller
        self._instance = instance
        self._netlink = netlink

    # --- whose an address is ------------------------------------------------------------------

    def is_own(self, address: Address) -> bool:
        """Whether an address of the interface is ours."""
        return self.owned is not None and address.address == self.owned.address

    def has_put(self, index: int, address: IPv4Address) -> bool:
        """Whether the address, if the interface is said to have it, is there by our doing.

        Also one that is gone already: the link may be back before the kernel's word of that.
        """
        return Held(index, address) in (self.owned, self._disowned)

    def told(self, address: Address) -> None:
        """The kernel told of the address: what was taken off before is gone, or somebody's now."""
        if not self.is_own(address) and self._disowned == Held(address.index, address.address):
            self._disowned = None

    def forget(self) -> None:
        """Messages of the kernel may have been lost: what was taken off is not waited for."""
        self._disowned = None

    def left_by(self, link: Link, address: IPv4Address) -> bool:
        """Whether the instance before us noted that it has the address on this link."""
        return self._instance.previous == Held(link.index, address)

    def take_over(self, link: Link, address: IPv4Address) -> None:
        """What is there counts as ours from now on."""
        self.owned = Held(link.index, address)

    @property
    def limits(self) -> list[str]:
        """What could not be done for the address, one line each."""
        unicast, reset = self.by_unicast, self._not_reset
        limits = (
            unicast and _BY_UNICAST + unicast,
            reset and f"{_NOT_RESET}: {reset}",
            self._instance.warning,
        )
        return [limit for limit in limits if limit]

    # --- on and off ---------------------------------------------------------------------------

    async def add(
        self, link: Link, address: IPv4Address, wanted: Callable[[], bool]
    ) -> Place | None:
        """Put the address on the link, unless it is no longer wanted: None.

        Returns Place.ELSEWHERE, with nothing done, if another interface has it: packets cannot tell
        that where the two do not hear each other (a bridge and its port), or have one hardware address.

        Raises KernelRefused; then nothing of ours is there.
        """
        addresses = await self._netlink.addresses()
        if not wanted():
            return None
        if any(a.address == address and a.index != link.index for a in addresses):
            return Place.ELSEWHERE
        self.owned = Held(link.index, address)
        self._instance.hold(link.index, address)
        try:
            await self._netlink.add_address(link, address)
        except KernelRefused:
            self._disown(None)
            raise
        self._look_at_arp(link)
        return Place.HERE

    async def put_back(self, link: Link, address: IPv4Address) -> None:
        """Give the address what ours have, on the link or not.  Raises KernelRefused."""
        await self._netlink.add_address(link, address, replace=True)

    async def remove(self, address: IPv4Address, *, reset: bool = False) -> None:
        """Take the address off, if it is ours.

        Args:
            address: what may have been given up already.
            reset: whether its connections are reset first (RFC 3927 section 2.5).

        Raises:
            KernelRefused: it may be there still.
        """
        if self.owned is not None and self.owned.address == address:
            if reset:
                await self._reset(address)
            await self._netlink.remove_address(self.owned.index, address)
            self._disown(self.owned)

    async def place(self, link: Link, address: IPv4Address) -> Place:
        """Where the address that is ours is now.  Raises KernelRefused.

        Of two interfaces that began to use it at the same moment the first one keeps it.
        """
        addresses = await self._netlink.addresses()
        holders = {found.index for found in addresses if found.address == address}
        if link.index not in holders:
            return Place.NOWHERE
        return Place.ELSEWHERE if min(holders) < link.index else Place.HERE

    def release(self) -> None:
        """At the end: another instance may serve the interface."""
        if self.owned is None:  # else the record stays, for the next instance to take over
            self._instance.release()

    # --- inside -------------------------------------------------------------------------------

    def _disown(self, removed: Held | None) -> None:
        """Nothing of ours is on an interface any more; `removed` is what was taken off just now."""
        self._disowned = removed
        self.owned = None
        self._instance.drop()

    def _look_at_arp(self, link: Link) -> None:
        """Warn, once, if the kernel's own ARP is not what section 2.5 demands."""
        why = self._netlink.by_unicast(link.index)
        if why is not None and why != self.by_unicast:
            self._teller.say(logging.WARNING, _BY_UNICAST + why)
        self.by_unicast = why

    async def _reset(self, address: IPv4Address) -> None:
        """End what uses the address while its peers can still be told."""
        try:
            count = await asyncio.wait_for(tcp_connections.destroy(address), _RESET_TIMEOUT)
        except asyncio.TimeoutError:
            self._teller.say(logging.WARNING, f"{_NOT_RESET}: it would take too long")
        except KernelRefused as error:
            why = _NO_RESET.get(error.errno, str(error))
            if self._not_reset is None:
                self._teller.say(logging.WARNING, f"{_NOT_RESET}: {why}")
            self._not_reset = why
        else:
            if count:
                self._teller.say(logging.INFO, f"reset {count} connections from {address}")
