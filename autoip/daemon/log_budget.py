"""How many lines of one kind an interface may log: whoever conflicts again and again must not fill the disk.

Lines are of one kind if they differ only in numbers and addresses. Each kind has a token bucket of LINES, with a new
token every PAUSE. Lines beyond it are counted, and the newest of them is logged with their number once per PAUSE.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

LINES = 100
"""Lines of one kind at once."""
PAUSE = 600.0
"""Seconds for one further line."""
KINDS_MAX = 64
"""Further kinds share one budget."""

_VARIABLE = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}|\d+(?:\.\d+)*")


@dataclass(slots=True)
class _LeftOut:
    """Lines of one kind that were not logged; `level` and `newest` are of the last one."""

    count: int
    level: int
    newest: str


@final
class LogBudget:
    """The budget of one interface's log.

    Args:
        clock: seconds.
        write: logs a line, by level and text.
    """

    __slots__ = ("_clock", "_full_at", "_left_out", "_timer", "_write")

    def __init__(self, clock: Callable[[], float], write: Callable[[int, str], None]) -> None:
        self._clock = clock
        self._write = write
        self._full_at: dict[str, float] = {}  # when the bucket of each kind is full again
        self._left_out: dict[str, _LeftOut] = {}
        self._timer: asyncio.TimerHandle | None = None

    def allows(self, level: int, text: str) -> bool:
        """Count a line, and return whether to log it. Lines for debugging are always allowed."""
        if level < logging.INFO:
            return True
        now, kind = self._clock(), self._kind(text)
        full_at = max(self._full_at.get(kind, now), now) + PAUSE
        before = self._left_out.get(kind)
        if before is None and full_at - now <= LINES * PAUSE:
            self._full_at[kind] = full_at
            return True
        self._left_out[kind] = _LeftOut(before.count + 1 if before else 1, level, text)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, self.summarise)
        return False

    def summarise(self) -> None:
        """Log how many lines were not logged, with the newest of each kind. That spends the budget of the kind."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for kind, left_out in self._left_out.items():
            self._write(left_out.level, f"{left_out.count} more, the last one: {left_out.newest}")
            self._full_at[kind] = self._clock() + LINES * PAUSE
        self._left_out.clear()

    def _kind(self, text: str) -> str:
        # Interned: the interfaces of a process log the same kinds.
        kind = sys.intern(_VARIABLE.sub("#", text))
        return "" if kind not in self._full_at and len(self._full_at) >= KINDS_MAX else kind
