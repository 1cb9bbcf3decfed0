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
class _Kind:
    """Lines that may be logged as of `at`; `more` lines were not, `level` and `newest` are of the last one."""

    tokens: float
    at: float
    more: int = 0
    level: int = 0
    newest: str = ""


@final
class LogBudget:
    """The budget of one interface's log.

    Args:
        clock: seconds.
        write: logs a line, by level and text.
    """

    def __init__(self, clock: Callable[[], float], write: Callable[[int, str], None]) -> None:
        self._clock = clock
        self._write = write
        self._kinds: dict[str, _Kind] = {}
        self._timer: asyncio.TimerHandle | None = None

    def allows(self, level: int, text: str) -> bool:
        """Count a line, and return whether to log it. Lines for debugging are always allowed."""
        if level < logging.INFO:
            return True
        now, kind = self._clock(), self._kind(text)
        kind.tokens = min(kind.tokens + (now - kind.at) / PAUSE, LINES)
        kind.at = now
        if kind.tokens >= 1 and not kind.more:
            kind.tokens -= 1
            return True
        kind.more += 1
        kind.level, kind.newest = level, text
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, self.summarise)
        return False

    def summarise(self) -> None:
        """Log how many lines were not logged, with the newest of each kind."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for kind in self._kinds.values():
            if kind.more:
                self._write(kind.level, f"{kind.more} more, the last one: {kind.newest}")
                kind.more, kind.tokens, kind.at = 0, 0.0, self._clock()

    def _kind(self, text: str) -> _Kind:
        # Interned: the interfaces of a process log the same kinds.
        name = sys.intern(_VARIABLE.sub("#", text))
        if name not in self._kinds and len(self._kinds) >= KINDS_MAX:
            name = ""
        return self._kinds.setdefault(name, _Kind(LINES, self._clock()))
