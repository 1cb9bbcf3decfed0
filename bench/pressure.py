"""The defence on a busy machine, and while the program is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

from autoip.core.constants import DEFEND_INTERVAL
from lab.peers import Dhcpcd, Networkd

from .costs import cost
from .report import Result, Target
from .setting import PROCESSORS, Setting, step_aside
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

NAME = "pressure"

BUSY_PROCESSES = 2
"""On each processor."""
PATIENCE = {"idle": 2.0, "busy": 2.0, "stopped": 0.2}
"""Seconds to wait for an answer."""
PRIORITY = 30
"""Of the neighbour, which is another host in truth: this host's work does not delay what it sends."""


def measure(setting: Setting) -> Result:
    result = Result(
        NAME,
        "defence latency, idle, on busy processors, and by a program that is stopped (microseconds)",
        HEAD,
    )
    # A program under SCHED_FIFO would not notice the busy ones.
    setting = replace(setting, realtime=False)
    with contextlib.ExitStack() as stack:
        programs = Programs(setting, stack)
        with step_aside():
            bench = _Bench(setting, programs)
            with _without_delay():
                bench.run()
    for sides in bench.sides.values():
        for side in sides:
            result.rows.append(side.row())
            result.numbers[side.name] = side.numbers()
    result.numbers["share of the busy processes"] = bench.shares
    result.targets = bench.targets()
    result.notes = [
        (
            f"Busy: {BUSY_PROCESSES} processes at nice -20 on each processor, which had"
            f" {min(bench.shares):.0%} to {max(bench.shares):.0%} of all processors. Stopped: SIGSTOP, all but the"
            " bare loops; then each interface is disputed once. Idle, busy and stopped alternate, as do the"
            " sides within each."
        ),
        (
            "Kernel, armed again: a process of the benchmarks' own, so that there are many samples; it is stopped as"
            " well. The others are whole programs, many interfaces in one process, each disputed once in 10 s"
            " or more. avahi-autoipd is not here: it gives its address up at the first conflict."
        ),
        (
            "Kernel time stamps at the neighbour's end of the veth pair. The neighbour is under SCHED_FIFO, as"
            " another host would not wait for the busy ones; its conflict is handled as the frame of a"
            " real interface is, by the kernel before any process."
        ),
        f"Unanswered: within {PATIENCE['busy']:g} s; stopped, within {PATIENCE['stopped']:g} s.",
    ]
    return result


class _Bench:
    """The programs side by side, in three conditions."""

    def __init__(self, setting: Setting, programs: Programs) -> None:
        self._setting = setting
        count, theirs = setting.times(INTERFACES, 10), setting.times(PEER_INTERFACES, 10)
        # The bare loops are first.
        self._armed = [
            programs.bare("bare loop"),
            programs.reflex("kernel, armed again", "--kernel"),
        ]
        daemons = [
            programs.autoip("autoip", count),
            programs.peer(Networkd, theirs),
            programs.networkmanager(theirs),
            programs.peer(Dhcpcd, theirs),
        ]
        programs.settle(daemons)
        self._rarely = [
            programs.bare("bare loops, as rarely", count),
            *(side for side in daemons if side.laid),
        ]
        self.sides = {
            condition: [self._under(condition, side) for side in (*self._armed, *self._rarely)]
            for condition in PATIENCE
        }
        self.shares: list[float] = []
        """Of the processors' time, that the busy processes had, in each round."""

    def _under(self, condition: str, side: Side) -> Side:
        return replace(side, name=f"{side.name}, {condition}", found=[], unanswered=0)

    def run(self) -> None:
        conditions: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "idle": contextlib.nullcontext,
            "busy": lambda: _busy_processors(self.shares),
            "stopped": self._stopped,
        }
        for _ in range(self._setting.times(4, 1)):
            for name, condition in conditions.items():
                self._round(name, condition())

    def _round(self, name: str, condition: AbstractContextManager[None]) -> None:
        sides = self.sides[name]
        armed, rarely = sides[: len(self._armed)], sides[len(self._armed) :]
        with condition:
            dispute_each(self._setting, rarely, PATIENCE[name])
            disputed = time.monotonic()
            alternate(self._setting, armed, self._setting.times(300, 100), PATIENCE[name])
        if name == "stopped":  # they may answer only now
            disputed = time.monotonic()
        time.sleep(max(0.0, disputed + DEFEND_INTERVAL + 0.5 - time.monotonic()))

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        """Stop all programs but the bare loops, with their helpers."""
        hosts = [side.laid[0].host for side in (*self._armed[1:], *self._rarely[1:])]
        stopped = [pid for host in hosts for pid in host.processes()]
        try:
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    def targets(self) -> list[Target]:
        of = {side.name: side for sides in self.sides.values() for side in sides}
        found = []
        for name in ("kernel, armed again", "autoip"):
            idle, busy = of[f"{name}, idle"], of[f"{name}, busy"]
            ratio = busy.quantile(0.99) / idle.quantile(0.5)
            found.append(Target(f"{name}: busy, p99, to idle, median", 2.0, ratio, "times"))
        late = sum(of[f"autoip, {name}"].unanswered for name in ("idle", "busy"))
        found.append(Target("autoip, idle and busy: unanswered", 0, late, ""))
        stopped = of["autoip, stopped"]
        found.append(Target("autoip, stopped: unanswered", 0, stopped.unanswered, ""))
        bare = of["bare loops, as rarely, idle"]
        return found + against_bare("autoip, stopped", stopped, bare)


@contextlib.contextmanager
def _busy_processors(shares: list[float]) -> Iterator[None]:
    """Keep all processors busy; append the share of their time that the busy processes had."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for processor in PROCESSORS:
            command = ["taskset", "--cpu-list", str(processor), "nice", "-n", "-20"]
            for _ in range(BUSY_PROCESSES):
                words = ["setpriv", "--pdeathsig", "KILL", *command, sys.executable, "-c", BUSY]
                processes.append(subprocess.Popen(words, stdout=subprocess.PIPE))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        pids = [process.pid for process in processes]
        start, before = time.monotonic(), cost(pids)
        yield
        spent, took = cost(pids) - before, time.monotonic() - start
        shares.append(spent.cpu / took / len(PROCESSORS))
    finally:
        for process in processes:
            process.kill()
            process.communicate()


BUSY = "print(flush=True)\nwhile True: pass"


@contextlib.contextmanager
def _without_delay() -> Iterator[None]:
    """Put this process, the neighbour, before all others."""
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
