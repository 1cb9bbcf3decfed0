"""The cost of processes: wake-ups and CPU time of all their threads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab import LabError, usage


@dataclass(frozen=True, slots=True)
class Cost:
    """Wake-ups (voluntary context switches) and CPU time in seconds, to the nanosecond."""

    wakeups: int
    cpu: float

    def __sub__(self, before: Cost) -> Cost:
        return Cost(self.wakeups - before.wakeups, self.cpu - before.cpu)


def cost(pids: Iterable[int]) -> Cost:
    """Return the cost so far of all of them together. Raises LabError if one has ended."""
    wakeups = 0
    nanoseconds = 0
    for pid in pids:
        wakeups += usage(pid).voluntary
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                nanoseconds += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError) as error:
            raise LabError(f"process {pid} has ended") from error
    return Cost(wakeups, nanoseconds / 1e9)
