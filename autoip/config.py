"""The configuration: choices by interface, in /etc/autoip.conf and /etc/autoip.conf.d/*.conf.

    # a comment
    [eth*]
    policy = fallback
    linger = 60

    [br-lan]
    hooks = yes

A section is for the interfaces whose name its pattern (`*`, `?`, `[...]`) matches. All sections that
match count, in the order of the file; of a name that is given twice the last value counts. The names
are those of `options.CONFIGURED`, and `hooks`: whether a DHCP client's hook may start autoip for the
interface, and `serve`: whether `autoip run` without names serves the interface when it appears.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoip.errors import NoPermission, UsageError
from autoip.option_table import Option
from autoip.options import CONFIGURED, CONTAINERS, FILE, FOLDER

HOOKS = Option(
    "hooks",
    "",
    "whether hooks of DHCP clients may start autoip for the interface",
    "The default is `yes`, but for"
    f" {' '.join(f'`{name}*`' for name in CONTAINERS)} `no`, unless the pattern is another one than `*`.",
    configured=True,
)
SERVE = Option(
    "serve",
    "",
    "whether `autoip.service`, and `autoip run` without names, serve the interface when it appears",
    "The default is `no`. See `[SERVICE]`.",
    configured=True,
)
OWN = (HOOKS, SERVE)
"""The names of the configuration file alone."""

_SECTION = re.compile(r"\[(\S+)\]")
_LINE = re.compile(r"([a-z-]+)\s*=\s*(.*)")
_SIZE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Section:
    """The choices for the interfaces that a pattern matches.

    Attributes:
        pattern: of interface names.
        choices: by field of `Options`.
        places: file and line of each choice.
        own: the values of `hooks` and `serve` that the section sets, by name.
    """

    pattern: str
    choices: dict[str, Any]
    places: dict[str, str]
    own: dict[str, bool]

    def matches(self, interface: str) -> bool:
        return fnmatch.fnmatchcase(interface, self.pattern)

    @property
    def names(self) -> bool:
        """Whether the pattern excludes any name."""
        return self.pattern.strip("*?") != ""


class Config:
    """The sections of all files."""

    def __init__(self, sections: Sequence[Section]) -> None:
        self._sections = sections

    def choices(self, interface: str) -> dict[str, Any]:
        """Return the choices for an interface, by field of `Options`."""
        return dict(pair for section in self._of(interface) for pair in section.choices.items())

    def places(self, interface: str) -> dict[str, str]:
        """Return the place of each choice for an interface, ``FILE:LINE``, by field of `Options`."""
        return dict(pair for section in self._of(interface) for pair in section.places.items())

    def hooks(self, interface: str) -> bool:
        """Return whether a DHCP client's hook may start autoip for the interface."""
        allowed = not interface.startswith(CONTAINERS)
        named_only = not allowed
        for section in self._of(interface):
            value = section.own.get(HOOKS.name)
            if value is not None and (section.names or not value or not named_only):
                allowed = value
        return allowed

    @property
    def served(self) -> tuple[tuple[str, bool], ...]:
        """The patterns of the sections that set `serve`, with its value, in order."""
        return tuple(
            (section.pattern, section.own[SERVE.name])
            for section in self._sections
            if SERVE.name in section.own
        )

    def _of(self, interface: str) -> list[Section]:
        return [section for section in self._sections if section.matches(interface)]


def load(file: Path | None = None) -> Config:
    """Read `file`; None: the files of the system, any of which may be missing.

    Raises:
        UsageError: a line is wrong (the message names file, line number and what is allowed), or `file`
            does not exist.
        NoPermission: a file cannot be read.
    """
    if file is not None:
        return Config(_sections(file))
    sections = _sections(FILE) if FILE.exists() else []
    for path in sorted(FOLDER.glob("*.conf")):
        sections += _sections(path)
    return Config(sections)


def _sections(path: Path) -> list[Section]:
    sections: list[Section] = []
    choices: dict[str, Any] = {}
    places: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        try:
            if (head := _SECTION.fullmatch(line)) is not None:
                choices, places = {}, {}
                sections.append(Section(head[1], choices, places, {}))
            elif (pair := _LINE.fullmatch(line)) is None:
                raise UsageError(f"{line!r}: allowed are [INTERFACE] and NAME = VALUE")
            elif not sections:
                raise UsageError(f"{pair[1]}: not inside an [INTERFACE] section")
            elif (own := next((row for row in OWN if row.name == pair[1]), None)) is not None:
                sections[-1].own[own.name] = own.value(pair[2])
            elif (option := CONFIGURED.get(pair[1])) is not None:
                choices[option.field] = option.combined([pair[2]])
                places[option.field] = f"{path}:{number}"
            else:
                raise UsageError(
                    f"{pair[1]}: allowed are {', '.join([*CONFIGURED, *(row.name for row in OWN)])}"
                )
        except UsageError as problem:
            raise UsageError(f"{path}:{number}: {problem}") from None
    return sections


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            data = file.read(_SIZE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as problem:
        raise UsageError(f"cannot read {path}: {problem.strerror}") from problem
    except OSError as problem:
        raise NoPermission(f"cannot read {path}: {problem.strerror}") from problem
    if len(data) > _SIZE_MAX:
        raise UsageError(f"{path}: larger than {_SIZE_MAX} bytes, which is no configuration")
    # Names of interfaces may be any bytes: see os.fsdecode.
    return data.decode("utf-8", "surrogateescape").split("\n")
