"""An asyncio event loop whose clock jumps to the next thing that is due: an hour takes no time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

START = 1000.0
"""What the clock shows at first, in seconds."""


class _Selector(selectors.DefaultSelector):
    """Does not wait, but has the clock go on."""

    passes: Callable[[float], None]

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout != 0:
            assert timeout is not None, "nothing can happen any more: the test would wait for ever"
            self.passes(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """What threads would do is done at once."""

    def __init__(self) -> None:
        self._now = START
        selector = _Selector()
        selector.passes = self._pass
        super().__init__(selector)

    def time(self) -> float:
        return self._now

    def _pass(self, seconds: float) -> None:
        self._now += seconds

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 (it is whoever waits who gets it)
            done.set_exception(error)
        return done


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, in virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                loop.run_until_complete(task)
        loop.close()


def played_by(
    play: Callable[[Callable[[], Awaitable[None]]], None],
) -> Callable[[Callable[P, Awaitable[None]]], Callable[P, None]]:
    """A decorator: `play` runs the asynchronous test."""

    def decorate(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
        @functools.wraps(test)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            play(lambda: test(*args, **kwargs))

        return run

    return decorate
