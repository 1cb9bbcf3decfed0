"""What follows NetworkManager, on a real bus with a NetworkManager of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from autoip.daemon.networkmanager import dbus, gate
from autoip.daemon.networkmanager.dbus import Bus, BusLost
from autoip.daemon.networkmanager.gate import STATES, Follower, Standing
from tests.require import requires_program

from . import virtual_time
from .fake_networkmanager import DEVICE, NAME, PATH, FakeNetworkManager, PrivateBus

pytestmark = requires_program("dbus-daemon", "dbus")

ETH0 = f"{PATH}/Devices/2"
ETH1 = f"{PATH}/Devices/3"
LONG = 30.0
"""A time-out that is never waited for."""


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PrivateBus]:
    bus = PrivateBus(tmp_path)
    bus.start()
    yield bus
    bus.stop()


@pytest.fixture(autouse=True)
def _times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decided by time, but in the tests that shorten one of these."""
    for standing in gate.WAITS:
        waits(monkeypatch, standing, LONG)
    monkeypatch.setattr(gate, "RETRY_FIRST", 0.05)
    monkeypatch.setattr(gate, "RETRY_MAX", 0.2)


def waits(monkeypatch: pytest.MonkeyPatch, standing: Standing, seconds: float) -> None:
    monkeypatch.setitem(gate.WAITS, standing, (seconds, gate.WAITS[standing][1]))


class World:
    """A follower of some interfaces, and what it has said."""

    def __init__(self, address: str, *names: str) -> None:
        self.told: list[tuple[str, bool, str]] = []
        self.lines: list[str] = []
        log = logging.getLogger(f"test.{id(self)}")
        log.setLevel(logging.DEBUG)
        log.propagate = False
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        log.addHandler(handler)
        environ = {"DBUS_SYSTEM_BUS_ADDRESS": address} if address else {}
        self.follower = Follower(lambda *told: self.told.append(told), log, environ)
        self.names = names or ("eth0",)

    def now(self, name: str = "eth0") -> tuple[bool, str]:
        said = [(allowed, why) for which, allowed, why in self.told if which == name]
        return said[-1]

    async def until(self, allowed: bool, why: str, name: str = "eth0") -> None:
        """Until it has said this last of the interface."""
        end = time.monotonic() + 30
        while self.now(name)[0] != allowed or why not in self.now(name)[1]:
            assert time.monotonic() < end, (name, allowed, why, self.told, self.lines)
            await asyncio.sleep(0.01)

    async def __aenter__(self) -> World:
        self.follower.start(self.names)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.follower.stop()


@contextlib.asynccontextmanager
async def network_manager(bus: PrivateBus, **devices: int) -> AsyncIterator[FakeNetworkManager]:
    """It has its name and answers; devices by interface: state."""
    async with FakeNetworkManager(bus) as nm:
        for number, (name, state) in enumerate(devices.items(), 2):
            nm.devices[f"{PATH}/Devices/{number}"] = name, state
        await nm.own_name()
        serving = asyncio.get_running_loop().create_task(nm.serve())
        try:
            yield nm
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scenario(), 120)

    asyncio.run(limited())


bounded = virtual_time.played_by(run)


# --- what is permitted ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", sorted(STATES))
@bounded
async def test_states(bus: PrivateBus, state: int) -> None:
    allowed = state == 10 or 70 <= state <= 100
    async with network_manager(bus, eth0=state) as nm, World(bus.address) as world:
        # Nothing is permitted before the answer.
        assert world.told[0][:2] == ("eth0", False)
        await world.until(allowed, f"state {STATES[state]}")
        other = 30 if allowed else 100
        await nm.change(ETH0, other)
        await world.until(not allowed, STATES[other])
        await nm.change(ETH0, state)
        await world.until(allowed, STATES[state])


