"""Defence latency: from the conflict on the wire to the announcement on the wire."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from lab import Daemon, Namespace
from lab.frames import announcement, conflict_request
from lab.peers import Networkd

from . import cables, samples
from .cables import Cable
from .report import Result, Target, number
from .setting import STRANGER, Setting, autoip, helper, optional, step_aside
from .tap import Tap

NAME = "defence"

INTERFACES = 50
PEER_INTERFACES = 25
DEFEND_INTERVAL = 10.0
"""RFC 3927 section 9: so long after a conflict the next one is defended against again."""
REST = 0.006
"""Pause between two samples, in seconds, so that a program's work after its answer is in no sample."""
FIRST_ADDRESS = IPv4Address("169.254.77.1")


@dataclass(slots=True)
class Side:
    """One program, its cables and its samples, in seconds."""

    name: str
    taps: list[Tap]
    addresses: list[IPv4Address]
    found: list[float] = field(default_factory=list)
    unanswered: int = 0

    def sample(self, number: int) -> None:
        tap = self.taps[number % len(self.taps)]
        address = self.addresses[number % len(self.taps)]
        latency = tap.exchange(conflict_request(STRANGER, address), address)
        if latency is None:
            self.unanswered += 1
        else:
            self.found.append(latency * 1e6)
        time.sleep(REST)

    def row(self) -> tuple[str, ...]:
        return (
            self.name,
            str(len(self.found)),
            str(self.unanswered),
            *(number(samples.quantile(self.found, share)) for share in (0.5, 0.9, 0.99)),
        )


def measure(setting: Setting) -> Result:
    result = Result(
        NAME,
        "defence latency, conflict on the wire to announcement on the wire (microseconds)",
        ("", "samples", "unanswered", "median", "p90", "p99"),
    )
    with contextlib.ExitStack() as stack:
        yonder = stack.enter_context(Namespace("far"))
        bench = _Bench(setting, stack, yonder)
        with step_aside():
            bench.run()
    for side in bench.sides:
        result.rows.append(side.row())
        result.numbers[side.name] = samples.summary(side.found)
    result.targets = bench.targets()
    result.notes = [
        (
            "Kernel time stamps at the neighbour's end of the veth pair. Bare loop: a C program that only"
            " calls recv() and send(). Sides that stand together alternate sample by sample."
        ),
        (
            "Helper: autoip.kernel.arp_socket in a process of its own, armed again after each defence, because the"
            " daemon defends once in 10 s. Daemon: all of autoip, many interfaces in one process,"
            " each disputed once in 10 s; beside it as many bare loops, disputed as rarely."
        ),
        "The neighbour sends from one processor, the programs run on another one.",
        (
            "Kernel: the same process with the program of csrc/defence.c at the interface's ingress, armed again"
            " after 2 ms; so it is in autoip, once in 10 s, where the kernel can."
        ),
        "Busy: the same helper while its Python code never rests; any processor, no SCHED_FIFO.",
    ]
    return result


