"""The options of `scan`, its loop, and its output."""

from __future__ import annotations

import re
import select
import signal
import sys
import time
from contextlib import ExitStack

from autoip.commands import arguments
from autoip.errors import CannotTell, NoPermission, NotArp, UsageError
from autoip.option_table import SECONDS_MAX, Option, one_interface_name, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:  # a scan must start fast
    from collections.abc import Sequence
    from typing import Any

    from autoip.commands.scan.hosts import Host
    from autoip.commands.scan.segment import Segment

NOTHING = 1
"""Exit status: nobody was found."""
_INTERRUPTED = 128 + signal.SIGINT
_HOLD = 0.3
"""Seconds that a host waits for its name before it is shown."""
_PROGRESS = 0.25
_RATE_MAX = 10_000_000
_PREFIX_MIN = 16


def _rate(text: str) -> float:
    if text == "max":
        return float(_RATE_MAX)
    if not re.fullmatch("[0-9]{1,8}", text) or not 1 <= int(text) <= _RATE_MAX:
        raise UsageError(f"not a whole number from 1 to {_RATE_MAX}, or 'max'")
    return float(text)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise UsageError("not a whole number from 1 to 999999")
    return int(text)


def _delay(text: str) -> int:
    from autoip.options import DELAY  # which takes as long to load as all else

    delay: int = DELAY.read(text)
    return delay


def _mac(text: str) -> bytes:
    if not re.fullmatch("[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){0,5}", text):
        raise UsageError(
            "not a hardware address, or its first bytes, like 00:11:1c or 00:11:1c:0a:0b:0c"
        )
    return bytes.fromhex(re.sub("[:-]", "", text))


def _network(text: str) -> tuple[int, int]:
    from ipaddress import IPv4Network

    try:
        network = IPv4Network(text)
    except ValueError as error:
        raise UsageError(f"not a network: {error}") from None
    if network.prefixlen < _PREFIX_MIN:
        raise UsageError(f"too large; allowed are networks from /{_PREFIX_MIN} to /32")
    return int(network.network_address), int(network.netmask)


# fmt: off
OPTIONS = (
    Option("listen", "", "send nothing; show who announces, probes, asks, or wants DHCP, until interrupted"),
    Option("first", "", "end at the first host"),
    Option("count", "N", "end at so many hosts", read=_count, repeat="last"),
    Option(
        "mac", "MAC", "only hosts whose hardware address is this, or begins like this", read=_mac, repeat="last",
    ),
    Option("timeout", "S", f"end after so many seconds, 0 to {SECONDS_MAX}", read=seconds, repeat="last"),
    Option(
        "net", "CIDR", "the network to ask through; default 169.254.0.0/16",
        "At most 65536 addresses.",
        read=_network, default="169.254.0.0/16", repeat="last",
    ),
    Option(
        "rate", "N", "ARP requests a second, or `max`; default 5000, on Wi-Fi 500",
        "With `max` as many as the link takes. Where the kernel has no room for more, and where a host that has"
        " answered no longer does, the rate is halved.",
        read=_rate, repeat="last",
    ),
    Option(
        "delay", "MS",
        "longest pause between two probes of an address that must be claimed first; default 2000, which is RFC 3927",
        read=_delay, repeat="last",
    ),
    Option("all", "", "also each address of a host that has more than 16", into="everything"),
    arguments.json_option("a JSON object for each host", "short"),
    Option(
        "interfaces", "IFACE", "where to look; default: all that are like Ethernet and have a carrier",
        read=one_interface_name, repeat="all", operand="*", offers="interfaces",
    ),
)
# fmt: on


def main(words: Sequence[str]) -> int:
    """Show the hosts as they are found; 0, or 1: there are none.

    Raises:
        UsageError: a wrong word, or an interface that is not there.
        NoPermission: CAP_NET_RAW is missing.
        CannotTell: nobody can be asked.
    """
    found = arguments.values(
        OPTIONS,
        arguments.texts(
            "scan",
            OPTIONS,
            words,
            epilog="exit status: 0 found, 1 nobody, 2 to 5 as for 'autoip', 6 nobody could be asked",
        ),
    )
    output = Output(found)
    try:
        with ExitStack() as stack:
            _scan(_segments(found, output, stack), found, output)
        ended = NOTHING
    except KeyboardInterrupt:
        ended = _INTERRUPTED
    except PermissionError:
        raise NoPermission("no permission: CAP_NET_RAW missing; run as root") from None
    except BrokenPipeError:
        raise
    except OSError as error:
        output.finish()
        raise CannotTell(f"scan: {error.strerror}") from error
    output.finish()
    return 0 if output.shown else ended


