"""What arp_socket.py refuses before any call to C. Needs no privileges."""

from __future__ import annotations

import errno
import gc
import os
import queue
import select
import subprocess
import sys
import threading
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from autoip.kernel import arp_socket
from autoip.kernel.arp_socket import ArpListener, ArpSocket, Phase, Received
from autoip.kernel.native import lib
from autoip.kernel.timers import ClockWatch, Timer

MAC = bytes.fromhex("020000000001")
FRAME = bytes(arp_socket.FRAME_LENGTH)


def readable(*things: Any) -> bool:
    return bool(select.select(things, [], [], 0)[0])


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
    # Without an environment, so that no measurement of coverage imports some of them.
    done = subprocess.run(command, cwd=root, env={}, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_listener_alone() -> None:
    with ArpListener() as listener:
        assert listener.fileno() >= 0
        assert not readable(listener)
        assert listener.drain() == []
        assert listener.lost == 0
    assert listener.fileno() == -1
    listener.close()
    with pytest.raises(OSError, match="closed") as error:
        listener.drain()
    assert error.value.errno == errno.EBADF
    with pytest.raises(OSError, match="closed"):
        listener.open(1, MAC)


@pytest.mark.parametrize("threads_left", [True, False])
def test_the_loop_does_not_wait_for_the_close(
    threads_left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes some 10 ms for it: a thread waits, where there is one."""
    descriptor, other = os.pipe()
    closed: queue.Queue[threading.Thread] = queue.Queue()
    close = os.close

    def recorded(number: int) -> None:
        if number == descriptor:
            closed.put(threading.current_thread())
        close(number)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(os, "close", recorded)
    if not threads_left:
        monkeypatch.setattr(threading.Thread, "start", refuse)
    arp_socket._in_thread(os.close, descriptor)
    assert (closed.get(timeout=60) is not threading.current_thread()) == threads_left
    close(other)


def test_nothing_is_left_open() -> None:
    """Not even without close()."""
    gc.collect()
    before = descriptors()
    ArpListener().close()
    assert descriptors() == before
    forgotten: list[object] = [ArpListener(), Timer(), ClockWatch()]
    # The listener has three: to wait for all sockets, to end its thread, and to wake the program.
    assert len(descriptors()) == len(before) + 5
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
    with ArpListener() as listener, pytest.raises(error):
        listener.open(index, mac)


class Untouched:
    """Stands in for the C library: a call fails the test."""

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
        sock.pending,
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
