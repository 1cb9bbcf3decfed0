"""How a case ends: it holds, it falls short, or it does not apply; and what was seen."""

from __future__ import annotations

from typing import Final

HOLDS: Final = "holds"
SHORT: Final = "falls short"
NOT_APPLICABLE: Final = "not applicable"
ERROR: Final = "error"
"""The suite itself failed: nothing is said about the program."""

WORST_FIRST: Final = (ERROR, SHORT, HOLDS, NOT_APPLICABLE)
"""The result of a row with several cases is the first of these that one of them had."""


class FallsShort(AssertionError):
    """The program does not do what the row asks for; the message says what was seen instead."""


class NotApplicable(Exception):
    """The row says nothing about this program; the message says why."""
