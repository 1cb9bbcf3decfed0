"""What the daemon hands over to the program that goes on in its process, and takes over from the one before."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from autoip import __version__
from autoip.control.server import Server
from autoip.daemon.cables import Cables
from autoip.daemon.handover import Handover, KeptInterface
from autoip.daemon.host import Host
from autoip.daemon.interface import Interface, Shared
from autoip.daemon.lock_file import LockFile
from autoip.daemon.networkmanager.gate import Follower
from autoip.daemon.protocols import Kernel, Network
from autoip.daemon.reporter import Reporter
from autoip.daemon.served import Served
from autoip.daemon.terminal import Hangup
from autoip.kernel.arp_socket import Defence
from autoip.kernel.timers import SLEEP_MIN
from autoip.options import Options

if TYPE_CHECKING:
    from autoip.daemon.trace import Trace


class _Settings(Protocol):
    @property
    def program(self) -> int | str: ...
    @property
    def defence(self) -> Defence | str: ...
    @property
    def trace(self) -> Trace | None: ...


class ResumableDaemon(ABC):
    """The part of `Daemon` that is for a reload. Its fields are those of `Daemon`."""

    _cables: Cables
    _follower: Follower
    _handed: Handover
    _hangup: Hangup
    _host: Host
    _interfaces: list[Interface]
    _kernel: Kernel
    _log: logging.Logger
    _names: Sequence[str] = ()
    _network: Network
    _served: Served | None
    _servers: dict[str, Server]
    _serving: bool
    _settings: _Settings
    _shared: Shared
    _stop: asyncio.Event

    @abstractmethod
    def _reporter(self, name: str) -> Reporter:
        """Make the reporter of an interface."""

    @abstractmethod
    def _restart(self, why: str) -> None:
        """Probe all addresses again."""

    @abstractmethod
    async def _end(self, interface: Interface) -> None:
        """Stop an interface and remove what it owns."""

    def _resumed(self, name: str, options: Options) -> Interface | None:
        """Return the interface that goes on; None: there was none, or it cannot, and is begun as after a crash."""
        if (kept := self._handed.interface(name)) is None:
            return None
        try:
            return self._resume_one(kept, options)
        except Exception as error:  # noqa: BLE001 (the interface is served all the same)
            self._log.warning("%s: cannot go on, is probed again: %r", name, error)
            self._handed = self._handed.without(kept)
            return None

    def _resume_one(self, kept: KeptInterface, options: Options) -> Interface:
        """Go on with an interface of the program before."""
        lock, held = kept.lock, kept.owned.owned
        lock_file = LockFile.resume(kept.name, lock.directory, lock.file, held, lock.warning)
        interface = Interface(self._reporter(kept.name), options, lock_file, self._shared)
        try:
            interface.resume(kept)
        except BaseException:
            interface.release()
            raise
        return interface

    async def _go_on(self, handed: Handover) -> None:
        """The end of a reload: what has changed meanwhile is known."""
        for line in handed.unread:
            self._log.warning("%s; probed again", line)
        for interface in [*self._interfaces]:
            if interface.name not in self._names:
                await self._end(interface)
            elif handed.interface(interface.name) is not None:
                interface.resumed()
        slept = self._kernel.clock_watch.slept
        if handed.slept is not None and slept - handed.slept >= SLEEP_MIN:
            self._restart("the machine slept")
        if handed.terminal:
            self._hangup.look_later()
        self._handed = Handover()  # what is added from now on is new
        self._log.info("reloaded: version %s goes on for %s", __version__, handed.by)

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way, and all is served."""
        served = all(interface.quiet for interface in self._interfaces)
        asked = not all(server.quiet for server in self._servers.values())
        if self._served is not None and not self._served.quiet:
            return False
        idle = self._serving and not self._stop.is_set() and not self._cables.busy
        return idle and served and not asked

    def keep(self) -> Handover:
        """Return what the program that goes on needs."""
        kept = []
        for interface in self._interfaces:
            server = self._servers.get(interface.name)
            kept.append(replace(interface.keep(), server=server.keep() if server else None))
        trace = self._settings.trace
        served = [one.name for one in kept]
        names = self._names if self._served is None else self._served.names
        return Handover(
            tuple(names),
            tuple(name for name in names if name not in served),
            tuple(kept),
            self._settings.program,
            None if trace is None else trace.descriptor,
            self._hangup.had_terminal,
            tuple(self._network.limits),
            self._host.foreign_default_route.exists,
            self._kernel.clock_watch.slept,
            self._follower.keep(),
            self._settings.defence,
            attached=self._network.attached,
        )
