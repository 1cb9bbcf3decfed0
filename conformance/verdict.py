"""How a case ends: it holds, it falls short, or it does not apply; with the observation."""

from __future__ import annotations

from typing import Final

HOLDS: Final = "holds"
SHORT: Final = "falls short"
NOT_APPLICABLE: Final = "not applicable"
ERROR: Final = "error"
"""The suite itself failed: the case has no result for the program."""

WORST_FIRST: Final = (ERROR, SHORT, HOLDS, NOT_APPLICABLE)
"""The result of a row with several cases is the first of these that one of them had."""


class FallsShort(AssertionError):
    """The program does not do what the row asks for; the message has the observation."""


class NotApplicable(Exception):
    """The row does not apply to this program; the message has the reason."""
