"""A reload keeps the address, the process, the connections; nothing that comes meanwhile is lost."""

from __future__ import annotations

import signal

from lab import Port, frames

from .conftest import MakeDaemon
from .helpers import NETNS, RIVAL, bind

pytestmark = NETNS


def test_reload(port: Port, make_autoip: MakeDaemon) -> None:
    daemon = make_autoip(port, "--delay", "50")
    address = bind(port, daemon)
    pid = daemon.pid
    daemon.signal(signal.SIGHUP)
    daemon.wait_line("reloaded")
    assert daemon.pid == pid and daemon.running
    assert daemon.addresses() == [address]
    port.send(frames.conflict_request(RIVAL, address))
    daemon.wait_line("defended")
    print(daemon.output)
