"""The delay of frames: from the time at which the core asked for one to the wire."""

from __future__ import annotations

import contextlib
import sys
import time

from lab import Daemon, Namespace
from lab.frames import probe

from . import cables, samples
from .cables import Cable
from .report import Result, Target, number
from .setting import Setting
from .tap import Tap

NAME = "punctuality"

ALLOWED_MS = 2.0
SHARE = 0.99
CLAIM_S = 4.0
"""A claim with --delay 200 (0.7 s at most) and the second announcement (2 s), and some rest."""


def measure(setting: Setting) -> Result:
    result = Result(
        NAME,
        "frames on the wire after the time that the core asked for (milliseconds)",
        ("", "frames", "median", "p90", "p99", "max", f"within {ALLOWED_MS:g} ms"),
    )
    runs: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        yonder = stack.enter_context(Namespace("far"))
        bare = _Timer(setting, yonder, stack)
        runs["autoip, one interface a process, delay 200"] = _one_each(setting, yonder, bare)
        runs["bare C timer, at the same time"] = bare.late()
        count = setting.times(50, 10)
        runs[f"autoip, {count} interfaces in a process, delay 2000"] = _many(setting, yonder, count)
    for name, late in runs.items():
        within = sum(0 <= value <= ALLOWED_MS for value in late) / len(late) if late else 0.0
        shares = (number(samples.quantile(late, share)) for share in (0.5, 0.9, 0.99, 1.0))
        result.rows.append((name, str(len(late)), *shares, f"{within:.1%}"))
        result.numbers[name] = {**samples.summary(late), "within": within}
        if name.startswith("autoip"):
            result.targets.append(Target(name, 100 * SHARE, 100 * within, "%", at_least=True))
    result.notes = [
        (
            "Probes and announcements. The time asked for is read in the process (CLOCK_BOOTTIME) and carried"
            " over to the clock of the kernel's stamps. A frame before its time would count as missed."
        ),
        "Bare C timer: timerfd and send(), what this machine can do at that moment.",
    ]
    return result


class _Recorded:
    """autoip on some cables, with taps on them and a record of the core's requests."""

    def __init__(
        self, setting: Setting, laid: list[Cable], delay: int, stack: contextlib.ExitStack
    ) -> None:
        self.taps = [stack.enter_context(Tap(cable)) for cable in laid]
        names = [cable.name for cable in laid]
        module = (sys.executable, "-m", "bench.recorder")
        options = ["--delay", str(delay), "--no-state"]
        self.daemon = stack.enter_context(Daemon(laid[0].host, names[0], []))
        self._record = self.daemon.folder / "wishes"
        words = (*module, str(self._record), *names, *options)
        self.daemon.command = setting.command(*words)
        self.daemon.start()

    def late(self) -> list[float]:
        """Return milliseconds from request to wire of every frame: its k-th request belongs to its k-th appearance."""
        wishes: dict[str, list[int]] = {}
        for line in self._record.read_text().splitlines():
            data, wanted, offset = line.split()
            wishes.setdefault(data, []).append(int(wanted) + int(offset))
        found: list[float] = []
        for tap in self.taps:
            for frame in tap.read():
                data = frame.data[:42].hex()
                if frame.from_host and wishes.get(data):
                    found.append((frame.ns - wishes[data].pop(0)) / 1e6)
        return found


def _one_each(setting: Setting, yonder: Namespace, bare: _Timer) -> list[float]:
    """Run several processes, one interface each, that probe again at each request; never two at one time."""
    with contextlib.ExitStack() as stack:
        programs = []
        count = setting.times(8, 3)
        for _ in range(count):
            laid = cables.lay(yonder, stack.enter_context(Namespace("autoip")))
            programs.append(_Recorded(setting, laid, 200, stack))
        for program in programs:
            program.daemon.wait_address(20)
        time.sleep(3)
        bare.start()
        for _ in range(setting.times(4, 1)):
            for program in programs:
                program.daemon.request("refresh")
                time.sleep(CLAIM_S / count)
        time.sleep(CLAIM_S)
        return [late for program in programs for late in program.late()]


def _many(setting: Setting, yonder: Namespace, count: int) -> list[float]:
    """Run one process with many interfaces that start together."""
    with contextlib.ExitStack() as stack:
        laid = cables.lay(yonder, stack.enter_context(Namespace("autoip")), count)
        program = _Recorded(setting, laid, 2000, stack)
        cables.wait_held(laid, 30)
        time.sleep(3)
        return program.late()


class _Timer:
    """The bare timer on a cable of its own."""

    def __init__(self, setting: Setting, yonder: Namespace, stack: contextlib.ExitStack) -> None:
        cable = cables.cable(yonder, stack.enter_context(Namespace("timer")))
        self._tap = stack.enter_context(Tap(cable))
        count = setting.times(200, 50)
        frame = probe(cable.mac, "169.254.77.77").hex()
        program = setting.workshop.program("bare_timer")
        command = setting.command(program, cable.name, frame, str(count), "90")
        self._process = stack.enter_context(Daemon(cable.host, cable.name, command))

    def start(self) -> None:
        self._process.start()

    def late(self) -> list[float]:
        """Return milliseconds from request to wire."""
        self._process.wait(60)
        wanted = [int(line) for line in self._process.lines]
        seen = [frame.ns for frame in self._tap.read() if frame.from_host]
        return [(ns - at) / 1e6 for ns, at in zip(seen, wanted, strict=True)]
