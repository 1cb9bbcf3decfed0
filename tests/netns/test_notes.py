"""What users meet, named: a host that answers every probe, and a second program that manages addresses."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import Port, answers_probes

from .commands import report, run
from .conftest import MakeDaemon
from .helpers import NEIGHBOUR, NETNS, PATIENCE, A, bind, wait_until

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))
THEIRS = IPv4Address("169.254.77.7")


def test_host_that_answers_every_probe(port: Port, make_autoip: MakeDaemon) -> None:
    """Proxy ARP is named with its MAC after the third candidate that it took, once, also in the status."""
    neighbour = port.neighbour(answers_probes())
    daemon = make_autoip(port, *FAST)
    daemon.start()
    line = daemon.wait_line("claims every address", PATIENCE)
    assert NEIGHBOUR in line
    taken = list(dict.fromkeys(frame.tpa for frame in neighbour.answered))[:3]
    assert len(taken) == 3 and all(str(address) in line for address in taken)
    daemon.wait_line("-> rate-limited", PATIENCE)
    assert sum("claims every address" in line for line in daemon.lines) == 1
    [note] = report(daemon)["notes"]
    assert NEIGHBOUR in note and note in line
    assert note in run(daemon, "status").out


def test_two_losses_are_no_proxy(port: Port, make_autoip: MakeDaemon) -> None:
    """Two candidates in a row are bad luck, and two more after a success as well."""
    neighbour = port.neighbour(answers_probes(2))
    daemon = make_autoip(port, *FAST)
    held = bind(port, daemon)
    neighbour.become(answers_probes(2))
    assert run(daemon, "refresh eth0").status == 0
    daemon.wait_address(PATIENCE, other_than=held)
    assert len({frame.tpa for frame in neighbour.answered}) == 4
    assert report(daemon)["notes"] == []


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


def test_our_own_is_not_foreign(port: Port, make_autoip: MakeDaemon) -> None:
    """Claimed, restarted after a crash, probed again: nothing of ours is taken for another program's."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    daemon.kill()
    since = port.sniffer.mark()
    daemon.start()
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    since = port.sniffer.mark()
    assert run(daemon, "refresh eth0").status == 0
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    assert report(daemon)["notes"] == []
    assert not any("as well" in line for line in daemon.lines)
