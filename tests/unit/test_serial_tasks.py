"""Requests one after the other: order, bound, failure, and what is asked for once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from autoip.daemon.serial_tasks import SerialTasks
from tests.unit import virtual_time

TIMEOUT = 15.0


class World:
    """A queue, and what happened in it."""

    def __init__(self) -> None:
        self.happened: list[Any] = []
        self.tasks = SerialTasks(TIMEOUT, self.failed, self.done)

    def failed(self, error: Exception) -> None:
        self.happened.append(type(error))

    def done(self) -> None:
        self.happened.append("done")
        assert not self.tasks.busy

    def busy(self) -> bool:
        return self.tasks.busy

    def job(self, name: str, seconds: float = 1.0) -> Callable[[], Awaitable[None]]:
        async def job() -> None:
            self.happened.append(f"{name} begins")
            await asyncio.sleep(seconds)
            self.happened.append(f"{name} ends")

        return job


def play(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        await scenario(World())

    virtual_time.run(whole())


def test_one_after_the_other() -> None:
    async def scenario(world: World) -> None:
        assert not world.busy()
        for name in "ab":
            world.tasks.request(world.job(name))
        assert world.busy() and world.happened == []
        await world.tasks.idle()
        assert world.happened == ["a begins", "a ends", "b begins", "b ends", "done"]
        await world.tasks.idle()  # harmless

    play(scenario)


def test_one_that_fails_or_hangs_does_not_end_the_others() -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    async def scenario(world: World) -> None:
        begin = asyncio.get_running_loop().time()
        world.tasks.request(fails)
        world.tasks.request(world.job("a", 2 * TIMEOUT))
        world.tasks.request(world.job("b"))
        await world.tasks.idle()
        assert world.happened == [
            ZeroDivisionError,
            "a begins",
            asyncio.TimeoutError,
            "b begins",
            "b ends",
            "done",
        ]
        assert TIMEOUT < asyncio.get_running_loop().time() - begin < TIMEOUT + 2

    play(scenario)


def test_once() -> None:
    async def scenario(world: World) -> None:
        ask = partial(world.tasks.request, once="x")
        ask(world.job("a"))
        ask(world.job("b"))  # a waits
        world.tasks.request(world.job("c"), once="y")
        await asyncio.sleep(0.5)
        ask(world.job("d"))  # a runs
        await asyncio.sleep(1)
        ask(world.job("e"))  # a is done, c runs
        await world.tasks.idle()
        assert world.happened[::2] == ["a begins", "c begins", "e begins", "done"]

    play(scenario)


def test_once_again_after_a_failure() -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    async def scenario(world: World) -> None:
        world.tasks.request(fails, once="x")
        await world.tasks.idle()
        world.tasks.request(world.job("a"), once="x")
        await world.tasks.idle()
        assert world.happened == [ZeroDivisionError, "done", "a begins", "a ends", "done"]

    play(scenario)


def test_a_request_made_by_a_request_comes_last() -> None:
    async def scenario(world: World) -> None:
        async def asks() -> None:
            world.tasks.request(world.job("c"))

        world.tasks.request(asks)
        world.tasks.request(world.job("b"))
        await world.tasks.idle()
        assert world.happened[::2] == ["b begins", "c begins", "done"]

    play(scenario)
