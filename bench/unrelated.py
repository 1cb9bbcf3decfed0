"""ARP requests about other addresses: they must cost nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

from lab import Namespace, tcx
from lab.frames import arp
from lab.peers import AvahiAutoipd, Networkd

from . import cables
from .cables import Cable
from .costs import Cost, cost
from .report import Result, Target, number
from .setting import FIRST, STRANGER, Setting, autoip, helper, optional

NAME = "unrelated"

REQUESTS = 300_000
ADDRESS = "169.254.77.1"
FLOODS, SHORT = 50, 50_000
"""Floods with the programs, and as many without, and the frames of each: many, for the noise of a busy machine."""

NOTES = (
    (
        "Wake-ups: voluntary context switches of all threads; CPU: their run time as the scheduler counts"
        " it, in ns. autoip: two floods, both shown, the worse one counts."
    ),
    (
        f"Both programs: {FLOODS} floods of {SHORT:,} of the same frames to an interface with them, armed, and"
        " to one without, in turn, before all other work of the machine; the median of the differences."
        " Sent: the same frames from that host, whose sender address is a link-local one."
    ),
)


def measure(setting: Setting) -> Result:
    result = Result(
        NAME,
        f"{REQUESTS:,} ARP requests about other addresses, at full speed",
        ("", "wake-ups", "CPU ms", "sent in s", "frames/s"),
    )
    flood = setting.workshop.program("flood")
    question = arp(1, sha=STRANGER, spa="169.254.1.1", tpa="169.254.1.2").hex()

    def row(name: str, cable: Cable, pids: Callable[[], list[int]]) -> Cost:
        before = cost(pids())
        took = int(cable.yonder.run(flood, cable.far, question, str(REQUESTS), timeout=120)) / 1e9
        time.sleep(1)  # the frames that came are processed
        spent = cost(pids()) - before
        cells = (number(spent.wakeups), number(spent.cpu * 1e3), number(took))
        result.rows.append((name, *cells, number(REQUESTS / took)))
        result.numbers[name] = {"wakeups": spent.wakeups, "cpu_s": spent.cpu, "flood_s": took}
        return spent

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        yonder = enter(Namespace("far"))
        ours = cables.lay(yonder, enter(Namespace("autoip")))
        daemon = enter(autoip(setting, ours, "--delay", "20", "--no-state"))
        daemon.start()
        theirs = cables.lay(yonder, enter(Namespace("avahi")))
        avahi = enter(optional(setting, AvahiAutoipd, theirs))
        others = cables.lay(yonder, enter(Namespace("networkd")))
        networkd = enter(optional(setting, Networkd, others))
        for laid, running in ((ours, daemon), (theirs, avahi), (others, networkd)):
            if running is not None:
                cables.wait_held(laid, 30)
        time.sleep(4)  # the announcements are over
        more = _programs(setting, enter, flood, question, result)
        index = ours[0].host.index(ours[0].name)
        there = sum(bool(tcx.links(daemon.pid, index, s)) for s in (tcx.INGRESS, tcx.EGRESS))
        name = f"autoip, {there} BPF programs attached"
        rounds = [row(name, ours[0], lambda: [daemon.pid]) for _ in range(2)]
        # Avahi's has a helper process; the shell around it sleeps.
        if avahi is not None:
            row("avahi-autoipd", theirs[0], theirs[0].host.processes)
        if networkd is not None:
            row("systemd-networkd", others[0], others[0].host.processes)
    result.targets = [
        Target("wake-ups of autoip", 0, max(spent.wakeups for spent in rounds), ""),
        Target("CPU of autoip", 0, max(spent.cpu for spent in rounds) * 1e3, "ms"),
        *(
            Target(f"both programs attached, for each frame {direction}", 100, found, "ns")
            for direction, found in more.items()
        ),
    ]
    result.notes = [*NOTES]
    return result


def _programs(
    setting: Setting,
    enter: Callable[[AbstractContextManager[Any]], Any],
    flood: str,
    question: str,
    result: Result,
) -> dict[str, float]:
    """How much longer a frame takes with both BPF programs, in nanoseconds, by direction."""
    yonder = enter(Namespace("far"))
    without, with_both = cables.lay(yonder, enter(Namespace("programs")), 2)
    words = (without.name, without.raw_mac.hex(), ADDRESS)
    enter(helper(setting, without, "reflex", *words))
    words = (with_both.name, with_both.raw_mac.hex(), ADDRESS)
    enter(helper(setting, with_both, "attached", *words, "stays"))
    more = {}
    for direction in ("received", "sent"):
        took: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(FLOODS):
            for name, cable in (("without", without), ("with", with_both)):
                host, interface = (
                    (yonder, cable.far) if direction == "received" else (cable.host, cable.name)
                )
                command = (*FIRST, flood, interface, question, str(SHORT))
                took[name].append(int(host.run(*command, timeout=120)) / SHORT)
        # Of two floods one after the other: what else the machine does changes more slowly.
        pairs = zip(took["with"], took["without"], strict=True)
        more[direction] = median(one - other for one, other in pairs)
        found = {f"{name}_ns": median(times) for name, times in took.items()}
        result.numbers[f"programs, {direction}"] = {**found, "more_ns": more[direction]}
    return more
