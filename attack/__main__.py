"""Attack autoip: `python -m attack NAME ... [--time SECONDS]`.

    fuzz    bytes that nobody would send, for all that reads bytes
    chaos   kills, stops, storms, and a link that flaps (root)
    scale   thousands of hosts on a virtual link
    party   twenty real programs of five kinds on one bridge (root)

Exit status 0 if nothing was found, 1 if something was: how to see it again is said.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from lab.daemon import REPOSITORY as ROOT

from . import chaos, fuzz, party, results, scale

ATTACKS = {"fuzz": fuzz, "chaos": chaos, "scale": scale, "party": party}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m attack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="+", choices=ATTACKS)
    parser.add_argument(
        "--time", type=float, default=60, metavar="SECONDS", help="for each; default: 60"
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="PART", help="these alone")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument(
        "--record", action="store_true", help="into attack/results.json and docs/reliability.md"
    )
    found = parser.parse_args()
    parts = [part for name in found.names for part in ATTACKS[name].NAMES]
    if unknown := set(found.only) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    return found


def _write(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    """See the module."""
    arguments = _arguments()
    seed = arguments.seed if arguments.seed is not None else time.time_ns() % 1_000_000
    findings: list[str] = []
    for name in arguments.names:
        rows, found = ATTACKS[name].run(arguments.only, arguments.time, seed, _write)
        findings += found
        if arguments.record:
            results.record(name, rows)
            subprocess.run([sys.executable, "-m", "tools.documents"], cwd=ROOT, check=True)
    for finding in findings:
        _write(f"\n{finding}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