@pytest.mark.parametrize("method", sorted(gate.FORBIDDEN))
@bounded
async def test_the_applied_profile_forbids(bus: PrivateBus, method: str) -> None:
    async with network_manager(bus, eth0=100) as nm, World(bus.address) as world:
        await world.until(True, "activated")
        await nm.apply(ETH0, method)
        await world.until(False, f"ipv4.method {method}")
        await nm.apply(ETH0, "manual")
        await world.until(True, "activated")
        nm.method = method
        before = len(world.told)
        for state in (30, 50, 70, 80, 100):
            await nm.change(ETH0, state)
        await world.until(False, f"ipv4.method {method}")
        assert not any(allowed for _, allowed, _ in world.told[before:])
        # Where there is no profile any more, its method does not matter.
        await nm.change(ETH0, 10)
        await world.until(True, "unmanaged")


@bounded
async def test_an_answer_about_the_profile_that_comes_after_the_next_state(bus: PrivateBus) -> None:
    async with network_manager(bus, eth0=30) as nm, World(bus.address) as world:
        await world.until(False, "disconnected")
        nm.devices[ETH0] = "eth0", 70
        for new, old in ((70, 30), (110, 70)):  # both before the answer
            await nm.signal(ETH0, DEVICE, "StateChanged", "uuu", new, old, 0)
        await world.until(False, "deactivating")
        while nm.asked[-1] != "GetAppliedConnection":
            await asyncio.sleep(0.01)
        await nm.change(ETH0, 30)
        await world.until(False, "disconnected")
        assert not any(allowed for _, allowed, _ in world.told)


@bounded
async def test_each_interface_for_itself(bus: PrivateBus) -> None:
    async with (
        network_manager(bus, eth0=70, eth1=30) as nm,
        World(bus.address, "eth0", "eth1") as world,
    ):
        await world.until(True, "ip-config", "eth0")
        await world.until(False, "disconnected", "eth1")
        await nm.change(ETH1, 110)
        await world.until(False, "deactivating", "eth1")
        assert world.now("eth0")[0]
        # Another's device is nobody's business.
        await nm.add(f"{PATH}/Devices/9", "docker0", 10)
        await nm.change(f"{PATH}/Devices/9", 30)
        await nm.change(ETH1, 100)
        await world.until(True, "activated", "eth1")
        assert world.now("eth0") == (True, "NetworkManager has it in state ip-config")


@bounded
async def test_an_interface_that_is_added_and_dropped(bus: PrivateBus) -> None:
    async with network_manager(bus, eth0=70, eth1=30) as nm, World(bus.address) as world:
        await world.until(True, "ip-config")
        world.follower.add("eth1")
        assert not world.now("eth1")[0]  # nothing is permitted before the answer
        await world.until(False, "disconnected", "eth1")
        await nm.change(ETH1, 100)
        await world.until(True, "activated", "eth1")
        world.follower.drop("eth1")
        world.follower.drop("eth1")
        await nm.change(ETH1, 30)
        await nm.change(ETH0, 30)
        await world.until(False, "disconnected", "eth0")
        assert world.now("eth1")[0]
        world.follower.add("eth1")
        world.follower.drop("eth1")  # before its answer
        await nm.change(ETH0, 100)
        await world.until(True, "activated", "eth0")
        assert not [line for line in world.lines if "internal error" in line]


@bounded
async def test_an_interface_that_is_added_without_network_manager(bus: PrivateBus) -> None:
    async with World(bus.address) as world:
        await world.until(True, "does not run")
        world.follower.add("eth1")
        await world.until(True, "does not run", "eth1")
    async with World("") as world:
        world.follower.add("eth1")
        assert world.now("eth1") == world.now("eth0")


@bounded
async def test_no_network_manager(bus: PrivateBus) -> None:
    async with World(bus.address) as world:
        await world.until(True, "does not run")
        async with network_manager(bus, eth0=30):
            await world.until(False, "disconnected")


@bounded
async def test_not_connected_to_without_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gate, "SYSTEM_BUS", str(tmp_path / "bus"))
    monkeypatch.setattr(gate, "INSTALLED", (str(tmp_path / "etc"),))
    async with World("") as world:
        assert world.told == [("eth0", True, "there is no D-Bus system bus")]
    (tmp_path / "bus").touch()
    async with World("") as world:
        assert world.told == [("eth0", True, "NetworkManager is not installed")]
    monkeypatch.setattr(gate, "RUNTIME", str(tmp_path / "run"))
    monkeypatch.setattr(gate, "INSTALLED", (str(tmp_path / "etc"), str(tmp_path / "run")))
    for made, why in (
        ("etc", "waits for the system bus"),
        ("run", "waits for NetworkManager's word"),
    ):
        (tmp_path / made).mkdir()
        async with World("") as world:
            assert world.told == [("eth0", False, why)]


