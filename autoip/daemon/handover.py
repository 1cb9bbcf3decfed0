"""What a daemon hands over to the program that goes on in its process: see docs/decisions/reload.md.

Values alone. Each part of the daemon makes its own (`keep`), and goes on with it (`resume`); here they become JSON and
are read again. A program reads what an older or a newer one wrote, as far as it can: an interface whose part it cannot
read is probed again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any

from autoip import __version__
from autoip.control.server import KeptServer
from autoip.core import ipv4ll, policy
from autoip.daemon.lock_file import Held
from autoip.daemon.networkmanager import gate
from autoip.daemon.plain import plain, read
from autoip.kernel.arp_broadcast import Attached
from autoip.kernel.arp_socket import NOT_IN_KERNEL, Defence, Phase
from autoip.kernel.model import Link
from autoip.options import Options

FORMAT = 1
"""Changed whenever a program could misread what another wrote; what is only added needs no change."""


@dataclass(frozen=True, slots=True)
class KeptLock:
    """Descriptors of a `LockFile`: of the directory and of the file, which has the lock; None: there is no file."""

    directory: int | None
    file: int | None
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class KeptNegotiator:
    """A core and its socket.

    Attributes:
        mac: of the link.
        core: None: there is none yet.
        descriptor: of the packet socket; None: there is none.
        phase, address: those of the socket's filter.
        armed: whether the next conflict is answered at once.
        generation: the socket's.
        attached: index of the interface, and descriptor of the kernel's defence on it; None: it is not attached.
    """

    mac: bytes = b""
    core: ipv4ll.Kept | None = None
    descriptor: int | None = None
    phase: Phase = Phase.SILENT
    address: IPv4Address | None = None
    armed: bool = False
    answers: bool = False
    generation: int = 1
    attached: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class KeptOwned:
    """Fields of an `OwnedAddress`."""

    owned: Held | None
    disowned: Held | None = None
    by_unicast: str | None = None
    not_reset: str | None = None
    by_filter: str | None = None


@dataclass(frozen=True, slots=True)
class KeptReport:
    """Fields of a `Reporter`."""

    why: str = ""
    trouble: str = ""
    since: float | None = None
    conflicts: int = 0
    defences: int = 0
    last_conflict: Any = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptInterface:
    """One interface.

    Attributes:
        link: what the kernel reported last; what has changed since counts as reported now.
        options: those in force.
        routes: index and source of the routes that there are, in the order of `OwnedRoutes`.
        leftover: see `AddressMemory`.
        others_on: see `StrandedRoutes`.
        reported: the address that the script knows.
        rivals: labels of the addresses that betrayed one.
        server: None: there is no control socket.
    """

    name: str
    link: Link | None
    options: Options
    lock: KeptLock
    negotiator: KeptNegotiator
    policy: policy.Kept
    owned: KeptOwned
    report: KeptReport
    routes: tuple[tuple[int, IPv4Address] | None, ...] = ()
    leftover: IPv4Address | None = None
    others_on: int | None = None
    reported: IPv4Address | None = None
    rivals: tuple[str | None, ...] = ()
    server: KeptServer | None = None

    @property
    def descriptors(self) -> Iterator[int]:
        """All that are handed over."""
        server = self.server
        if server is not None:
            yield server.descriptor
            yield from (client.descriptor for client in server.clients)
        for one in (self.lock.directory, self.lock.file, self.negotiator.descriptor):
            if one is not None:
                yield one
        if self.negotiator.attached is not None:
            yield self.negotiator.attached[1]


@dataclass(frozen=True, slots=True)
class Handover:
    """The whole daemon.

    Attributes:
        names: of the interfaces that were asked for.
        stopped: those of them that were stopped since.
        program, defence: see `Settings`.
        attached: see `Broadcast`.
        trace: descriptor of its file.
        terminal: whether the process had a controlling terminal.
        limits: those of the network, all reported.
        foreign_default: whether somebody else has a default route.
        slept: seconds that the machine has slept since its start.
        networkmanager: see `gate`.
        by: the version of the program that wrote this.
        unread: what could not be read, one line each.
    """

    names: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    interfaces: tuple[KeptInterface, ...] = ()
    program: int | str = "no program was handed over"
    trace: int | None = None
    terminal: bool = False
    limits: tuple[str, ...] = ()
    foreign_default: bool = True
    slept: float | None = None
    networkmanager: gate.Kept = gate.NEW
    defence: Defence | str = f"{NOT_IN_KERNEL}: no program was handed over"
    attached: Attached = ()
    by: str = __version__
    unread: tuple[str, ...] = field(default=(), compare=False)

    @property
    def descriptors(self) -> list[int]:
        """All that are handed over."""
        shared = [one for one in (self.program, self.trace) if isinstance(one, int)]
        if not isinstance(self.defence, str):
            shared += self.defence
        shared += [descriptor for _, descriptor in self.attached]
        return shared + [one for kept in self.interfaces for one in kept.descriptors]

    def interface(self, name: str) -> KeptInterface | None:
        """The part of one interface."""
        return next((kept for kept in self.interfaces if kept.name == name), None)

    def server(self, name: str) -> KeptServer | None:
        """The control socket of one interface."""
        kept = self.interface(name)
        return None if kept is None else kept.server

    def begun(self, names: Iterable[str]) -> list[str]:
        """Return which interfaces to begin with, dropped ones too, where those of these names are asked for."""
        wanted = dict.fromkeys([*(kept.name for kept in self.interfaces), *names])
        return [name for name in wanted if name not in self.stopped]

    def without(self, kept: KeptInterface) -> Handover:
        """Return it without one part, whose descriptors are closed."""
        for descriptor in kept.descriptors:
            with suppress(OSError):
                os.close(descriptor)
        return replace(self, interfaces=tuple(one for one in self.interfaces if one is not kept))

    def emit(self) -> bytes:
        """Return it as JSON, together with a list of all descriptors."""
        content = {"format": FORMAT, "descriptors": self.descriptors, "handover": self}
        return json.dumps(content, default=plain).encode()


def parse(data: bytes) -> tuple[Handover, list[int]]:
    """Read what `Handover.emit` wrote, in this or another version.

    Returns:
        what can be read, and the descriptors of what cannot.
    """
    descriptors: list[int] = []
    try:
        message = json.loads(data)
        descriptors = list(read(tuple[int, ...], message["descriptors"]))
        if message["format"] != FORMAT:
            raise ValueError(f"it has format {message['format']}, and not {FORMAT}")
        content = message["handover"]
        found, unread = _interfaces(content.pop("interfaces"))
        whole = replace(read(Handover, content), interfaces=tuple(found), unread=tuple(unread))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Handover(unread=(f"what was handed over cannot be read: {error!r}",)), descriptors
    return whole, [one for one in descriptors if one not in whole.descriptors]


def _interfaces(parts: list[Any]) -> tuple[list[KeptInterface], list[str]]:
    found, unread = [], []
    for part in parts:
        try:
            found.append(read(KeptInterface, part))
        except ValueError as error:
            name = part.get("name") if isinstance(part, dict) else None
            unread.append(f"{name}: what was handed over cannot be read: {error}")
    return found, unread
