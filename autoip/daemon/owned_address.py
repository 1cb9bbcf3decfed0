"""The address that this daemon has put on an interface, and all requests about it.

The address is recorded first (`lock_file`), so that nothing owned outlives a crash unnoticed.
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
from autoip.daemon.programs import Programs
from autoip.daemon.protocols import Kernel
from autoip.daemon.reporter import Reporter
from autoip.daemon.serial_tasks import SerialTasks
from autoip.errors import KernelRefused
from autoip.kernel.model import PROTOCOL, Address, Link

REQUEST_TIMEOUT = 5.0
"""Seconds to wait for the kernel's answer to `add_address`."""
GRACE = 1.0
"""Seconds for which somebody else may leave the interface without the address.

A script may put it there again itself. A DHCP client that removes all addresses removes the routes next: an
address that came back too soon would lose its own. By RFC 3927 another host needs at least
2 * PROBE_MIN + ANNOUNCE_WAIT, which is 4 s, to claim the address.
"""
_LOOK_AGAIN = 0.001
"""Seconds, while a conflict that has come waits to be judged."""
_RESET_TIMEOUT = 1.0
"""Seconds that the reset of connections may take: another host uses the address."""
_NOT_RESET = "TCP connections from an address that is given up are not reset"
_NO_RESET = {
    errno.EOPNOTSUPP: "the kernel lacks CONFIG_INET_DIAG_DESTROY",
    errno.ENOENT: "the kernel lacks CONFIG_INET_DIAG",
}


class Place(Enum):
    """Where an address is."""

    HERE = "on this interface"
    ELSEWHERE = "on another interface of this host, which has the better right to it"
    NOWHERE = "not on this interface"


