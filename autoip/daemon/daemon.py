"""The process: one event loop, one helper thread, one view of the kernel, many interfaces."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from autoip.control.protocol import socket_name
from autoip.control.server import Clients, Handler, Server
from autoip.core.ipv4ll import State
from autoip.core.policy import Kind
from autoip.daemon.address_store import AddressStore, state_directory
from autoip.daemon.foreign_default_route import ForeignDefaultRoute
from autoip.daemon.interface import Interface, Shared
from autoip.daemon.lock_file import LockFile, runtime_directory
from autoip.daemon.networkmanager.gate import Follower
from autoip.daemon.reporter import Reporter
from autoip.daemon.sd_notify import Notifier
from autoip.errors import AutoipError, KernelRefused, NoPermission, NotArp, UsageError
from autoip.kernel.arp_socket import OWN_MAX, ArpListener
from autoip.kernel.model import (
    Address,
    AddressAdded,
    AddressRemoved,
    Event,
    Link,
    LinkChanged,
    LinkRemoved,
    Resync,
    RouteRemoved,
    ethernet_like,
)
from autoip.kernel.network import Network
from autoip.kernel.timers import ClockWatch, Timer
from autoip.options import Options


def boottime() -> float:
    """CLOCK_BOOTTIME in seconds: never goes back, and counts sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the process is asked to do.

    Attributes:
        interfaces: names; empty: the one Ethernet-like interface there is.
        options: what was chosen for the interface of that name.
        keep_state: whether to read and write the last addresses.
        progress: log level of step-by-step lines.
        environ: the process's environment.
        script: absolute path of what is told of each address; None if there is no such thing.
        script_style: how, one of `script.STYLES`.
        program: what `arp_socket.load_broadcast` gave, or in words why there is none.
    """

    interfaces: Sequence[str]
    options: Callable[[str], Options]
    keep_state: bool
    progress: int
    environ: Mapping[str, str]
    script: str | None = None
    script_style: str = ""
    program: int | str = "no program was loaded"


async def run(settings: Settings, log: logging.Logger) -> None:
    """Serve the interfaces until SIGTERM or SIGINT.

    Raises:
        AutoipError: no interface can be served; nothing is left behind.
    """
    netlink = Network(_label_suffix(settings), settings.program)
    await netlink.open()
    try:
        with ArpListener() as reactor:
            daemon = Daemon(settings, log, netlink, reactor)
            await daemon.run()
    finally:
        netlink.close()


class Daemon:
    """Distributes what happens to the interfaces that it is about."""

    def __init__(
        self, settings: Settings, log: logging.Logger, netlink: Network, reactor: ArpListener
    ) -> None:
        self._settings = settings
        self._log = log
        self._netlink = netlink
        self._reactor = reactor
        self._timer = Timer()
        self._clock_watch = ClockWatch()
        self._notifier = Notifier(settings.environ)
        self._interfaces: list[Interface] = []
        self._servers: dict[str, Server] = {}
        self._clients = Clients()
        self._links: dict[int, Link] = {}
        self._addresses: dict[tuple[int, IPv4Address], Address] = {}
        self._follower = Follower(self._permit, log, settings.environ)
        self._macs: frozenset[bytes] = frozenset()
        self._stop = asyncio.Event()
        self._ready = False
        self._limits_told = 0
        self._status = ""
        self._default_routes = ForeignDefaultRoute(netlink, self._tick)
        directory = state_directory(settings.environ) if settings.keep_state else None
        self._shared = Shared(
            reactor=reactor,
            netlink=netlink,
            limits=self._follower.limits,
            store=AddressStore(directory),
            clock=boottime,
            addresses=self._addresses_of,
            elsewhere=self._elsewhere,
            sibling=lambda mac: mac in self._macs,
            other_default=lambda: self._default_routes.exists,
            changed=self._changed,
        )

    async def run(self) -> None:
        """Serve until told to stop.  Raises AutoipError if there is nothing to serve."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._restart, "asked to by SIGHUP")
        self._feed_watchdog()
        links, addresses = await self._netlink.snapshot()
        self._try_packet_socket(links)
        self._interfaces = self._open(_chosen(self._settings.interfaces, links), links)
        if self._settings.script is not None:
            self._interfaces = await self._scripted(self._settings.script, self._interfaces)
        loop.add_reader(self._reactor.fileno(), self._on_frames)
        loop.add_reader(self._timer.fileno(), self._on_timer)
        loop.add_reader(self._clock_watch.fileno(), self._on_clock)
        try:
            await self._netlink.sweep()
        except KernelRefused as error:
            self._log.warning("leftovers of a crash stay: %s", error)
        for interface in self._interfaces:
            await self._serve(interface)
        self._follow_routes()
        # Before any link is told: nothing is claimed that NetworkManager must not see.
        self._follower.start([interface.name for interface in self._interfaces])
        self._on_resync(Resync(tuple(links), tuple(addresses), "start"))
        watcher = loop.create_task(self._watch())
        try:
            await self._stop.wait()
        finally:
            self._notifier.stopping()
            watcher.cancel()
            self._default_routes.close()
            await self._follower.stop()
            await asyncio.gather(
                *(self._end(i) for i in [*self._interfaces]), return_exceptions=True
            )
            for descriptor in (self._reactor, self._timer, self._clock_watch):
                loop.remove_reader(descriptor.fileno())
            self._timer.close()
            self._clock_watch.close()

    def _try_packet_socket(self, links: Sequence[Link]) -> None:
        """In a user namespace one may have the capabilities, but not for this network."""
        for link in links[:1]:
            try:
                self._reactor.open(link.index, bytes(6)).close()
            except PermissionError:
                raise NoPermission(
                    "no permission: CAP_NET_RAW does not hold for this network namespace"
                ) from None

    def _open(self, names: Sequence[str], links: Sequence[Link]) -> list[Interface]:
        """Claim each interface for this process; one that cannot be had costs only itself."""
        directory = runtime_directory(self._settings.environ)
        opened: list[Interface] = []
        failures: list[AutoipError] = []
        for name in names:
            try:
                opened.append(self._open_one(name, directory, links))
            except AutoipError as error:
                failures.append(error)
        return _remaining(opened, failures, self._log)

    def _open_one(self, name: str, directory: Path, links: Sequence[Link]) -> Interface:
        for link in links:
            if link.name == name and not link.speaks_arp:
                raise NotArp(
                    f"{name}: not an interface that speaks ARP over Ethernet"
                    f" (hardware type {link.hardware_type})"
                )
        options = self._settings.options(name)
        instance = LockFile.acquire(directory, name)
        if instance.warning:
            self._log.warning("%s: %s", name, instance.warning)
        teller = Reporter(
            name,
            self._log,
            self._settings.progress,
            boottime,
            lambda event: self._servers[name].publish(event) if name in self._servers else None,
        )
        return Interface(teller, options, instance, self._shared)

    async def _scripted(self, file: str, interfaces: Sequence[Interface]) -> list[Interface]:
        """Give each interface the script; one whose first call fails costs only itself."""
        from autoip.daemon.script import STYLES, ScriptRunner

        async def init(interface: Interface) -> AutoipError | None:
            interface.script = ScriptRunner(
                file,
                STYLES[self._settings.script_style],
                interface.name,
                interface.teller.say,
                interface.script_bound,
            )
            try:
                await interface.script.init()
            except AutoipError as error:
                await interface.stop()
                interface.release()
                return error
            return None

        failures = await asyncio.gather(*map(init, interfaces))
        return _remaining(
            [i for i, failure in zip(interfaces, failures, strict=True) if failure is None],
            [failure for failure in failures if failure is not None],
            self._log,
        )

    async def _serve(self, interface: Interface) -> None:
        """Open the interface's control socket; a file system that refuses it costs nothing else."""

        async def stop() -> None:
            await self._end(interface)
            if not self._interfaces:
                self._stop.set()

        handler = Handler(
            status=interface.report,
            refresh=lambda: interface.restart("asked to"),
            stop=stop,
        )
        namespace = os.stat("/proc/self/ns/net").st_ino
        path = runtime_directory(self._settings.environ) / socket_name(namespace, interface.name)
        server = Server(path, handler, self._clients)
        try:
            await server.open()
        except OSError as error:
            why = error.strerror or error
            self._log.warning("%s: no control socket %s: %s", interface.name, path, why)
        else:
            self._servers[interface.name] = server

    async def _end(self, interface: Interface) -> None:
        """Take all off that belongs to an interface."""
        if interface not in self._interfaces:
            return
        await interface.stop()
        if interface not in self._interfaces:
            return  # somebody else ended it as well
        self._interfaces.remove(interface)
        interface.teller.publish("stopped")
        if (server := self._servers.pop(interface.name, None)) is not None:
            await server.close()
        interface.release()  # now that the socket's name is free
        self._changed()

    # --- what happens ------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            event = await self._netlink.next_event()
            try:
                self._on_event(event)
            except Exception:  # noqa: BLE001 (a bug must not end the process)
                self._log.exception("internal error in %s", type(event).__name__)

    def _on_event(self, event: Event) -> None:
        self._default_routes.happened(event)
        match event:
            case LinkChanged(link=link):
                self._links[link.index] = link
                self._tell_links()
            case LinkRemoved(index=index):
                self._links.pop(index, None)
                self._tell_links()
            case AddressAdded(address=address):
                key = address.index, address.address
                new = key not in self._addresses
                self._addresses[key] = address
                for interface in self._interfaces:
                    if interface.link is not None and interface.link.index == address.index:
                        interface.address_added(address, new=new)
                    else:
                        interface.address_elsewhere(address)
            case AddressRemoved(address=address):
                self._addresses.pop((address.index, address.address), None)
                for interface in self._on_link(address.index):
                    interface.address_removed(address)
            case RouteRemoved(route=route) if route.ours and route.index is not None:
                for interface in self._on_link(route.index):
                    interface.route_removed()
            case Resync():
                self._on_resync(event)

    def _follow_routes(self) -> None:
        """Hear of routes, if any interface has one to keep."""
        options = [interface.options for interface in self._interfaces]
        try:
            if any(one.default_route for one in options):
                self._default_routes.start()
            elif any(one.policy is Kind.ROUTE_ONLY for one in options):
                self._netlink.follow_routes()
        except KernelRefused as error:
            self._log.warning("routes are not kept: %s", error)

    def _on_resync(self, event: Resync) -> None:
        self._links = {link.index: link for link in event.links}
        self._addresses = {(a.index, a.address): a for a in event.addresses}
        self._tell_links()
        for interface in self._interfaces:
            interface.resynchronise()

    def _tell_links(self) -> None:
        self._tell_macs()
        by_name = {link.name: link for link in self._links.values()}
        for interface in self._interfaces:
            link = by_name.get(interface.name)
            if link is None or link != interface.link:
                interface.link_changed(link)

    def _tell_macs(self) -> None:
        # Beyond the helper's limit those that came last are taken for other hosts'.
        own = [link.mac for _, link in sorted(self._links.items()) if link.speaks_arp][:OWN_MAX]
        if self._macs != (macs := frozenset(own)):
            self._reactor.own(macs)
            self._macs = macs

    def _on_frames(self) -> None:
        by_token = {i.token: i for i in self._interfaces if i.token is not None}
        before = self._reactor.lost
        for received in self._reactor.drain():
            if (interface := by_token.get(received.token)) is not None:
                interface.received(received)
        if lost := self._reactor.lost - before:
            self._log.debug("%d conflicts dropped: more came at once than the queue holds", lost)

    def _on_timer(self) -> None:
        self._timer.acknowledge()
        self._on_frames()  # a conflict that is here already comes before what time brings about
        now = boottime()
        for interface in self._interfaces:
            at = interface.next_timer()
            if at is not None and at <= now:
                interface.tick()
        self._changed()

    def _on_clock(self) -> None:
        if self._clock_watch.changed():
            self._restart("the machine slept")

    def _tick(self) -> None:
        for interface in self._interfaces:
            interface.tick()

    def _permit(self, name: str, allowed: bool, why: str) -> None:
        """What NetworkManager means for an interface."""
        for interface in self._interfaces:
            if interface.name == name:
                interface.permit(allowed, why)

    def _feed_watchdog(self) -> None:
        """From the loop: when the loop hangs, the service manager is to notice."""
        if (interval := self._notifier.watchdog_interval) is not None:
            self._notifier.watchdog()
            asyncio.get_running_loop().call_later(interval, self._feed_watchdog)

    def _restart(self, why: str) -> None:
        for interface in self._interfaces:
            interface.restart(why)

    # --- what the interfaces share -----------------------------------------------------------

    def _on_link(self, index: int) -> list[Interface]:
        return [i for i in self._interfaces if i.link is not None and i.link.index == index]

    def _addresses_of(self, index: int) -> Iterable[Address]:
        return [a for a in self._addresses.values() if a.index == index]

    def _elsewhere(self, address: IPv4Address, asking: Interface) -> bool:
        """Whether this host has, or probes for, the address but by the doing of `asking`."""
        for index, value in self._addresses:
            if value == address and not asking.holding.has_put(index, value):
                return True
        others = (i.core for i in self._interfaces if i is not asking)
        return any(core is not None and core.candidate == address for core in others)

    def _changed(self) -> None:
        """Set the timer to what comes next, and tell the service manager."""
        times = [at for i in self._interfaces if (at := i.next_timer()) is not None]
        self._timer.set(min(times, default=None))
        if not self._ready and any(i.settled for i in self._interfaces):
            self._ready = True
            self._notifier.ready()
        for limit in self._netlink.limits[self._limits_told :]:
            self._log.info("%s", limit)
        self._limits_told = len(self._netlink.limits)
        status = ", ".join(_summary(i) for i in self._interfaces)
        if status and status != self._status:
            self._status = status
            self._notifier.status(status)


