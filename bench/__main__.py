"""The benchmarks: `python -m bench [NAME ...]`.

Needs root, a C compiler, and what the tests need. Everything happens in network namespaces of its own.
Exit status 0 if everything was measured, whether or not the targets were reached; see --check.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # called as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import (
    commands,
    defence,
    fallback,
    hooks,
    idle,
    neighbours,
    package,
    pressure,
    punctuality,
    reload,
    scan,
    startup,
    throughput,
    unrelated,
)
from bench.native import Workshop
from bench.report import Result
from bench.setting import Setting
from lab import leftover_folders, leftovers

BENCHMARKS: dict[str, Callable[[Setting], Result]] = {
    defence.NAME: defence.measure,
    pressure.NAME: pressure.measure,
    unrelated.NAME: unrelated.measure,
    startup.NAME: startup.measure,
    reload.NAME: reload.measure,
    punctuality.NAME: punctuality.measure,
    idle.NAME: idle.measure,
    throughput.NAME: throughput.measure,
    commands.NAME: commands.measure,
    hooks.NAME: hooks.measure,
    fallback.NAME: fallback.measure,
    neighbours.NAME: neighbours.measure,
    scan.NAME: scan.measure,
    package.NAME: package.measure,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = ", ".join(BENCHMARKS)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"which; default: all: {names}")
    parser.add_argument("--quick", action="store_true", help="a look: fewer samples")
    parser.add_argument("--json", metavar="FILE", help="write the numbers")
    parser.add_argument("--check", action="store_true", help="exit status 3 for a missed target")
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="all measured programs under SCHED_FIFO: for a machine on which others work, too",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of what alternates")
    found = parser.parse_args()
    if unknown := set(found.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {names}")
    return found


def main() -> int:
    arguments = _arguments()
    if os.geteuid() != 0:
        print("the benchmarks need root", file=sys.stderr)
        return 4
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    machine = f"Linux {platform.release()}, {os.cpu_count()} processors, load {load}"
    how = ", measured programs under SCHED_FIFO" if arguments.realtime else ""
    print(f"{machine}, Python {platform.python_version()}{how}", flush=True)
    results: list[Result] = []
    failed: list[str] = []
    with Workshop() as workshop:
        for name in arguments.names or BENCHMARKS:
            setting = Setting(
                arguments.quick, workshop, random.Random(arguments.seed), arguments.realtime
            )
            start = time.monotonic()
            try:
                result = BENCHMARKS[name](setting)
            except Exception:  # noqa: BLE001 (one that fails must not hide the others)
                traceback.print_exc()
                failed.append(name)
                continue
            results.append(result)
            print(f"\n{result.text()}\n  ({time.monotonic() - start:.0f} s)", flush=True)
    missed = [
        f"{result.name}: {target.figure}"
        for result in results
        for target in result.targets
        if not target.reached
    ]
    count = sum(len(result.targets) for result in results)
    print(f"\n{count - len(missed)} of {count} targets reached")
    for line in missed:
        print(f"  missed: {line}")
    for name in failed:
        print(f"  not measured: {name}")
    if arguments.json:
        numbers = {
            "machine": machine,
            "quick": arguments.quick,
            "realtime": arguments.realtime,
            "results": {result.name: result.as_json() for result in results},
        }
        Path(arguments.json).write_text(json.dumps(numbers, indent=2) + "\n")
    left = leftovers() + leftover_folders()
    for line in left:
        print(f"  left behind: {line}", file=sys.stderr)
    if failed or left:
        return 1
    return 3 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
