"""Requests that take time, one after the other, each with a bound."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import final


@final
class SerialTasks:
    """Works off what it is given, in order, in a task that ends when there is nothing left.

    Args:
        timeout: seconds after which a request is given up, with an `asyncio.TimeoutError`.
        failed: told of each exception of a request.
        done: called when nothing is left.
    """

    def __init__(
        self, timeout: float, failed: Callable[[Exception], None], done: Callable[[], None]
    ) -> None:
        self._timeout = timeout
        self._failed = failed
        self._done = done
        self._requests: deque[Callable[[], Awaitable[object]]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a request waits or is under way."""
        return self._task is not None

    def request(self, request: Callable[[], Awaitable[object]]) -> None:
        """Do this after all that was requested before."""
        self._requests.append(request)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def idle(self) -> None:
        """Wait until nothing is left."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        while self._requests:
            request = self._requests.popleft()
            try:
                await asyncio.wait_for(request(), self._timeout)
            except Exception as error:  # noqa: BLE001 (one that failed must not end the others)
                self._failed(error)
        self._task = None
        self._done()
