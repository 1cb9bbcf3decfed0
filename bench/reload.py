"""A reload: from the request to the answer of the new program, and how long nobody reads the packet sockets."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import Daemon, Namespace

from . import cables, samples
from .report import Result, Target, number
from .setting import Setting, autoip

NAME = "reload"

LIMIT_MS = 300
PAUSE_S = 0.0005
THREAD = "autoip-arp\n"
"""The name of the thread that reads the packet sockets."""


def measure(setting: Setting) -> Result:
    result = Result(NAME, "reload (milliseconds)", ("", "reloads", "min", "median", "p90", "max"))
    found: dict[str, list[float]] = {
        "request to answer": [],
        "nobody reads the packet sockets": [],
        "trial, while all is served": [],
    }
    with contextlib.ExitStack() as stack:
        yonder = stack.enter_context(Namespace("far"))
        cable = cables.cable(yonder, stack.enter_context(Namespace("autoip")))
        daemon = stack.enter_context(autoip(setting, [cable], "--delay", "1"))
        daemon.start()
        daemon.wait_line("announcing -> bound", 20)
        for _ in range(setting.times(50, 5)):
            total, gap = _reload(daemon)
            for values, value in zip(found.values(), (total, gap, total - gap), strict=True):
                values.append(value)
            time.sleep(0.05)
    for name, values in found.items():
        shares = (number(samples.quantile(values, share)) for share in (0.0, 0.5, 0.9, 1.0))
        result.rows.append((name, str(len(values)), *shares))
        result.numbers[name] = samples.summary(values)
    totals = found["request to answer"]
    result.targets = [
        Target("request to answer, median", LIMIT_MS, samples.median(totals), "ms"),
        Target("request to answer, p90", LIMIT_MS, samples.quantile(totals, 0.9), "ms"),
    ]
    result.notes = [
        (
            "A conflict waits in its socket, with the kernel's stamp, for as long as nobody reads it. The trial is"
            " the program's start in a child; the address and its routes stay throughout."
        )
    ]
    return result


def _reload(daemon: Daemon) -> tuple[float, float]:
    """Return milliseconds from the request to the answer, and those without the thread."""
    with ThreadPoolExecutor(1) as threads:
        began = time.monotonic()
        answer = threads.submit(daemon.request, "reload")
        gap = 0.0
        while not answer.done():
            before = time.monotonic()
            time.sleep(PAUSE_S)
            if not _reads(daemon.pid):
                gap += time.monotonic() - before
        answer.result()
        return (time.monotonic() - began) * 1e3, gap * 1e3


def _reads(pid: int) -> bool:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text() == THREAD:
                return True
    return False
