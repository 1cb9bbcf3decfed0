"""The running programs, as far as /proc shows them."""

from __future__ import annotations

import os
from contextlib import suppress

from autoip.daemon.diagnosis import Process

PROCESSES_MAX = 4096
_BYTES_MAX = 4096


def running() -> list[Process]:
    """Programs of this network namespace; no more than PROCESSES_MAX are looked at.

    Reads files: to be called in a thread.  Raises OSError where there is no /proc.
    """
    found: list[Process] = []
    ours = _namespace("self")
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for pid in sorted(pids)[:PROCESSES_MAX]:
        with suppress(OSError):  # it has ended, or is hidden
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read(_BYTES_MAX)
            words = tuple(os.fsdecode(word) for word in line.split(b"\0") if word)
            if words and pid != os.getpid() and _namespace(pid) == ours:
                found.append(Process(pid, words))
    return found


def _namespace(pid: int | str) -> int:
    """A number that stands for the network namespace: unlike ns/net, everybody may ask for this one."""
    return os.stat(f"/proc/{pid}/net/dev").st_ino
