"""What every benchmark is given, and how it starts the program."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from tests.lab import Daemon, LabError, Namespace, Port
from tests.lab.peers import Peer

from .cables import Cable
from .native import Workshop

AUTOIP = (sys.executable, "-m", "autoip")
STRANGER = "02:00:00:00:00:fe"
"""Hardware address of the neighbour that disputes and asks."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How to measure.

    Attributes:
        quick: fewer samples and shorter pauses: a look, not a measurement.
        workshop: compiled programs.
        rng: the order of what alternates.
    """

    quick: bool
    workshop: Workshop
    rng: random.Random

    def times(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def autoip(host: Namespace, cables: Sequence[Cable], *options: str) -> Daemon:
    """The program on all these cables in one process, not started yet."""
    names = [cable.name for cable in cables]
    return Daemon(host, names[0], [*AUTOIP, *names, *options])


def peer(kind: type[Peer], cables: Sequence[Cable]) -> Peer:
    """Another program on these cables, not started yet.  Raises LabError if it is not installed."""
    # All that a peer wants of a port is its host and its name; these take several names as well.
    ends = Ends(cables[0].host, " ".join(cable.name for cable in cables))
    return kind(cast("Port", ends))


@dataclass(frozen=True, slots=True)
class Ends:
    """The host's ends of some cables."""

    host: Namespace
    name: str


def helper(host: Namespace, cable: Cable, module: str, *arguments: str) -> Daemon:
    """A process of the benchmarks' own in a namespace; runs once it has said "ready"."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
    process = Daemon(host, cable.name, command)
    process.start()
    process.wait_line("^ready$", 20)
    return process


@contextlib.contextmanager
def optional(kind: type[Peer], cables: Sequence[Cable]) -> Iterator[Peer | None]:
    """As `peer`, started; None if it is not installed: then the table goes without it."""
    try:
        process = peer(kind, cables)
    except LabError:
        yield None
        return
    with process:
        process.start()
        yield process
