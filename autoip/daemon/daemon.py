"""The process: one event loop, one view of the kernel, many interfaces."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoip.control.protocol import socket_name
from autoip.control.server import Clients, Handler, Server
from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.core.policy import Kind
from autoip.daemon.address_store import AddressStore
from autoip.daemon.cables import Cables
from autoip.daemon.distribution import Distribution
from autoip.daemon.foreign_default_route import ForeignDefaultRoute
from autoip.daemon.handover import Handover
from autoip.daemon.host import Host
from autoip.daemon.interface import Interface, Shared
from autoip.daemon.lock_file import LockFile
from autoip.daemon.networkmanager.gate import Follower
from autoip.daemon.protocols import Kernel
from autoip.daemon.reload import SIGNALS, Executable, Reload
from autoip.daemon.reporter import Reporter
from autoip.daemon.resumable_daemon import ResumableDaemon
from autoip.daemon.sd_notify import Notifier
from autoip.daemon.served import Selection, Served
from autoip.daemon.terminal import Hangup
from autoip.errors import AutoipError, KernelRefused, NoPermission, NotArp, UsageError
from autoip.kernel import tcp_connections
from autoip.kernel.arp_socket import ArpListener, Defence
from autoip.kernel.capabilities import as_owner
from autoip.kernel.model import (
    Link,
    Resync,
    ethernet_like,
)
from autoip.kernel.neighbour_routes import GivenUp
from autoip.kernel.neighbour_socket import NeighbourSocket
from autoip.kernel.network import Network
from autoip.kernel.timers import ClockWatch, Timer
from autoip.log import NOTICE
from autoip.options import Options
from autoip.paths import network_namespace, runtime_directory, state_directory

if TYPE_CHECKING:
    from autoip.daemon.trace import Trace

GC_THRESHOLDS = 700, 5, 4
"""Those of `gc.set_threshold`; Python's own are 700, 10, 10."""


def boottime() -> float:
    """CLOCK_BOOTTIME in seconds: never goes back, and counts sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the process must do.

    Attributes:
        interfaces: names; empty: the only Ethernet-like interface.
        selection: what to serve as it appears, instead of `interfaces`; None: `interfaces`, from start to end.
        options: returns what was chosen for the interface of a name.
        keep_state: whether to read and write the last addresses.
        progress: log level of step-by-step lines.
        environ: the process's environment.
        script: absolute path of the script to which each address is reported; None: no script.
        script_style: a key of `script.STYLES`.
        program: result of `arp_socket.load_broadcast`.
        defence: result of `arp_socket.load_defence`; empty: the kernel was not asked.
        trace: records all that happens; None: no trace.
        limits: what cannot be done in this process, one line each; logged already.
        handed: what the program before in this process has handed over; None: this is the first one.
        executable: what a reload executes; None: nothing.
    """

    interfaces: Sequence[str]
    options: Callable[[str], Options]
    keep_state: bool
    progress: int
    environ: Mapping[str, str]
    script: str | None = None
    script_style: str = ""
    program: int | str = "no program was loaded"
    defence: Defence | str = ""
    trace: Trace | None = None
    selection: Selection | None = None
    limits: Sequence[str] = ()
    handed: Handover | None = None
    executable: Executable | None = None


async def run(settings: Settings, log: logging.Logger) -> None:
    """Serve the interfaces until SIGTERM or SIGINT.

    Raises:
        AutoipError: no interface can be served; nothing is left behind.
    """
    # Netlink messages are garbage in cycles. Collect them before they fill 20 KB for each interface: often, and
    # cheaply, since what the imports have made stays.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    handed = () if settings.handed is None else settings.handed.attached
    network = Network(_label_suffix(settings), settings.program, handed)
    paused = settings.handed is not None  # until the sockets are taken over
    await network.open()
    try:
        with (
            ArpListener(settings.defence, paused=paused) as listener,
            contextlib.closing(Timer()) as timer,
            contextlib.closing(ClockWatch()) as clock_watch,
        ):
            parts = (network, listener, tcp_connections, timer, clock_watch, boottime)
            kernel = Kernel(*parts, NeighbourSocket, GivenUp)
            await Daemon(settings, log, kernel).run()
    finally:
        network.close()


