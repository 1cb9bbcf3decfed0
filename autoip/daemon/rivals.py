"""Rivals: other programs that manage link-local addresses of an interface.

An address that such a program has put on the interface reveals it. The scripts and routes of the two programs
disturb each other, so the administrator is warned, with the program's name if the address's label or /proc shows it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple, final

from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.daemon.reporter import Reporter
from autoip.kernel.model import PROTOCOL, Address

LABELS_MAX = 8
"""At most this many rivals of an interface are reported; each has its own label on its addresses."""
PROCESSES_MAX = 4096
"""At most this many processes are read."""
_COMMAND_LINE_MAX = 4096

_PROGRAMS = {
    "avahi-autoipd": "avahi-autoipd",
    "zcip": "zcip",
    "dhcpcd": "dhcpcd",
    "NetworkManager": "NetworkManager",
    "systemd-networkd": "systemd-networkd",
    "ConnMan": "connmand",
}
"""Names, and how the command lines begin."""
_OF_ONE_INTERFACE = ("avahi-autoipd", "zcip")
"""Programs with the interface on the command line or in the title; the others serve all interfaces."""


class Process(NamedTuple):
    """A running program."""

    pid: int
    arguments: tuple[str, ...]
    """As in /proc/PID/cmdline; the first one may be a title that the program gave itself."""


@final
class Rivals:
    """The rivals of one interface, each reported once.

    Args:
        reporter: gets a note about each rival.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.reported: list[str | None] = []
        """Labels of addresses."""
        self._task: asyncio.Task[None] | None = None

    def check(self, addresses: Callable[[], Iterable[Address]]) -> None:
        """Begin to report a rival if one of these addresses reveals it.

        Args:
            addresses: returns the interface's present addresses that are not owned; called again
                after each report.
        """
        if self._task is not None or len(self.reported) >= LABELS_MAX:
            return
        for address in addresses():
            if is_rival(address) and address.label not in self.reported:
                self.reported.append(address.label)
                self._task = asyncio.get_running_loop().create_task(
                    self._report(address, addresses)
                )
                return

    @property
    def quiet(self) -> bool:
        """Whether no report is under way."""
        return self._task is None

    async def ended(self) -> None:
        """Wait for the present report."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _report(self, address: Address, addresses: Callable[[], Iterable[Address]]) -> None:
        processes: list[Process] = []
        with suppress(OSError):  # no /proc here
            processes = await asyncio.to_thread(running)
        self._reporter.note(warning(address, self._reporter.name, processes))
        self._task = None
        self.check(addresses)


def is_rival(address: Address) -> bool:
    """Return whether the address is a link-local one of another program."""
    return address.address in LINK_LOCAL_NETWORK and address.proto != PROTOCOL


def warning(address: Address, interface: str, processes: Iterable[Process]) -> str:
    """Return the note about an address for which `is_rival` holds."""
    who = " or ".join(managers(interface, processes)) or "somebody"
    if (address.label or "").partition(":")[2] == "avahi":
        who = "avahi-autoipd, by its label"
    return (
        f"{who} has put {address.address}/{address.prefixlen} on this interface as well: two programs"
        " that manage link-local addresses; let one of them leave this interface alone"
    )


def managers(interface: str, processes: Iterable[Process]) -> list[str]:
    """Return the processes that may manage link-local addresses of the interface, in words, one of each program."""
    found = programs(interface, processes)
    return [f"{name} (process {process.pid})" for name, process in found.items()]


def programs(interface: str, processes: Iterable[Process]) -> dict[str, Process]:
    """Return the programs that may manage link-local addresses of the interface, with a process of each."""
    found: dict[str, Process] = {}
    for process in processes:
        line = " ".join(process.arguments) + " "
        words = re.split(r"[\s\[\]]+", line)
        for name, program in _PROGRAMS.items():
            if re.match(rf"(\S*/)?(busybox (\S*/)?)?{program}[: ]", line) and (
                name not in _OF_ONE_INTERFACE or interface in words
            ):
                found.setdefault(name, process)
    return found


def running() -> list[Process]:
    """Return the programs of this network namespace, this one left out. Reads files: call it in a thread.

    Raises:
        OSError: there is no /proc.
    """
    found: list[Process] = []
    ours = _namespace("self")
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for pid in sorted(pids)[:PROCESSES_MAX]:
        with suppress(OSError):  # the process has ended, or is hidden
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read(_COMMAND_LINE_MAX)
            words = tuple(os.fsdecode(word) for word in line.split(b"\0") if word)
            if words and pid != os.getpid() and _namespace(pid) == ours:
                found.append(Process(pid, words))
    return found


def _namespace(pid: int | str) -> int:
    """Return a number of the process's network namespace that, unlike ns/net, every user may read."""
    return os.stat(f"/proc/{pid}/net/dev").st_ino
