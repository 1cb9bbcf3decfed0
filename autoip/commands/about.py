"""The commands `help` and `version`, which do the same as `--help` and `--version`."""

from __future__ import annotations

from autoip.commands.arguments import COMMANDS, texts
from autoip.errors import UsageError
from autoip.option_table import Option

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Mapping, Sequence

OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "help": (
        Option(
            "command",
            "COMMAND",
            "the command; default: autoip itself",
            values=tuple(COMMANDS),
            operand="?",
        ),
    ),
    "version": (),
}
"""The options of each command."""  # fmt: skip


def parse(command: str, words: Sequence[str]) -> list[str]:
    """Return the command line that shows the requested text.

    Args:
        command: help or version.
        words: the command line after the command.

    Raises:
        UsageError: there is no such command; the message names the nearest one.
    """
    given = texts(command, OPTIONS[command], words)
    if command == "version":
        return ["--version"]
    for name in given["command"]:
        if name not in COMMANDS:
            from autoip.commands.mistyped import nearest

            near = nearest(name, COMMANDS)
            allowed = (
                f"the nearest is: autoip help {near}"
                if near
                else f"allowed are {', '.join(COMMANDS)}"
            )
            raise UsageError(f"{name!r}: not a command; {allowed}")
    return [*(given["command"] or ["run"]), "--help"]
