"""What an interface hands over to the program that goes on in its process, and takes over from the one before."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from autoip.core.ipv4ll import HELD, Ipv4ll, State
from autoip.core.policy import Kind, Policy
from autoip.daemon.address_memory import AddressMemory
from autoip.daemon.belongings import Belongings
from autoip.daemon.handover import KeptInterface, KeptLock
from autoip.daemon.lock_file import LockFile
from autoip.daemon.negotiator import Negotiator
from autoip.daemon.no_script import NoScript
from autoip.daemon.owned_address import OwnedAddress
from autoip.daemon.owned_routes import OwnedRoutes
from autoip.daemon.protocols import Kernel
from autoip.daemon.reporter import Reporter
from autoip.daemon.rivals import Rivals
from autoip.daemon.serial_tasks import SerialTasks
from autoip.daemon.stranded_routes import StrandedRoutes
from autoip.kernel.model import Link
from autoip.options import Options

if TYPE_CHECKING:
    from autoip.daemon.script import ScriptRunner


class ResumableInterface(ABC):
    """The part of `Interface` that is for a reload. Its fields are those of `Interface`."""

    name: str
    leads: IPv4Address | None
    """The source address of what goes to link-local destinations by this interface; None: nothing does."""
    link: Link | None
    options: Options
    reporter: Reporter
    _belongings: Belongings
    _clock: Callable[[], float]
    _ending: asyncio.Task[None] | None
    _kernel: Kernel
    _lock_file: LockFile
    _memory: AddressMemory
    _negotiator: Negotiator
    _owned: OwnedAddress
    _policy: Policy
    _requests: SerialTasks
    _resumed: KeptInterface | None
    _rivals: Rivals
    _routes: OwnedRoutes
    _script: ScriptRunner | NoScript
    _stranded: StrandedRoutes

    @abstractmethod
    def _new_core(self, mac: bytes, first: Sequence[IPv4Address]) -> Ipv4ll:
        """Make a core for a hardware address."""

    @abstractmethod
    def link_changed(self, link: Link | None) -> None:
        """Follow a change of the interface."""

    @abstractmethod
    def tick(self) -> None:
        """Do what is due."""

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way that a reload would cut off."""
        parts = (self._memory, self._rivals, self._script)
        doubtful = self._owned.doubtful_until >= self._clock()
        busy = self._requests.busy or self._ending is not None or doubtful
        return not busy and all(part.quiet for part in parts)

    def keep(self) -> KeptInterface:
        """Return what `resume` takes, but for the control socket."""
        return KeptInterface(
            self.name,
            self.link,
            self.options,
            KeptLock(*self._lock_file.descriptors, self._lock_file.warning),
            self._negotiator.keep(self.link.mac if self.link is not None else b""),
            self._policy.keep(),
            self._owned.keep(),
            self.reporter.keep(),
            self._routes.keep(),
            self._memory.leftover,
            self._stranded.others_on,
            self._script.reported,
            tuple(self._rivals.reported),
        )

    def resume(self, kept: KeptInterface) -> None:
        """Go on for another one, with the options of this one.

        What they change counts at once, but a policy that wants no address, and another first candidate: these
        count from the next claim on. Raises OSError.
        """
        self._resumed = kept
        self.link = self._owned.link = self._routes.link = self._belongings.link = kept.link
        self.reporter.resume(kept.report)
        self._owned.resume(kept.owned)
        self._routes.resume(kept.routes)
        self._memory.leftover = kept.leftover
        self._stranded.others_on = kept.others_on
        self._rivals.reported += kept.rivals
        core = None
        if kept.negotiator.core is not None:
            mac, chosen = kept.negotiator.mac, self.options.ip
            first = self._memory.first(mac) if chosen and chosen != kept.options.ip else ()
            core = self._new_core(mac, ())
            core.resume(kept.negotiator.core, first)
        self._negotiator.resume(kept.negotiator, core, self._kernel.listener)
        if self._negotiator.state in HELD and self.options.policy is not Kind.ALONGSIDE:
            self._policy.kind = kept.policy.kind
        self._policy.resume(kept.policy, self._clock())
        if self._negotiator.state is State.BOUND and self._negotiator.address is not None:
            self._memory.remember(kept.negotiator.mac, self._negotiator.address)

    def resumed(self) -> None:
        """What has changed during the reload was reported: go on."""
        if self.link is not None and self.link.ready and not self._negotiator.attached:
            self.link_changed(self.link)  # it would have started over later
        self._belongings.lost()  # what went during the reload was not reported
        self.tick()

    def _follow_options(self) -> None:
        """Obey the policy that was chosen, once no address is held under the one before."""
        if self._policy.kind is not self.options.policy and self._negotiator.state not in HELD:
            before = self._policy
            self._policy = Policy(self.options.policy, self.options.after, self.options.linger)
            self._policy.resume(before.keep(), self._clock())
