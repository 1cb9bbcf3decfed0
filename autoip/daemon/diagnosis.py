"""What others do that an administrator should know of: found in what an interface sees anyway.

No input and no output: what is found is returned as a line, once, and the caller tells it.

* A host that claims whatever is probed for: proxy ARP, a middlebox that answers for the whole network,
  or a switch gone wrong.  No candidate can succeed, and each looks like an ordinary conflict.
* Somebody else's link-local address on the interface: a second program manages it.  The two then
  have an address each, and each program's scripts and routes are in the other's way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import final

from autoip.core.arp import ArpPacket, format_mac
from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.kernel.model import PROTOCOL, Address

CANDIDATES = 3
"""So many different candidates, with no success between them, make a host that answers everything."""
HOSTS_MAX = 64
"""Hosts that are remembered: a flood of forged ones must not grow."""


@dataclass(frozen=True, slots=True)
class Process:
    """A running program."""

    pid: int
    arguments: tuple[str, ...]
    """As in /proc/PID/cmdline; the first one may be a title that the program gave itself."""


@final
class Takers:
    """Hosts that take candidates before they are in use."""

    def __init__(self) -> None:
        self._taken: dict[bytes, set[IPv4Address]] = {}
        self._named: set[bytes] = set()

    def conflict(self, address: IPv4Address, packet: ArpPacket) -> str | None:
        """A candidate was lost to this packet. What is to be told of its sender, once."""
        if packet.spa != address:
            return None  # it wants the address for itself
        taken = self._taken.get(packet.sha)
        if taken is None:
            if len(self._taken) >= HOSTS_MAX:
                self._taken.pop(next(iter(self._taken)))
            taken = self._taken[packet.sha] = set()
        taken.add(address)
        if len(taken) < CANDIDATES or packet.sha in self._named or len(self._named) >= HOSTS_MAX:
            return None
        self._named.add(packet.sha)
        addresses = ", ".join(map(str, sorted(taken)))
        return (
            f"{format_mac(packet.sha)} claims every address that is probed for ({addresses}):"
            " proxy ARP there? It has to be off for 169.254.0.0/16"
        )

    def claimed(self) -> None:
        """A candidate succeeded: nobody answers everything."""
        self._taken.clear()


def is_foreign(address: Address) -> bool:
    """Whether another program than ours manages a link-local address by this one."""
    return address.address in LINK_LOCAL_NETWORK and address.proto != PROTOCOL


# By what a program names itself; more of them than are likely to run at once.
_MANAGERS = (
    ("avahi-autoipd", re.compile(r"^(\S*/)?avahi-autoipd(:|$)")),
    ("zcip", re.compile(r"^(\S*/)?zcip$|^(\S*/)?busybox$")),
    ("dhcpcd", re.compile(r"^(\S*/)?dhcpcd(:|$)")),
    ("NetworkManager", re.compile(r"^(\S*/)?NetworkManager$")),
    ("systemd-networkd", re.compile(r"^(\S*/)?systemd-networkd$")),
    ("ConnMan", re.compile(r"^(\S*/)?connmand$")),
)
# These are told the interface on their command line, or write it into their title; the others serve all.
_TOLD_THE_INTERFACE = ("avahi-autoipd", "zcip")


def managers(interface: str, processes: Iterable[Process]) -> list[str]:
    """The running programs that may manage link-local addresses of the interface, one of each kind."""
    found: dict[str, int] = {}
    for process in processes:
        for name, pattern in _MANAGERS:
            if process.arguments and pattern.search(process.arguments[0]):
                if _concerns(name, interface, process.arguments):
                    found.setdefault(name, process.pid)
                break
    return [f"{name} (process {pid})" for name, pid in found.items()]


def _concerns(name: str, interface: str, arguments: Sequence[str]) -> bool:
    if name == "zcip" and not any(re.search(r"(^|/)zcip$", word) for word in arguments[:2]):
        return False  # another applet
    if name not in _TOLD_THE_INTERFACE:
        return True
    words = {word for argument in arguments for word in re.split(r"[\s\[\]]+", argument)}
    return interface in words


def foreign(address: Address, interface: str, processes: Iterable[Process]) -> str:
    """What is to be told of an address for which `is_foreign` holds."""
    who = "somebody"
    if (address.label or "").partition(":")[2] == "avahi":
        who = "avahi-autoipd, by its label"
    elif running := managers(interface, processes):
        who = " or ".join(running)
    return (
        f"{who} has put {address.address}/{address.prefixlen} on this interface as well: two programs"
        " that manage link-local addresses; let one of them leave this interface alone"
    )
