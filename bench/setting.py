"""The settings of all benchmarks, and the start of the measured programs."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from lab import Daemon, LabError, Namespace, Port, python_for_all
from lab.peers import Peer

from .cables import Cable
from .native import Workshop

AUTOIP = (sys.executable, "-m", "autoip")
PROCESSORS = sorted(os.sched_getaffinity(0))
LAST_PROCESSOR = PROCESSORS[-1]
FIRST = ("chrt", "--fifo", "20", "taskset", "--cpu-list", str(LAST_PROCESSOR))
"""Before a command that goes before all others, on the processor of the programs that run `apart`."""
STRANGER = "02:00:00:00:00:fe"
"""Hardware address of the neighbour that disputes and asks."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How to measure.

    Attributes:
        quick: fewer samples and shorter pauses: a glimpse, not a measurement.
        workshop: compiled programs.
        rng: the order of what alternates.
        realtime: every measured program, on each side, goes before all other work of the machine.
    """

    quick: bool
    workshop: Workshop
    rng: random.Random
    realtime: bool = False

    def times(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def command(self, *words: str, apart: bool = False) -> list[str]:
        """Return the words of a measured program's command; `apart`: on a processor of its own, see `step_aside`."""
        realtime = ["chrt", "--fifo", "10"] if self.realtime else []
        pinned = ["taskset", "--cpu-list", str(LAST_PROCESSOR)] if apart else []
        return [*realtime, *pinned, *words]


@contextlib.contextmanager
def step_aside() -> Iterator[None]:
    """Leave a processor to the programs that run `apart`, if there are two.

    If the scheduler chooses, a program's latency has two humps, woken up on the sender's processor or
    on another one, and chance decides which program gets which.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def autoip(setting: Setting, cables: Sequence[Cable], *options: str, apart: bool = False) -> Daemon:
    """Return autoip on all these cables in one process, not started yet.

    The first start writes the byte code, which an installed program has.
    """
    names = [cable.name for cable in cables]
    words = (*python_for_all(), "-m", "autoip", *names, *options)
    command = setting.command(*words, apart=apart)
    return Daemon(cables[0].host, names[0], command, env={"PYTHONDONTWRITEBYTECODE": ""})


def peer(
    setting: Setting, kind: type[Peer], cables: Sequence[Cable], *, apart: bool = False
) -> Peer:
    """Return another program on these cables, not started yet. Raises LabError if it is not installed."""
    # A peer uses only a port's host and name; these programs take several names as well.
    ends = Ends(cables[0].host, " ".join(cable.name for cable in cables))
    process = kind(cast("Port", ends))
    process.command = setting.command(*process.command, apart=apart)
    return process


@dataclass(frozen=True, slots=True)
class Ends:
    """The host's ends of some cables."""

    host: Namespace
    name: str


def helper(
    setting: Setting,
    cable: Cable,
    module: str,
    *arguments: str,
    apart: bool = False,
    prefix: Sequence[str] = (),
) -> Daemon:
    """Start a process of the benchmarks' own in a namespace; it runs once it has printed "ready".

    Args:
        setting: how to measure.
        cable: its interface is the process's.
        module: of this package.
        arguments: of the process.
        apart: see `Setting.command`.
        prefix: a command that runs the process.
    """
    words = (*prefix, sys.executable, "-m", f"bench.{module}", *arguments)
    process = Daemon(cable.host, cable.name, setting.command(*words, apart=apart))
    process.start()
    process.wait_line("^ready$", 20)
    return process


@contextlib.contextmanager
def optional(
    setting: Setting, kind: type[Peer], cables: Sequence[Cable], *, apart: bool = False
) -> Iterator[Peer | None]:
    """Do as `peer`, and start it; None if it is not installed: then the table lacks it."""
    try:
        process = peer(setting, kind, cables, apart=apart)
    except LabError:
        yield None
        return
    with process:
        process.start()
        yield process
