"""A trace: what happened to an interface, and what the core made of it, as JSON lines (`--trace FILE`).

A line for each call of a core has all that the core decides by (the arguments, the random numbers, the answers to the
core's questions) and all results. So `python -m tools.replay` can repeat the call. A frame is in hexadecimal digits, a
time in seconds of CLOCK_BOOTTIME. Lines with `news` are for people.

Without `--trace` nothing imports this file.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Mapping
from functools import partial, wraps
from inspect import signature
from ipaddress import IPv4Address
from itertools import count, islice
from random import Random
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, final

from autoip import __version__
from autoip.core.constants import Timing
from autoip.core.ipv4ll import Ipv4ll
from autoip.daemon.plain import plain
from autoip.errors import UsageError

FORMAT = 1
"""Changed whenever `tools.replay` could misread older lines."""
SIZE_MAX = 64 * 2**20
"""Bytes at which a trace ends, so that a flood of conflicts cannot fill the file system."""
HEADER = f'{{"autoip-trace": {FORMAT}, '
"""How the first line of each run begins."""

Build: TypeAlias = Callable[[], Mapping[str, Any] | None]
"""Makes a line without its head; None: nothing to record."""
_NUMBERS = count(1)
"""The numbers of this process's cores."""
P = ParamSpec("P")
R = TypeVar("R")


@final
class Trace:
    """The file. It stays open until the process ends; a failure ends the trace and nothing else.

    Args:
        descriptor: of the file, opened for appending.
        log: gets one line when the trace ends early.
    """

    def __init__(self, descriptor: int, log: logging.Logger) -> None:
        self._descriptor: int | None = descriptor
        self._log = log
        self._size = os.fstat(descriptor).st_size
        self._write(f'{HEADER}"version": "{__version__}"}}')

    @classmethod
    def open(cls, path: str, log: logging.Logger) -> Trace:
        """Open a new file, which this user alone can read, or append to a trace of this user.

        Raises:
            UsageError: neither is possible.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NOCTTY
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise UsageError(f"--trace {path}: {error.strerror}") from error
        status = os.fstat(descriptor)
        known = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        head = HEADER.encode()
        if not known or os.pread(descriptor, len(head), 0) not in (b"", head):
            os.close(descriptor)
            raise UsageError(
                f"--trace {path}: is there already, and not as a trace of this user's; name a new file"
            )
        return cls(descriptor, log)

    @property
    def descriptor(self) -> int | None:
        """Of the file; None: nothing more is recorded."""
        return self._descriptor

    def of(self, interface: str, clock: Callable[[], float]) -> InterfaceTrace:
        """Return the recorder of one interface; `clock` returns seconds."""
        return InterfaceTrace(partial(self._record, interface, clock))

    def close(self) -> None:
        """Record nothing more. Harmless when repeated."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _record(self, interface: str, clock: Callable[[], float], build: Build) -> None:
        if self._descriptor is None:
            return
        try:
            if (content := build()) is not None:
                head = {"at": clock(), "interface": interface}
                self._write(json.dumps({**head, **content}, default=plain))
        except Exception as error:  # noqa: BLE001 (the negotiation goes on)
            self._end(repr(error))

    def _write(self, line: str) -> None:
        if self._descriptor is None:
            return
        data = line.encode() + b"\n"
        if self._size + len(data) > SIZE_MAX:
            self._end(f"it has {SIZE_MAX} bytes")
            return
        try:
            if os.write(self._descriptor, data) < len(data):
                os.ftruncate(self._descriptor, self._size)  # whole lines only
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += len(data)
        except OSError as error:
            self._end(str(error.strerror))

    def _end(self, why: str) -> None:
        self._log.warning("no more is traced: %s", why)
        self.close()


@final
class InterfaceTrace:
    """Records one interface; `record` writes each line."""

    def __init__(self, record: Callable[[Build], None]) -> None:
        self._record = record

    def news(self, what: str, **details: object) -> None:
        """Record an event of the kernel or a request of a user."""
        self._record(lambda: {"news": what, **details})

    def maker(self, delay: int) -> Callable[..., Ipv4ll]:
        """Return a maker of recorded cores, called as `Ipv4ll` is; `delay` in milliseconds."""
        return partial(TracedCore, self._record, delay)


