"""The address that is on an interface because this daemon has put it there, and all requests about it.

What is, or may be, there is written down first (`lock_file`), so that nothing owned outlives a crash unnoticed.
The core decides; each request reports its outcome to the core.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from ipaddress import IPv4Address
from typing import final

from autoip.core.acd import Listen
from autoip.core.ipv4ll import State
from autoip.daemon.address_memory import AddressMemory
from autoip.daemon.handover import KeptOwned
from autoip.daemon.lock_file import Held, LockFile
from autoip.daemon.negotiator import Negotiator
from autoip.daemon.protocols import Kernel
from autoip.daemon.reporter import Reporter
from autoip.daemon.serial_tasks import SerialTasks
from autoip.errors import KernelRefused
from autoip.kernel.model import PROTOCOL, Address, Link

REQUEST_TIMEOUT = 5.0
"""Seconds after which the kernel's answer to `add_address` is not waited for any more."""
GRACE = 1.0
"""Seconds for which somebody else may leave the interface without the address.

A script may put it there again itself. A DHCP client that takes all addresses off goes on with the
routes: what came back too soon would lose its own. RFC 3927 has nobody claim an address faster than in
2 * PROBE_MIN + ANNOUNCE_WAIT, which is 4 s.
"""
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
    """What one interface owns.

    Args:
        reporter: of the interface.
        lock_file: keeps the record.
        kernel: takes requests...
        requests: ...in the order of all requests of the interface.
        negotiator: has the core to which each request reports its outcome.
        reported: called after that: the core has events, and other requests may wait.
    """

    link: Link | None
    """What the interface is now; the caller keeps it."""

    def __init__(
        self,
        reporter: Reporter,
        lock_file: LockFile,
        kernel: Kernel,
        requests: SerialTasks,
        negotiator: Negotiator,
        reported: Callable[[], None],
    ) -> None:
        self.link = None
        self._owned: Held | None = None  # what is, or may be, on an interface
        self._disowned: Held | None = None  # what was so last, until the kernel reports its end
        self._by_unicast: str | None = None  # why its ARP is not what section 2.5 demands
        self._not_reset: str | None = None  # why connections were not
        self._missing: asyncio.TimerHandle | None = None  # runs while the address may be gone
        self._reporter = reporter
        self._lock_file = lock_file
        self._network = kernel.network
        self._requests = requests
        self._connections = kernel.connections
        self._negotiator = negotiator
        self._reported = reported

    # --- whose an address is -----------------------------------------------------------------

    @property
    def candidate(self) -> IPv4Address | None:
        """The address that is probed for or held."""
        return self._negotiator.candidate

    @property
    def address(self) -> IPv4Address | None:
        """The address that is, or may be, on an interface."""
        return self._owned.address if self._owned is not None else None

    def has_put(self, index: int, address: IPv4Address) -> bool:
        """Whether the address, if the interface `index` seems to have it, was put there from here.

        Also one that is gone already: the link may be back before the kernel reports that.
        """
        return Held(index, address) in (self._owned, self._disowned)

    def added(self, address: Address) -> bool:
        """The kernel reported an address of the interface. Return whether it is somebody else's."""
        if self._owned is not None and address.address == self._owned.address:
            return False
        if self._disowned == Held(address.index, address.address):
            self._disowned = None  # what was taken off is gone, or somebody's now
        return True

    def removed(self, address: Address) -> bool:
        """An address of the interface is gone. Return whether it was somebody else's.

        If it is owned, ask in a while whether it is still missing: the message may be the echo of a request of
        ours, older than what came after it.
        """
        if self._owned is not None and address.address == self._owned.address:
            self._missing = asyncio.get_running_loop().call_later(GRACE, self.verify)
            return False
        if self._disowned == Held(address.index, address.address):
            self._disowned = None
            return False
        return True

    def added_elsewhere(self, address: Address) -> None:
        """Another interface has the address. If it is ours as well, find out who keeps it."""
        core, link = self._negotiator.core, self.link
        if core is None or link is None or core.listen is Listen.NOTHING:
            return
        if core.candidate == address.address and address.index < link.index:
            self.verify()

    def resynchronise(self) -> None:
        """Messages of the kernel may have been lost: see whether the address is still there."""
        self._disowned = None  # the message that would tell of it may be lost as well
        self.verify()

    @property
    def limits(self) -> list[str]:
        """What could not be done for the address, one line each."""
        unicast, reset = self._by_unicast, self._not_reset
        limits = (
            unicast and _BY_UNICAST + unicast,
            reset and f"{_NOT_RESET}: {reset}",
            self._lock_file.warning,
        )
        return [limit for limit in limits if limit]

    def release(self) -> None:
        """At the end: another instance may serve the interface."""
        if self._owned is None:  # else the record stays, for the next instance to take over
            self._lock_file.release()

    # --- from one program to the next --------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """Whether nothing of the address is in doubt."""
        loop = asyncio.get_running_loop()
        return self._missing is None or self._missing.when() < loop.time()

    def keep(self) -> KeptOwned:
        """Return what `resume` takes."""
        return KeptOwned(self._owned, self._disowned, self._by_unicast, self._not_reset)

    def resume(self, kept: KeptOwned) -> None:
        """Go on for another one."""
        self._owned, self._disowned = kept.owned, kept.disowned
        self._by_unicast, self._not_reset = kept.by_unicast, kept.not_reset

    # --- requests, one after the other -------------------------------------------------------

    def configure(self, address: IPv4Address) -> None:
        """Put the address on the link, if the core still waits for that."""
        self._requests.request(partial(self._configure, address))

    def remove(self, address: IPv4Address, *, reset: bool = False) -> None:
        """Take the address off, if it is owned by then.

        Args:
            address: what may have been given up already.
            reset: whether its connections are reset first (RFC 3927 section 2.5).
        """
        self._requests.request(partial(self._remove, address, reset=reset))

    def remove_any(self) -> None:
        """Take off whatever is owned."""
        if self._owned is not None:
            self.remove(self._owned.address)

    def verify(self) -> None:
        """Report to the core if the address that it holds is no longer on the interface, or on two."""
        self._requests.request(self._verify)

    def repair(self) -> None:
        """Give the address back what ours have, or have it claimed again if it is gone."""
        self._requests.request(self._repair)

    def take_over(self, link: Link, addresses: Iterable[Address], memory: AddressMemory) -> None:
        """Take off the link what an instance that crashed has left among its addresses.

        The record that it kept tells. Where that is lost, the address saved last, together with our mark
        on the kernel's entry, does. It comes back when it has been probed (section 2.2).
        """
        for found in addresses:
            held = Held(link.index, found.address)
            marked = found.proto == PROTOCOL and found.address == memory.saved(link.mac)
            if self._lock_file.previous == held or marked:
                memory.leftover = found.address
                self._owned = held
                text = f"takes over {found.address} from an instance that died"
                self._reporter.log(logging.INFO, text)
                self.remove(found.address)

    def release_link(self, link: Link) -> None:
        """Take off what stays on a link while addresses come and go."""
        self._requests.request(partial(self._network.release, link.index))

    async def is_used(self) -> bool:
        """Whether TCP connections use the address that is held."""
        address = self._negotiator.address
        try:
            return address is not None and await self._connections.established(address)
        except KernelRefused as error:
            self._network.limit(f"no connections can be waited for: {error}")
            return False

    # --- what the requests do ----------------------------------------------------------------

    async def _configure(self, address: IPv4Address) -> None:
        if self.link is None:
            return
        add = self._add(self.link, address)
        place, refusal = None, ""
        try:
            place = await asyncio.wait_for(add, REQUEST_TIMEOUT)
        except KernelRefused as error:
            refusal = str(error)
        except asyncio.TimeoutError:
            self.remove(address)  # it may have got there all the same
            refusal = "the kernel did not answer"
        core, now = self._negotiator.core, self._negotiator.clock()
        if core is None:
            return  # given up meanwhile, and with it the address
        if refusal:
            core.configure_failed(address, now, refusal)
        elif place is Place.HERE:
            core.configured(address, now)
        elif place is Place.ELSEWHERE:
            core.elsewhere(address, now)
        self._reported()

    async def _add(self, link: Link, address: IPv4Address) -> Place | None:
        """Put the address on the link, unless the core no longer waits for that: None.

        Return Place.ELSEWHERE, with nothing done, if another interface has it: packets cannot tell
        that where the two do not hear each other (a bridge and its port), or have one hardware address.

        Raises KernelRefused; then nothing owned is there.
        """
        addresses = await self._network.addresses()
        state, candidate = self._negotiator.state, self._negotiator.candidate
        if state is not State.CONFIGURING or candidate != address:
            return None
        if any(a.address == address and a.index != link.index for a in addresses):
            return Place.ELSEWHERE
        self._owned = Held(link.index, address)
        self._lock_file.hold(link.index, address)
        try:
            await self._network.add_address(link, address)
        except KernelRefused:
            self._disown(None)
            raise
        self._check_arp(link)
        return Place.HERE

    async def _remove(self, address: IPv4Address, *, reset: bool = False) -> None:
        """Raises KernelRefused: it may be there still."""
        if self._owned is not None and self._owned.address == address:
            if reset:
                await self._reset(address)
            await self._network.remove_address(self._owned.index, address)
            self._disown(self._owned)

    async def _verify(self) -> None:
        core, link = self._negotiator.core, self.link
        if core is None or link is None or (address := core.address) is None:
            return
        place = await self._place(link, address)
        if place is Place.NOWHERE:
            # The rule and the route that belong to it are still there.
            await self._remove(address)
            core.removed(self._negotiator.clock())
        elif place is Place.ELSEWHERE:
            core.elsewhere(address, self._negotiator.clock())
            self._reported()

    async def _place(self, link: Link, address: IPv4Address) -> Place:
        """Where the address that is owned is now. Raises KernelRefused.

        Of two interfaces that began to use it at the same moment the first one keeps it.
        """
        addresses = await self._network.addresses()
        holders = {found.index for found in addresses if found.address == address}
        if link.index not in holders:
            return Place.NOWHERE
        return Place.ELSEWHERE if min(holders) < link.index else Place.HERE

    async def _repair(self) -> None:
        await self._verify()
        if self.link is not None and (address := self._negotiator.address) is not None:
            await self._network.add_address(self.link, address, replace=True)

    # --- inside ------------------------------------------------------------------------------

    def _disown(self, removed: Held | None) -> None:
        """Nothing owned is on an interface any more; `removed` is what was taken off just now."""
        self._disowned = removed
        self._owned = None
        self._lock_file.drop()

    def _check_arp(self, link: Link) -> None:
        """Warn, once, if the kernel's own ARP is not what section 2.5 demands."""
        why = self._network.by_unicast(link.index)
        if why is not None and why != self._by_unicast:
            self._reporter.log(logging.WARNING, _BY_UNICAST + why)
        self._by_unicast = why
        self._negotiator.answers = why is not None

    async def _reset(self, address: IPv4Address) -> None:
        """End what uses the address while its peers can still hear of that."""
        try:
            count = await asyncio.wait_for(self._connections.destroy(address), _RESET_TIMEOUT)
        except asyncio.TimeoutError:
            self._reporter.log(logging.WARNING, f"{_NOT_RESET}: it would take too long")
        except KernelRefused as error:
            why = _NO_RESET.get(error.errno, str(error))
            if self._not_reset is None:
                self._reporter.log(logging.WARNING, f"{_NOT_RESET}: {why}")
            self._not_reset = why
        else:
            if count:
                self._reporter.log(logging.INFO, f"reset {count} connections from {address}")
