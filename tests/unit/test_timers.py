"""The timer and the watch for the machine's sleep, on the kernel's clocks. Needs no privileges."""

from __future__ import annotations

import math
import select
import time
from typing import Any

import pytest

from autoip.kernel.timers import ClockWatch, Timer


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def readable(*things: Any, within: float = 0) -> bool:
    return bool(select.select(things, [], [], within)[0])


def test_timer() -> None:
    timer = Timer()
    assert not readable(timer)
    at = now() + 0.02
    timer.set(at)
    assert readable(timer, within=20)
    assert now() >= at
    timer.acknowledge()
    assert not readable(timer)
    timer.acknowledge()  # harmless
    timer.close()
    timer.close()
    assert timer.fileno() == -1


@pytest.mark.parametrize("at", [0.0, -1.0, 1e-12, 1.0])
def test_timer_in_the_past_is_now(at: float) -> None:
    """0 is a time in the past too: only None means never."""
    timer = Timer()
    timer.set(at)
    assert readable(timer, within=20)
    timer.set(None)
    assert not readable(timer)
    timer.close()


def test_timer_set_again() -> None:
    timer = Timer()
    timer.set(now() - 1)
    assert readable(timer, within=20)
    timer.set(now() + 3600)
    assert not readable(timer)
    timer.close()


@pytest.mark.parametrize("at", [math.inf, -math.inf, math.nan, 1e10])
def test_timer_refuses(at: float) -> None:
    timer = Timer()
    with pytest.raises(ValueError, match="time"):
        timer.set(at)
    timer.close()


def test_timer_is_never_early() -> None:
    """Times between two nanoseconds are rounded up."""
    timer = Timer()
    for step in range(200):
        at = now() + 0.0001 + step * 1e-7 / 3
        timer.set(at)
        assert readable(timer, within=20)
        assert now() >= at
    timer.close()


class Clocks:
    """A machine that can sleep."""

    def __init__(self) -> None:
        self.running = 1000.0
        self.slept = 50.0

    def watch(self) -> ClockWatch:
        return ClockWatch(
            boottime=lambda: self.running + self.slept, monotonic=lambda: self.running
        )


def test_clock_watch_tells_sleep() -> None:
    clocks = Clocks()
    watch = clocks.watch()
    assert not watch.changed()
    clocks.running += 5000
    assert not watch.changed()
    clocks.slept += 30
    assert watch.changed()
    assert not watch.changed()  # once
    clocks.slept += 0.5
    assert watch.changed()
    watch.close()
    assert watch.fileno() == -1


def test_clock_watch_waits() -> None:
    """Nobody sets the clock here: the watch must not be readable, nor become so by changed()."""
    watch = ClockWatch()
    assert not readable(watch)
    assert not watch.changed()
    assert not readable(watch)
    watch.close()


def test_clock_watch_ignores_a_pause_between_the_clocks() -> None:
    """An interruption between two readings does not count as sleep of the machine."""
    clocks = Clocks()
    pauses = iter([0.0, 3.0, 0.0] * 10)

    def monotonic() -> float:
        clocks.running += next(pauses)
        return clocks.running

    watch = ClockWatch(boottime=lambda: clocks.running + clocks.slept, monotonic=monotonic)
    for _ in range(5):
        assert not watch.changed()
    watch.close()
