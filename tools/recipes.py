"""The blocks of docs/dhcp.md that people copy, for the tests that try them.

A block has its name in a comment before it: `<!-- recipe: NAME -->`.
"""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "dhcp.md"
_BLOCK = re.compile(r"<!-- recipe: (\S+) -->\n\n((?:    .*\n|\n(?=    ))+)")


def names() -> list[str]:
    """Return the names of all blocks, in their order."""
    return [name for name, _ in _BLOCK.findall(PAGE.read_text(encoding="utf-8"))]


def text(name: str) -> str:
    """Return the lines of the one block of that name. Raises ValueError."""
    found = [
        block for each, block in _BLOCK.findall(PAGE.read_text(encoding="utf-8")) if each == name
    ]
    if len(found) != 1:
        raise ValueError(f"{PAGE.name}: {len(found)} recipes {name}")
    return re.sub(r"^    ", "", found[0], flags=re.MULTILINE)