class _Bench:
    """The programs side by side."""

    def __init__(self, setting: Setting, stack: contextlib.ExitStack, yonder: Namespace) -> None:
        self._setting = setting
        self._stack = stack
        self._yonder = yonder
        self._interfaces = setting.times(INTERFACES, 10)
        self.bare = self._bare("bare loop (beside the helper)")
        self.helper = self._helper("helper, armed again")
        self.kernel = self._helper("kernel, armed again", "--kernel")
        self.bare_busy = self._bare("bare loop (beside the busy helper)", apart=False)
        self.busy = Side("helper, Python busy", [], [])
        self.kernel_busy = Side("kernel, Python busy", [], [])
        self.bare_daemon = self._bare("bare loops (beside the daemons)", self._interfaces)
        self.daemon = Side("autoip", [], [])
        self.networkd = Side("systemd-networkd", [], [])

    @property
    def sides(self) -> list[Side]:
        every = (
            *(self.bare, self.helper, self.kernel, self.bare_busy, self.busy, self.kernel_busy),
            *(self.bare_daemon, self.daemon, self.networkd),
        )
        return [side for side in every if side.taps]

    # The programs

    def _cables(self, count: int, hint: str) -> list[Cable]:
        host = self._stack.enter_context(Namespace(hint))
        return cables.lay(self._yonder, host, count)

    def _taps(self, laid: list[Cable]) -> list[Tap]:
        return [self._stack.enter_context(Tap(cable)) for cable in laid]

    def _bare(self, name: str, count: int = 1, *, apart: bool = True) -> Side:
        laid = self._cables(count, "bare")
        addresses = self._own(laid)
        for cable, address in zip(laid, addresses, strict=True):
            self._start_bare(cable, address, apart=apart)
        return Side(name, self._taps(laid), addresses)

    def _own(self, laid: list[Cable]) -> list[IPv4Address]:
        """Put an address on each interface, as the daemons do.

        The kernel reads an ARP frame before the sockets get it, and has more to do with an address.
        """
        addresses = [FIRST_ADDRESS + index for index in range(len(laid))]
        lines = [
            f"addr add {address}/16 dev {cable.name} scope link\n"
            for cable, address in zip(laid, addresses, strict=True)
        ]
        laid[0].host.run("ip", "-batch", "-", stdin="".join(lines))
        return addresses

    def _start_bare(self, cable: Cable, address: IPv4Address, *, apart: bool) -> None:
        answer = announcement(cable.mac, address).hex()
        words = (self._setting.workshop.program("bare_loop"), cable.name, answer)
        command = self._settings(apart).command(*words, apart=apart)
        process = self._stack.enter_context(Daemon(cable.host, cable.name, command))
        process.start()
        process.wait_line("^ready$")

    def _settings(self, apart: bool) -> Setting:
        # A busy program that goes before all others, or that shares the other's one processor, measures nothing.
        return self._setting if apart else replace(self._setting, realtime=False)

    def _helper(self, name: str, *options: str, apart: bool = True) -> Side:
        laid = self._cables(1, "helper")
        cable = laid[0]
        address = self._own(laid)[0]
        arguments = (cable.name, cable.raw_mac.hex(), str(address), *options)
        self._stack.enter_context(
            helper(self._settings(apart), cable, "reflex", *arguments, apart=apart)
        )
        return Side(name, self._taps(laid), [address])

    def _start_daemons(self) -> None:
        laid = self._cables(self._interfaces, "autoip")
        daemon = autoip(self._setting, laid, "--delay", "20", "--no-state", apart=True)
        self._stack.enter_context(daemon)
        daemon.start()
        theirs = self._cables(self._setting.times(PEER_INTERFACES, 10), "networkd")
        networkd = self._stack.enter_context(optional(self._setting, Networkd, theirs, apart=True))
        self._use(self.daemon, laid)
        if networkd is not None:
            self._use(self.networkd, theirs)
        # The second announcement must not be taken for an answer.
        time.sleep(4)

    def _use(self, side: Side, laid: list[Cable]) -> None:
        held = cables.wait_held(laid, 45)
        side.taps = self._taps(laid)
        side.addresses = [held[cable.name] for cable in laid]

    # The samples

    def _alternate(self, sides: list[Side], count: int) -> None:
        for index in range(count):
            self._setting.rng.shuffle(sides)
            for side in sides:
                side.sample(index)

    def _defend_each(self) -> None:
        """Measure each interface of each daemon once, in turn, and each bare loop beside them."""
        daemons = [side for side in (self.daemon, self.networkd) if side.taps]
        for index in range(len(self.daemon.taps)):
            now = [side for side in daemons if index < len(side.taps)]
            now.append(self.bare_daemon)
            self._setting.rng.shuffle(now)
            for side in now:
                side.sample(index)

    def run(self) -> None:
        self._start_daemons()
        rounds = self._setting.times(4, 1)
        for index in range(rounds):
            self._defend_each()
            again = time.monotonic() + DEFEND_INTERVAL + 0.5
            self._alternate([self.bare, self.helper, self.kernel], self._setting.times(500, 300))
            if index + 1 < rounds:
                time.sleep(max(0.0, again - time.monotonic()))
        sides = [self.bare_busy]
        for side, options in ((self.busy, ()), (self.kernel_busy, ("--kernel",))):
            busy = self._helper(side.name, "--busy", *options, apart=False)
            side.taps, side.addresses = busy.taps, busy.addresses
            sides.append(side)
        self._alternate(sides, self._setting.times(300, 100))

    def targets(self) -> list[Target]:
        found = []
        for name, side, beside in (
            ("helper to bare loop", self.helper, self.bare),
            ("autoip to bare loop", self.daemon, self.bare_daemon),
            ("autoip to systemd-networkd", self.daemon, self.networkd),
        ):
            limit = 1.0 if beside is self.networkd else 1.1
            for word, share in (("median", 0.5), ("p99", 0.99)):
                ours, theirs = (samples.quantile(s.found, share) for s in (side, beside))
                found.append(Target(f"{name}, {word}", limit, ours / theirs, "times"))
        bare = samples.quantile(self.bare.found, 0.5)
        for word, share, limit in (("median", 0.5, 0.35), ("p99", 0.99, 0.6)):
            ours = samples.quantile(self.kernel.found, share)
            found.append(
                Target(f"kernel, {word}, to bare loop, median", limit, ours / bare, "times")
            )
        return found
