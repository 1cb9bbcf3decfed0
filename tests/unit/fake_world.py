"""A whole daemon on a fake kernel and in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NoReturn

import pytest

from autoip.core import arp
from autoip.core.arp import BROADCAST, NO_HARDWARE, ArpPacket, Operation
from autoip.daemon import handover
from autoip.daemon.daemon import Daemon, Settings
from autoip.daemon.handover import Handover
from autoip.daemon.interface import Interface
from autoip.daemon.networkmanager import gate
from autoip.daemon.served import Selection
from autoip.daemon.trace import Trace
from autoip.options import Options
from tests.unit import virtual_time
from tests.unit.fake_kernel import FakeKernel, FakeNetwork, link_of, mac_of

STRANGER = mac_of(99)
"""The hardware address of another host."""
A = IPv4Address("169.254.7.7")
B = IPv4Address("169.254.8.8")


class FakeExecutable:
    """A program that starts, unless it is refused."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.refused: str | None = None
        self.failure: OSError | None = None
        self.handed: asyncio.Queue[Handover] = asyncio.Queue()
        self.tried = 0
        self.at_last: Callable[[], object] = lambda: None
        """Called at the end of the trial."""

    async def refusal(self, data: bytes) -> str | None:
        self.tried += 1
        assert handover.parse(data)[0].unread == ()
        await asyncio.sleep(0.25)
        self.at_last()
        return self.refused

    def execute(self, given: Handover) -> NoReturn:
        if self.failure is not None:
            raise self.failure
        text = given.emit().decode()
        real = [d for kept in given.interfaces for d in kept.descriptors]
        packets = [kept.negotiator.descriptor for kept in given.interfaces]
        # The number of a packet socket of the fake kernel is no descriptor.
        again = {d: os.dup(d) for d in real if d not in packets}
        self.handed.put_nowait(_replaced(given, again))
        assert len(text) < 1 << 20
        self._world.kernel.listener.handed = True
        raise asyncio.CancelledError


def _replaced(given: Handover, again: dict[int, int]) -> Handover:
    interfaces = []
    for kept in given.interfaces:
        lock, server = kept.lock, kept.server
        if lock.file is not None and lock.directory is not None:
            lock = replace(lock, directory=again[lock.directory], file=again[lock.file])
        if server is not None:
            clients = [replace(c, descriptor=again[c.descriptor]) for c in server.clients]
            server = replace(server, descriptor=again[server.descriptor], clients=tuple(clients))
        interfaces.append(replace(kept, lock=lock, server=server))
    return replace(given, interfaces=tuple(interfaces))


def _options(first: Any = None, **options: Any) -> Options:
    """Return the options; `first`: one first candidate, or several."""
    return Options(ip=(first,) if isinstance(first, IPv4Address) else first or (), **options)


