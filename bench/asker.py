"""A process that asks a daemon for the status RATE times a second, until SIGTERM.

python -m bench.asker IFNAME RATE
"""

from __future__ import annotations

import os
import signal
import sys
import time

from autoip.control.client import ask
from autoip.paths import runtime_directory


def main() -> None:
    name, rate = sys.argv[1], float(sys.argv[2])
    directory = runtime_directory(os.environ)
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    print("ready", flush=True)
    start = time.monotonic()
    count = 0
    while not ended:
        ask(directory, name, "status")
        count += 1
        ahead = start + count / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    print(f"{count / (time.monotonic() - start):.0f} a second", flush=True)


if __name__ == "__main__":
    main()
