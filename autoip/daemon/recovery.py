"""Recover when the handling of one interface fails: by a bug, or by a request that the kernel refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from autoip.core.constants import CONFIGURE_RETRY
from autoip.daemon.reporter import Reporter
from autoip.errors import KernelRefused


@final
class Recovery:
    """A bug costs neither the other interfaces nor, for long, this one.

    Args:
        reporter: of the interface.
        abandon: called at once; gives up everything, whatever its state.
        start_over: called CONFIGURE_RETRY seconds later.
    """

    def __init__(
        self, reporter: Reporter, abandon: Callable[[], None], start_over: Callable[[], None]
    ) -> None:
        self._reporter = reporter
        self._abandon = abandon
        self._start_over = start_over
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @contextmanager
    def guarded(self, where: str) -> Iterator[None]:
        """Keep an exception from the rest of the process; `where` it happened, for the log."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (see the class)
            self._fail(where, error)

    def request_failed(self, error: Exception) -> None:
        """Handle the error with which a request to the kernel ended."""
        if isinstance(error, asyncio.TimeoutError):
            self._reporter.log(logging.ERROR, "the kernel did not answer a request")
        elif isinstance(error, KernelRefused):
            self._reporter.log(logging.ERROR, str(error))
        else:
            self._fail("request", error)

    def close(self) -> None:
        """Start nothing over any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _fail(self, where: str, error: Exception) -> None:
        text = f"internal error ({where}): {error!r}; starting over in {CONFIGURE_RETRY:g} s"
        self._reporter.log(logging.ERROR, text, error)
        self._abandon()
        if self._timer is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(CONFIGURE_RETRY, self._recover)

    def _recover(self) -> None:
        self._timer = None
        self._start_over()
