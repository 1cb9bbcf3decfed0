"""One interface: the coordinator of its negotiation, its policy, and what it owns.

Each method passes what happened (a link changed, a frame came, a timer expired, an address vanished) to the parts
concerned, then calls `_pump`, which does all that the policy and the core ask for.

Requests to the kernel take time, so they run one after the other in a task of their own. Until they
are done no timer is handled: an address that must go is off before the next probe.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from autoip.core import ipv4ll
from autoip.core.ipv4ll import Ipv4ll, State
from autoip.core.policy import Gate, Policy
from autoip.daemon.address_memory import AddressMemory
from autoip.daemon.address_store import AddressStore
from autoip.daemon.belongings import Belongings
from autoip.daemon.cables import Cables
from autoip.daemon.host import Host
from autoip.daemon.lock_file import LockFile
from autoip.daemon.negotiator import IDLE, Negotiator, new_core
from autoip.daemon.no_script import NoScript
from autoip.daemon.owned_address import REQUEST_TIMEOUT, OwnedAddress
from autoip.daemon.owned_routes import OwnedRoutes, source
from autoip.daemon.protocols import Kernel
from autoip.daemon.recovery import Recovery
from autoip.daemon.reporter import Reporter
from autoip.daemon.resumable import ResumableInterface
from autoip.daemon.rivals import Rivals
from autoip.daemon.serial_tasks import SerialTasks
from autoip.daemon.status import dropped, status, summary
from autoip.daemon.stranded_routes import StrandedRoutes
from autoip.kernel.arp_socket import Received
from autoip.kernel.model import Address, Link
from autoip.options import MAC, Options

if TYPE_CHECKING:
    from autoip.daemon.script import ScriptRunner
    from autoip.daemon.trace import Trace

WORK_TIMEOUT = 3 * REQUEST_TIMEOUT
"""Seconds after which several requests that belong together are given up."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all interfaces of the process use.

    Attributes:
        kernel: takes requests, opens ARP sockets, has the clock.
        host: what this host has now.
        store: the last addresses.
        limits: what cannot be done here, one line each, besides the kernel's limits.
        cables: the neighbours on all links.
        changed: called whenever the state or the next timer of an interface may have changed.
        trace: records all that happens; None: no trace.
    """

    kernel: Kernel
    host: Host
    store: AddressStore
    limits: Sequence[str]
    cables: Cables
    changed: Callable[[], None]
    trace: Trace | None = None


class Interface(ResumableInterface):
    """Keeps one interface's link-local address right until `stop`."""

    def __init__(
        self, reporter: Reporter, options: Options, lock_file: LockFile, shared: Shared
    ) -> None:
        self.name = reporter.name
        self.reporter = reporter
        self.options = options
        self.link = self.leads = self._ending = self._resumed = None
        self._shared, self._host, self._kernel = shared, shared.host, shared.kernel
        self._clock, self._network = shared.kernel.clock, shared.kernel.network
        self._trace = None if shared.trace is None else shared.trace.of(self.name, self._clock)
        self._policy = Policy(options.policy, options.after, options.linger)
        self._memory = AddressMemory(reporter, shared.store, options)
        self._recovery = Recovery(reporter, self._abandon, lambda: self.link_changed(self.link))
        self._requests = SerialTasks(WORK_TIMEOUT, self._recovery.request_failed, self.tick)
        opener, failed = self._kernel.listener.open, reporter.frame_failed
        self._negotiator = Negotiator(opener, self._clock, self._make_core, failed)
        self._lock_file = lock_file
        self._owned = OwnedAddress(
            reporter, lock_file, shared.kernel, self._requests, self._negotiator, self._take_events
        )
        foreign = self._host.foreign_default_route
        self._routes = OwnedRoutes(reporter, self._network, self._requests, foreign, options)
        self._stranded = StrandedRoutes(reporter, self._network, self._requests)
        self._belongings = Belongings(reporter, self._network, self._requests, self._negotiator)
        self._rivals = Rivals(reporter)
        self._script: ScriptRunner | NoScript = NoScript()
        self._host.join(self._owned)

    # --- questions ---------------------------------------------------------------------------

    @property
    def token(self) -> int | None:
        """The mark of the frames of this interface's socket; None without a socket."""
        return self._negotiator.token

    @property
    def summary(self) -> str:
        """One line for the service manager: state, address, reason."""
        return summary(self.reporter, self._policy, self._negotiator)

    def next_timer(self) -> float | None:
        """When to call `tick`, in seconds of CLOCK_BOOTTIME; None: not before something else happens."""
        if self._requests.busy:
            return None
        times = (self._negotiator.next_timer(), self._policy.next_timer())
        return min((at for at in times if at is not None), default=None)

    def report(self) -> dict[str, Any]:
        """The status object: see `protocol.STATUS`."""
        self._belongings.check()  # here, since a look now and then would wake the process
        more = (*self._shared.limits, *self._owned.limits)
        limits = [*self._network.limits, *more, *dropped(self._network, self._host, self.link)]
        near = self._host.others(self.link, self._owned), self._shared.cables.report(self.link)
        parts = (self._policy, self._negotiator, *near)
        return status(self.reporter, self.options, self.link, *parts, limits)

    # --- from the start to the end -----------------------------------------------------------

    async def start_script(self, file: str, style: str) -> None:
        """Report the address to the script `file` from now on; `style`: a key of `script.STYLES`.

        Raises:
            AutoipError: the script's first call failed.
        """
        from autoip.daemon import script

        before = None if self._resumed is None else (self._resumed.reported,)
        self._script = await script.start(file, style, self.reporter, self._owned.repair, before)

    async def stop(self) -> None:
        """Remove what this interface owns. May be called more than once."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._stop())
        await asyncio.shield(self._ending)

    async def _stop(self) -> None:
        self._recovery.close()
        # The script may take the address off itself: the address is defended until the script ends.
        await self._script.stop()
        self._routes.close()
        with self._recovery.guarded("stop"):
            self._lose_link("stopped", asked=True)
            if self.link is not None:
                self._owned.release_link(self.link)
        await self._requests.idle()
        await self._rivals.ended()
        await self._memory.written()
        self.reporter.close()

    def release(self) -> None:
        """Let another instance serve the interface. Call it after `stop`."""
        self._owned.release()
        self._host.leave(self._owned)

    # --- what happens to the link ------------------------------------------------------------

    def link_changed(self, link: Link | None) -> None:
        """Follow a change of the interface to `link`; None: the interface is gone."""
        self._news("link", link=link)
        with self._recovery.guarded("link"):
            before, self.link = self.link, link
            self._owned.link = self._routes.link = self._belongings.link = link
            appeared = link is not None and (before is None or before.index != link.index)
            _obey_master(link, self._host, self._policy, self._negotiator, self.reporter)
            if link is not None and appeared:
                self._routes.take_over(link)
                self._owned.take_over(link, self._host.addresses(link.index), self._memory)
            # Only when it appears: somebody who sets the interface down later is obeyed.
            set_up = appeared and self.options.bring_up
            if (trouble := _trouble(self.name, link, set_up=set_up)) or link is None:
                self.reporter.waits(trouble, follows=self._negotiator.state is not State.NO_LINK)
                self._lose_link(trouble)
                if set_up and link is not None and link.speaks_arp and not link.up:
                    self._requests.request(partial(self._network.set_up, link.index))
            else:
                self._link_is_ready(link, before)
            if before is not None and (link is None or link.index != before.index):
                self._owned.release_link(before)  # the link may still exist under another name

    def _lose_link(self, why: str, *, asked: bool = False) -> None:
        self._policy.link(False, self._clock())
        self._negotiator.detach(why, asked=asked)
        self._pump()

    def _link_is_ready(self, link: Link, before: Link | None) -> None:
        self.reporter.trouble = ""
        self._policy.link(True, self._clock())
        if before is not None and self._negotiator.attached:
            if (before.index, before.mac) != (link.index, link.mac):
                self._lose_link("hardware address changed")
            elif before.carrier_changes != link.carrier_changes:
                # The carrier went and came back before the kernel reported it.
                self.restart("carrier was lost for a moment", asked=False)
        if not self._negotiator.attached and self._negotiator.attach(link):
            self._begin("link is ready")
        self._pump()

    def _make_core(self, mac: bytes) -> Ipv4ll:
        before = self._negotiator.core
        kept = None if before is None or MAC in self.options.ip else before.remembered
        return self._new_core(mac, self._memory.first(mac) if kept is None else (kept,))

    def _new_core(self, mac: bytes, first: Sequence[IPv4Address]) -> Ipv4ll:
        avoid = partial(self._host.is_taken, asking=self._owned)
        make = Ipv4ll if self._trace is None else self._trace.maker(self.options.delay)
        return new_core(mac, self.options, first, avoid, self._host.is_sibling, make)

    # --- what else happens -------------------------------------------------------------------

    def received(self, received: Received) -> None:
        """Handle a frame that passed the filter."""
        with self._recovery.guarded("frame"):
            self._negotiator.receive(received)
            self._pump()

    def tick(self) -> None:
        """Do what is due: time has passed, or all requests are done."""
        with self._recovery.guarded("timer"):
            self._pump()

    def address_added(self, address: Address, *, new: bool) -> None:
        """Handle an address that was added to an interface of this host, or changed there; `new`: added."""
        if self.link is None or self.link.index != address.index:
            self._owned.added_elsewhere(address)
            return
        self._news("address-added", address=address)
        if self._owned.added(address) and new:
            self.reporter.publish_address("address-added", address)
        self._addresses_changed()

    def address_removed(self, address: Address) -> None:
        """Handle the loss of an address of the interface."""
        self._news("address-removed", address=address)
        if self._owned.removed(address):
            self.reporter.publish_address("address-removed", address)
        self._addresses_changed()

    def lost_belongings(self) -> None:
        """Handle the loss of a rule, route or filter of the interface: removed by this daemon, or by somebody."""
        self._news("belongings-lost")
        self._belongings.lost()
        self._routes.removed()

    def resynchronise(self) -> None:
        """Check that all that is owned is still there: messages of the kernel may have been lost."""
        self._news("resynchronised")
        self._owned.resynchronise()
        self._belongings.lost()
        self._addresses_changed()
        self._routes.put_back()

    def permit(self, allowed: bool, why: str = "") -> None:
        """Obey a network manager, which allows an address, or forbids one for the reason `why`."""
        self._news("permit", allowed=allowed, why=why)
        with self._recovery.guarded("permit"):
            self._policy.permit(Gate.MANAGER, allowed, why)
            self._pump()

    def dhcp_failed(self) -> None:
        """Claim an address now, if that waits for DHCP."""
        self._news("dhcp-failed")
        with self._recovery.guarded("dhcp-failed"):
            self._policy.failed()
            self._pump()

    def restart(self, why: str, *, asked: bool = True) -> None:
        """Probe the address again before using it further; `asked`: a user asked for that."""
        self._news("restart", why=why, asked=asked)
        with self._recovery.guarded("restart"):
            if self._negotiator.restart(why, asked=asked):
                self._begin("is probed again")
                self._pump()

    def _news(self, what: str, **details: object) -> None:
        if self._trace is not None:
            self._trace.news(what, **details)

    def _addresses_changed(self) -> None:
        """Pass the present addresses to the policy and to what else depends on them."""
        with self._recovery.guarded("addresses"):
            others = self._host.others(self.link, self._owned)
            routable = next((other.address for other in others if other.routable), None)
            self._policy.addressed(routable, self._clock())
            self._stranded.update(self.link, others, self._owned.address)
            self._pump()
            if self._ending is None:
                self._rivals.check(lambda: self._host.others(self.link, self._owned))

    # --- what follows ------------------------------------------------------------------------

    def _pump(self) -> None:
        """Do all that the policy and the core ask for now."""
        self._follow_options()
        self._policy.handle_timer(self._clock())
        if self._policy.asks(self._clock()):
            self._requests.request(self._look_for_connections, once="connections")
        if self._negotiator.core is not None:
            self._follow_policy()
            self._take_events()
            self._routes.update(self._policy, self._negotiator)
        due = True
        while due and not self._requests.busy:
            due = self._negotiator.poll()
            self._take_events()
        self._negotiator.watch()
        self.leads = source(self._policy, self._negotiator)
        self._shared.changed()

    def _follow_policy(self) -> None:
        """Begin, or stand by, as the policy decides."""
        if self._policy.wanted:
            if self._negotiator.attached and self._negotiator.state in IDLE:
                self._begin(self._policy.why)
        elif self._negotiator.stand_by(self._policy.why) and self.link is not None:
            self._take_events()  # first remove the address, then what belongs to it
            self._owned.release_link(self.link)

    def _begin(self, why: str) -> None:
        """Begin to negotiate when all earlier requests are done: former addresses are removed by then."""

        async def begin() -> None:
            if self._policy.wanted:
                self._negotiator.begin(why)

        self._requests.request(begin, once="begin")

    def _take_events(self) -> None:
        core = self._negotiator.core
        while core is not None and (event := core.next_event()) is not None:
            self.reporter.report(event)
            match event:
                case ipv4ll.Transition(new=State.ANNOUNCE_WAIT):
                    self._owned.prepare()
                case ipv4ll.Configure(address=address):
                    self._owned.configure(address)
                case ipv4ll.Unconfigure(address=address, conflict=conflict):
                    self._owned.remove(address, reset=conflict)
                    if conflict:
                        self._memory.forget()
                    self._script.lost(conflict=conflict)
                case ipv4ll.Transition(new=State.BOUND, address=address) if address is not None:
                    self._memory.remember(core.mac, address)  # not earlier: many are lost at once
                case ipv4ll.Claimed(address=address):
                    self._script.bound(address)
        held = self._negotiator.address is not None
        self._policy.negotiated(self._negotiator.candidate, held=held)
        if not held:
            self._script.lost()  # somebody else removed the address

    async def _look_for_connections(self) -> None:
        self._policy.connections(await self._owned.is_used(self._policy.used), self._clock())

    def _abandon(self) -> None:
        """Give up everything, whatever its state: there is a bug."""
        self._negotiator.abandon()
        self._script.lost()
        self._owned.remove_any()


def _obey_master(
    link: Link | None, host: Host, policy: Policy, negotiator: Negotiator, reporter: Reporter
) -> None:
    """Forbid an address while the link is a port of another interface."""
    master = host.master(link) if link is not None else ""
    before = policy.why
    policy.permit(Gate.MASTER, not master, f"belongs to {master}")
    if master and negotiator.state is State.STANDBY and before != policy.why:
        reporter.log(logging.INFO, policy.why)  # in other states the transition is the log line


def _trouble(name: str, link: Link | None, *, set_up: bool) -> str:
    """Return why the interface cannot be negotiated on, in words; empty if it can."""
    if link is None:
        return "waits: there is no such interface yet"
    if not link.speaks_arp:
        return "waits: it is not an Ethernet-like interface that speaks ARP"
    if not link.up and set_up:
        return "waits: it is down, and is set up now"
    if not link.up:
        return f"waits: it is down; 'ip link set {name} up' brings it up"
    return "" if link.ready else "waits: no carrier"