class Daemon(ResumableDaemon):
    """Passes each event to the interfaces concerned."""

    def __init__(self, settings: Settings, log: logging.Logger, kernel: Kernel) -> None:
        self._settings: Settings = settings
        self._log = log
        self._kernel = kernel
        self._network = kernel.network
        self._network.limits += settings.limits
        self._notifier = Notifier(settings.environ)
        self._interfaces: list[Interface] = []
        self._servers: dict[str, Server] = {}
        self._clients = Clients()
        self._handed = settings.handed or Handover()
        foreign = ForeignDefaultRoute(kernel.network, self._tick)
        foreign.exists = self._handed.foreign_default
        self._host = Host(foreign)
        self._follower = Follower(self._permit, log, settings.environ)
        self._stop = asyncio.Event()
        self._reload = Reload(self, settings.executable, kernel.listener, self._notifier, log)
        self._hangup = Hangup(
            self._reload.request, self._without_terminal, had_terminal=self._handed.terminal
        )
        self._serving = False
        known = kernel.network.limits
        known += [limit for limit in self._handed.limits if limit not in known]
        self._limits_logged = len(kernel.network.limits)
        if kernel.listener.undefended is not None:
            kernel.network.limit(kernel.listener.undefended)
        self._status = ""
        self._served: Served | None = None
        if settings.selection is not None:
            self._served = Served(settings.selection, self, log)
        self._distribution = Distribution(
            lambda: self._interfaces, self._host, kernel.listener, self._served, log
        )
        self._cables = Cables(kernel, self._host, log)
        directory = Path(state_directory(settings.environ)) if settings.keep_state else None
        self._shared = Shared(
            kernel=kernel,
            host=self._host,
            store=AddressStore(directory),
            limits=self._follower.limits,
            cables=self._cables,
            changed=self._changed,
            trace=settings.trace,
        )

    async def run(self) -> None:
        """Serve until asked to stop.

        Raises:
            AutoipError: no interface can be served.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._hangup.watch()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # they have waited during a reload
        self._feed_watchdog()
        links, addresses = await self._network.snapshot()
        _try_packet_socket(self._kernel, links)
        self._host.apply(Resync(tuple(links), tuple(addresses)))
        self._distribution.know_own_macs()
        handed = self._handed
        if self._served is None:
            self._names = names_of(self._settings.interfaces, links, handed)
        else:
            self._names = [one.name for one in handed.interfaces]
            self._served.resume([*self._names, *handed.stopped])
        if (begun := handed.begun(self._names)) or self._served is None:
            self._interfaces = self._open(begun, links)
        if self._settings.handed is not None:
            self._kernel.listener.resume()
        self.handle_frames()  # those that waited during a reload came before all that follows
        self._interfaces = await _scripted(self._settings, self._interfaces, self._log)
        readers = {
            self._kernel.listener.fileno(): self.handle_frames,
            self._kernel.timer.fileno(): self._on_timer,
            self._kernel.clock_watch.fileno(): self._on_clock,
        }
        with _reading(loop, readers):
            await self._start()
            # Before any link is known: NetworkManager must not find an address that this daemon claimed too early.
            names = [interface.name for interface in self._interfaces]
            self._follower.start(names, self._handed.networkmanager)
            self._distribution.event(Resync(tuple(links), tuple(addresses)))
            if self._settings.handed is not None:
                await self._go_on(self._handed)
            if self._served is not None:
                await self._served.settled()
            # Ready without an address: without a cable, whoever starts the service would wait for ever.
            self._serving = True
            self._changed()
            watchers = [loop.create_task(self._watch()), loop.create_task(self._watch_losses())]
            try:
                await self._stop.wait()
            finally:
                self._notifier.stopping()
                if self._served is not None:
                    await self._served.close()
                for watcher in watchers:
                    watcher.cancel()
                self._host.foreign_default_route.close()
                await self._follower.stop()
                ends = map(self._end, [*self._interfaces])
                await asyncio.gather(*ends, return_exceptions=True)
                await self._cables.stop()

    async def _start(self) -> None:
        """Sweep what a crash left, open the control sockets, and follow routes if an interface has one to keep."""
        try:
            await self._network.sweep()
        except KernelRefused as error:
            self._log.warning("leftovers of a crash stay: %s", error)
        for interface in self._interfaces:
            await self._serve(interface)
        _follow_routes(self._interfaces, self._host, self._kernel, self._log)

    def _open(self, names: Sequence[str], links: Sequence[Link]) -> list[Interface]:
        """Lock each interface; a failure costs only that interface."""
        directory = Path(runtime_directory(self._settings.environ))
        opened: list[Interface] = []
        failures: list[AutoipError] = []
        for name in names:
            try:
                opened.append(self._open_one(name, directory, links))
            except AutoipError as error:
                failures.append(error)
        return _remaining(opened, failures, self._log)

    def _open_one(self, name: str, directory: Path, links: Sequence[Link]) -> Interface:
        options = self._settings.options(name)
        if (resumed := self._resumed(name, options)) is not None:
            return resumed
        _require_arp(name, links)
        lock_file = LockFile.acquire(directory, name)
        if lock_file.warning:
            self._log.warning("%s: %s", name, lock_file.warning)
        if options.network != LINK_LOCAL_NETWORK:
            text = "%s: candidates only from %s, a departure from RFC 3927 section 2.1"
            self._log.log(NOTICE, text, name, options.network)
        return Interface(self._reporter(name), options, lock_file, self._shared)

    def _reporter(self, name: str) -> Reporter:
        return Reporter(
            name,
            self._log,
            self._settings.progress,
            self._kernel.clock,
            lambda event: self._servers[name].publish(event) if name in self._servers else None,
        )

    async def add(self, name: str) -> None:
        """Serve one more interface, while the daemon runs.

        Raises:
            AutoipError: it cannot be served.
        """
        links = self._host.links
        interfaces = [self._open_one(name, Path(runtime_directory(self._settings.environ)), links)]
        for interface in await _scripted(self._settings, interfaces, self._log):
            await self._serve(interface)
            self._interfaces.append(interface)
            _follow_routes([interface], self._host, self._kernel, self._log)
            # As at the start: NetworkManager's answer comes before the link.
            self._follower.add(name)
            interface.link_changed(self._host.link(name))
            interface.resynchronise()
        self._changed()

    async def drop(self, name: str) -> None:
        """Stop serving an interface, while the daemon runs, and remove what it owns. Harmless when repeated."""
        for interface in [i for i in self._interfaces if i.name == name]:
            await self._end(interface)

    async def _serve(self, interface: Interface) -> None:
        """Open the interface's control socket; without it the interface is served all the same."""

        async def stop() -> None:
            await self._end(interface)
            if not self._interfaces and self._served is None:
                self._stop.set()

        handler = Handler(
            status=interface.report,
            refresh=lambda: interface.restart("asked to"),
            failed=interface.dhcp_failed,
            reload=lambda: asyncio.shield(self._reload.request()),
            stop=stop,
        )
        directory = Path(runtime_directory(self._settings.environ))
        path = directory / socket_name(network_namespace(), interface.name)
        server = Server(path, handler, self._clients, as_owner)
        try:
            await server.open(self._handed.server(interface.name))
        except OSError as error:
            why = error.strerror or error
            self._log.warning("%s: no control socket %s: %s", interface.name, path, why)
        else:
            self._servers[interface.name] = server

    async def _end(self, interface: Interface) -> None:
        """Stop an interface and remove what it owns."""
        if interface not in self._interfaces:
            return
        await interface.stop()
        if interface not in self._interfaces:
            return  # another call of this has ended it meanwhile
        self._interfaces.remove(interface)
        self._follower.drop(interface.name)
        interface.reporter.publish("stopped")
        if (server := self._servers.pop(interface.name, None)) is not None:
            await server.close()
        interface.release()  # now that the socket's name is free
        self._changed()

    # --- what happens ------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            self._distribution.event(await self._network.next_event())
            self._cables.update(self._interfaces)

    async def _watch_losses(self) -> None:
        while True:
            self._distribution.losses(await self._network.next_losses())

    def handle_frames(self) -> None:
        """Handle the conflicts that wait in the listener's queue."""
        self._distribution.frames()

    def _on_timer(self) -> None:
        self._kernel.timer.acknowledge()
        self.handle_frames()  # a conflict that is here already comes before the timers
        now = self._kernel.clock()
        for interface in self._interfaces:
            at = interface.next_timer()
            if at is not None and at <= now:
                interface.tick()
        self._changed()

    def _on_clock(self) -> None:
        if self._kernel.clock_watch.changed():
            self._restart("the machine slept")

    def _tick(self) -> None:
        for interface in self._interfaces:
            interface.tick()

    def _permit(self, name: str, allowed: bool, why: str) -> None:
        """Pass on whether NetworkManager allows an address on an interface."""
        for interface in self._interfaces:
            if interface.name == name:
                interface.permit(allowed, why)

    def _feed_watchdog(self) -> None:
        """Send the watchdog's message from the loop, so that the service manager notices when the loop hangs."""
        if (interval := self._notifier.watchdog_interval) is not None:
            self._notifier.watchdog()
            asyncio.get_running_loop().call_later(interval, self._feed_watchdog)

    def _without_terminal(self) -> None:
        if not self._stop.is_set():
            self._log.info("ends: the terminal is gone")
            self._stop.set()

    def _restart(self, why: str) -> None:
        for interface in self._interfaces:
            interface.restart(why)

    def _changed(self) -> None:
        """Set the timer to what comes next, and report to the service manager."""
        times = [at for i in self._interfaces if (at := i.next_timer()) is not None]
        self._kernel.timer.set(min(times, default=None))
        for limit in self._network.limits[self._limits_logged :]:
            self._log.info("%s", limit)
        self._limits_logged = len(self._network.limits)
        if not self._serving:
            return
        self._cables.update(self._interfaces)
        lines = [interface.summary for interface in self._interfaces]
        if self._served is not None:
            lines = [*lines, *self._served.summary] or ["waits for interfaces"]
        status = ", ".join(lines)
        if status and status != self._status:
            self._status = status
            self._notifier.status(status)
        self._notifier.ready()  # repeated until the service manager has received it


