"""Another host conflicts for a day, whenever that costs most: what that costs the log and the disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from autoip.core import constants
from autoip.core.arp import ArpPacket
from autoip.daemon import address_memory, log_budget
from autoip.daemon.address_store import AddressStore
from autoip.daemon.log_budget import LogBudget
from tests.unit import virtual_time
from tests.unit.fake_world import A, B, World, no_network_manager, played

DAY = 24 * 3600.0
LOG_MAX = 1_000_000
"""Bytes of log a day."""
WRITES_MAX = 100
"""Writes of the saved address a day."""

pytestmark = pytest.mark.heavy


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path) -> Iterator[None]:
    with no_network_manager(tmp_path):
        yield


class Writes:
    """The addresses that were saved."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.saved: list[IPv4Address] = []
        patch.setattr(AddressStore, "save", lambda _self, _mac, address, _name: self._add(address))

    def _add(self, address: IPv4Address) -> None:
        self.saved.append(address)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


class Attacker:
    """Conflicts when `pause` seconds have passed since the first announcement, `times` at once; then again."""

    def __init__(self, world: World, pause: float, times: int) -> None:
        self.taken = 0
        self._world = world
        self._pause = pause
        self._times = times
        self._seen: IPv4Address | None = None
        transmitted = world.kernel.listener.sent

        class Sent(list[Any]):
            def append(_, sent: tuple[float, Any, ArpPacket]) -> None:  # noqa: N805 (the outer self is used)
                self._sent(sent[2])

        assert not transmitted
        world.kernel.listener.sent = Sent()

    def _sent(self, packet: ArpPacket) -> None:
        if packet.spa == packet.tpa != self._seen:
            self._seen = packet.spa
            asyncio.get_running_loop().call_later(self._pause, self._attack, packet.spa)

    def _attack(self, address: IPv4Address) -> None:
        for _ in range(self._times):
            self._world.claims(address)
        if self._times == 1:  # the address is defended: once more, when that is so again
            asyncio.get_running_loop().call_later(self._pause, self._attack, address)
        self.taken += 1


def play_a_day(scenario: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario()

    virtual_time.run(run())


@pytest.mark.parametrize("delay", [constants.DELAY_MIN, constants.DELAY_DEFAULT])
@pytest.mark.parametrize(
    ("pause", "times", "least"),
    [
        (0.001, 2, 1200),
        (2.5, 2, 1000),
        (constants.QUIET_INTERVAL + 1, 2, 120),
        (constants.DEFEND_INTERVAL + 0.1, 1, 7000),
    ],
    ids=["after each claim", "when bound", "after a quiet time", "as often as defended"],
)
def test_a_day_of_conflicts(
    tmp_path: Path, writes: Writes, delay: int, pause: float, times: int, least: int
) -> None:
    async def scenario() -> None:
        async with World(tmp_path, delay=delay) as world:
            lines: list[str] = []
            (handler,) = world.daemon._log.handlers
            handler.setLevel(logging.INFO)
            handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
            attacker = Attacker(world, pause, times)
            await asyncio.sleep(DAY)
        assert attacker.taken >= least
        assert sum(len(line) + 1 for line in lines) <= LOG_MAX
        assert len(writes.saved) <= WRITES_MAX

    play_a_day(scenario)


@played
async def test_an_address_is_saved_when_it_was_held_for_some_seconds(
    tmp_path: Path, writes: Writes
) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_state("announcing")
        assert world.address() == A
        assert writes.saved == []
        await world.until_bound()
        await world.until(lambda: writes.saved == [A])


@played
async def test_an_address_that_follows_soon_is_saved_later(tmp_path: Path, writes: Writes) -> None:
    """Not one that was lost before, and at the latest when the daemon ends."""

    async def lose(world: World) -> None:
        lost = world.address()
        assert lost is not None
        for _ in range(2):
            world.claims(lost)
        await world.until(lambda: world.address() not in (None, lost))
        await world.until_bound()

    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        saved_at = world.now
        await lose(world)
        skipped = world.address()
        await lose(world)
        await world.until(lambda: len(writes.saved) == 2, 2 * address_memory.SAVE_INTERVAL)
        assert world.now - saved_at == pytest.approx(address_memory.SAVE_INTERVAL, abs=1)
        assert writes.saved == [A, world.address()]
        await lose(world)
        last = world.address()
    assert writes.saved[2:] == [last]
    assert skipped not in writes.saved


class Log:
    """A budget in virtual time, and what was logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        clock = asyncio.get_running_loop().time
        self.budget = LogBudget(clock, lambda _, text: self.lines.append(text))

    def log(self, text: str, level: int = logging.INFO) -> None:
        if self.budget.allows(level, text):
            self.lines.append(text)


@played
async def test_lines_of_one_kind_have_a_budget() -> None:
    log = Log()
    for number in range(log_budget.LINES + 7):
        log.log(f"02:00:00:00:00:{number % 100:02d} claims 169.254.1.{number}")
    assert len(log.lines) == log_budget.LINES
    log.log("another kind")
    assert log.lines[-1] == "another kind"
    log.log(f"02:00:00:00:00:07 claims {B}", logging.DEBUG)
    assert len(log.lines) == log_budget.LINES + 2
    del log.lines[:]
    await asyncio.sleep(log_budget.PAUSE + 1)
    assert log.lines == ["7 more, the last one: 02:00:00:00:00:06 claims 169.254.1.106"]
    await asyncio.sleep(3 * log_budget.PAUSE)
    assert len(log.lines) == 1  # nothing is said, and nothing wakes, where there was nothing
    for number in range(5):
        log.log(f"02:00:00:00:00:07 claims 169.254.2.{number}")
    assert len(log.lines) == 1 + 3
    log.budget.summarise()
    assert log.lines[-1].startswith("2 more")


@played
async def test_kinds_beyond_the_bound_share_a_budget() -> None:
    log = Log()
    for number in range(log_budget.KINDS_MAX + 2 * log_budget.LINES):
        log.log("kind " + chr(0x4E00 + number))
    assert len(log.lines) == log_budget.KINDS_MAX + log_budget.LINES
    log.budget.summarise()
