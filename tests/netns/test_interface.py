"""The interface below the address: waiting, coming, going, and what autoip leaves behind."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import (
    AddressMonitor,
    Daemon,
    Namespace,
    Port,
    frames,
)
from lab.rtnl import Address

from .conftest import MakeDaemon
from .helpers import (
    NETNS,
    PATIENCE,
    PEER,
    RIVAL,
    A,
    bind,
    broadcasting,
    claim,
    claimed,
    configuration,
    link,
    probed,
    reclaimed,
    wait_ready,
    wait_until,
)

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))
SCOPE_GLOBAL, SCOPE_LINK = 0, 253
LONGEST = "enp0s31f6u1u2c4"


def _entry(port: Port, address: IPv4Address) -> Address:
    [entry] = [e for e in port.host.addresses(port.name) if e.address == address]
    return entry


def _rules(namespace: Namespace) -> list[str]:
    """The routing rules that are not the kernel's."""
    return re.findall(r"from (169\.254\.\S+) lookup", namespace.ip("rule"))


def _claims_again(port: Port, since: int, address: IPv4Address = A) -> None:
    """Probed for three times after the mark, and then announced."""
    assert reclaimed(port, since=since) == address
    assert len(probed(port, address, since=since)) == 3


# The address


@pytest.mark.parametrize(
    ("name", "label"),
    [
        (LONGEST, LONGEST),
        ("$(x)*[!]'\"\\;&", "$(x)*[!]'\"\\;&"),
        ("\udcff\udcfe", "\udcff\udcfe:autoip"),
        ("..a", "..a:autoip"),
    ],
    ids=["15", "shell", "bytes", "path"],
)
def test_names(port: Port, make_autoip: MakeDaemon, name: str, label: str) -> None:
    """if-alias: whatever name the kernel allows works; a label only where it fits 15 characters."""
    port.down()
    port.host.run("ip", "link", "set", "dev", "eth0", "name", name)
    port.host.run("ip", "link", "set", "dev", name, "up")
    port.name = name
    daemon = make_autoip(port, *FAST)
    since = port.sniffer.mark()
    daemon.start()
    assert claimed(port, since=since) == A
    entry = _entry(port, A)
    # The laboratory replaces bytes that are no text.
    assert entry.label == os.fsencode(label).decode(errors="replace")
    assert daemon.stop() == 0
    assert port.host.addresses(name) == []
    assert not any("Traceback" in line for line in daemon.lines)


def test_survives_a_flush_by_label(port: Port, make_autoip: MakeDaemon) -> None:
    """if-alias: what a DHCP client's script flushes is not ours."""
    port.host.ip("addr add 192.0.2.5/24 dev eth0")
    claim(port, make_autoip(port, *FAST))
    since = port.sniffer.mark()
    port.host.ip("addr flush dev eth0 label eth0")
    assert [e.address for e in port.host.addresses("eth0")] == [A]
    time.sleep(0.3)
    assert port.sniffer.probes(since=since) == []
    assert port.host.link_local("eth0") == [A]


# Waiting


def _waits(port: Port, daemon: Daemon, line: str) -> int:
    """It says why it waits, sends nothing, and lives; the sniffer's mark from then on."""
    daemon.wait_line(line)
    since = port.sniffer.mark()
    time.sleep(0.3)
    assert daemon.running and port.sniffer.arp() == []
    return since


def test_up_brings_up_what_comes_later_but_does_not_insist(
    port: Port, make_autoip: MakeDaemon
) -> None:
    """if-wait, if-gone: `--up` also for an interface that is plugged in later; who sets it down then, is obeyed."""
    port.delete()
    daemon = make_autoip(port, *FAST, "--up")
    daemon.start()
    since = _waits(port, daemon, "no such interface")
    port.create(up=False)
    # It may be up before the sniffer is there: not each probe is seen.
    assert claimed(port, since=since) == A
    said = len(daemon.lines)
    port.down()
    daemon.wait_line("waits: it is down", since=said)
    time.sleep(0.5)
    assert "UP" not in link(port.host, "eth0")["flags"]


def test_dormant_is_no_carrier(port: Port, make_autoip: MakeDaemon) -> None:
    """if-wait, if-carrier: before 802.1X or Wi-Fi association nothing is sent; back to dormant, the address goes."""
    wait_ready(port)
    port.dormant(True)
    wait_until(lambda: link(port.host, "eth0")["operstate"] == "DORMANT", "dormant")
    daemon = make_autoip(port, *FAST)
    daemon.start()
    since = _waits(port, daemon, "waits: no carrier")
    port.dormant(False)
    _claims_again(port, since)
    port.dormant(True)
    daemon.wait_no_address()


