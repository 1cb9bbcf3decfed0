"""How all commands read their words and write their output; a wrong word is one clear line."""

from __future__ import annotations

import argparse
import os
import sys

from autoip import __version__
from autoip.errors import CannotWrite, UsageError
from autoip.option_table import Option

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, NoReturn, TextIO

COMMANDS: Mapping[str, str] = {
    "run": "Serve interfaces, in the foreground, until stopped (the default command).",
    "status": "How things stand; exit status 0 only if each interface holds an address.",
    "watch": "Events as they happen, until interrupted; waits for a daemon that is not there.",
    "wait": "Returns when the interfaces hold an address: 0; or 1 when the time is over.",
    "refresh": "Probes the address again, now.",
    "reload": "Reads the configuration again and goes on as the program that is there now; no address is lost.",
    "stop": "Ends serving the interface and takes its address off; the last one ends the daemon.",
    "route": "By which interface a link-local address is reached, and why.",
    "probe": "Asks whether any IPv4 address is free on a link (RFC 5227); needs no daemon.",
    "scan": "Which hosts are on the cable, with which addresses, and what they are; needs no daemon.",
    "doctor": "What is in the way of link-local addresses here, and what cures it; needs no daemon.",
    "hooks": "Installs, removes or lists what makes DHCP clients start and stop autoip.",
    "help": "Shows a summary of autoip, or of one command.",
    "version": "Shows the version.",
}
"""All commands, each in one line."""


def json_option(what: str, alone: str) -> Option:
    """Return the row of `--json`.

    Args:
        what: the printed value, in words.
        alone: the style of `--json` without a value, `short` or `pretty`.
    """
    return Option(
        "json", "STYLE", f"{what}, for scripts; `short`: in one line, `pretty`: in many; default {alone}",
        values=("short", "pretty"), repeat="last", alone=alone, letter="j",
    )  # fmt: skip


def dumped(value: object, style: str) -> str:
    """Return a value as JSON; style: short or pretty."""
    import json

    return json.dumps(value, indent=2 if style == "pretty" else None)


def write(text: str) -> None:
    """Write a line, or lines, to standard output at once; do nothing if standard output is closed.

    Raises:
        CannotWrite: the write fails.
        BrokenPipeError: the reader of standard output is gone.
    """
    _write(sys.stdout, f"{text}\n")


def _write(stream: TextIO | None, text: str) -> None:
    try:
        if stream is not None:
            stream.write(text)
            stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotWrite(error) from error


class Parser(argparse.ArgumentParser):
    """Raises instead of printing a usage text and ending the process."""

    def __init__(self, **settings: Any) -> None:
        usual = {
            # Without a width, argparse would import shutil, with all its compressors, to find one.
            "formatter_class": lambda prog: _Formatter(prog, width=_width()),
            "allow_abbrev": False,
        }
        super().__init__(**{**usual, **settings})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see '{self.prog} --help'")

    def _print_message(self, message: str, _: Any = None) -> None:
        """Write a text of argparse, which by its version hides that a write fails."""
        _write(sys.stdout, message)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows a value that must follow an equals sign with the sign: ``-j, --json[=STYLE]``."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.option_strings and str(action.metavar).startswith("="):
            return f"{', '.join(action.option_strings)}[{action.metavar}]"
        return super()._format_action_invocation(action)


def _width() -> int:
    """Return the columns for help: those of the terminal, or 80, less argparse's margin of two."""
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
        command: one of COMMANDS, or another program's name; then `settings` has prog, usage and description.
        options: the rows of its table.
        words: the command line after the command's name.
        settings: for argparse.ArgumentParser, instead of those that all commands have.

    Raises:
        UsageError: an unknown option, a missing value or operand, or an operand too many.
    """
    rows = list(options)
    usual = {
        "prog": f"autoip {command}",
        "usage": f"autoip {command}{usage(rows)}",
        "description": COMMANDS.get(command),
    }
    made = Parser(**{**usual, **settings})
    for row in rows:
        about: dict[str, Any] = {"help": row.help.replace("`", ""), "default": []}
        if row.metavar:
            about["metavar"] = f"={row.metavar}" if row.alone else row.metavar
        if row.operand:
            # The error below names a missing operand in better words than argparse.
            made.add_argument(row.name, nargs="?" if row.operand in "1?" else "*", **about)
            continue
        if row.name == "version":
            about |= {"action": "version", "version": f"autoip {__version__}"}
        elif row.metavar:
            about["action"] = "append"
        else:
            about |= {"action": "append_const", "const": "yes"}
        made.add_argument(*row.flags, dest=row.name, **about)
    spelled = {flag: f"{row.flag}={row.alone}" for row in rows if row.alone for flag in row.flags}
    found = vars(made.parse_intermixed_args([spelled.get(word, word) for word in words]))
    given = {name: [text] if isinstance(text, str) else list(text) for name, text in found.items()}
    for row in rows:
        if row.operand in ("1", "+") and not given[row.name]:
            allowed = f"; allowed are {', '.join(row.values)}" if row.values else ""
            raise UsageError(
                f"{command}: {row.metavar} is missing{allowed}; see '{made.prog} --help'"
            )
    return given


def usage(rows: Iterable[Option]) -> str:
    """Return the options and operands of a command for its usage line, each after a blank."""
    words = []
    for row in rows:
        if row.operand:
            many = " ..." if row.operand in "+*" else ""
            word = f"{row.metavar}{many}"
            words.append(f"[{word}]" if row.operand in "?*" else word)
        elif row.alone:
            words.append(f"[{row.flag}[={row.metavar}]]")
        else:
            words.append(f"[{row.flag} {row.metavar}]" if row.metavar else f"[{row.flag}]")
    return "".join(f" {word}" for word in words)


def values(options: Iterable[Option], given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the value of each option, by `Option.field`; see `Option.combined`."""
    return {option.field: option.combined(given.get(option.name, ())) for option in options}


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
