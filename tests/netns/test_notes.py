"""What users meet, named: a host that answers every probe, and a second program that manages addresses."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import Port

from .commands import report
from .conftest import MakeDaemon
from .helpers import NETNS, PATIENCE, A, bind, wait_until

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))
THEIRS = IPv4Address("169.254.77.7")


@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("mark", ["label", "process", "nothing"])
def test_second_manager(port: Port, make_autoip: MakeDaemon, mark: str, when: str) -> None:
    """Another link-local address on the interface: one warning, with the program's name where it can be known."""
    host = port.host
    label = "label eth0:avahi" if mark == "label" else ""
    if mark == "process":
        title = ["bash", "-c", "exec -a 'dhcpcd: [manager] [ip4]' sleep 300"]
        program = host.popen(title)
        wait_until(
            lambda: Path(f"/proc/{program.pid}/cmdline").read_bytes().startswith(b"dhcpcd:"),
            "the program's title",
        )
        expected = f"dhcpcd (process {program.pid})"
    else:
        expected = {"label": "avahi-autoipd, by its label", "nothing": "somebody"}[mark]
    daemon = make_autoip(port, *FAST)
    command = f"addr add {THEIRS}/16 brd + scope link {label} dev eth0"
    if when == "before":
        host.ip(command)
        daemon.start()
    else:
        bind(port, daemon)
        assert report(daemon)["notes"] == []
        host.ip(command)
    daemon.wait_line(f"{THEIRS}/16 on this interface as well", PATIENCE)
    # Again, with the same label: reported already.
    host.ip(f"addr add 169.254.78.8/16 scope link {label} dev eth0")
    wait_until(lambda: "169.254.78.8/16" in report(daemon)["others"], "heard of the second")
    notes = report(daemon)["notes"]
    assert len(notes) == 1 and expected in notes[0]
    assert sum("on this interface as well" in line for line in daemon.lines) == 1
