"""What all commands share in reading their words: one clear line about what is wrong."""

from __future__ import annotations

import argparse
import os
import re

from autoip.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Mapping
    from typing import Any, NoReturn

COMMANDS: Mapping[str, str] = {
    "run": "Serve interfaces, in the foreground, until stopped (the default command).",
    "status": "How things stand; exit status 0 only if each interface holds an address.",
    "watch": "Events as they happen, until interrupted; waits for a daemon that is not there.",
    "wait": "Returns when the interface holds an address: 0; or 1 when the time is over.",
    "refresh": "Probes the address again, now.",
    "stop": "Ends serving the interface and takes its address off; the last one ends the daemon.",
    "probe": "Asks whether any IPv4 address is free on a link (RFC 5227); needs no daemon.",
    "hooks": "Installs, removes or lists what makes DHCP clients start and stop autoip.",
}
"""All commands, each in one line."""

_IFNAME_MAX = 15  # IFNAMSIZ without the final NUL


class Parser(argparse.ArgumentParser):
    """Raises instead of printing a usage text and ending the process."""

    def __init__(self, **settings: Any) -> None:
        formatter = settings.pop("formatter_class", argparse.HelpFormatter)
        # Left to itself it would import shutil, with all its compressors, to know the width.
        super().__init__(formatter_class=lambda prog: formatter(prog, width=_width()), **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see '{self.prog} --help'")


def _width() -> int:
    """Columns for help: of the terminal, or 80; less two, as argparse has it."""
    try:
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns
    except (ValueError, OSError):
        columns = 0
    return (columns or 80) - 2


def interface_name(name: str) -> str:
    """Check a name by the kernel's own rule (dev_valid_name).

    Raises:
        UsageError: it cannot be an interface's name.
    """
    if (
        not 1 <= len(os.fsencode(name)) <= _IFNAME_MAX
        or name in (".", "..")
        or re.search(r"[/:\s\0]", name)
    ):
        raise UsageError(
            f"{name!r}: not an interface name; allowed are 1 to {_IFNAME_MAX} bytes without"
            " blanks, '/' and ':'"
        )
    return name
