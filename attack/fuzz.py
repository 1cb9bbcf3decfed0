"""Fuzzing: the targets in C and the parsers in Python, as many at once as there are processors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import native_targets, parsers
from .native_targets import ROOT, Finding

NAMES = (*native_targets.NAMES, *parsers.NAMES)


def _parser(name: str, seconds: int, seed: int) -> int:
    """A parser, in a process of its own; how many inputs were tried. Raises Finding."""
    command = [sys.executable, "-m", "attack.parsers", name, str(seconds), str(seed)]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Finding(f"{done.stderr[-6000:]}\n{name}: seed {seed}")
    return int(done.stdout)


def run(
    names: Sequence[str], seconds: float, seed: int, write: Callable[[str], None]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Attack the named targets (none: all) for so long in all; what was tried, and what was found."""
    names = names or NAMES
    workers = min(len(names), os.cpu_count() or 1)
    share = max(1, int(seconds * workers / len(names)))
    by = native_targets.compiler(lib_fuzzer=native_targets.has_lib_fuzzer())
    write(
        f"fuzz: {len(names)} targets, {share} s each, {workers} at once; seed {seed}; C: {by.engine}"
    )

    def attack(name: str) -> tuple[str, dict[str, Any] | Finding]:
        native = name in native_targets.NAMES
        try:
            count = (
                native_targets.attack(name, by, share, seed)
                if native
                else _parser(name, share, seed)
            )
        except Finding as finding:
            return name, finding
        row = {"count": count, "unit": "frames" if native else "inputs", "seconds": share}
        return name, {**row, "engine": by.engine if native else "Hypothesis"}

    rows: dict[str, dict[str, Any]] = {}
    findings: list[str] = []
    with ThreadPoolExecutor(workers) as pool:
        for name, result in pool.map(attack, names):
            if isinstance(result, Finding):
                findings.append(f"{name}: {result}")
                write(f"  {name}: FOUND, see below")
            else:
                rows[name] = result
                write(f"  {name}: {result['count']:,} {result['unit']}, none breaks it")
    return rows, findings