# Coming and going


def test_interface_pulled_out_and_put_back(port: Port, make_autoip: MakeDaemon) -> None:
    """if-gone: from the beginning, the former address first; no rule of the former interface stays."""
    daemon = make_autoip(port, "--delay", "50")
    first = claim(port, daemon, "--ip", str(A))
    before = port.host.index("eth0")
    said = len(daemon.lines)
    port.delete()
    daemon.wait_line("waits: there is no such interface", since=said)
    since = port.sniffer.mark()
    port.create()
    _claims_again(port, since, first)
    assert port.host.index("eth0") != before
    assert _rules(port.host) == [str(A)]
    assert broadcasting(port.host, port.name)
    # Replaced so quickly that the new one may be there when the loss of the former is told.
    since = port.sniffer.mark()
    port.delete()
    port.create()
    _claims_again(port, since, first)
    assert _rules(port.host) == [str(A)]


def test_renamed_away_and_back(port: Port, make_autoip: MakeDaemon) -> None:
    """if-gone: an interface that is called otherwise is not ours any more; one that gets the name is."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    port.rename("lan0")
    wait_until(lambda: port.host.link_local("lan0") == [], "the address is taken off")
    daemon.wait_line("waits: there is no such interface")
    wait_until(lambda: _rules(port.host) == [], "the rule is taken off")
    wait_until(lambda: not broadcasting(port.host, "lan0"), "the filter is taken off")
    since = port.sniffer.mark()
    time.sleep(0.3)
    assert port.sniffer.arp(since) == []
    port.rename("eth0")
    _claims_again(port, since)


def test_carrier_lost_for_a_moment(port: Port, make_autoip: MakeDaemon) -> None:
    """if-carrier: it may be another link after ever so short a loss: probed again.

    Several times: of the first loss the kernel tells at once, later ones within a second it tells when the carrier is
    back already, and only its count of changes has grown.
    """
    daemon = make_autoip(port, "--delay", "20", "--ip", str(A))
    claim(port, daemon)
    flap = f"link set {port.far} down\nlink set {port.far} up\n"
    for _ in range(6):
        since = port.sniffer.mark()
        port.switch.namespace.run("ip", "-batch", "-", stdin=flap)
        _claims_again(port, since)


# Removed by others


def test_removed_with_its_routes(port: Port, make_autoip: MakeDaemon) -> None:
    """if-removed: who takes the addresses off and then the routes does not get the route of one that is back."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    before = configuration(port.host)
    since, began = port.sniffer.mark(), time.time_ns()
    port.host.run("sh", "-c", "ip -4 addr flush dev eth0; sleep 0.2; ip -4 route flush dev eth0")
    announced = port.sniffer.wait_announcement(A, PATIENCE, since=since)
    assert announced.ns - began > 0.9e9  # not before a second is over
    wait_until(lambda: configuration(port.host)[:3] == before[:3], "all as before")


def test_removed_with_its_primary(port: Port, make_autoip: MakeDaemon) -> None:
    """if-removed: the kernel takes ours along with a foreign address of the same prefix; it comes back."""
    port.host.ip(f"addr add {PEER}/16 dev eth0")
    bind(port, make_autoip(port, *FAST))
    since = port.sniffer.mark()
    port.host.ip(f"addr del {PEER}/16 dev eth0")
    assert claimed(port, since=since) == A
    assert _entry(port, A).scope == SCOPE_LINK


