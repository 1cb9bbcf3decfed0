"""Where an interface stands with NetworkManager: the table by itself, without a bus, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from autoip.daemon.networkmanager import gate
from autoip.daemon.networkmanager.gate import WAITS, Follower, Standing, Trigger, allows
from tests.unit import virtual_time

S, T = Standing, Trigger
RUNS = [S.ASKED, S.SILENT, S.MISSING, S.NOT_KNOWN, S.NEW, S.OPEN, S.CLOSED]


class World:
    """A follower of eth0, on a machine without a bus, and what it has permitted."""

    def __init__(self) -> None:
        self.told: list[tuple[bool, str]] = []
        self.follower = Follower(
            lambda _name, allowed, why: self.told.append((allowed, why)), logging.getLogger(), {}
        )
        self.follower.start(["eth0"])
        self.gate = self.follower._gates["eth0"]

    def go(self, trigger: Trigger, why: str = "") -> None:
        self.follower._gates.go("eth0", trigger, why)

    def stand(self, standing: Standing) -> None:
        self.follower._gates.enter("eth0", standing, standing.value)


@pytest.fixture(autouse=True)
def _no_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "SYSTEM_BUS", str(tmp_path / "bus"))


def play(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        await scenario(World())

    virtual_time.run(whole())


def test_an_address_may_be_held_where_nothing_is_waited_for() -> None:
    assert {s for s in S if allows(s)} == {
        S.SILENT,
        S.NOT_KNOWN,
        S.OPEN,
        S.NOT_RUNNING,
        S.NOT_FOLLOWED,
    }


@pytest.mark.parametrize("before", S)
@pytest.mark.parametrize("trigger", T)
def test_transitions(before: Standing, trigger: Trigger) -> None:
    after = {
        T.NOT_FOLLOWABLE: S.NOT_FOLLOWED,
        T.APPEARED: S.ASKED,
        T.DISAPPEARED: S.LEFT if before in RUNS else before,
        T.ABSENT: before if before is S.LEFT else S.NOT_RUNNING,
        T.UNKNOWN: S.MISSING if before in RUNS else before,
        T.FIRST_UNMANAGED: S.NEW if before in RUNS else before,
        T.ALLOWS: S.OPEN if before in RUNS else before,
        T.FORBIDS: S.CLOSED if before in RUNS else before,
    }[trigger]

    async def scenario(world: World) -> None:
        world.stand(before)
        world.told.clear()
        world.go(trigger, "the reason")
        assert world.gate.standing is after
        # The reason was heard, unless nothing has changed.
        changed = (before, trigger) not in UNCHANGED
        assert world.told == ([(allows(after), "the reason")] if changed else [])
        assert (world.gate.timer is not None) is (after in WAITS)

    play(scenario)


UNCHANGED = {
    *((s, T.DISAPPEARED) for s in (S.LEFT, S.NOT_RUNNING, S.NOT_FOLLOWED)),
    *((s, T.UNKNOWN) for s in (S.LEFT, S.NOT_RUNNING, S.NOT_FOLLOWED)),
    *((s, T.FIRST_UNMANAGED) for s in (S.LEFT, S.NOT_RUNNING, S.NOT_FOLLOWED)),
    *((s, T.ALLOWS) for s in (S.LEFT, S.NOT_RUNNING, S.NOT_FOLLOWED)),
    *((s, T.FORBIDS) for s in (S.LEFT, S.NOT_RUNNING, S.NOT_FOLLOWED)),
    (S.LEFT, T.ABSENT),
}


@pytest.mark.parametrize(
    ("standing", "seconds", "then"),
    [
        (S.ASKED, 10.0, S.SILENT),
        (S.MISSING, 10.0, S.NOT_KNOWN),
        (S.NEW, 2.0, S.OPEN),
        (S.LEFT, 10.0, S.NOT_RUNNING),
    ],
)
def test_waits(standing: Standing, seconds: float, then: Standing) -> None:
    async def scenario(world: World) -> None:
        world.stand(standing)
        world.told.clear()
        await asyncio.sleep(seconds - 0.1)
        assert world.told == []
        await asyncio.sleep(0.2)
        # What the device's state has decided keeps its reason.
        assert world.told == [(True, standing.value if then is S.OPEN else then.value)]
        assert world.gate.standing is then

    play(scenario)
    assert {*WAITS} == {S.ASKED, S.MISSING, S.NEW, S.LEFT}


def test_what_is_heard_in_time_ends_the_wait() -> None:
    async def scenario(world: World) -> None:
        world.stand(S.ASKED)
        world.go(T.FORBIDS, "disconnected")
        await asyncio.sleep(100)
        assert world.gate.standing is S.CLOSED
        assert world.told[-1] == (False, "disconnected")

    play(scenario)


def test_who_hears_it_again_waits_anew() -> None:
    async def scenario(world: World) -> None:
        world.stand(S.MISSING)
        await asyncio.sleep(9)
        world.go(T.UNKNOWN)
        await asyncio.sleep(9)
        assert not world.told[-1][0]
        await asyncio.sleep(2)
        assert world.told[-1] == (True, S.NOT_KNOWN.value)

    play(scenario)


def test_nothing_happens_after_the_end() -> None:
    async def scenario(world: World) -> None:
        world.stand(S.LEFT)
        await world.follower.stop()
        told = len(world.told)
        await asyncio.sleep(100)
        assert len(world.told) == told

    play(scenario)
