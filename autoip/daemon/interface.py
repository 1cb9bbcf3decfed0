"""One interface: between the negotiation core and the kernel.

What comes in (a link that changes, a frame, a timer, a deleted address) goes to the core; what
the core then wants (a frame sent, an address on or off, the filter, the reflex) is done here.
`_pump` is the one place where that happens, and it is called after everything that comes in.

Netlink requests take time, so they run one after the other in a task of their own.  Until they
are done no timer is handled: an address that is to be taken off is off before the next probe.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from random import Random
from typing import TYPE_CHECKING, Any

from autoip.control.protocol import VERSION
from autoip.core import acd, arp, ipv4ll
from autoip.core.acd import Defence, Listen
from autoip.core.arp import format_mac
from autoip.core.constants import CONFIGURE_RETRY, Timing
from autoip.core.ipv4ll import Ipv4ll, State
from autoip.core.policy import Kind, Policy
from autoip.core.proxy_arp import ProxyArpDetector
from autoip.daemon.address_store import AddressStore
from autoip.daemon.lock_file import LockFile
from autoip.daemon.owned_address import OwnedAddress, Place
from autoip.daemon.owned_routes import OwnedRoute, OwnedRoutes
from autoip.daemon.reporter import Reporter
from autoip.daemon.rivals import Rivals
from autoip.daemon.serial_tasks import SerialTasks
from autoip.errors import KernelRefused, StateProblem
from autoip.kernel import tcp_connections
from autoip.kernel.arp_socket import ArpListener, ArpSocket, Phase, Received
from autoip.kernel.model import PROTOCOL, Address, Link
from autoip.kernel.network import Network
from autoip.options import Options

if TYPE_CHECKING:
    from autoip.daemon.script import ScriptRunner

_PHASES = {Listen.NOTHING: Phase.SILENT, Listen.PROBE: Phase.PROBE, Listen.DEFEND: Phase.DEFEND}

_IDLE = (State.NO_LINK, State.STANDBY)
"""The states in which the core waits to be told to begin."""

_REQUEST_TIMEOUT = 5.0
"""Seconds after which a netlink request counts as refused..."""
_WORK_TIMEOUT = 3 * _REQUEST_TIMEOUT
"""...and after which several that belong together are given up."""
_GRACE = 1.0
"""Seconds for which somebody else may leave the interface without the address.

A script may put it there again itself.  A DHCP client that takes all addresses off goes on with the
routes: what came back too soon would lose its own.  RFC 3927 has nobody claim an address faster than in
2 * PROBE_MIN + ANNOUNCE_WAIT, which is 4 s.
"""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all interfaces of the process use.

    Attributes:
        reactor: the helper's thread.
        netlink: requests to the kernel.
        limits: what this system does not allow, besides what the kernel does not.
        store: the last addresses.
        clock: CLOCK_BOOTTIME in seconds.
        addresses: the IPv4 addresses that an interface (by index) has now, whoever set them.
        elsewhere: whether this host has the address but for this interface's own.
        sibling: whether a hardware address is one of this host's.
        other_default: whether somebody else has a default route.
        changed: called whenever the state or the next timer of an interface may have changed.
    """

    reactor: ArpListener
    netlink: Network
    limits: Sequence[str]
    store: AddressStore
    clock: Callable[[], float]
    addresses: Callable[[int], Iterable[Address]]
    elsewhere: Callable[[IPv4Address, Interface], bool]
    sibling: Callable[[bytes], bool]
    other_default: Callable[[], bool]
    changed: Callable[[], None]


