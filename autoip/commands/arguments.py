"""What all commands share in reading their words: one clear line about what is wrong."""

from __future__ import annotations

import argparse
import os

from autoip import __version__
from autoip.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, NoReturn

    from autoip.option_table import Option

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


class Parser(argparse.ArgumentParser):
    """Raises instead of printing a usage text and ending the process."""

    def __init__(self, **settings: Any) -> None:
        formatter = settings.pop("formatter_class", argparse.HelpFormatter)
        # Left to itself it would import shutil, with all its compressors, to know the width.
        super().__init__(
            formatter_class=lambda prog: formatter(prog, width=_width()),
            allow_abbrev=False,
            **settings,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see '{self.prog} --help'")


def _width() -> int:
    """Columns for help: of the terminal, or 80; less two, as argparse has it."""
    try:
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns
    except (ValueError, OSError):
        columns = 0
    return (columns or 80) - 2


def texts(
    command: str, options: Iterable[Option], words: Sequence[str], **settings: Any
) -> dict[str, list[str]]:
    """Parse the words of a command; return the texts that were given for each of its options, by name.

    Args:
        command: one of COMMANDS.
        options: the rows of its table.
        words: the command line after the command's name.
        settings: for argparse.ArgumentParser, instead of what all commands have.

    Raises:
        UsageError: an unknown option, a missing value or operand, or an operand too many.
    """
    usual = {"prog": f"autoip {command}", "description": COMMANDS[command]}
    made = Parser(**{**usual, **settings})
    for option in options:
        about: dict[str, Any] = {"help": option.help.replace("`", ""), "default": []}
        if option.metavar:
            about["metavar"] = option.metavar
        if option.operand:
            many = "*" if option.repeat == "all" else 1
            made.add_argument(option.name, nargs=many, choices=option.values or None, **about)
            continue
        if option.name == "version":
            about |= {"action": "version", "version": f"autoip {__version__}"}
        elif option.metavar:
            about["action"] = "append"
        else:
            about |= {"action": "append_const", "const": "yes"}
        made.add_argument(option.flag, dest=option.name, **about)
    found = vars(made.parse_intermixed_args(list(words)))
    return {name: list(given) for name, given in found.items()}


def values(options: Iterable[Option], given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the value of each option, by `Option.field`; see `Option.combined`."""
    return {option.field: option.combined(given.get(option.name, ())) for option in options}


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