@contextlib.contextmanager
def _reading(
    loop: asyncio.AbstractEventLoop, readers: Mapping[int, Callable[[], None]]
) -> Iterator[None]:
    """Have each function called whenever its descriptor is readable."""
    for descriptor, happened in readers.items():
        loop.add_reader(descriptor, happened)
    try:
        yield
    finally:
        for descriptor in readers:
            loop.remove_reader(descriptor)


def _try_packet_socket(kernel: Kernel, links: Sequence[Link]) -> None:
    """Raise NoPermission if the capabilities do not hold for this network, as in some user namespaces."""
    for link in links[:1]:
        try:
            kernel.listener.open(link.index, bytes(6), defended=False).close()
        except PermissionError:
            raise NoPermission(
                "no permission: CAP_NET_RAW does not hold for this network namespace"
            ) from None


def _require_arp(name: str, links: Sequence[Link]) -> None:
    """Raise NotArp if the interface is there and does not speak ARP."""
    for link in links:
        if link.name == name and not link.speaks_arp:
            raise NotArp(
                f"{name}: not an interface that speaks ARP over Ethernet"
                f" (hardware type {link.hardware_type})"
            )


def _remaining(
    interfaces: list[Interface], failures: Sequence[AutoipError], log: logging.Logger
) -> list[Interface]:
    """Return the interfaces that can be served; log the failures of the others, or raise the first if all failed."""
    if not interfaces:
        raise failures[0]
    for failure in failures:
        log.error("%s", failure)
    return interfaces


