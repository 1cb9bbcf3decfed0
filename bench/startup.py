"""From exec to the first probe, and to the address."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

from lab import AddressMonitor, LabError, Namespace
from lab.daemon import REPOSITORY
from lab.peers import AvahiAutoipd

from . import cables, samples
from .cables import Cable
from .report import Result, Target, number
from .setting import Setting, autoip, peer
from .tap import Tap

NAME = "startup"

DELAY_MS = 1
PROBE_PHASE_MS = DELAY_MS / 2 * 2 + DELAY_MS
"""The least rest of the probe phase after the first probe: two gaps of PROBE_MIN, then ANNOUNCE_WAIT."""


def measure(setting: Setting) -> Result:
    result = Result(NAME, "start (milliseconds)", ("", "starts", "min", "median", "p90", "max"))
    found: dict[str, list[float]] = {}

    def note(name: str, value: float | None) -> None:
        found.setdefault(name, []).extend([] if value is None else [value])

    with contextlib.ExitStack() as stack:
        yonder = stack.enter_context(Namespace("far"))
        ours = cables.cable(yonder, stack.enter_context(Namespace("autoip")))
        tap = stack.enter_context(Tap(ours))
        # The first start writes the byte code of the modules.
        _start(setting, ours, tap)
        for index in range(setting.times(25, 5)):
            first, rest = _start(setting, ours, tap)
            note("autoip: exec to first probe", first)
            note("autoip: first probe to address", rest)
            note("python -c pass", _run(setting, "pass"))
            note("python -c 'import asyncio'", _run(setting, "import asyncio"))
            note("python -c 'import pyroute2'", _run(setting, "import pyroute2"))
            if index < setting.times(8, 2):
                note("avahi-autoipd: exec to first probe", _start_avahi(setting, yonder))
    for name, values in found.items():
        shares = (number(samples.quantile(values, share)) for share in (0.0, 0.5, 0.9, 1.0))
        result.rows.append((name, str(len(values)), *shares))
        result.numbers[name] = samples.summary(values)
    result.targets = _targets(found)
    result.notes = [
        (
            f"autoip runs with --delay {DELAY_MS}: PROBE_WAIT is at most {DELAY_MS / 2} ms, and the probe phase"
            f" needs at least {number(PROBE_PHASE_MS)} ms more after the first probe. The clock starts before the"
            " fork; the probe has the kernel's stamp, the address the time at which a netlink listener read"
            " of it."
        ),
        (
            "avahi-autoipd draws its PROBE_WAIT from 0 to 1000 ms, and a shell that mounts its files comes"
            " before it (some 10 ms)."
        ),
    ]
    return result


def _start(setting: Setting, cable: Cable, tap: Tap) -> tuple[float | None, float | None]:
    """Return milliseconds from exec to the first probe, and from that to the address."""
    tap.read()
    daemon = autoip(setting, [cable], "--delay", str(DELAY_MS))
    with AddressMonitor(cable.host) as monitor, daemon:
        daemon.start(die_with_us=False)
        try:
            probe = tap.wait(lambda frame: frame.is_probe, 10)
            added, _, _ = monitor.wait_for(lambda new, entry: new and entry.link_local, 10)
        except LabError:
            return None, None
        daemon.stop()
    if probe is None:
        return None, None
    return (probe.ns - daemon.started_ns) / 1e6, (added - probe.ns) / 1e6


def _start_avahi(setting: Setting, yonder: Namespace) -> float | None:
    # A namespace for each start: the pid file that a killed one leaves would stop the next.
    with Namespace("avahi") as host:
        cable = cables.cable(yonder, host)
        try:
            process = peer(setting, AvahiAutoipd, [cable])
        except LabError:
            return None
        with Tap(cable) as tap, process:
            process.start(die_with_us=False)
            probe = tap.wait(lambda frame: frame.is_probe, 10)
            process.kill()
        return None if probe is None else (probe.ns - process.started_ns) / 1e6


def _run(setting: Setting, code: str) -> float:
    start = time.monotonic()
    subprocess.run(setting.command(sys.executable, "-c", code), cwd=REPOSITORY, check=True)
    return (time.monotonic() - start) * 1e3


def _targets(found: dict[str, list[float]]) -> list[Target]:
    first = found["autoip: exec to first probe"]
    rest = [value - PROBE_PHASE_MS for value in found["autoip: first probe to address"]]
    return [
        Target("exec to first probe, median", 350, samples.median(first), "ms"),
        Target("exec to first probe, p90", 350, samples.quantile(first, 0.9), "ms"),
        Target("address, beyond the probe phase, median", 10, samples.median(rest), "ms"),
        Target("address, beyond the probe phase, p90", 10, samples.quantile(rest, 0.9), "ms"),
    ]