@final
class OwnedAddress:
    """The address of one interface.

    Args:
        reporter: of the interface.
        lock_file: keeps the record.
        kernel: takes requests...
        requests: ...in the order of all requests of the interface.
        negotiator: has the core to which each request reports its outcome.
        reported: called after such a report, when the core may have events.
    """

    link: Link | None
    """The present link of the interface; the caller updates it."""

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
        self._disowned: Held | None = None  # what was owned last, until the kernel reports its end
        self._not_reset: str | None = None  # why connections were not reset
        self.doubtful_until = 0.0  # when `verify` shows whether the address is gone
        self._reporter = reporter
        self._lock_file = lock_file
        self._network = kernel.network
        self._requests = requests
        self._connections = kernel.connections
        self._programs = Programs(reporter, kernel.network, negotiator)
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
        """Return whether this daemon has put the address on the interface `index` for this interface.

        True also for an address that is gone: the link may be back before the kernel reports the loss.
        """
        return Held(index, address) in (self._owned, self._disowned)

    def added(self, address: Address) -> bool:
        """Handle an address that the kernel reported on the interface. Return whether it is somebody else's."""
        if self._owned is not None and address.address == self._owned.address:
            return False
        if self._disowned == Held(address.index, address.address):
            self._disowned = None  # the removed address is gone, or somebody else's now
        return True

    def removed(self, address: Address) -> bool:
        """Handle the loss of an address of the interface. Return whether it was somebody else's.

        Verify an owned address after GRACE: the message may be the echo of an earlier request of this daemon.
        """
        if self._owned is not None and address.address == self._owned.address:
            self.doubtful_until = self._negotiator.clock() + GRACE
            asyncio.get_running_loop().call_later(GRACE, self.verify)
            return False
        if self._disowned == Held(address.index, address.address):
            self._disowned = None
            return False
        return True

    def added_elsewhere(self, address: Address) -> None:
        """Handle an address of another interface: if it is owned here too, find out which interface keeps it."""
        core, link = self._negotiator.core, self.link
        if core is None or link is None or core.listen is Listen.NOTHING:
            return
        if core.candidate == address.address and address.index < link.index:
            self.verify()

    def resynchronise(self) -> None:
        """Check that the address is still there: messages of the kernel may have been lost."""
        self._disowned = None  # the message of its loss may be lost too
        self.verify()

    @property
    def limits(self) -> list[str]:
        """What could not be done for the address, one line each."""
        reset = self._not_reset and f"{_NOT_RESET}: {self._not_reset}"
        others = (reset, self._lock_file.warning)
        return [*self._programs.limits, *(limit for limit in others if limit)]

    def release(self) -> None:
        """Let another instance serve the interface."""
        if self._owned is None:  # otherwise the record stays for the next instance
            self._lock_file.release()

    def keep(self) -> KeptOwned:
        """Return what `resume` takes."""
        by_unicast, by_filter = self._programs.refused
        return KeptOwned(self._owned, self._disowned, by_unicast, self._not_reset, by_filter)

    def resume(self, kept: KeptOwned) -> None:
        """Go on for another one."""
        self._owned, self._disowned = kept.owned, kept.disowned
        self._programs.resume((kept.by_unicast, kept.by_filter))
        self._not_reset = kept.not_reset

    # --- requests, one after the other -------------------------------------------------------

    def prepare(self) -> None:
        """Do before the claim what takes the kernel long: nobody has objected to the candidate so far."""
        if self.link is not None:
            self._requests.request(partial(self._network.prepare, self.link), once="prepare")

    def configure(self, address: IPv4Address) -> None:
        """Put the address on the link, if the core still waits for that."""
        self._requests.request(partial(self._configure, address))

    def remove(self, address: IPv4Address, *, reset: bool = False) -> None:
        """Remove the address, if it is owned when the request runs.

        Args:
            address: may have been given up already.
            reset: whether to reset its connections first (RFC 3927 section 2.5).
        """
        self._requests.request(partial(self._remove, address, reset=reset))

    def remove_any(self) -> None:
        """Remove the owned address, if there is one."""
        if self._owned is not None:
            self.remove(self._owned.address)

    def verify(self) -> None:
        """Report to the core an address that it holds and that is missing, or on two interfaces."""
        self._requests.request(self._verify)

    def repair(self) -> None:
        """Restore the attributes of an owned address, or have the address claimed again if it is gone."""
        self._requests.request(self._repair)

    def take_over(self, link: Link, addresses: Iterable[Address], memory: AddressMemory) -> None:
        """Remove from the link the address that a crashed instance has left.

        The lock file's record names the address. Without a record, an address is taken over that was saved last and
        has our mark in the kernel. The core probes it before using it again (section 2.2).
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
        """Remove what stays on a link while addresses come and go."""
        self._requests.request(partial(self._network.release, link.index))

    async def is_used(self, address: IPv4Address | None) -> bool:
        """Return whether TCP connections have the address at this end."""
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
            self.remove(address)  # the kernel may have added it all the same
            refusal = "the kernel did not answer"
        core, now = self._negotiator.core, self._negotiator.clock()
        if core is None:
            return  # abandoned meanwhile, together with the address
        if refusal:
            core.configure_failed(address, now, refusal)
        elif place is Place.HERE:
            core.configured(address, now)
        elif place is Place.ELSEWHERE:
            core.elsewhere(address, now)
        self._reported()

    async def _add(self, link: Link, address: IPv4Address) -> Place | None:
        """Put the address on the link, unless the core no longer waits for that: None.

        Return Place.ELSEWHERE, with nothing done, if another interface has it: packets do not show
        that where the two do not receive from each other (a bridge and its port), or share a hardware address.

        Raises:
            KernelRefused: then nothing owned is there.
        """
        addresses = await self._network.addresses()
        while self._negotiator.conflict_waits():  # noqa: ASYNC110 (what ends it has no event of its own)
            await asyncio.sleep(_LOOK_AGAIN)  # the event loop passes it on meanwhile
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
        await self._programs.check(link)
        return Place.HERE

    async def _remove(self, address: IPv4Address, *, reset: bool = False) -> None:
        """Remove the address.

        Raises:
            KernelRefused: the address may still be there.
        """
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
            # Its rule and its route are still there.
            await self._remove(address)
            core.removed(self._negotiator.clock())
        elif place is Place.ELSEWHERE:
            core.elsewhere(address, self._negotiator.clock())
            self._reported()

    async def _place(self, link: Link, address: IPv4Address) -> Place:
        """Return where the owned address is now.

        Of two interfaces that began to use it at the same moment the lower index keeps it.

        Raises:
            KernelRefused: the kernel lists no addresses.
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
            await self._programs.check(self.link)

    # --- inside ------------------------------------------------------------------------------

    def _disown(self, removed: Held | None) -> None:
        """Forget the owned address; `removed` is what was removed just now."""
        self._disowned = removed
        self._owned = None
        self._lock_file.drop()

    async def _reset(self, address: IPv4Address) -> None:
        """Reset the address's connections while their peers can still be reached."""
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