async def _scripted(
    settings: Settings, interfaces: list[Interface], log: logging.Logger
) -> list[Interface]:
    """Give each interface the script, if there is one; a first call that fails costs only that interface."""
    if (file := settings.script) is None or not interfaces:
        return interfaces

    async def failure(interface: Interface) -> AutoipError | None:
        try:
            await interface.start_script(file, settings.script_style)
        except AutoipError as error:
            await interface.stop()
            interface.release()
            return error
        return None

    failures = await asyncio.gather(*map(failure, interfaces))
    return _remaining(
        [i for i, failed in zip(interfaces, failures, strict=True) if failed is None],
        [failed for failed in failures if failed is not None],
        log,
    )


def _follow_routes(
    interfaces: Sequence[Interface], host: Host, kernel: Kernel, log: logging.Logger
) -> None:
    """Follow routes, if an interface has one to keep."""
    options = [interface.options for interface in interfaces]
    try:
        if any(one.default_route for one in options):
            host.foreign_default_route.start()
        elif any(one.policy is Kind.ROUTE_ONLY for one in options):
            kernel.network.follow_routes()
    except KernelRefused as error:
        log.warning("routes are not kept: %s", error)


def _label_suffix(settings: Settings) -> str:
    """Return the label that the script expects: avahi-autoipd's scripts flush addresses with its label first."""
    return "avahi" if settings.script is not None and settings.script_style == "avahi" else "autoip"


def names_of(names: Sequence[str], links: Sequence[Link], handed: Handover | None) -> Sequence[str]:
    """As `chosen`; none was named: what the program before has chosen stays. Raises UsageError."""
    return chosen(names, links) if names or handed is None or not handed.names else handed.names


def chosen(names: Sequence[str], links: Sequence[Link]) -> Sequence[str]:
    """Return the interfaces to serve.

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
