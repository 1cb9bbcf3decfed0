"""The rows of the tables of options, and how the texts given for an option become its value.

From a row come the option of the parser, the name in the configuration file, the word of `-o`, and the texts of
`--help`, manual, README and completions. Commands that must start fast import this module, so it imports little.
"""

from __future__ import annotations

import os
import re
from collections import namedtuple

from autoip.errors import UsageError
from autoip.kernel import interface_names

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Collection, Sequence
    from typing import Any

SECONDS_MAX = 86400
_IFNAME_MAX = 15  # IFNAMSIZ without the final NUL

_Row = namedtuple(
    "_Row",
    "name metavar help more read values default into configured word implies repeat operand offers"
    " alone letter",
    defaults=("", None, (), "", "", False, "", None, "same", "", "", "", ""),
)


class Option(_Row):
    """An option or an operand of a command.

    In `help` and `more`, what is typed literally and placeholders stand between backticks, with a section of the
    manual in brackets: `--after`, `FILE`, `[POLICY]`.

    Attributes:
        name: the long option without its dashes; one letter: a short option.
        metavar: the placeholder of its value; empty: a flag, whose value is yes or no.
        help: what it does, in one sentence; completions show the part before the first semicolon.
        more: the sentences that the manual adds.
        read: from text to value; raises UsageError with what is allowed. None: the text itself, for a flag a bool.
        values: the texts that are allowed; empty: those that `read` accepts.
        default: the text that holds where none is given; empty: the option has no default.
        into: the name of the value in the code, if it is not that of the option.
        configured: whether the configuration file may choose it for an interface.
        word: its name among the words of `-o`; empty: `-o` does not take it.
        implies: name of another option and the text that this flag gives it.
        repeat: of several texts `same` demands that they mean the same, `last` takes the last, `all` takes each once.
        operand: how often it is given, by its place instead of its name: `1`, `?` (at most once), `+` (at least once)
            or `*`; empty: it is given by its name.
        offers: what completions offer besides `values`: `files`, `folders`, `interfaces`, or `words` (of `-o`).
        alone: the text that holds where the option is given without a value; a value must follow an equals sign.
        letter: the short form of the option.
    """

    __slots__ = ()

    @property
    def field(self) -> str:
        """The name of the value in the code."""
        return str(self.into or self.name.replace("-", "_"))

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"-{self.name}" if len(self.name) == 1 else f"--{self.name}"

    @property
    def flags(self) -> list[str]:
        """The option in all its forms, the short one first."""
        return [f"-{self.letter}", self.flag] if self.letter else [self.flag]

    @property
    def usage(self) -> str:
        """The word of `-o` with the placeholder of its value."""
        return f"{self.word}={self.metavar}" if self.metavar else self.word

    def value(self, text: str) -> Any:
        """Check and convert one text.

        Raises:
            UsageError: it is not allowed; the message names the option, the text and what is allowed.
        """
        allowed: Collection[str] = self.values if self.metavar else ("yes", "no")
        try:
            if allowed and text not in allowed:
                raise UsageError(
                    f"allowed are {(' and ' if len(allowed) == 2 else ', ').join(allowed)}"
                )
            return (self.read or (str if self.metavar else "yes".__eq__))(text)
        except UsageError as problem:
            if self.operand:
                if self.values:
                    raise UsageError(f"{text}: {problem}") from None
                raise
            label = self.name if self.configured else self.flag
            raise UsageError(f"{label} {text}: {problem}") from None

    def combined(self, texts: Sequence[str]) -> Any:
        """Return the value of an option that was given with these texts; without any, its default, or None.

        Raises:
            UsageError: a text is not allowed, or the texts mean different values where only one may be given.
        """
        if not texts and (default := self.default if self.metavar else "no"):
            texts = [default]
        values = [self.value(text) for text in (texts[-1:] if self.repeat == "last" else texts)]
        if self.repeat == "all":
            return tuple(dict.fromkeys(values))
        if any(value != values[0] for value in values):
            given = " and ".join(dict.fromkeys(texts))
            raise UsageError(f"{self.flag} was given as {given}; give one value")
        return values[0] if values else None


def seconds(text: str) -> float:
    """Read a number of seconds.

    Raises:
        UsageError: not a number, or out of range.
    """
    if not re.fullmatch(r"[0-9]+\.?[0-9]*|\.[0-9]+", text) or float(text) > SECONDS_MAX:
        raise UsageError(f"not a number of seconds from 0 to {SECONDS_MAX}")
    return float(text)


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
    if "," in name and not interface_names.exists(name):
        words = " ".join(filter(None, name.split(",")))
        raise UsageError(f"{name!r}: a comma separates no names, blanks do: {words}")
    return name


def is_pattern(name: str) -> bool:
    """Return whether the name is a pattern (`*`, `?`, `[...]`), and not the name of an interface that exists."""
    return bool(re.search(r"[*?[]", name)) and not interface_names.exists(name)


def one_interface_name(name: str) -> str:
    """Check a name where no pattern is allowed.

    Raises:
        UsageError: it cannot be an interface's name, or is a pattern.
    """
    interface_name(name)
    if is_pattern(name):
        raise UsageError(
            f"{name!r}: a pattern; allowed are names (status, watch, wait and doctor take patterns)"
        )
    return name
