"""autoip.daemon.daemon.sd_notify: the datagrams that the service manager gets."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoip.daemon.sd_notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A service manager's socket, and its name in $NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        receiver.settimeout(10)
        yield name, receiver


def received(receiver: socket.socket) -> list[str]:
    """All datagrams so far: they are there as soon as they were sent."""
    receiver.setblocking(False)
    found = []
    while True:
        try:
            found.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return found


def test_messages(manager: tuple[str, socket.socket]) -> None:
    name, receiver = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.status("eth0: probing 169.254.7.7")
    notifier.ready()
    notifier.status("eth0: 169.254.7.7")
    notifier.ready()
    notifier.stopping()
    assert received(receiver) == [
        "STATUS=eth0: probing 169.254.7.7",
        "READY=1",
        "STATUS=eth0: 169.254.7.7",
        "STOPPING=1",
    ]


def test_a_status_is_one_line(manager: tuple[str, socket.socket]) -> None:
    name, receiver = manager
    Notifier({"NOTIFY_SOCKET": name}).status("eth0\nMAINPID=1\r\nREADY=1")
    Notifier({"NOTIFY_SOCKET": name}).status("\udcff é")
    assert received(receiver) == ["STATUS=eth0 MAINPID=1 READY=1", "STATUS=? é"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "@"},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "/nonexistent/socket"},
        {"NOTIFY_SOCKET": "/" + "x" * 4096},
        {"NOTIFY_SOCKET": "/a\0b"},
        {"NOTIFY_SOCKET": "@nobody listens here"},
        {"NOTIFY_SOCKET": "/dev/null"},
    ],
)
def test_nobody_listens(environ: dict[str, str]) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    notifier = Notifier(environ)
    notifier.ready()
    notifier.status("up")
    notifier.stopping()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_ready_is_tried_again_when_it_was_not_taken(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        notifier.ready()
        notifier.ready()
        assert received(receiver) == ["READY=1"]


def test_a_busy_manager_does_not_block_for_ever(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        notifier = Notifier({"NOTIFY_SOCKET": name})
        sent = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            while True:
                try:
                    filler.sendto(b"x", name)
                except BlockingIOError:
                    break
                sent += 1
        notifier.status("lost")
        assert received(receiver) == ["x"] * sent
        notifier.ready()
        assert received(receiver) == ["READY=1"]


def test_a_busy_manager_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoip.daemon.sd_notify.SEND_TIMEOUT", 30.0)
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        notifier = Notifier({"NOTIFY_SOCKET": name})
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    filler.sendto(b"x", name)
        timer = threading.Timer(0.1, received, [receiver])
        timer.start()
        notifier.ready()
        timer.join()
        # Taken once there was room.
        assert notifier._ready


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("30000000", None, 15.0),
        ("30000000", "", 15.0),
        ("1", None, 5e-7),
        ("30000000", "ours", 15.0),
        ("30000000", "1", None),
        ("30000000", "x", None),
        ("0", None, None),
        ("-1", None, None),
        ("", None, None),
        ("x", None, None),
        (None, None, None),
    ],
)
def test_watchdog_interval(
    manager: tuple[str, socket.socket], usec: str | None, pid: str | None, expected: float | None
) -> None:
    name, receiver = manager
    pid = str(os.getpid()) if pid == "ours" else pid
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    given = {key: value for key, value in environ.items() if value is not None}
    if pid == "ours":
        given["WATCHDOG_PID"] = str(os.getpid())
    notifier = Notifier(given)
    assert notifier.watchdog_interval == expected
    notifier.watchdog()
    assert received(receiver) == ["WATCHDOG=1"]
    del given["NOTIFY_SOCKET"]
    assert Notifier(given).watchdog_interval is None
