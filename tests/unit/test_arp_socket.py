"""What arp_socket.py refuses before C sees it, and the timers.  No privileges needed."""

from __future__ import annotations

import errno
import gc
import math
import os
import select
import subprocess
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from autoip.kernel import arp_socket
from autoip.kernel._arpsock import lib
from autoip.kernel.arp_socket import ArpListener, ArpSocket, ClockWatch, Phase, Received, Timer

MAC = bytes.fromhex("020000000001")
FRAME = bytes(arp_socket.FRAME_LENGTH)


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def readable(*things: Any, within: float = 0) -> bool:
    return bool(select.select(things, [], [], within)[0])


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_constants_are_the_compilers() -> None:
    assert arp_socket.FRAME_LENGTH == 42
    assert [(phase.name, int(phase)) for phase in Phase] == [
        ("SILENT", lib.AUTOIP_SILENT),
        ("PROBE", lib.AUTOIP_PROBE),
        ("DEFEND", lib.AUTOIP_DEFEND),
        ("ANSWER", lib.AUTOIP_ANSWER),
    ]


def test_import_is_light() -> None:
    """Neither pyroute2 nor asyncio: the first probe does not wait for them."""
    code = (
        "import sys; import autoip.kernel.arp_socket;"
        "print([m for m in ('asyncio', 'pyroute2', 'socket', 'logging', 'dataclasses')"
        " if m in sys.modules])"
    )
    root = Path(arp_socket.__file__).parents[2]
    command = [sys.executable, "-c", code]
    # Without an environment, so that nothing measures its coverage, which would import some of them.
    done = subprocess.run(command, cwd=root, env={}, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_reactor_alone() -> None:
    with ArpListener() as reactor:
        assert reactor.fileno() >= 0
        assert not readable(reactor)
        assert reactor.drain() == []
        assert reactor.lost == 0
    assert reactor.fileno() == -1
    reactor.close()
    with pytest.raises(OSError, match="closed") as error:
        reactor.drain()
    assert error.value.errno == errno.EBADF
    with pytest.raises(OSError, match="closed"):
        reactor.open(1, MAC)


def test_nothing_is_left_open() -> None:
    """Not even by who forgets close()."""
    gc.collect()
    before = descriptors()
    ArpListener().close()
    assert descriptors() == before
    forgotten: list[object] = [ArpListener(), Timer(), ClockWatch()]
    assert len(descriptors()) == len(before) + 3
    forgotten.clear()
    gc.collect()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("index", "mac", "error"),
    [
        (0, MAC, ValueError),
        (-1, MAC, ValueError),
        (2**31, MAC, ValueError),
        (1.0, MAC, TypeError),
        ("eth0", MAC, TypeError),
        (1, MAC[:5], ValueError),
        (1, MAC + b"\0", ValueError),
        (1, "02:00:00:00:00:01", TypeError),
        (1, bytearray(MAC), TypeError),
        (1, None, TypeError),
    ],
)
def test_open_checks(index: Any, mac: Any, error: type[Exception]) -> None:
    with ArpListener() as reactor, pytest.raises(error):
        reactor.open(index, mac)


class Untouched:
    """In the place of the C library: no call may arrive."""

    AUTOIP_FRAME_LEN = lib.AUTOIP_FRAME_LEN

    def __getattr__(self, name: str) -> Any:
        def called(*_: object) -> None:
            raise AssertionError(f"{name} was called")

        return called


@pytest.fixture
def sock(monkeypatch: pytest.MonkeyPatch) -> ArpSocket:
    """A socket whose C side does not exist."""
    sock = ArpSocket.__new__(ArpSocket)
    sock._pointer = object()
    sock.generation = 0
    monkeypatch.setattr(arp_socket, "lib", Untouched())
    return sock


@pytest.mark.parametrize("call", ["send", "arm"])
@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (b"", ValueError),
        (FRAME[:-1], ValueError),
        (FRAME + b"\0", ValueError),
        (bytearray(FRAME), TypeError),
        (memoryview(FRAME), TypeError),
        ("x" * 42, TypeError),
        (None, TypeError),
    ],
    ids=["empty", "short", "long", "bytearray", "memoryview", "text", "none"],
)
def test_frames_are_checked(sock: ArpSocket, call: str, frame: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        getattr(sock, call)(frame)


@pytest.mark.parametrize(
    ("phase", "address", "error"),
    [
        (Phase.PROBE, None, ValueError),
        (Phase.DEFEND, None, ValueError),
        (4, IPv4Address(1), ValueError),
        (-1, IPv4Address(1), ValueError),
        (None, IPv4Address(1), ValueError),
        (Phase.DEFEND, "169.254.1.0", TypeError),
        (Phase.DEFEND, 0xA9FE0100, TypeError),
        (Phase.DEFEND, b"\xa9\xfe\x01\x00", TypeError),
    ],
)
def test_watch_checks(sock: ArpSocket, phase: Any, address: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        sock.watch(phase, address)
    assert sock.generation == 0


def test_closed_socket(sock: ArpSocket) -> None:
    sock._pointer = None
    sock.close()
    for call in (
        lambda: sock.send(FRAME),
        lambda: sock.arm(FRAME),
        sock.disarm,
        lambda: sock.watch(Phase.SILENT, None),
    ):
        with pytest.raises(OSError, match="closed") as error:
            call()
        assert error.value.errno == errno.EBADF


def test_received_is_a_value() -> None:
    one = Received(token=1, generation=2, frame=FRAME, at=3.0, defended_at=None)
    assert one == Received(1, 2, FRAME, 3.0, None)
    with pytest.raises(AttributeError):
        one.at = 4.0  # type: ignore[misc]


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
    """0 as well: only None is never."""
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
    """Times that no whole number of nanoseconds expresses are rounded up."""
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
    """Nobody sets the clock here: it must not be readable, nor become so by changed()."""
    watch = ClockWatch()
    assert not readable(watch)
    assert not watch.changed()
    assert not readable(watch)
    watch.close()


def test_clock_watch_ignores_a_pause_between_the_clocks() -> None:
    """A process that was pushed aside between two readings did not sleep with the machine."""
    clocks = Clocks()
    pauses = iter([0.0, 3.0, 0.0] * 10)

    def monotonic() -> float:
        clocks.running += next(pauses)
        return clocks.running

    watch = ClockWatch(boottime=lambda: clocks.running + clocks.slept, monotonic=monotonic)
    for _ in range(5):
        assert not watch.changed()
    watch.close()
