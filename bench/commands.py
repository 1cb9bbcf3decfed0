"""The commands that a script calls: their duration, and the cost of many of them for the defence."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import time
from collections.abc import Iterator

from autoip.core.constants import DEFEND_INTERVAL
from lab import Daemon, Namespace, answers_probes
from lab.daemon import REPOSITORY
from lab.frames import conflict_request
from lab.neighbour import Neighbour

from . import cables, samples
from .cables import Cable
from .report import Result, Target, number
from .setting import STRANGER, Setting, autoip
from .tap import Tap

NAME = "commands"

DELAY_MS = 20
INTERFACES = 50
RATE = 1000
"""Status requests a second."""
LATE = 5
"""So often at most is a probe tried that nobody answers in time: on a busy machine the neighbour is late."""
REST = 0.02
"""Pause between two samples, in seconds."""


def measure(setting: Setting) -> Result:
    result = Result(
        NAME,
        "commands (milliseconds, exec to exit), and defences under status requests (microseconds)",
        ("", "samples", "median", "p90", "p99"),
    )
    with contextlib.ExitStack() as stack:
        yonder = stack.enter_context(Namespace("far"))
        host = stack.enter_context(Namespace("autoip"))
        laid = cables.lay(yonder, host, setting.times(INTERFACES, 10))
        free = cables.cable(yonder, stack.enter_context(Namespace("alone")))
        daemon = stack.enter_context(autoip(setting, laid, "--delay", str(DELAY_MS), "--no-state"))
        daemon.start()
        held = cables.wait_held(laid, 60)
        time.sleep(4)  # the second announcement must not be taken for a defence
        found = _commands(setting, daemon, laid[0], free)
        taps = [stack.enter_context(Tap(cable)) for cable in laid]
        rounds = setting.times(6, 2)
        idle, busy = "defence, idle", f"defence, {RATE} status requests a second"
        rates = []
        for index in range(2 * rounds):
            name = (idle, busy)[index % 2]
            with contextlib.ExitStack() as round_:
                rate = round_.enter_context(_asking(daemon, laid[0])) if name == busy else []
                for cable, tap in zip(laid, taps, strict=True):
                    address = held[cable.name]
                    latency = tap.exchange(conflict_request(STRANGER, address), address)
                    found.setdefault(name, []).append(
                        math.inf if latency is None else latency * 1e6
                    )
                    time.sleep(REST)
            rates += rate
            time.sleep(DEFEND_INTERVAL + 0.5)
    for name, values in found.items():
        shares = (number(samples.quantile(values, share)) for share in (0.5, 0.9, 0.99))
        result.rows.append((name, str(len(values)), *shares))
        result.numbers[name] = samples.summary(values)
    result.numbers["requests a second"] = rates
    result.targets = _targets(found, rates, idle, busy)
    result.notes = [
        (
            f"probe runs with --delay {DELAY_MS}: the probe phase alone needs {2.5 * DELAY_MS:g} to"
            f" {3.5 * DELAY_MS:g} ms. 'In use' ends with the first answer; repeated if that comes too late."
        ),
        (
            "A defence that never came counts as infinitely late. The requests come from one process,"
            " each by a connection of its own, as 'autoip status' makes them; idle and busy rounds"
            " alternate."
        ),
        f"Requests answered: {number(samples.median(rates))} a second (median of the rounds).",
    ]
    return result


def _commands(
    setting: Setting, daemon: Daemon, cable: Cable, free: Cable
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    probe = ["-m", "autoip", "probe", free.name, "169.254.9.9", "--delay", str(DELAY_MS)]
    status = ["-m", "autoip", "status", cable.name]
    taken = answers_probes(addresses=None)
    for turn in range(setting.times(40, 8) + 1):
        for name, host, words, expected in (
            ("python -c pass", free.host, ["-c", "pass"], 0),
            ("status", daemon.namespace, status, 0),
            (f"probe --delay {DELAY_MS}, free", free.host, probe, 0),
        ):
            _time(found if turn else {}, name, host, words, daemon, expected)
        with Neighbour(free.yonder, free.far, taken):
            name = f"probe --delay {DELAY_MS}, in use"
            _time(found if turn else {}, name, free.host, probe, daemon, 1, tries=LATE)
    return found


def _time(
    found: dict[str, list[float]],
    name: str,
    host: Namespace,
    words: list[str],
    daemon: Daemon,
    expected: int,
    tries: int = 1,
) -> None:
    for _ in range(tries):
        start = time.monotonic()
        process = host.popen(
            [sys.executable, *words],
            env=daemon.env,
            cwd=REPOSITORY,
            die_with_us=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        status = process.wait(20)
        if status == expected:
            found.setdefault(name, []).append((time.monotonic() - start) * 1e3)
            return
    raise RuntimeError(f"{name}: exit status {status}")


@contextlib.contextmanager
def _asking(daemon: Daemon, cable: Cable) -> Iterator[list[float]]:
    """Run a process that asks all the time; return the number of requests answered a second."""
    command = [sys.executable, "-m", "bench.asker", cable.name, str(RATE)]
    rate: list[float] = []
    env = {"RUNTIME_DIRECTORY": str(daemon.runtime)}
    with Daemon(daemon.namespace, cable.name, command, env=env) as asker:
        asker.start()
        asker.wait_line("^ready$", 20)
        time.sleep(0.2)
        yield rate
        asker.stop()
        rate.append(float(asker.wait_line("a second").split()[0]))


def _targets(
    found: dict[str, list[float]], rates: list[float], idle: str, busy: str
) -> list[Target]:
    targets = []
    for name, limit in (
        ("status", 100),
        (f"probe --delay {DELAY_MS}, free", 350),
        (f"probe --delay {DELAY_MS}, in use", 350),
    ):
        for word, share in (("median", 0.5), ("p90", 0.9)):
            measured = samples.quantile(found[name], share)
            targets.append(Target(f"{name}, {word}", limit, measured, "ms"))
    ratio = samples.median(found[busy]) / samples.median(found[idle])
    targets.append(Target("defence under requests to idle, median", 1.5, ratio, "times"))
    asked = samples.median(rates)
    targets.append(Target("requests answered a second", 0.95 * RATE, asked, "", at_least=True))
    return targets