def _remaining(
    interfaces: list[Interface], failures: Sequence[AutoipError], log: logging.Logger
) -> list[Interface]:
    """Those that can be served; the failures of the others are logged, or raised if all failed."""
    if not interfaces:
        raise failures[0]
    for failure in failures:
        log.error("%s", failure)
    return interfaces


def _label_suffix(settings: Settings) -> str:
    """avahi-autoipd's scripts flush the addresses that have its label before they add theirs."""
    return "avahi" if settings.script is not None and settings.script_style == "avahi" else "autoip"


def _summary(interface: Interface) -> str:
    core = interface.core
    state = core.state if core is not None else State.NO_LINK
    address = f" {core.candidate}" if core is not None and core.candidate is not None else ""
    return f"{interface.name}: {state.value}{address}"


def _chosen(names: Sequence[str], links: Sequence[Link]) -> Sequence[str]:
    """The interfaces to serve.

    Raises:
        UsageError: none was named, and there is not exactly one to choose.
    """
    if names:
        proper = {alternative: link.name for link in links for alternative in link.altnames}
        return list(dict.fromkeys(proper.get(name, name) for name in names))
    candidates = sorted(link.name for link in ethernet_like(links))
    if len(candidates) == 1:
        return candidates
    if candidates:
        raise UsageError(f"several interfaces: name one or more of {', '.join(candidates)}")
    there = ", ".join(sorted(link.name for link in links)) or "none"
    raise UsageError(f"no Ethernet-like interface to choose; name one (there are: {there})")