class Draws(Random):
    """A random source whose numbers come from `draw`."""

    draw: Callable[[], float]

    def random(self) -> float:
        """Return a number from 0 to 1."""
        return self.draw()


def draws(draw: Callable[[], float]) -> Draws:
    """Return a random source whose numbers come from `draw`."""
    source = Draws()
    source.draw = draw
    return source


def _recorded(
    method: Callable[Concatenate[Ipv4ll, P], R],
) -> Callable[Concatenate[TracedCore, P], R]:
    """Return the method of a core that records its calls."""
    parameters = signature(method)

    @wraps(method)
    def call(self: TracedCore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        def what() -> dict[str, Any]:
            given = dict(parameters.bind(self, *args, **kwargs).arguments)
            del given["self"]
            return {"call": method.__name__, "with": given}

        before = self.begin()
        try:
            result = method(self, *args, **kwargs)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            self.record(lambda: {**what(), "asked": self.asked, "raised": failure})
            raise
        self.record(lambda: self.outcome(what(), result, before))
        return result

    return call


@final
class TracedCore(Ipv4ll):
    """A core whose calls are recorded: all that it decides by, and what it decides.

    Args:
        record: writes each line.
        delay: milliseconds from which `timing` was made.
        mac, timing, addresses, jitter, avoid, sibling: those of `Ipv4ll`.
        chosen: `defence` and `first` of `Ipv4ll`.
    """

    def __init__(
        self,
        record: Callable[[Build], None],
        delay: int,
        mac: bytes,
        timing: Timing,
        addresses: Random,
        jitter: Random,
        *,
        avoid: Callable[[IPv4Address], bool],
        sibling: Callable[[bytes], bool],
        **chosen: Any,
    ) -> None:
        self._record = record
        self._number = next(_NUMBERS)
        self.asked: list[list[object]] = []
        self._shown: dict[str, object] = {}
        super().__init__(
            mac,
            timing,
            draws(partial(self._ask, "addresses", addresses.random)),
            draws(partial(self._ask, "jitter", jitter.random)),
            avoid=partial(self._ask, "avoid", avoid),
            sibling=partial(self._ask, "sibling", sibling),
            **chosen,
        )
        self.record(lambda: {"start": {"mac": mac, "delay": delay, **chosen}})

    def _ask(self, what: str, answer: Callable[..., R], *about: object) -> R:
        given = answer(*about)
        self.asked.append([what, *about, given])
        return given

    def record(self, build: Build) -> None:
        """Record a line of this core."""
        self._record(lambda: {"core": self._number, **line} if (line := build()) else None)

    def begin(self) -> int:
        """Begin to record a call. Return how many events wait."""
        self.asked = []
        return len(self._events)

    def outcome(
        self, what: Mapping[str, Any], result: object, before: int
    ) -> Mapping[str, Any] | None:
        """Return the line of a call that is over; None if only time passed."""
        shown: dict[str, object] = {
            "state": self.state,
            "candidate": self.candidate,
            "next": self.next_timer(),
            "listen": self.listen,
            "reflex": self.reflex is not None,
        }
        events = [*islice(self._events, before, None)]
        same = shown == self._shown and not (events or self.asked or result)
        if same and what["call"] in ("handle_timer", "to_send"):
            return None
        self._shown = shown
        return {**what, "asked": self.asked, "events": events, "result": result, **shown}

    link_up = _recorded(Ipv4ll.link_up)
    link_down = _recorded(Ipv4ll.link_down)
    stand_by = _recorded(Ipv4ll.stand_by)
    removed = _recorded(Ipv4ll.removed)
    elsewhere = _recorded(Ipv4ll.elsewhere)
    configured = _recorded(Ipv4ll.configured)
    configure_failed = _recorded(Ipv4ll.configure_failed)
    receive = _recorded(Ipv4ll.receive)
    handle_timer = _recorded(Ipv4ll.handle_timer)
    to_send = _recorded(Ipv4ll.to_send)
    sent = _recorded(Ipv4ll.sent)
    refused = _recorded(Ipv4ll.refused)
    resume = _recorded(Ipv4ll.resume)
