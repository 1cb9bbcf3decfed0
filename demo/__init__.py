"""What `make run` shows without an interface."""

from __future__ import annotations

import re

ORDER = (
    r"^== A private network",
    r"^   \$ autoip eth0",
    r"^== A neighbour holds ([\d.]+), which autoip tries first",
    r"^   \| .*conflict: \S+ claims",
    r"^   \| .*claimed 169\.254\.",
    r"^   On the wire: ",
    r"^   \| .*-> bound: ",
    r"^   Announced twice",
    r"^== The neighbour says once",
    r"^   \| .*conflict: \S+ claims .*defended",
    r"^   Defended \d+ microseconds later, and kept",
    r"^== Quiet for",
    r"^== The neighbour says it twice",
    r"^   \| .*conflict: \S+ claims .*defended",
    r"^   Defended \d+ microseconds later",
    r"^   \| .*bound -> probing: conflict",
    r"^   \| .*claimed 169\.254\.",
    r"^   Given up; ",
    r"^== SIGTERM",
    r"^   \| .*stopped",
    r"^   Exit status 0; ",
    r"^== A camera with an address of another network",
    r"^   \$ autoip scan eth0",
    r"^   \| eth0 +192\.168\.77\.5 .*ip address add ",
    r"^   Found within",
    r"^== All of it happened in \d+ s",
)
"""Lines of the demonstration of autoip, as regular expressions; others may come between them."""
CAPTION_OR_FACT = r"^(== |   [A-Z$])"


def disorder(output: str) -> str | None:
    """Return what is wrong with the order of the lines of a demonstration; None: each came in its place.

    Every caption and every fact must be one of ORDER, in its place.
    """
    lines = iter(output.splitlines())
    for pattern in ORDER:
        for line in lines:
            if re.search(pattern, line):
                break
            if re.search(CAPTION_OR_FACT, line):
                return f"{line.strip()!r} came before {pattern!r}"
        else:
            return f"no line {pattern!r} in its place"
    return None