def test_nothing_is_imported_without_a_reason() -> None:
    code = "import sys, autoip.daemon.daemon; sys.exit('jeepney' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


@bounded
async def test_without_its_library(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jeepney", None)
    monkeypatch.setattr(gate, "RUNTIME", str(tmp_path / "run"))
    async with World(bus.address) as world:
        assert world.now() == (True, "NetworkManager is not followed")
        assert world.lines == world.follower.limits == []
    (tmp_path / "run").mkdir()
    async with World(bus.address) as world:
        assert world.now() == (True, "NetworkManager is not followed")
        assert world.lines == world.follower.limits
        assert "jeepney is missing" in world.lines[0]


# --- silence is bounded --------------------------------------------------------------------------


@bounded
async def test_it_does_not_answer(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    waits(monkeypatch, Standing.ASKED, 1.0)
    async with network_manager(bus, eth0=30) as nm:
        nm.mute = True
        async with World(bus.address) as world:
            begin = time.monotonic()
            await world.until(True, "does not answer")
            assert time.monotonic() - begin > 0.9
            # It is still listened to.
            nm.mute = False
            await nm.add(ETH0, "eth0", 30)
            await world.until(False, "disconnected")


@bounded
async def test_an_interface_that_it_does_not_know(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with network_manager(bus) as nm, World(bus.address) as world:
        await world.until(False, "does not know it yet")
        await nm.add(ETH0, "eth0", 100)
        await world.until(True, "activated")
        await nm.remove(ETH0)
        await world.until(False, "does not know it yet")
    waits(monkeypatch, Standing.MISSING, 0.5)
    async with network_manager(bus), World(bus.address) as world:
        await world.until(False, "does not know it yet")
        await world.until(True, "does not know it")


@bounded
async def test_a_new_device_is_unmanaged_at_first(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with network_manager(bus) as nm, World(bus.address) as world:
        await world.until(False, "does not know it yet")
        await nm.add(ETH0, "eth0", 10)
        await world.until(False, "state unmanaged")
        await nm.change(ETH0, 30)
        await world.until(False, "disconnected")
        # It was managed, and is not any more: that is no beginning.
        await nm.change(ETH0, 10)
        await world.until(True, "unmanaged")
    waits(monkeypatch, Standing.NEW, 0.5)
    async with network_manager(bus) as nm, World(bus.address) as world:
        await world.until(False, "does not know it yet")
        await nm.add(ETH0, "eth0", 10)
        await world.until(False, "unmanaged")
        await world.until(True, "unmanaged")


@bounded
async def test_another_name(bus: PrivateBus) -> None:
    async with (
        network_manager(bus, eth0=100) as nm,
        World(bus.address, "eth0", "lan0") as world,
    ):
        await world.until(True, "activated", "eth0")
        await world.until(False, "does not know", "lan0")
        await nm.rename(ETH0, "lan0")
        await world.until(True, "activated", "lan0")
        await world.until(False, "does not know", "eth0")


# --- it goes and comes ---------------------------------------------------------------------------


@bounded
async def test_it_leaves_and_comes_back(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    async with World(bus.address) as world:
        async with network_manager(bus, eth0=100):
            await world.until(True, "activated")
        # When it starts again it must not find an address.
        await world.until(False, "may be back at once")
        async with network_manager(bus, eth0=30) as nm:
            await world.until(False, "disconnected")
            await nm.change(ETH0, 70)
            await world.until(True, "ip-config")
            waits(monkeypatch, Standing.LEFT, 0.5)
        await world.until(False, "may be back at once")
        await world.until(True, "does not run")


@bounded
async def test_the_bus_starts_again(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    async with World(bus.address) as world:
        async with network_manager(bus, eth0=100):
            await world.until(True, "activated")
            bus.stop()
            await world.until(False, "may be back at once")
        await asyncio.sleep(1)
        bus.start()
        # There is a bus, and NetworkManager may still be on its way.
        await asyncio.sleep(0.5)
        assert world.now() == (False, "NetworkManager has left, and may be back at once")
        async with network_manager(bus, eth0=80):
            await world.until(True, "ip-check")
            waits(monkeypatch, Standing.LEFT, 0.5)
            bus.stop()
            await world.until(False, "may be back at once")
            await world.until(True, "does not run")


def test_a_bus_that_comes_back_is_asked_for_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "RETRY_MAX", 30.0)
    attempts = []

    async def refused(address: str) -> Bus:
        attempts.append(time.monotonic())
        raise BusLost("refused")

    monkeypatch.setattr(dbus.Bus, "connect", refused)

    async def scenario() -> None:
        async with World(f"unix:path={tmp_path}/none"):
            await asyncio.sleep(2)

    run(scenario)
    assert 3 <= len(attempts) <= 7
    # Each pause is longer than all before it together.
    assert all(b - a > (a - attempts[0]) * 0.9 for a, b in pairwise(attempts)), attempts


# --- what comes is checked -----------------------------------------------------------------------


@bounded
async def test_a_stranger_is_not_believed(bus: PrivateBus) -> None:
    async with network_manager(bus, eth0=30) as nm, World(bus.address) as world:
        await world.until(False, "disconnected")
        assert world.follower._bus is not None
        async with FakeNetworkManager(bus) as stranger:
            # ":1.2" and so on: it is sent to each client, whatever that one asked for.
            for number in range(10):
                to = f":1.{number}"
                await stranger.signal(ETH0, DEVICE, "StateChanged", "uuu", 100, 30, 0, to=to)
                owner = "org.freedesktop.DBus"
                changed = (NAME, world.follower._owner, "")
                await stranger.signal(
                    "/org/freedesktop/DBus", owner, "NameOwnerChanged", "sss", *changed, to=to
                )
            await asyncio.sleep(0.5)
            assert world.now() == (False, "NetworkManager has it in state disconnected")
        await nm.change(ETH0, 40)
        await world.until(False, "prepare")
        assert not any(allowed for _, allowed, _ in world.told)


@bounded
async def test_nonsense_is_ignored(bus: PrivateBus) -> None:
    async with network_manager(bus, eth0=100) as nm, World(bus.address) as world:
        await world.until(True, "activated")
        await nm.signal(ETH0, DEVICE, "StateChanged", "s", "disconnected")
        await nm.signal(ETH0, DEVICE, "StateChanged", "uu", 30, 100)
        await nm.signal(ETH0, DEVICE, "StateChanged", "")
        await nm.signal(PATH, NAME, "DeviceRemoved", "u", 2)
        await nm.signal(PATH, NAME, "DeviceAdded", "as", ["x"])
        properties = "org.freedesktop.DBus.Properties"
        await nm.signal(ETH0, properties, "PropertiesChanged", "s", DEVICE)
        changed = {"Interface": ("u", 7)}
        await nm.signal(ETH0, properties, "PropertiesChanged", "sa{sv}as", DEVICE, changed, [])
        await asyncio.sleep(0.5)
        assert world.now() == (True, "NetworkManager has it in state activated")
        # A state that is not known yet permits nothing unless it is between the two.
        await nm.change(ETH0, 95)
        await world.until(True, "95")
        await nm.change(ETH0, 130)
        await world.until(False, "130")
        nm.nonsense = True
        await nm.add(ETH1, "eth0", 100)
        await asyncio.sleep(0.3)
        nm.nonsense = False
        await nm.change(ETH0, 100)
        await world.until(True, "activated")
        assert world.lines == []


@bounded
async def test_a_message_that_is_too_large_or_strange_costs_nothing(bus: PrivateBus) -> None:
    async with network_manager(bus, eth0=100) as nm, World(bus.address) as world:
        await world.until(True, "activated")
        async with FakeNetworkManager(bus) as stranger:
            large, deep = b"x" * (2 * dbus._LARGEST), ("s", "x")
            for _ in range(30):
                deep = ("v", deep)  # type: ignore[assignment]
            for number in range(10):
                for signature, value in (("ay", large), ("v", deep)):
                    to = f":1.{number}"
                    await stranger.signal(ETH0, DEVICE, "StateChanged", signature, value, to=to)
        await nm.change(ETH0, 90)
        await world.until(True, "secondaries")
        assert world.lines == []
        told = [allowed for _, allowed, _ in world.told]
        assert all(told[told.index(True) :])


def serve_bytes(path: Path, answers: list[bytes]) -> socket.socket:
    """Something at the socket that answers each thing it is told with these bytes."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    server.setblocking(False)

    async def one() -> None:
        loop = asyncio.get_running_loop()
        peer, _ = await loop.sock_accept(server)
        with peer:
            for answer in answers:
                await loop.sock_recv(peer, 4096)
                await loop.sock_sendall(peer, answer)
            await asyncio.sleep(0.1)

    server_task = asyncio.get_running_loop().create_task(one())
    _tasks.append(server_task)
    return server


_tasks: list[asyncio.Task[None]] = []
_OK = b"OK 0123456789abcdef\r\n"


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([], "closed the connection|reset by peer"),
        ([b"REJECTED ANONYMOUS\r\n"], "does not speak D-Bus"),
        ([b"\xff" * 9000], "does not speak D-Bus"),
        ([_OK, b"garbage of more than sixteen bytes"], "not a message"),
        ([_OK, b"l\x04\x00\x01" + b"\xff\xff\xff\x7f" + b"\x01\0\0\0" + bytes(8)], "closed"),
        ([_OK, b"l\x02\x00\x01" + bytes(8) + b"\x08\0\0\0" + b"\xff" * 8], "closed"),
    ],
)
@bounded
async def test_what_is_no_bus_is_no_bus(tmp_path: Path, answers: list[bytes], why: str) -> None:
    with serve_bytes(tmp_path / "bus", answers):
        with pytest.raises(BusLost, match=why):
            await Bus.connect(str(tmp_path / "bus"))
        _tasks.pop().cancel()


@bounded
async def test_a_bus_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus, "CONNECT_TIMEOUT", 0.3)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "bus"))
        server.listen()
        with pytest.raises(BusLost, match="no answer within"):
            await Bus.connect(str(tmp_path / "bus"))


@pytest.mark.parametrize("address", ["", "tcp:host=localhost", "nonsense", "unix:", ";;;"])
def test_addresses_that_cannot_be_used(address: str) -> None:
    with pytest.raises(BusLost, match="not a usable address of a bus"):
        dbus.socket_of(address)


@bounded
async def test_calls_without_answers_are_bounded(bus: PrivateBus) -> None:
    async with network_manager(bus) as nm:
        nm.mute = True
        connection = await Bus.connect(str(bus.socket))
        owner = connection.watch_name(NAME)
        while (message := await connection.next_message()).answers != owner:
            pass
        for _ in range(dbus._UNANSWERED):
            connection.call(message.body[0], PATH, NAME, "Nothing")
        with pytest.raises(BusLost, match="not answered"):
            connection.call(message.body[0], PATH, NAME, "Nothing")
        connection.close()


@bounded
async def test_a_path_that_cannot_be_called(bus: PrivateBus) -> None:
    """NetworkManager has sent it as a string, say: the connection is given up, which is no bug of ours."""
    async with network_manager(bus):
        connection = await Bus.connect(str(bus.socket))
        for path in ("", "eth0", "/a//b"):
            with pytest.raises(BusLost, match="Nothing cannot be called"):
                connection.call(NAME, path, NAME, "Nothing")
        connection.close()


@bounded
async def test_stopped_in_the_middle(bus: PrivateBus) -> None:
    world = World(bus.address)
    async with world:
        pass
    told = list(world.told)
    async with network_manager(bus, eth0=100):
        await asyncio.sleep(0.3)
    assert world.told == told
    async with network_manager(bus, eth0=100), World(bus.address) as world:
        await world.until(True, "activated")
    assert world.now() == (True, "NetworkManager has it in state activated")