def test_burst_of_changes(port: Port, make_autoip: MakeDaemon) -> None:
    """if-carrier, if-removed: many changes at once, of ours and of others', and one address in the end."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    far = "".join(f"link set {port.far} down\nlink set {port.far} up\n" for _ in range(20))
    here = "".join(
        f"addr flush dev eth0\naddr add 192.0.2.{n}/24 dev eth0\nlink set eth0 down\nlink set eth0 up\n"
        for n in range(1, 30)
    )
    for _ in range(4):
        beside = threading.Thread(
            target=port.switch.namespace.run, args=("ip", "-batch", "-"), kwargs={"stdin": far}
        )
        beside.start()
        port.host.run("ip", "-batch", "-", stdin=here)
        beside.join(PATIENCE)
        since = port.sniffer.mark()
        # What the kernel reports late, when the carrier is back, may take the address off once more.
        port.sniffer.wait_announcement(A, PATIENCE, since=since)
        wait_until(lambda: port.host.link_local("eth0") == [A], "one address")
        wait_until(lambda: _rules(port.host) == [str(A)], "one rule")
    assert not any("Traceback" in line or "internal error" in line for line in daemon.lines)


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", ["waiting", "probing", "bound"])
def test_stop_leaves_nothing(
    port: Port, make_autoip: MakeDaemon, number: signal.Signals, phase: str
) -> None:
    """if-stop: exit 0, and the interface, the rules, all routing tables and the run-time folder are as before."""
    port.host.ip("addr add 192.0.2.5/24 dev eth0")
    port.host.ip("route add default via 192.0.2.1")
    port.host.ip("rule add from 192.0.2.77 lookup 77")
    wait_ready(port)
    if phase == "waiting":
        port.dormant(True)
        wait_until(lambda: link(port.host, "eth0")["operstate"] == "DORMANT", "dormant")
    before = configuration(port.host)
    daemon = make_autoip(port, "--delay", "400" if phase == "probing" else "50")
    daemon.start()
    if phase == "waiting":
        daemon.wait_line("no carrier")
    elif phase == "probing":
        port.sniffer.wait_count(lambda f: f.is_probe, 2, PATIENCE)
    else:
        claimed(port)
        assert configuration(port.host) != before
    daemon.signal(number)
    assert daemon.wait() == 0
    assert configuration(port.host) == before
    assert list(daemon.runtime.iterdir()) == []
    assert "Traceback" not in daemon.output
    since = port.sniffer.mark()
    port.send(frames.probe(RIVAL, A))
    port.sniffer.assert_silent(0.1, since=since)


def test_many_signals(port: Port, make_autoip: MakeDaemon) -> None:
    """if-stop: an impatient person changes nothing."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    for _ in range(5):
        if daemon.running:
            daemon.signal(signal.SIGINT)
            daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert port.host.addresses("eth0") == [] and _rules(port.host) == []
    assert "Traceback" not in daemon.output


def test_stop_with_the_address_already_gone(port: Port, make_autoip: MakeDaemon) -> None:
    """if-stop: it ends in good order when the interface vanished just before."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    port.delete()
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert _rules(port.host) == []
    assert "Traceback" not in daemon.output


# One instance


@pytest.mark.parametrize("record", ["kept", "lost"])
def test_leftover_of_a_crash(port: Port, make_autoip: MakeDaemon, record: str) -> None:
    """if-one, claim-before-use: what a killed one left is taken over, but probed before it is used again."""
    daemon = make_autoip(port, "--delay", "400")
    with AddressMonitor(port.host) as monitor:
        claim(port, daemon, "--ip", str(A), *(["--no-state"] if record == "kept" else []))
        if record == "lost":
            wait_until(lambda: list(daemon.state.glob("*.json")), "the address is saved")
        daemon.kill()
        assert port.host.link_local("eth0") == [A] and _rules(port.host) == [str(A)]
        if record == "lost":  # as after a reboot of a container whose /run is new
            for file in daemon.runtime.iterdir():
                file.unlink()
        since = port.sniffer.mark()
        daemon.start(*(["--no-state"] if record == "kept" else []))
        _claims_again(port, since)
        daemon.wait_line(f"eth0: takes over {A}")
        wait_until(lambda: len(monitor.events()) >= 3, "three changes")
        events = [(new, a.address) for _, new, a in monitor.events()]
        assert events == [(True, A), (False, A), (True, A)]
        off = monitor.events()[1][0]
        assert off < probed(port, A, since=since)[2].ns
    assert _rules(port.host) == [str(A)]
    assert daemon.stop() == 0
    assert port.host.addresses("eth0") == [] and _rules(port.host) == []


# Probe again when asked


# Several interfaces


def test_many_flaps_at_once_are_one_loss(
    port: Port, make_autoip: MakeDaemon, tmp_path: Path
) -> None:
    """However often the link flapped while the daemon could not run, the interface handles few changes."""
    trace = tmp_path / "trace"
    daemon = make_autoip(port, *FAST, "--trace", str(trace))
    bind(port, daemon)
    before = trace.read_text().count('"news": "link"')
    assert before > 0
    daemon.signal(signal.SIGSTOP)
    try:
        port.host.run("ip", "-batch", "-", stdin=100 * "link set eth0 down\nlink set eth0 up\n")
        since = port.sniffer.mark()
    finally:
        daemon.signal(signal.SIGCONT)
    _claims_again(port, since)
    # What the kernel reports late, when the carrier is up again, comes besides.
    assert 2 <= trace.read_text().count('"news": "link"') - before <= 10
