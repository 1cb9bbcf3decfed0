"""Requests that take time, one after the other, each with a time-out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import final

Request = Callable[[], Awaitable[object]]


@final
class SerialTasks:
    """Runs coroutines one at a time, in order; its task ends when the queue is empty.

    Args:
        timeout: seconds after which a request is given up, with an `asyncio.TimeoutError`.
        failed: called with each exception of a request.
        done: called when the queue is empty.
    """

    def __init__(
        self, timeout: float, failed: Callable[[Exception], None], done: Callable[[], None]
    ) -> None:
        self._timeout = timeout
        self._failed = failed
        self._done = done
        # Lists, since there are few requests, and one of these for each interface: they take 1 KB less than
        # a deque and a set.
        self._requests: list[tuple[Request, str]] = []
        self._once: list[str] = []  # names of requests that wait or run
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return self._task is not None

    def request(self, request: Request, *, once: str = "") -> None:
        """Run a request after all earlier ones.

        Args:
            request: makes the coroutine.
            once: a name; nothing is done while another request of that name waits or runs.
        """
        if once and once in self._once:
            return
        self._once.append(once)
        self._requests.append((request, once))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def idle(self) -> None:
        """Wait until the queue is empty."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        while self._requests:
            request, once = self._requests.pop(0)
            try:
                await asyncio.wait_for(request(), self._timeout)
            except Exception as error:  # noqa: BLE001 (a failure must not end the other requests)
                self._failed(error)
            finally:
                self._once.remove(once)
        self._task = None
        self._done()
