"""Defence latency: from the conflict on the wire to the announcement on the wire."""

from __future__ import annotations

import contextlib
import time

from autoip.core.constants import DEFEND_INTERVAL
from lab.peers import Networkd

from .report import Result, Target
from .setting import Setting, step_aside
from .sides import (
    HEAD,
    INTERFACES,
    PEER_INTERFACES,
    Programs,
    Side,
    against_bare,
    alternate,
    dispute_each,
)

NAME = "defence"


def measure(setting: Setting) -> Result:
    result = Result(
        NAME,
        "defence latency, conflict on the wire to announcement on the wire (microseconds)",
        HEAD,
    )
    with contextlib.ExitStack() as stack:
        bench = _Bench(setting, Programs(setting, stack))
        with step_aside():
            bench.run()
    for side in bench.sides:
        result.rows.append(side.row())
        result.numbers[side.name] = side.numbers()
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

    def __init__(self, setting: Setting, programs: Programs) -> None:
        self._setting = setting
        self._programs = programs
        self._interfaces = setting.times(INTERFACES, 10)
        self.bare = programs.bare("bare loop (beside the helper)")
        self.helper = programs.reflex("helper, armed again")
        self.kernel = programs.reflex("kernel, armed again", "--kernel")
        self.bare_busy = programs.bare("bare loop (beside the busy helper)", apart=False)
        # Made here, where any processor is allowed, and used when all else has been measured.
        self._places = [programs.lay(1, "busy") for _ in range(2)]
        self.busy = Side("helper, Python busy", [])
        self.kernel_busy = Side("kernel, Python busy", [])
        self.bare_daemon = programs.bare("bare loops (beside the daemons)", self._interfaces)
        self.daemon = Side("autoip", [])
        self.networkd = Side(Networkd.program, [])

    @property
    def sides(self) -> list[Side]:
        every = (
            *(self.bare, self.helper, self.kernel, self.bare_busy, self.busy, self.kernel_busy),
            *(self.bare_daemon, self.daemon, self.networkd),
        )
        return [side for side in every if side.taps]

    def run(self) -> None:
        programs = self._programs
        self.daemon = programs.autoip("autoip", self._interfaces)
        self.networkd = programs.peer(Networkd, self._setting.times(PEER_INTERFACES, 10))
        programs.settle([self.daemon, self.networkd])
        rounds = self._setting.times(4, 1)
        for index in range(rounds):
            dispute_each(self._setting, [self.daemon, self.networkd, self.bare_daemon])
            again = time.monotonic() + DEFEND_INTERVAL + 0.5
            count = self._setting.times(500, 300)
            alternate(self._setting, [self.bare, self.helper, self.kernel], count)
            if index + 1 < rounds:
                time.sleep(max(0.0, again - time.monotonic()))
        self.busy, self.kernel_busy = (
            programs.reflex(side.name, "--busy", *options, laid=place, apart=False)
            for side, options, place in zip(
                (self.busy, self.kernel_busy), ((), ("--kernel",)), self._places, strict=True
            )
        )
        sides = [self.bare_busy, self.busy, self.kernel_busy]
        alternate(self._setting, sides, self._setting.times(300, 100))

    def targets(self) -> list[Target]:
        found = []
        for name, side, beside in (
            ("helper to bare loop", self.helper, self.bare),
            ("autoip to bare loop", self.daemon, self.bare_daemon),
            ("autoip to systemd-networkd", self.daemon, self.networkd),
        ):
            limit = 1.0 if beside is self.networkd else 1.1
            for word, share in (("median", 0.5), ("p99", 0.99)):
                ratio = side.quantile(share) / beside.quantile(share)
                found.append(Target(f"{name}, {word}", limit, ratio, "times"))
        return found + against_bare("kernel", self.kernel, self.bare)
