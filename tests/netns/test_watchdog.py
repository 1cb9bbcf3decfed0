"""The watchdog of the service manager, which a hanging event loop must not feed."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from lab import Daemon, Port, frames, tcx

from .helpers import NETNS, PATIENCE, RIVAL, notify_socket

pytestmark = NETNS


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """The service manager's socket."""
    with notify_socket() as receiver:
        receiver.settimeout(PATIENCE)
        yield receiver


def test_watchdog_is_fed_by_the_loop_and_by_nothing_else(
    port: Port, by: str, manager: socket.socket, stack: contextlib.ExitStack
) -> None:
    interval = 0.25
    # Signal handlers of Python run where the event loop runs: the first one makes it hang, the second one go on.
    program = (
        "import signal, sys, time\n"
        "enough = []\n"
        "def hang(*_):\n"
        "    print('hangs', flush=True)\n"
        "    while not enough:\n"
        "        time.sleep(0.1)\n"
        "    print('goes on', flush=True)\n"
        "signal.signal(signal.SIGUSR1, hang)\n"
        "signal.signal(signal.SIGUSR2, lambda *_: enough.append(True))\n"
        "from autoip.commands.main import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, port.name, "--delay", "200"]
    if by == "clsact":
        command[:0] = tcx.WITHOUT
    env = {
        "NOTIFY_SOCKET": str(manager.getsockname()),
        "WATCHDOG_USEC": str(int(interval * 2e6)),
    }
    daemon = stack.enter_context(Daemon(port.host, port.name, command, env=env))
    started = time.monotonic()
    daemon.start()
    seen: list[str] = []
    while "READY=1" not in seen or seen.count("WATCHDOG=1") < 6:
        seen.append(manager.recv(4096).decode())
    # Never earlier than each interval; how much later is the machine's affair.
    assert seen.count("WATCHDOG=1") <= (time.monotonic() - started) / interval + 1
    address = daemon.wait_address()
    port.sniffer.wait_count(lambda f: f.is_announcement and f.spa == address, 2, PATIENCE)

    daemon.signal(signal.SIGUSR1)
    daemon.wait_line("hangs")
    manager.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            manager.recv(4096)
    # The kernel or the helper's thread defends; that must not hide that the loop hangs.
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, address))
    port.sniffer.wait_announcement(address, since=since)
    time.sleep(4 * interval)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)
    daemon.signal(signal.SIGUSR2)
    manager.settimeout(PATIENCE)
    while manager.recv(4096) != b"WATCHDOG=1":
        pass
    assert daemon.stop() == 0
    assert "goes on" in daemon.output
