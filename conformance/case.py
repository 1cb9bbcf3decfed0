"""One case: its machines, its waits, its record."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any, NoReturn, final

from lab import (
    AddressMonitor,
    ArpFrame,
    Frame,
    LabError,
    Namespace,
    Port,
    Sniffer,
    Switch,
    frames,
)

from .device import CAPABILITIES, SLOW_START, About, Device, Machine
from .rows import ANNOUNCE_WAIT, PROBE_NUM
from .verdict import FallsShort, NotApplicable

RIVAL = "02:00:00:00:00:aa"
"""The hardware address of a host that claims the program's address."""
THIRD = "02:00:00:00:00:bb"
OTHER = IPv4Address("169.254.201.7")
"""A link-local address of some other host."""
ROUTABLE = IPv4Interface("10.9.8.7/24")
"""What a DHCP client would set."""
ROUTER = IPv4Address("10.9.8.1")
PATIENCE = 30.0
"""Seconds to wait for an event that must come: long, since the machine may be busy, and never waited out."""
LATE = 0.1
"""Seconds that the scheduler of a busy machine may add to a pause; a stamp itself is the kernel's."""


def seconds(value: float) -> str:
    return f"{value:.3f} s"


def listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)


@final
class Case:
    """The tools of a test. `holds` records what was seen, `short` a difference from the row."""

    def __init__(self, command: str, about: About, folder: Path) -> None:
        self.about = about
        self._command = command
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self.switch = self._stack.enter_context(Switch())
        self.machines: list[Machine] = []
        self.sniffers: list[Sniffer] = []
        self.seen: list[str] = []
        self._since = 0
        self._until: int | None = None

    def close(self) -> None:
        self._stack.close()

    # Machines and hosts

    def machine(self, **settings: Any) -> Machine:
        """Return a machine with one cable; the program is not started. Settings as of `Machine`."""
        made = Machine(self.switch, self._command, self._folder, **settings)
        self._stack.callback(made.close)
        self.machines.append(made)
        self.sniffers.append(made.port.sniffer)
        return made

    def second_link(self, machine: Machine) -> Port:
        """Return a cable from the machine, where it is eth1, to a switch of its own."""
        switch = self._stack.enter_context(Switch())
        port = switch.attach(machine.host, "eth1", plugged=True, mac="02:00:00:00:77:02")
        self.sniffers.append(port.sniffer)
        return port

    def neighbour_host(self, address: str, switch: Switch | None = None) -> Namespace:
        """Return another host, with the kernel's own IPv4, on the case's switch or another. Its interface is eth0."""
        host = self._stack.enter_context(Namespace("neighbour"))
        port = (switch or self.switch).attach(host, plugged=True, sniff=False, mac=THIRD)
        host.ip(f"addr add {address} dev {port.name}")
        return host

    # Results

    def holds(self, seen: str) -> None:
        """Record one more thing that was as the row asks for."""
        self.seen.append(seen)

    def short(self, seen: str, *, since: int = 0, until: int | None = None) -> NoReturn:
        """End the case: it falls short. The frames between these stamps prove it (all, if not given)."""
        self._since, self._until = since, until
        raise FallsShort(seen)

    def require(self, true: object, otherwise: str, *, since: int = 0) -> None:
        if not true:
            self.short(otherwise, since=since)

    def needs(self, capability: str) -> str:
        """Return the option for a capability: its name, or "" if the program always does it."""
        if capability in self.about.can:
            return capability
        if capability in self.about.always:
            return ""
        raise NotApplicable(self.about.cannot.get(capability, CAPABILITIES[capability]))

    def evidence(self, most: int = 28) -> list[str]:
        """Return frames and addresses, by time, in seconds since the first one: the beginning and the end."""
        monitors = [machine.monitor for machine in self.machines]
        sources: list[Sniffer | AddressMonitor] = [*self.sniffers, *monitors]
        entries = sorted(entry for source in sources for entry in source.entries())
        if self._until is not None:
            entries = [entry for entry in entries if entry[0] <= self._until]
        recent = [entry for entry in entries if entry[0] >= self._since]
        entries = [entry for entry in recent if "127.0.0.1" not in entry[2]]
        if not entries:
            return []
        start = entries[0][0]
        several = len(self.machines) > 1
        lines = [
            f"{(ns - start) / 1e9:9.3f}  {f'{who} ' if several or who == 'address' else ''}{what}"
            for ns, who, what in entries
        ]
        if len(lines) > most:
            lines[6 : 6 - most + 1] = [f"           ... {len(lines) - most + 1} more"]
        return lines

    # Waiting for the program

    def claim(self, machine: Machine, **settings: Any) -> IPv4Address:
        """Start the program and wait for its first announcement; return the address."""
        since = machine.port.sniffer.mark()
        device = machine.start(**settings)
        return self.claimed(machine, since=since, device=device)

    def claimed(
        self,
        machine: Machine,
        *,
        since: int = 0,
        other_than: IPv4Address | None = None,
        timeout: float = SLOW_START,
        device: Device | None = None,
    ) -> IPv4Address:
        """Wait for the first link-local address announced after the mark, and until the interface has it; return it."""
        sniffer = machine.port.sniffer
        until = time.monotonic() + timeout
        while True:
            with contextlib.suppress(LabError):
                address = sniffer.wait_for(
                    lambda f: gratuitous(f) and f.spa != other_than, min(1, timeout), since=since
                ).spa
                break
            if device is not None and not device.running:
                last = f": {device.lines[-1]}" if device.lines else ""
                self.short(f"the program ended with status {device.status}{last}")
            if time.monotonic() > until:
                what = "no address" if other_than is None else "no other address"
                self.short(f"{what} announced within {timeout:.0f} s")
        self.until(
            lambda: address in machine.link_local(),
            f"{address} announced, but not on the interface",
        )
        return address

    def settled(self, machine: Machine, **settings: Any) -> IPv4Address:
        """Do as `claim`, and wait until the announcements are over: from then on there should be silence."""
        since = machine.port.sniffer.mark()
        address = self.claim(machine, **settings)
        self.quiet(machine, since=since)
        return address

    def quiet(self, machine: Machine, *, since: int = 0, pause: float = 2.6) -> None:
        """Wait until no announcement has come for `pause` seconds; at most 30."""
        sniffer = machine.port.sniffer
        until = time.monotonic() + 30
        while time.monotonic() < until:
            number = sum(map(gratuitous, sniffer.arp(since)))
            time.sleep(pause)
            if sum(map(gratuitous, sniffer.arp(since))) == number:
                return

    def until(self, true: Callable[[], object], otherwise: str, timeout: float = PATIENCE) -> None:
        """Wait until it is true; the case falls short if it does not become so."""
        end = time.monotonic() + timeout
        while not true():
            if time.monotonic() > end:
                self.short(f"{otherwise} (waited {timeout:.0f} s)")
            time.sleep(0.02)

    def probe(self, machine: Machine, what: str = "no probe", **settings: Any) -> ArpFrame:
        """Wait for the next probe after `since`; settings as of `Sniffer.wait_for`."""
        timeout = settings.pop("timeout", SLOW_START)
        other = settings.pop("other_than", None)
        try:
            return machine.port.sniffer.wait_for(
                lambda f: f.is_probe and f.tpa != other, timeout, **settings
            )
        except LabError:
            self.short(f"{what} within {timeout:.0f} s")

    def wait(
        self,
        machine: Machine,
        wanted: Callable[[ArpFrame], bool],
        number: int,
        otherwise: str,
        *,
        since: int = 0,
        timeout: float = PATIENCE,
    ) -> list[ArpFrame]:
        """Wait for so many frames of the machine after the mark; the case falls short if they do not come."""
        try:
            return machine.port.sniffer.wait_count(wanted, number, timeout, since=since)
        except LabError:
            self.short(f"{otherwise} (waited {timeout:.0f} s)")

    def probes(self, machine: Machine, address: IPv4Address, since: int = 0) -> list[ArpFrame]:
        """Return the probes for the address that came before its first announcement, after the mark."""
        first = machine.port.sniffer.wait_for(
            lambda f: gratuitous(f) and f.spa == address, PATIENCE, since=since
        )
        return [f for f in machine.port.sniffer.probes(address, since) if f.ns < first.ns]

    def probed_again(self, machine: Machine, address: IPv4Address, since: int, why: str) -> int:
        """Check that the address is probed after the mark, and not used before; return the stamp of the claim's end."""
        sniffer = machine.port.sniffer
        try:
            sniffer.wait_count(
                lambda f: f.is_probe and f.tpa == address, PROBE_NUM, 20, since=since
            )
        except LabError:
            number = len(sniffer.probes(address, since))
            self.short(f"{why}: {number or 'no'} probes for {address} within 20 s")
        last = sniffer.probes(address, since)[PROBE_NUM - 1]
        end = last.ns + round((ANNOUNCE_WAIT - LATE) * 1e9)
        early = [f for f in sniffer.arp(since) if f.spa == address and f.ns < end]
        if early:
            self.short(f"{why}: {address} is used before its claim is over: {early[0]}")
        return end

    # Traffic of the machine, and towards it

    def conflict(self, port: Port, address: IPv4Address, *, reply: bool = False) -> int:
        """Let another host claim the address; return the kernel's stamp."""
        make = frames.conflict_reply if reply else frames.conflict_request
        return port.send_stamped(make(RIVAL, address))

    def ask(self, port: Port, address: IPv4Address, *, spa: IPv4Address = OTHER) -> int:
        """Let a neighbour ask for the address by ARP; return the kernel's stamp."""
        return port.send_stamped(frames.arp(frames.REQUEST, sha=THIRD, spa=spa, tpa=address))

    def answered(
        self, machine: Machine, address: IPv4Address, since: int, timeout: float = 5
    ) -> ArpFrame | None:
        """Wait for the machine's first frame after the mark that announces or answers for the address."""
        with contextlib.suppress(LabError):
            return machine.port.sniffer.wait_for(
                lambda f: f.spa == address and f.sha == machine.port.mac, timeout, since=since
            )
        return None

    def asked_for(
        self, machine: Machine, destination: IPv4Address, *expected: IPv4Address
    ) -> ArpFrame | None:
        """Send a datagram; return the first ARP request for one of the expected addresses, None if there is none."""
        since = machine.port.sniffer.mark()
        try:
            machine.host.send_udp(destination)
        except OSError:
            return None
        with contextlib.suppress(LabError):
            return machine.port.sniffer.wait_for(
                lambda f: f.op == frames.REQUEST and f.tpa in expected, 4, since=since
            )
        return None


def gratuitous(frame: ArpFrame) -> bool:
    """Return whether the frame claims a link-local address for its sender; how well it does so is another row."""
    return frame.spa == frame.tpa and frame.spa.is_link_local


def after(seen: Sequence[ArpFrame], ns: int) -> list[ArpFrame]:
    return [frame for frame in seen if frame.ns > ns]


def gaps_text(seen: Sequence[Frame]) -> str:
    return listed([seconds(gap) for gap in frames.gaps(seen)])


@contextlib.contextmanager
def connection(
    machine: Machine, address: IPv4Address, peer: Namespace, theirs: str
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open a TCP connection from the machine's link-local address to the peer; return (our end, their end)."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.closing(peer.call(socket.socket)))
        server.bind((theirs, 3927))
        server.listen()
        server.settimeout(PATIENCE)
        ours = stack.enter_context(contextlib.closing(machine.host.call(socket.socket)))
        ours.settimeout(PATIENCE)
        ours.bind((str(address), 0))
        ours.connect((theirs, 3927))
        their_end, _ = server.accept()
        stack.enter_context(contextlib.closing(their_end))
        their_end.settimeout(PATIENCE)
        yield ours, their_end
