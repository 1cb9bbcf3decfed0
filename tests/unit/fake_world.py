"""A whole daemon on a fake kernel and in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from autoip.core import arp
from autoip.core.arp import BROADCAST, NO_HARDWARE, ArpPacket, Operation
from autoip.daemon.daemon import Daemon, Settings
from autoip.daemon.interface import Interface
from autoip.daemon.networkmanager import gate
from autoip.daemon.trace import Trace
from autoip.options import Options
from tests.unit import virtual_time
from tests.unit.fake_kernel import FakeKernel, FakeNetwork, link_of, mac_of

STRANGER = mac_of(99)
"""The hardware address of another host."""
A = IPv4Address("169.254.7.7")
B = IPv4Address("169.254.8.8")


class World:
    """The daemon, its kernel, and what it logged.

    Args:
        directory: where its files are.
        names: of the interfaces that it serves; a link that is ready is there for each.
        trace: file of a trace, if there is to be one.
        options: of all interfaces.
    """

    def __init__(
        self,
        directory: Path,
        *names: str,
        script: str | None = None,
        trace: Path | None = None,
        **options: Any,
    ) -> None:
        self.kernel = FakeKernel()
        self.network: FakeNetwork = self.kernel.network
        self.lines: list[str] = []
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
        self._trace = None if trace is None else Trace.open(str(trace), log)
        settings = Settings(
            interfaces=self.names,
            options=lambda _: Options(**options),
            keep_state=True,
            progress=logging.DEBUG,
            environ=self.environ,
            script=script,
            script_style="zcip",
            trace=self._trace,
        )
        self.daemon = Daemon(settings, log, self.kernel.parts)
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
        await self.until(lambda: self.daemon._interfaces)
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
