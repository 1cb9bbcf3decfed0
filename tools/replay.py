"""Run the cores of a trace (`autoip --trace FILE`) again and show the first difference to the trace.

python -m tools.replay FILE

Each core gets the calls that it got then, with the same times, random numbers and answers. The exit status is 0 if it
did the same, 1 if it did not, 2 if the file cannot be read or is not a trace.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Any, TypeAlias

from autoip.core.acd import Defence
from autoip.core.arp import ArpPacket, parse
from autoip.core.constants import Timing
from autoip.core.ipv4ll import Ipv4ll, Kept
from autoip.daemon.plain import plain, read
from autoip.daemon.trace import FORMAT, Build, TracedCore, draws

Line: TypeAlias = Mapping[str, Any]
_HEAD = ("at", "interface", "core")
_CALLS = {name for name in vars(TracedCore) if hasattr(Ipv4ll, name) and not name.startswith("_")}
"""The methods of a core that are recorded."""


class Unreadable(Exception):
    """The file is not a trace, or not one that this version can read."""


class OtherQuestion(Exception):
    """The core asks a question that is not in the trace, so there is no answer."""


@dataclass(frozen=True)
class Difference:
    """A call with another result than in the trace.

    Attributes:
        number: of the line in the file, from 1.
        then: the line.
        now: what the core did now; None: nothing that would be recorded.
    """

    number: int
    then: Line
    now: Line | None

    def __str__(self) -> str:
        then, now = _content(self.then), self.now or {}
        given = ", ".join(f"{name}={value}" for name, value in then["with"].items())
        head = f"line {self.number}, {self.then.get('interface')}, at {self.then.get('at')}"
        lines = [f"{head}: {then['call']}({given})"]
        for key in dict.fromkeys([*then, *now]):
            if then.get(key) != now.get(key):
                lines += [
                    f"  {key}",
                    f"    then {_shown(then, key)}",
                    f"    now  {_shown(now, key)}",
                ]
        return "\n".join(lines)


def _shown(content: Line, key: str) -> str:
    return json.dumps(content[key]) if key in content else "nothing"


def _content(line: Line) -> Line:
    return {key: value for key, value in line.items() if key not in _HEAD}


class _Again:
    """One core of the trace, which runs again. Raises KeyError, TypeError or ValueError for a wrong line."""

    def __init__(self, start: Line) -> None:
        self._answers: deque[list[Any]] = deque()
        self._line: Line | None = None
        first = start["first"]
        self._core = TracedCore(
            self._record,
            start["delay"],
            bytes.fromhex(start["mac"]),
            Timing.from_delay(start["delay"]),
            draws(partial(self._answer, "addresses")),
            draws(partial(self._answer, "jitter")),
            defence=Defence[start["defence"]],
            first=None if first is None else IPv4Address(first),
            avoid=partial(self._answer, "avoid"),
            sibling=partial(self._answer, "sibling"),
        )

    def call(self, line: Line) -> Line | None:
        """Call the core as in the trace; return the line that a trace would have now."""
        if line["call"] not in _CALLS:
            raise ValueError(f"no such call: {line['call']}")
        given = {name: _argument(name, value) for name, value in line["with"].items()}
        self._answers, self._line = deque(line["asked"]), None
        with suppress(Exception):  # it is in the line
            getattr(self._core, line["call"])(**given)
        while self._core.next_event() is not None:
            pass  # it is in the line, and need not be kept
        return self._line

    def _record(self, build: Build) -> None:
        if (line := build()) is not None:
            self._line = _content(json.loads(json.dumps(line, default=plain)))

    def _answer(self, what: str, *about: object) -> Any:
        question = [what, *map(plain, about)]
        then = self._answers.popleft() if self._answers else ["nothing", None]
        if then[:-1] != question:
            raise OtherQuestion(f"asks {question}; then it asked {then[:-1]}")
        return then[-1]


def _argument(name: str, value: Any) -> Any:
    if name == "address" or (name == "first" and value is not None):
        return IPv4Address(value)
    if name == "kept":
        return read(Kept, value)
    return value if name != "packet" else _packet(value)


def _packet(text: str) -> ArpPacket:
    if (packet := parse(bytes.fromhex(text))) is None:
        raise ValueError(f"not an ARP packet: {text}")
    return packet


def _lines(data: bytes) -> Iterator[tuple[int, Line]]:
    """Return the lines with their numbers, without a last one that was not finished when the machine stopped."""
    for number, text in enumerate(data.split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"line {number}: {error}") from error
        if not isinstance(line, dict) or (number == 1 and "autoip-trace" not in line):
            raise Unreadable(f"line {number}: not of a trace")
        yield number, line


def replay(data: bytes) -> tuple[int, Difference | None]:
    """Run the cores of a trace again.

    Returns:
        how many calls there were up to the first difference, and the difference, if there is one.

    Raises:
        Unreadable: the file is not a trace.
    """
    cores: dict[int, _Again] = {}
    calls = number = 0
    for number, line in _lines(data):
        if line.get("autoip-trace", FORMAT) != FORMAT:
            raise Unreadable(f"line {number}: has format {line['autoip-trace']}, not {FORMAT}")
        try:
            if "start" in line:
                cores[line["core"]] = _Again(line["start"])
            elif "core" in line:
                calls += 1
                now = cores[line["core"]].call(line)
                if now != _content(line):
                    return calls, Difference(number, line, now)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Unreadable(f"line {number}: {error!r}") from error
    if number == 0:
        raise Unreadable("there is no whole line in it")
    return calls, None


def main(arguments: Sequence[str]) -> int:
    """Replay the file that the arguments name, and print the difference; return the exit status."""
    if len(arguments) != 1:
        print("usage: python -m tools.replay FILE", file=sys.stderr)
        return 2
    (path,) = arguments
    try:
        with open(path, "rb") as file:
            calls, difference = replay(file.read())
    except OSError as error:
        print(f"{path}: {error.strerror}", file=sys.stderr)
        return 2
    except Unreadable as error:
        print(f"{path}: not a trace: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {calls} calls, " + ("no difference" if difference is None else "a difference:"))
    if difference is not None:
        print(difference)
    return 0 if difference is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
