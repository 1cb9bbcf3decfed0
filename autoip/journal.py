"""The journal of systemd on standard error. Each command that fails imports this module, so it imports little."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

ERROR = 3
"""LOG_ERR of syslog(3)."""


def is_stream(environ: Mapping[str, str], descriptor: int) -> bool:
    """Return whether the descriptor is the journal's stream that JOURNAL_STREAM names (systemd.exec)."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def prefixed(priority: int, text: str) -> str:
    """Return the text with ``<N>`` before each line, for the journal's stream (sd-daemon(3)).

    Args:
        priority: of syslog, 0 to 7.
        text: one line or more.
    """
    return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def failed(text: str, environ: Mapping[str, str]) -> None:
    """Write the one line of a command that failed to standard error: an error for the journal."""
    if sys.stderr is None:
        return
    line = f"autoip: {text}"
    if "JOURNAL_STREAM" in environ and is_stream(environ, sys.stderr.fileno()):
        line = prefixed(ERROR, line)
    sys.stderr.write(line + "\n")