def _segments(found: dict[str, Any], output: Output, stack: ExitStack) -> list[Segment]:
    from autoip.commands.scan.segment import Segment
    from autoip.kernel import interface_names
    from autoip.kernel.interface_facts import is_port, look_up

    segments = []
    for name in found["interfaces"] or interface_names.names():
        try:
            facts = look_up(name)
        except (NotArp, CannotTell, UsageError):
            if found["interfaces"]:
                raise
            continue
        if found["interfaces"] or not is_port(name):
            segment = Segment(
                name, *facts, not found["listen"], output.hosts, output.report, output.say
            )
            stack.callback(segment.close)
            segments.append(segment)
    if not segments:
        raise CannotTell("no interface here is like Ethernet and has a carrier")
    if not found["listen"]:
        for segment in segments:
            segment.ask(found["net"], found["rate"], found["delay"])
    return segments


def _scan(segments: list[Segment], found: dict[str, Any], output: Output) -> None:
    """Ask and read until all is done, or enough was found, or no interface is left.

    Raises:
        OSError: the last interface has gone.
    """
    until = None if found["timeout"] is None else time.monotonic() + found["timeout"]
    while True:
        now = time.monotonic()
        waiting = select.poll()
        waits = [] if until is None else [max(0.0, until - now)]
        for segment in tuple(segments):
            try:
                segment.read()
                wait = segment.step(now)
            except OSError as error:
                output.say(f"{segment.name}: {error.strerror}")
                segments.remove(segment)
                if not segments:
                    raise
                continue
            waits += [] if wait is None else [wait]
            for fd in segment.filenos():
                waiting.register(fd, select.POLLIN)
        if (wait := output.step(now, segments)) is not None:
            waits.append(wait)
        if output.enough or (until is not None and now >= until):
            break
        if all(segment.over(now) for segment in segments):
            break
        # Rounded up: a wait that is too short would be a busy loop.
        waiting.poll(None if not waits else int(min(waits) * 1000 + 0.999))
    for segment in segments:
        segment.finish()


class Output:
    """What is shown: hosts on standard output, what is done on standard error if that is a terminal.

    Args:
        found: the values of OPTIONS.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        from autoip.commands.scan.hosts import Hosts

        self.hosts = Hosts(everything=found["everything"])
        self.shown = 0
        self._wanted = 1 if found["first"] else found["count"]
        self._mac: bytes = found["mac"] or b""
        self._style: str = found["json"] or ""
        self._held: dict[Host, float] = {}
        self._progress_at = 0.0
        self._terminal = sys.stderr is not None and sys.stderr.isatty()

    @property
    def enough(self) -> bool:
        """Whether as many were shown as were wanted."""
        return self._wanted is not None and self.shown >= self._wanted

    def report(self, host: Host, new: bool) -> None:
        """Show a host, now if it says what it is, else soon."""
        if self.enough or not host.mac.startswith(self._mac):
            return
        if new and not (host.names or host.kinds or host.notes):
            self._held[host] = time.monotonic() + _HOLD
        elif new or self._held.pop(host, None) is not None:
            self._show(host)
        else:
            self._write(host)

    def say(self, line: str) -> None:
        """Write what is done to standard error."""
        self._clear()
        if sys.stderr is not None:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def step(self, now: float, segments: Sequence[Segment]) -> float | None:
        """Show the hosts that waited, and the progress; return the seconds until the next step."""
        self._show_held(now)
        waits = [at - now for at in list(self._held.values())[:1]]
        if self._terminal:
            if now >= self._progress_at:
                self._progress_at = now + _PROGRESS
                sys.stderr.write(f"\r{_progress(segments, self.shown)}\x1b[K")
                sys.stderr.flush()
            waits.append(self._progress_at - now)
        return min(waits, default=None)

    def finish(self) -> None:
        """Show what waits still, then what all hosts together mean."""
        self._show_held(float("inf"))
        self._clear()
        for line in self.hosts.findings():
            if self._style:
                self.say(line)
            else:
                arguments.write(line)

    def _show_held(self, now: float) -> None:
        # All wait equally long, so the first one is the first that is due.
        while self._held and self._held[host := next(iter(self._held))] <= now:
            del self._held[host]
            self._show(host)

    def _show(self, host: Host) -> None:
        if not self.enough:
            self.shown += 1
            self._write(host)

    def _write(self, host: Host) -> None:
        from autoip.commands.scan import report

        self._clear()
        style = self._style
        arguments.write(arguments.dumped(report.value(host), style) if style else report.line(host))

    def _clear(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _progress(segments: Sequence[Segment], shown: int) -> str:
    sweeps = [segment.sweep for segment in segments if segment.sweep is not None]
    if not sweeps:
        return f"{shown} found; listening until interrupted"
    asked, total = sum(sweep.asked for sweep in sweeps), sum(sweep.total for sweep in sweeps)
    left = max(sweep.seconds_left() for sweep in sweeps)
    return f"{shown} found; {min(asked, total)} of {total} requests sent, {left:.0f} s left"
