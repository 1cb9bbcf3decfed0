"""Calls that may block for ever, such as fsync(2) on a disk that hangs: the process does not wait for their threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, final


@final
class DaemonThreads(Executor):
    """Runs each call in a daemon thread of its own, for `loop.run_in_executor`.

    asyncio.run and the interpreter wait at their end for the threads of `asyncio.to_thread`, not for these.
    """

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start the call.

        Raises:
            RuntimeError: the kernel has no thread left.
        """
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # from now on nobody cancels it

        def run() -> None:
            try:
                result = call(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 (whoever waits gets it)
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=run, daemon=True).start()
        return future


async def in_thread(function: Callable[..., None], *arguments: object) -> None:
    """Run what waits for the kernel. It comes to its end also if nobody waits for it any more."""
    try:
        await asyncio.get_running_loop().run_in_executor(DaemonThreads(), function, *arguments)
    except RuntimeError:  # no thread is left
        function(*arguments)
