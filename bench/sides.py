"""The programs whose defence is measured, each on cables of its own, and their samples."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from lab import Daemon, LabError, Namespace, NetworkManager, SystemBus, machine
from lab.frames import announcement, conflict_request
from lab.peers import Peer

from . import cables, samples
from .cables import Cable
from .report import Target, number
from .setting import STRANGER, Setting, autoip, helper, peer
from .tap import Tap

INTERFACES = 50
PEER_INTERFACES = 25
"""Of autoip, and of each other daemon."""
FIRST_ADDRESS = IPv4Address("169.254.77.1")
REST = 0.006
"""Pause between two samples, in seconds, so that a program's work after its answer is in no sample."""
HEAD = ("", "samples", "unanswered", "median", "p90", "p99")


@dataclass(slots=True)
class Side:
    """One program, its cables and its samples, in microseconds.

    Attributes:
        laid: its cables; none if the program is not installed.
    """

    name: str
    laid: list[Cable]
    taps: list[Tap] = field(default_factory=list)
    addresses: list[IPv4Address] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    unanswered: int = 0

    def sample(self, number: int, timeout: float = 0.2) -> None:
        """Dispute the address of one of the cables; wait at most `timeout` seconds for the answer."""
        tap = self.taps[number % len(self.taps)]
        address = self.addresses[number % len(self.taps)]
        latency = tap.exchange(conflict_request(STRANGER, address), address, timeout)
        if latency is None:
            self.unanswered += 1
        else:
            self.found.append(latency * 1e6)
        time.sleep(REST)

    def quantile(self, share: float) -> float:
        return samples.quantile(self.found, share)

    def row(self) -> tuple[str, ...]:
        shares = (number(self.quantile(share)) for share in (0.5, 0.9, 0.99))
        return (self.name, str(len(self.found)), str(self.unanswered), *shares)

    def numbers(self) -> dict[str, float]:
        """Return the statistics for --json."""
        return {**samples.summary(self.found), "unanswered": self.unanswered}


class Programs:
    """Starts the programs.

    Args:
        setting: how to measure.
        stack: ends them.
    """

    def __init__(self, setting: Setting, stack: contextlib.ExitStack) -> None:
        self._setting = setting
        self._stack = stack
        self._yonder = stack.enter_context(Namespace("far"))

    def lay(self, count: int, hint: str) -> list[Cable]:
        """Make the cables of a host of its own."""
        host = self._stack.enter_context(Namespace(hint))
        return cables.lay(self._yonder, host, count)

    def bare(self, name: str, count: int = 1, *, apart: bool = True) -> Side:
        """Start bare loops, a process for each cable."""
        side = Side(name, self.lay(count, "bare"))
        self._own(side)
        for cable, address in zip(side.laid, side.addresses, strict=True):
            answer = announcement(cable.mac, address).hex()
            words = (self._setting.workshop.program("bare_loop"), cable.name, answer)
            command = self._settings(apart).command(*words, apart=apart)
            process = self._start(Daemon(cable.host, cable.name, command))
            process.wait_line("^ready$")
        return side

    def reflex(
        self, name: str, *options: str, laid: list[Cable] | None = None, apart: bool = True
    ) -> Side:
        """Start the helper in a process of its own, see bench/reflex.py."""
        side = Side(name, laid or self.lay(1, "helper"))
        self._own(side)
        [cable], [address] = side.laid, side.addresses
        words = (cable.name, cable.raw_mac.hex(), str(address), *options)
        process = helper(self._settings(apart), cable, "reflex", *words, apart=apart)
        self._stack.enter_context(process)
        return side

    def autoip(self, name: str, count: int) -> Side:
        """Start autoip, one process for all cables."""
        side = Side(name, self.lay(count, "autoip"))
        words = ("--delay", "20", "--no-state")
        self._start(autoip(self._setting, side.laid, *words, apart=True))
        return side

    def peer(self, kind: type[Peer], count: int) -> Side:
        """Start another program, one process for all cables, if it is installed."""
        laid = self.lay(count, "peer")
        try:
            process = peer(self._setting, kind, laid, apart=True)
        except LabError:
            return Side(kind.program, [])
        self._start(process)
        return Side(kind.program, laid)

    def networkmanager(self, count: int) -> Side:
        """Start NetworkManager, if it is installed."""
        laid = self.lay(count, "nm")
        host = laid[0].host
        machine.give_own_files(host)
        try:
            bus = self._stack.enter_context(SystemBus(host))
            manager = self._stack.enter_context(NetworkManager(host))
        except LabError:
            return Side("NetworkManager", [])
        bus.start()
        manager.command = self._setting.command(*manager.command, apart=True)
        manager.start()
        for cable in laid:
            manager.add_profile(cable.name, ipv4__method="link-local", ipv6__method="disabled")
        return Side("NetworkManager", laid)

    def settle(self, sides: list[Side]) -> None:
        """Wait until the programs that choose their addresses have them. Raises LabError."""
        for side in sides:
            if side.laid:
                held = cables.wait_held(side.laid, 60)
                side.addresses = [held[cable.name] for cable in side.laid]
                self._tap(side)
        # The second announcement must not be taken for an answer.
        time.sleep(4)

    def _start(self, process: Daemon) -> Daemon:
        self._stack.enter_context(process)
        process.start()
        return process

    def _tap(self, side: Side) -> None:
        side.taps = [self._stack.enter_context(Tap(cable)) for cable in side.laid]

    def _own(self, side: Side) -> None:
        """Put an address on each interface, as the daemons do.

        The kernel reads an ARP frame before the sockets get it, and has more to do with an address.
        """
        side.addresses = [FIRST_ADDRESS + index for index in range(len(side.laid))]
        lines = [
            f"addr add {address}/16 dev {cable.name} scope link\n"
            for cable, address in zip(side.laid, side.addresses, strict=True)
        ]
        side.laid[0].host.run("ip", "-batch", "-", stdin="".join(lines))
        self._tap(side)

    def _settings(self, apart: bool) -> Setting:
        # A busy program that goes before all others, or that shares the other's one processor, measures nothing.
        return self._setting if apart else replace(self._setting, realtime=False)


def alternate(setting: Setting, sides: list[Side], count: int, timeout: float = 0.2) -> None:
    """Measure each side `count` times, in a new order each time."""
    for index in range(count):
        for side in setting.rng.sample(sides, len(sides)):
            side.sample(index, timeout)


def dispute_each(setting: Setting, sides: list[Side], timeout: float = 0.2) -> None:
    """Measure each cable of each side once, in turn."""
    for index in range(max(len(side.taps) for side in sides)):
        now = [side for side in sides if index < len(side.taps)]
        for side in setting.rng.sample(now, len(now)):
            side.sample(index, timeout)


def against_bare(name: str, side: Side, bare: Side) -> list[Target]:
    """Return the targets of a defence by the kernel, beside the bare loop."""
    return [
        Target(
            f"{name}, {word}, to bare loop, median",
            limit,
            side.quantile(share) / bare.quantile(0.5),
            "times",
        )
        for word, share, limit in (("median", 0.5, 0.35), ("p99", 0.99, 0.6))
    ]
