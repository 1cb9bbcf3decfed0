"""A timer on CLOCK_BOOTTIME, which also counts the time that the machine sleeps, and a watch for sleep."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable

from autoip.kernel.native import check, lib

_NS = 1_000_000_000
_NEVER_NS = 2**63  # where the kernel's own counter ends

# Shorter differences do not count: reading two clocks may take as long on a busy machine.
SLEEP_MIN = 0.1


class _Descriptor:
    """A file descriptor that is closed once."""

    def __init__(self, fd: int) -> None:
        self._fd = check(fd)

    def fileno(self) -> int:
        """Return the descriptor; -1 after close()."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor. Harmless when repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # `_fd` is missing if __init__ failed.
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class Timer(_Descriptor):
    """A timer on CLOCK_BOOTTIME; its descriptor is readable when the time has come.

    Raises:
        OSError: no descriptors left.
    """

    def __init__(self) -> None:
        super().__init__(lib.autoip_timer_new())

    def set(self, at: float | None) -> None:
        """Set the timer anew.

        Args:
            at: when, in seconds; a time in the past: now; None: never.

        Raises:
            ValueError: not a number, or further away than 290 years.
        """
        if at is None:
            nanoseconds = 0
        else:
            if not math.isfinite(at) or at * _NS >= _NEVER_NS:
                raise ValueError(f"time: {at}")
            # Rounded up: readable never before `at`. 0 would mean never.
            nanoseconds = max(1, math.ceil(at * _NS))
        check(lib.autoip_timer_set(self._fd, nanoseconds))

    def acknowledge(self) -> None:
        """Clear the readiness of the descriptor."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)


class ClockWatch(_Descriptor):
    """A descriptor that is readable when the machine may have slept.

    Args:
        boottime: CLOCK_BOOTTIME in seconds; counts the sleep.
        monotonic: CLOCK_MONOTONIC in seconds; does not count the sleep.

    Raises:
        OSError: no descriptors left.
    """

    def __init__(
        self,
        boottime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        monotonic: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_MONOTONIC),
    ) -> None:
        super().__init__(lib.autoip_clock_watch_new())
        self._boottime = boottime
        self._monotonic = monotonic
        self._slept = self._sleep_so_far()

    @property
    def slept(self) -> float:
        """Seconds that the machine has slept since its start, as of the last look."""
        return self._slept

    def changed(self) -> bool:
        """Check whether the machine has slept since the last call.

        The descriptor also becomes readable when the wall clock is set: then the result is False.
        """
        check(lib.autoip_clock_watch_read(self._fd))
        before, self._slept = self._slept, self._sleep_so_far()
        return self._slept - before >= SLEEP_MIN

    def _sleep_so_far(self) -> float:
        # A pause between the two readings makes the result too small; the best of a few counts.
        return max(self._boottime() - self._monotonic() for _ in range(3))
