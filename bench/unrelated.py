"""ARP requests about other addresses: they must cost nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

from lab import Namespace
from lab.frames import arp
from lab.peers import AvahiAutoipd, Networkd

from . import cables
from .cables import Cable
from .costs import Cost, cost
from .report import Result, Target, number
from .setting import STRANGER, Setting, autoip, helper, optional

NAME = "unrelated"

REQUESTS = 300_000
FLOODS = 5


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
        more = _program(setting, enter, flood, question, result)
        rounds = [row("autoip", ours[0], lambda: [daemon.pid]) for _ in range(2)]
        # Avahi's has a helper process; the shell around it sleeps.
        if avahi is not None:
            row("avahi-autoipd", theirs[0], theirs[0].host.processes)
        if networkd is not None:
            row("systemd-networkd", others[0], others[0].host.processes)
    result.targets = [
        Target("wake-ups of autoip", 0, max(spent.wakeups for spent in rounds), ""),
        Target("CPU of autoip", 0, max(spent.cpu for spent in rounds) * 1e3, "ms"),
        Target("the program at the ingress, for each frame", 100, more, "ns"),
    ]
    result.notes = [
        (
            "Wake-ups: voluntary context switches of all threads; CPU: their run time as the scheduler counts"
            " it, in ns. autoip: two floods, both shown, the worse one counts."
        ),
        (
            "The program at the ingress: floods of the same frames to a process with the kernel's defence and to"
            " one without, in turn; the difference of the medians."
        ),
    ]
    return result


def _program(
    setting: Setting,
    enter: Callable[[AbstractContextManager[Any]], Any],
    flood: str,
    question: str,
    result: Result,
) -> float:
    """How much longer a frame takes with the kernel's defence, in nanoseconds."""
    yonder = enter(Namespace("far"))
    took: dict[str, list[float]] = {"without": [], "with": []}
    ends = {}
    for name, options in (("without", ()), ("with", ("--kernel",))):
        [cable] = cables.lay(yonder, enter(Namespace(name)))
        words = (cable.name, cable.raw_mac.hex(), "169.254.77.1", *options)
        enter(helper(setting, cable, "reflex", *words))
        ends[name] = cable
    for _ in range(FLOODS):
        for name, cable in ends.items():
            ran = cable.yonder.run(flood, cable.far, question, str(REQUESTS), timeout=120)
            took[name].append(int(ran) / REQUESTS)
    found = {name: median(times) for name, times in took.items()}
    result.numbers["program"] = {f"{name}_ns": time for name, time in found.items()}
    return found["with"] - found["without"]