class World:
    """The daemon, its kernel, and what it logged.

    Args:
        directory: where its files are.
        names: of the interfaces that it serves; a link that is ready is there for each.
        trace: file of a trace, if there is to be one.
        selection: what is served as it appears, instead of the names.
        options: of all interfaces.
    """

    def __init__(
        self,
        directory: Path,
        *names: str,
        script: str | None = None,
        trace: Path | None = None,
        selection: Selection | None = None,
        **options: Any,
    ) -> None:
        self.kernel = FakeKernel()
        self.network: FakeNetwork = self.kernel.network
        self.lines: list[str] = []
        self.reloading: list[str] = []
        """The log up to the end of the last reload; `lines` begins anew with it."""
        self.names = names or ("eth0",)
        self.directory = directory
        for index, name in enumerate(self.names, 2):
            self.network.plug(link_of(index, name))
        self.network.events.clear()
        self.environ = {
            "RUNTIME_DIRECTORY": str(directory / "run"),
            "STATE_DIRECTORY": str(directory / "state"),
        }
        log = logging.getLogger(f"world.{id(self)}")
        log.setLevel(logging.DEBUG)
        log.propagate = False
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        log.addHandler(handler)
        self._log = log
        self._trace = None if trace is None else Trace.open(str(trace), log)
        self.executable = FakeExecutable(self)
        self.settings = Settings(
            interfaces=self.names,
            options=lambda _: _options(**options),
            keep_state=True,
            progress=logging.DEBUG,
            environ=self.environ,
            script=script,
            script_style="zcip",
            trace=self._trace,
            selection=selection,
            executable=self.executable,
        )
        self.daemon = Daemon(self.settings, log, self.kernel.parts)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> World:
        (self.directory / "run").mkdir(mode=0o755, parents=True, exist_ok=True)
        self._task = asyncio.get_running_loop().create_task(self.daemon.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self.daemon._stop.set()
        await self._task
        self.kernel.close()
        if self._trace is not None:
            self._trace.close()

    async def reload(
        self,
        *,
        meanwhile: Callable[[], object] = lambda: None,
        change: Callable[[bytes], bytes] = lambda data: data,
        names: tuple[str, ...] | None = None,
        pause: float = 0.25,
        **options: Any,
    ) -> None:
        """SIGHUP, and the program after the exec, up to its first look at what has happened.

        Args:
            meanwhile: done between the exec and the new program, after half the pause.
            change: what becomes of what is handed over.
            names: of the interfaces from now on, if they are others.
            pause: seconds from the exec to the new program.
            options: of all interfaces, if they are others.
        """
        signal.raise_signal(signal.SIGHUP)
        # At once: the program before would go on, and send what is due meanwhile.
        handed = await asyncio.wait_for(self.executable.handed.get(), 100)
        assert self._task is not None
        self._abandon()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.sleep(pause / 2)
        meanwhile()
        await asyncio.sleep(pause / 2)
        found, rest = handover.parse(change(handed.emit()))
        for descriptor in rest:
            with contextlib.suppress(OSError):  # the fake kernel's
                os.close(descriptor)
        changed: dict[str, Any] = {"options": lambda _: _options(**options)} if options else {}
        changed |= {"interfaces": names} if names is not None else {}
        self.settings = replace(self.settings, handed=found, **changed)
        self.kernel.network.events.clear()
        self.kernel.network.limits.clear()
        self.daemon = Daemon(self.settings, self._log, self.kernel.parts)
        self._task = asyncio.get_running_loop().create_task(self.daemon.run())
        await self.until(lambda: self.logged("reloaded: version"))
        self.reloading = [*self.lines]
        self.lines.clear()

    def _abandon(self) -> None:
        """What an exec does: the program is gone, its descriptors are the next one's."""
        for server in self.daemon._servers.values():
            assert server._listener is not None
            asyncio.get_running_loop().remove_reader(server._listener)
            server._listener.close()
            for client in server._clients():
                client.drop()
        for interface in self.daemon._interfaces:
            for descriptor in interface._lock_file.descriptors:
                if descriptor is not None:
                    os.close(descriptor)
        self.daemon._interfaces.clear()
        cables = self.daemon._cables
        for cable in cables._cables.values():
            asyncio.get_running_loop().remove_reader(cable.socket.fileno())
            cable.socket.close()
        cables._cables.clear()
        if cables._watching is not None:
            cables._watching.cancel()
        cables._given_up = None

    # Questions of a test.

    @property
    def now(self) -> float:
        return self.kernel.clock()

    def interface(self, name: str = "eth0") -> Interface:
        (found,) = (i for i in self.daemon._interfaces if i.name == name)
        return found

    def report(self, name: str = "eth0") -> dict[str, Any]:
        return self.interface(name).report()

    def address(self, name: str = "eth0") -> IPv4Address | None:
        """The address that the interface holds."""
        text = self.report(name)["address"]
        return None if text is None else IPv4Address(text)

    def logged(self, text: str) -> list[str]:
        """Return the log lines with the text."""
        return [line for line in self.lines if text in line]

    def asked(self, *requests: str) -> list[tuple[Any, ...]]:
        """Return the requests of these names that the kernel got, in order."""
        return [asked for asked in self.network.asked if asked[0] in requests]

    # What a test does.

    async def until(self, condition: Callable[[], object], seconds: float = 100.0) -> None:
        """Let virtual time pass until it holds."""
        end = self.now + seconds
        while not condition():
            assert self._task is not None
            if self._task.done():
                self._task.result()
            assert self.now < end, self.lines[-20:]
            await asyncio.sleep(0.02)

    async def until_state(self, state: str, name: str = "eth0") -> None:
        await self.until(lambda: any(i.name == name for i in self.daemon._interfaces))
        await self.until(lambda: self.report(name)["state"] == state)

    async def until_bound(self, name: str = "eth0") -> IPv4Address:
        await self.until_state("bound", name)
        address = self.address(name)
        assert address is not None
        return address

    def claims(self, address: IPv4Address, sha: bytes = STRANGER) -> int:
        """Announce the address as another host. Return how many sockets let that through."""
        return self.kernel.listener.deliver(arp.announcement(sha, address))

    def probes(self, address: IPv4Address) -> int:
        packet = ArpPacket(
            Operation.REQUEST, STRANGER, IPv4Address(0), NO_HARDWARE, address, BROADCAST
        )
        return self.kernel.listener.deliver(packet)

    async def asks(self, request: str, name: str = "eth0") -> dict[str, Any]:
        """Send a request on the interface's control socket; return the answer."""
        (path,) = (self.directory / "run").glob(f"*-{name}.sock")
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write((json.dumps({"version": 1, "request": request}) + "\n").encode())
        line = await reader.readline()
        writer.close()
        answer: dict[str, Any] = json.loads(line)
        return answer


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a test in virtual time."""

    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 10_000)

    virtual_time.run(bounded())


played = virtual_time.played_by(play)


@contextlib.contextmanager
def no_network_manager(directory: Path) -> Any:
    """Keep the machine's own D-Bus out of the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "SYSTEM_BUS", str(directory / "no-bus"))
        yield
