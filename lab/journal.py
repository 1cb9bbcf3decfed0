"""What happened in a test, in the order of time: frames, addresses, log lines of programs.

Every recorder of the laboratory (sniffer, address monitor, program) registers here; `timeline()` merges their entries.
The registry is emptied before each test, not after it, so that a failure report can still read it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol


class Source(Protocol):
    """A source of the timeline; `entries` returns (CLOCK_REALTIME in ns, name, event)."""

    def entries(self) -> Iterable[tuple[int, str, str]]: ...


_lock = threading.Lock()
_sources: list[Source] = []


def register(source: Source) -> None:
    """Add a recorder to the timeline of the running test."""
    with _lock:
        _sources.append(source)


def forget() -> None:
    """Empty the registry: a new test begins."""
    with _lock:
        _sources.clear()


def timeline(limit: int = 400) -> str:
    """Return all entries by time, one a line, in seconds since the first; at most the last `limit` ones."""
    with _lock:
        sources = list(_sources)
    entries = sorted(entry for source in sources for entry in source.entries())
    if not entries:
        return "(nothing was recorded)"
    start = entries[0][0]
    lines = [f"{(ns - start) / 1e9:10.4f}  {who:<14} {what}" for ns, who, what in entries[-limit:]]
    if len(entries) > limit:
        lines.insert(0, f"... {len(entries) - limit} earlier entries left out")
    return "\n".join(lines)