class Interface:
    """Keeps one interface's link-local address right until `stop`."""

    def __init__(
        self, teller: Reporter, options: Options, instance: LockFile, shared: Shared
    ) -> None:
        self.name = teller.name
        self.script: ScriptRunner | None = None  # told of the address, if there is one
        self.teller = teller
        self.options = options
        self.link: Link | None = None
        self.core: Ipv4ll | None = None
        self.policy = Policy(options.policy, options.after, options.linger)
        self.holding = OwnedAddress(teller, instance, shared.netlink)
        self._shared = shared
        self._socket: ArpSocket | None = None
        self._watching: tuple[Phase, IPv4Address | None] | None = None
        self._armed = False
        self._starting = False  # the core is to be told that it may begin
        self._looking = False  # for connections that use the address
        self._takers = ProxyArpDetector()
        self._strangers = Rivals(teller)
        self._worker = SerialTasks(_WORK_TIMEOUT, self._request_failed, self.tick)
        self._routes = OwnedRoutes(shared.netlink, self._worker)
        self._saving: asyncio.Task[None] | None = None
        self._recovery: asyncio.TimerHandle | None = None
        self._leftover: IPv4Address | None = None  # what an instance that crashed held
        self._trouble = ""  # why there is no link, as last logged
        self._ending: asyncio.Task[None] | None = None

    # --- what comes in -----------------------------------------------------------------------

    def link_changed(self, link: Link | None) -> None:
        """The interface is as `link` says; None: there is none of that name."""
        with self._guarded("link"):
            before = self.link
            self._routes.link_changed(link)
            self._link_changed(link)
            if before is not None and (link is None or link.index != before.index):
                self._release(before)  # it may live on under another name

    def received(self, event: Received) -> None:
        """A frame passed the filter."""
        with self._guarded("frame"):
            if self._socket is None or event.generation != self._socket.generation:
                return  # it was let through for another candidate
            if event.defended_at is not None:
                self._armed = False
            packet = arp.parse(event.frame)
            if packet is not None and self.core is not None:
                self.core.receive(packet, event.at, event.defended_at)
            self._pump()

    def address_added(self, address: Address, *, new: bool) -> None:
        """An address came to the interface, or one there was changed."""
        self.holding.told(address)
        if new and not self.holding.is_own(address):
            text, prefixlen = str(address.address), address.prefixlen
            self.teller.publish("address-added", address=text, prefixlen=prefixlen)
        self._addressed()

    def address_elsewhere(self, address: Address) -> None:
        """An address came to another interface.  If it is ours as well, see who keeps it."""
        core, link = self.core, self.link
        if core is None or link is None or core.listen is Listen.NOTHING:
            return
        if core.candidate == address.address and address.index < link.index:
            self._worker.request(self._verify)

    def address_removed(self, address: Address) -> None:
        """An address left the interface.

        If it is ours, ask whether that is still so: the message may be the echo of our own
        request, older than what came after it.
        """
        if self.holding.is_own(address):
            asyncio.get_running_loop().call_later(_GRACE, self._look_for_ours)
        elif self.holding.has_put(address.index, address.address):
            self.holding.told(address)
        else:
            text, prefixlen = str(address.address), address.prefixlen
            self.teller.publish("address-removed", address=text, prefixlen=prefixlen)
        self._addressed()

    def resynchronise(self) -> None:
        """See whether the address is still there: messages of the kernel may have been lost."""
        self.holding.forget()
        self._look_for_ours()
        self._addressed()
        self._routes.put_back()

    def _look_for_ours(self) -> None:
        if self.holding.owned is not None:
            self._worker.request(self._verify)

    def route_removed(self) -> None:
        """A route of ours is gone: by our doing, with its source, or by somebody's."""
        self._routes.removed()

    def permit(self, allowed: bool, why: str = "") -> None:
        """Whether the interface may have an address at all.

        Args:
            allowed: if not, an address that it has is taken off.
            why: it may not.
        """
        with self._guarded("permit"):
            self.policy.permit(allowed, why)
            self._pump()

    def _addressed(self) -> None:
        """The policy learns which addresses there are now."""
        with self._guarded("addresses"):
            routable = self._routable()
            held = self.core is not None and self.core.address is not None
            self.policy.addressed(routable, self._shared.clock(), held=held)
            self._pump()
            if self._ending is None:
                self._strangers.check(self._others)

    def _others(self) -> list[Address]:
        """The interface's addresses that are not there by our doing."""
        there = self._shared.addresses(self.link.index) if self.link is not None else ()
        return [a for a in there if not self.holding.has_put(a.index, a.address)]

    def _routable(self) -> IPv4Address | None:
        return next((other.address for other in self._others() if other.routable), None)

    def script_bound(self) -> None:
        """The script knows of the address; put right what it did to it."""
        if self.holding.owned is not None:
            self._worker.request(self._settle)

    def tick(self) -> None:
        """Time has passed."""
        with self._guarded("timer"):
            self._pump()

    def restart(self, why: str, *, asked: bool = True) -> None:
        """Probe the address again before it is used further; `asked`: by somebody's wish."""
        with self._guarded("restart"):
            core = self.core
            if core is not None and self._socket is not None and core.state is not State.STANDBY:
                core.link_down(why, asked=asked)
                self._start("is probed again")
                self._pump()

    @property
    def token(self) -> int | None:
        """What the reactor calls this interface's socket; None while there is none."""
        return self._socket.token if self._socket is not None else None

    def next_timer(self) -> float | None:
        """When `tick` is to be called; None: not before something else happens."""
        if self._worker.busy:
            return None
        parts = (self.core, self.policy)
        times = [part.next_timer() for part in parts if part is not None]
        return min((at for at in times if at is not None), default=None)

    @property
    def state(self) -> State:
        """How things stand: one of `report.STATES`."""
        return self.core.state if self.core is not None else State.NO_LINK

    @property
    def why(self) -> str:
        """What brought the state about, in words."""
        by_policy = self.policy.yields or self.state is State.STANDBY
        return self._trouble or (self.policy.why if by_policy else self.teller.why)

    @property
    def summary(self) -> str:
        """One line for the service manager: the name, the state, the address that it is about, the reason."""
        candidate = self.core.candidate if self.core is not None else None
        words = [f"{self.name}: {self.state.value}", _text(candidate), self.why and f"({self.why})"]
        return " ".join(word for word in words if word)

    def report(self) -> dict[str, Any]:
        """The status object: see `report.STATUS`."""
        core, link, teller = self.core, self.link, self.teller
        step, at = self._step()
        return {
            "version": VERSION,
            "interface": self.name,
            "index": link.index if link is not None else None,
            "mac": format_mac(link.mac) if link is not None else None,
            "pid": os.getpid(),
            "state": self.state.value,
            "why": self.why,
            "address": _text(core.address if core is not None else None),
            "since": teller.since,
            "candidate": _text(core.candidate if core is not None else None),
            "step": step,
            "step_in": max(at - self._shared.clock(), 0.0) if at is not None else None,
            "policy": self.options.policy.value,
            "defence": "abandon" if self.options.defence is Defence.ABANDON else "defend",
            "delay": self.options.delay,
            "others": [f"{a.address}/{a.prefixlen}" for a in self._others()],
            "conflicts": teller.conflicts,
            "defences": teller.defences,
            "last_conflict": teller.last_conflict,
            "limits": [
                *self._shared.netlink.limits,
                *self._shared.limits,
                *self.holding.limits,
            ],
            "notes": teller.notes,
        }

    def _step(self) -> tuple[str | None, float | None]:
        """What comes next, in words, and when."""
        for part in (self.core, self.policy):
            if part is not None and part.step and (at := part.next_timer()) is not None:
                return part.step, at
        return None, None

    async def stop(self) -> None:
        """Take off what was set up.  May be called more than once."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._stop())
        await asyncio.shield(self._ending)

    async def _stop(self) -> None:
        if self.script is not None:
            # Defended until the script has let go of it: it may take the address off itself.
            await self.script.stop()
        self._routes.close()
        if self._recovery is not None:
            self._recovery.cancel()
        with self._guarded("stop"):
            self._lose_link("stopped", asked=True)
            if self.link is not None:
                self._release(self.link)
        await self._worker.idle()
        await self._strangers.ended()
        if self._saving is not None:
            await asyncio.wait([self._saving])

    def release(self) -> None:
        """After `stop`: another instance may serve the interface."""
        self.holding.release()

    # --- the link ----------------------------------------------------------------------------

    def _link_changed(self, link: Link | None) -> None:
        before, self.link = self.link, link
        if link is None:
            self._no_link("waits: there is no such interface yet")
            return
        appeared = before is None or before.index != link.index
        if appeared:
            self._take_over(link)
            if link.master is not None:
                self.teller.say(
                    logging.WARNING, "belongs to a bridge or bond, which gets its frames"
                )
        if not link.speaks_arp:
            self._no_link("waits: it is not an Ethernet-like interface that speaks ARP")
            return
        if not link.up:
            # If it goes down later, somebody has set it down, and is obeyed.
            if appeared and self.options.bring_up:
                self._no_link("waits: it is down, and is set up now")
                self._worker.request(partial(self._shared.netlink.set_up, link.index))
            else:
                self._no_link(f"waits: it is down; 'ip link set {self.name} up' brings it up")
            return
        if not link.ready:
            self._no_link("waits: no carrier")
            return
        self._trouble = ""
        self.policy.link(True, self._shared.clock())
        if before is not None and self._socket is not None:
            if (before.index, before.mac) != (link.index, link.mac):
                self._lose_link("hardware address changed")
            elif before.carrier_changes != link.carrier_changes:
                # The carrier went and came back before the kernel told.
                self.restart("carrier was lost for a moment", asked=False)
        if self._socket is None:
            self._find_link(link)
        self._pump()

    def _take_over(self, link: Link) -> None:
        """Take off what an instance that crashed has left on the interface.

        The record that it kept tells; where that is lost, the address saved last together with our
        mark on the kernel's entry.  It comes back when it has been probed (section 2.2).
        """
        self._routes.take_over(link)
        for address in self._shared.addresses(link.index):
            recorded = self.holding.left_by(link, address.address)
            marked = address.proto == PROTOCOL and address.address == self._saved(link.mac)
            if recorded or marked:
                self._leftover = address.address
                self.holding.take_over(link, address.address)
                self.teller.say(
                    logging.INFO, f"takes over {address.address} from an instance that died"
                )
                self._remove(address.address)

    def _no_link(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            if self.core is None or self.core.state is State.NO_LINK:  # else it is a transition
                self.teller.say(logging.INFO, trouble)
        self._lose_link(trouble)

    def _lose_link(self, why: str, *, asked: bool = False) -> None:
        self.policy.link(False, self._shared.clock())
        self._close()
        if self.core is not None:
            self.core.link_down(why, asked=asked)
        self._pump()
        self._shared.changed()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._armed = False

    def _find_link(self, link: Link) -> None:
        """Start the core on a link that is ready, keeping what it knows if the MAC is the same."""
        try:
            self._socket = self._shared.reactor.open(link.index, link.mac)
            self._watching = None
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO, errno.ENETDOWN):
                return  # gone or down again: netlink will tell
            raise
        if self.core is None or self.core.mac != link.mac:
            first = self._first_candidate(link.mac)
            addresses = Random(int.from_bytes(link.mac, "big"))
            self.core = Ipv4ll(
                link.mac,
                Timing.from_delay(self.options.delay),
                addresses,
                Random(),
                defence=self.options.defence,
                first=first,
                avoid=lambda address: self._shared.elsewhere(address, self),
                sibling=self._shared.sibling,
            )
        self._start("link is ready")

    def _start(self, why: str) -> None:
        """Begin to negotiate.  A request, so that what was taken off before is off by then."""

        async def start() -> None:
            self._starting = False
            core = self.core
            if core is None or self._socket is None or not self.policy.wanted:
                return
            if core.state in _IDLE:
                core.link_up(self._shared.clock(), why)

        if not self._starting:
            self._starting = True
            self._worker.request(start)

    def _first_candidate(self, mac: bytes) -> IPv4Address | None:
        """What to try first: what we had, what the user said, what a crash left, what was saved."""
        if self.core is not None and self.core.remembered is not None:
            return self.core.remembered
        if self.options.first is not None:
            return self.options.first
        return self._leftover or self._saved(mac) or self._saved_by_avahi(mac)

    def _saved(self, mac: bytes) -> IPv4Address | None:
        try:
            return self._shared.store.load(mac)
        except StateProblem as problem:
            self.teller.say(logging.WARNING, str(problem))
            return None

    def _saved_by_avahi(self, mac: bytes) -> IPv4Address | None:
        try:
            address = self._shared.store.load_avahi(mac)
        except StateProblem as problem:
            self.teller.say(logging.DEBUG, str(problem))
            return None
        if address is not None:
            self.teller.say(logging.INFO, f"tries {address} first, which avahi-autoipd saved")
        return address

    # --- what the core wants -----------------------------------------------------------------

    def _pump(self) -> None:
        """Do all that the core wants now."""
        core = self.core
        self.policy.handle_timer(self._shared.clock())
        self._look()
        if core is None:
            return
        self._obey(core)
        self._take_events(core)
        self._route(core)
        while not self._worker.busy:
            now = self._shared.clock()
            core.handle_timer(now)
            self._take_events(core)
            # The filter is in place before the probe that asks for what it lets through.
            self._set_filter(core)
            if (packet := core.to_send(now)) is None or self._socket is None:
                break
            self._send(core, self._socket, packet.emit())
            self._take_events(core)
        self._set_filter(core)
        self._shared.changed()

    def _obey(self, core: Ipv4ll) -> None:
        """Begin, or stand by, as the policy wants it."""
        if self._socket is None:
            return
        if not self.policy.wanted:
            begins = core.state is not State.STANDBY
            core.stand_by(self.policy.why)
            if begins and self.link is not None:
                self._take_events(core)  # the address is off before what belongs to it
                self._release(self.link)
        elif core.state in _IDLE:
            self._start(self.policy.why)

    def _look(self) -> None:
        """Find out for the policy whether connections use the address."""
        if self._looking or not self.policy.asks(self._shared.clock()):
            return
        address = self.core.address if self.core is not None else None

        async def look() -> None:
            used = False
            try:
                if address is not None:
                    used = await tcp_connections.established(address)
            except KernelRefused as error:
                self._shared.netlink.limit(f"no connections can be waited for: {error}")
            finally:
                self._looking = False
            self.policy.connections(used, self._shared.clock())

        self._looking = True
        self._worker.request(look)

    def _route(self, core: Ipv4ll) -> None:
        """Have the routes that the policy and the options want now."""
        # From the routable address, so that one that only lingers is kept out of new connections.
        source = self.policy.source
        if not (core.address or self.policy.kind is Kind.ROUTE_ONLY):
            source = None
        if self._keep(self._routes.onlink, source):
            self.teller.say(logging.INFO, self.policy.why)
        source = core.address
        if not self.options.default_route or self.policy.yields or self._shared.other_default():
            source = None
        if self._keep(self._routes.default, source):
            self.teller.say(logging.INFO, f"no default route: all is on the link, from {source}")

    def _keep(self, route: OwnedRoute, source: IPv4Address | None) -> bool:
        """While the link can carry anything; see `OwnedRoutes.keep`."""
        return self._routes.keep(route, source if self._socket is not None else None)

    def _send(self, core: Ipv4ll, socket: ArpSocket, frame: bytes) -> None:
        try:
            at = socket.send(frame)
        except OSError as error:
            self.teller.say(logging.DEBUG, f"the kernel did not take a frame: {error.strerror}")
            core.refused(self._shared.clock())
        else:
            core.sent(at)

    def _set_filter(self, core: Ipv4ll) -> None:
        """Make filter and reflex what the core's state asks for."""
        if self._socket is None:
            return
        phase = _PHASES[core.listen]
        if phase is Phase.DEFEND and self.holding.by_unicast is not None:
            phase = Phase.ANSWER
        wanted = (phase, core.candidate)
        if self._watching != wanted:
            self._socket.watch(*wanted)
            self._watching = wanted
            self._armed = False
        reflex = core.reflex
        if reflex is not None and not self._armed:
            self._socket.arm(reflex.emit())
        elif reflex is None and self._armed:
            self._socket.disarm()
        self._armed = reflex is not None

    def _take_events(self, core: Ipv4ll) -> None:
        while (event := core.next_event()) is not None:
            self.teller.tell(event)
            match event:
                case ipv4ll.Configure(address=address):
                    self._configure(core, address)
                case ipv4ll.Unconfigure(address=address, conflict=conflict):
                    self._remove(address, reset=conflict)
                    if self.script is not None:
                        self.script.lost(conflict=conflict)
                case acd.Conflict(address=address, packet=packet, in_use=False):
                    if (note := self._takers.conflict(address, packet)) is not None:
                        self.teller.note(note)
                case ipv4ll.Claimed(address=address):
                    self._takers.claimed()
                    self._save(core.mac, address)
                    if self.script is not None:
                        self.script.bound(address)
        if self.script is not None and core.address is None:
            self.script.lost()  # somebody else took it off

    # --- requests to the kernel, one after the other -----------------------------------------

    def _request_failed(self, error: Exception) -> None:
        if isinstance(error, asyncio.TimeoutError):
            self.teller.say(logging.ERROR, "the kernel did not answer a request")
        elif isinstance(error, KernelRefused):
            self.teller.say(logging.ERROR, str(error))
        else:
            self._fail("request", error)

    def _configure(self, core: Ipv4ll, address: IPv4Address) -> None:
        async def configure() -> None:
            if (link := self.link) is None:
                return
            add = self.holding.add(link, address, lambda: core.candidate == address)
            try:
                place = await asyncio.wait_for(add, _REQUEST_TIMEOUT)
            except KernelRefused as error:
                core.configure_failed(address, self._shared.clock(), str(error))
            except asyncio.TimeoutError:
                self._remove(address)  # it may have got there all the same
                core.configure_failed(address, self._shared.clock(), "the kernel did not answer")
            else:
                if place is Place.HERE:
                    core.configured(address, self._shared.clock())
                elif place is Place.ELSEWHERE:
                    core.elsewhere(address, self._shared.clock())
            self._take_events(core)

        self._worker.request(configure)

    def _remove(self, address: IPv4Address, *, reset: bool = False) -> None:
        self._worker.request(partial(self.holding.remove, address, reset=reset))

    def _release(self, link: Link) -> None:
        """Take off what stays on a link while addresses come and go."""
        self._worker.request(partial(self._shared.netlink.release, link.index))

    async def _verify(self) -> None:
        """Tell the core if the address that it holds is no longer on the interface, or on two."""
        core, link = self.core, self.link
        if core is None or link is None or (address := core.address) is None:
            return
        place = await self.holding.place(link, address)
        if place is Place.NOWHERE:
            # The rule and the route that belong to it are still there.
            await self.holding.remove(address)
            core.removed(self._shared.clock())
        elif place is Place.ELSEWHERE:
            core.elsewhere(address, self._shared.clock())
            self._take_events(core)

    async def _settle(self) -> None:
        """After a script: give the address back what is ours, or claim it again if it is gone."""
        await self._verify()
        core, link = self.core, self.link
        if core is not None and link is not None and core.address is not None:
            await self.holding.put_back(link, core.address)

    # --- state, and what must not happen -----------------------------------------------------

    def _save(self, mac: bytes, address: IPv4Address) -> None:
        """Remember the address.  A slow disk must not hold up the negotiation."""

        async def save() -> None:
            try:
                await asyncio.to_thread(self._shared.store.save, mac, address, self.name)
            except StateProblem as problem:
                self.teller.say(logging.WARNING, str(problem))

        self._saving = asyncio.get_running_loop().create_task(save())

    @contextmanager
    def _guarded(self, where: str) -> Iterator[None]:
        """Keep an exception in this interface's handling from the rest of the process."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (see _fail)
            self._fail(where, error)

    def _fail(self, where: str, error: Exception) -> None:
        """A bug of ours must cost neither the other interfaces nor, for long, this one."""
        text = f"internal error ({where}): {error!r}; starting over in {CONFIGURE_RETRY:g} s"
        self.teller.say(logging.ERROR, text, error)
        self._close()
        self.core = None
        if self.script is not None:
            self.script.lost()
        if self.holding.owned is not None:
            self._remove(self.holding.owned.address)
        if self._recovery is None and self._ending is None:
            loop = asyncio.get_running_loop()
            self._recovery = loop.call_later(CONFIGURE_RETRY, self._recover)

    def _recover(self) -> None:
        self._recovery = None
        self.link_changed(self.link)


def _text(address: IPv4Address | None) -> str | None:
    return None if address is None else str(address)
