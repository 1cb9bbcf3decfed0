"""Defence of an address in use (RFC 3927, 2.5), on the wire."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from lab import ArpFrame, Daemon, Port, disputes_announcements, echoes, frames, gaps

from .conftest import MakeDaemon, MakeHost
from .helpers import (
    NETNS,
    PATIENCE,
    PEER,
    RIVAL,
    A,
    after,
    bind,
    claim,
    claimed,
    claimed_other,
    harmless,
    probed,
    wait_ready,
    wait_until,
)

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))

CONFLICTS: dict[str, Callable[[str], bytes]] = {
    "request": lambda host: frames.conflict_request(RIVAL, A),
    "request for us": lambda host: frames.arp(
        frames.REQUEST, sha=RIVAL, spa=A, tpa=A, destination=host
    ),
    "announcement": lambda host: frames.announcement(RIVAL, A),
    "gratuitous reply": lambda host: frames.conflict_reply(RIVAL, A, tha=RIVAL, tpa=A),
    "unicast reply": lambda host: frames.conflict_reply(RIVAL, A, host, A, destination=host),
    "padded": lambda host: frames.padded(frames.conflict_request(RIVAL, A)),
    "from another Ethernet address": lambda host: frames.arp(
        frames.REQUEST, sha=RIVAL, spa=A, tpa=PEER, source="02:00:00:00:00:bb"
    ),
}


def _lost(port: Port, daemon: Daemon, conflict_ns: int, since: int) -> IPv4Address:
    """After the conflict at `conflict_ns` the address A is given up, and another one claimed; which one."""
    daemon.wait_line(rf"-> probing: conflict: {RIVAL} claims {A}", PATIENCE)
    address = claimed_other(port, A, since=since)
    assert port.host.link_local("eth0") == [address]
    # Nothing speaks for A any more, the kernel neither.
    assert [f for f in after(port.sniffer.arp(), conflict_ns) if f.spa == A] == []
    mark = port.sniffer.mark()
    port.send(frames.arp(frames.REQUEST, sha=RIVAL, spa=PEER, tpa=A))
    port.send(frames.arp(frames.REQUEST, sha=RIVAL, spa=PEER, tpa=address))
    assert port.sniffer.wait_for(lambda f: f.op == frames.REPLY, 5, since=mark).spa == address
    return address


def _answers(port: Port, since: int) -> list[ArpFrame]:
    """What the host sent as defence of A, after a moment in which more could have come."""
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    time.sleep(0.3)
    return port.sniffer.arp(since)


@pytest.mark.parametrize("kind", CONFLICTS)
def test_first_conflict_is_answered_once(port: Port, make_autoip: MakeDaemon, kind: str) -> None:
    """def-detect, def-once: one announcement, by broadcast, and the address is kept."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    since = port.sniffer.mark()
    asked = port.send_stamped(CONFLICTS[kind](port.mac))
    [answer] = _answers(port, since)
    assert answer.ns > asked
    head = "ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001"
    assert answer.data == bytes.fromhex(head + "a9fe1414 000000000000 a9fe1414")
    assert port.host.link_local("eth0") == [A]
    # It says whom it met.
    assert RIVAL in daemon.wait_line("conflict: .*defended")


def test_conflict_between_the_announcements(port: Port, make_autoip: MakeDaemon) -> None:
    """def-detect, def-once: the address is defended from the first announcement on, and announced all the same."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    port.send(frames.conflict_request(RIVAL, A))
    daemon.wait_line("announcing -> bound", PATIENCE)
    time.sleep(0.2)
    seen = port.sniffer.announcements(A)
    assert len(seen) == 3
    assert gaps([seen[0], seen[2]])[0] >= 2.0
    assert port.host.link_local("eth0") == [A]


@pytest.mark.parametrize("pause", [0.0, 0.02, 1.0, 8.5])
def test_second_conflict_soon(port: Port, make_autoip: MakeDaemon, pause: float) -> None:
    """def-yield: within DEFEND_INTERVAL of the first: given up at once, and another one claimed."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    since = port.sniffer.mark()
    first = port.send_stamped(frames.conflict_request(RIVAL, A))
    port.sniffer.wait_announcement(A, since=since)
    time.sleep(max(0.0, pause - (time.time_ns() - first) / 1e9))
    second = port.send_stamped(frames.conflict_request(RIVAL, A))
    assert (second - first) / 1e9 < 10
    _lost(port, daemon, second, since)
    assert len(port.sniffer.announcements(A, since)) == 1


def test_conflicts_far_apart(port: Port, make_autoip: MakeDaemon) -> None:
    """def-again, def-yield: the interval counts from the conflict before, not from the first."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    before = 0
    for pause in (0.0, 10.3, 10.3):
        time.sleep(pause)
        since = port.sniffer.mark()
        asked = port.send_stamped(frames.conflict_reply(RIVAL, A))
        assert asked - before > 10e9
        before = asked
        [answer] = _answers(port, since)
        assert answer.is_announcement and port.host.link_local("eth0") == [A]
    time.sleep(6)  # well within the interval, also on a machine that stalls
    since = port.sniffer.mark()
    _lost(port, daemon, port.send_stamped(frames.conflict_reply(RIVAL, A)), since)


@pytest.mark.parametrize("how", [["--abandon"], ["-o", "abandon"]], ids=["long", "module"])
def test_abandon(port: Port, make_autoip: MakeDaemon, how: list[str]) -> None:
    """def-abandon: given up at the first conflict, without a word."""
    daemon = make_autoip(port, *FAST, *how)
    bind(port, daemon)
    since = port.sniffer.mark()
    conflict = port.send_stamped(frames.conflict_request(RIVAL, A))
    address = _lost(port, daemon, conflict, since)
    assert len(probed(port, address, since=since)) == 3


def test_flood_of_conflicts_is_answered_once(port: Port, make_autoip: MakeDaemon) -> None:
    """def-once, def-yield: many at once make neither a flood of answers nor a second loss."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    since = port.sniffer.mark()
    for _ in range(200):
        port.send(frames.conflict_request(RIVAL, A))
    address = claimed_other(port, A, since=since)
    assert len(port.sniffer.announcements(A, since)) <= 1
    assert {f.tpa for f in port.sniffer.probes(since=since)} == {address}


def test_no_conflict_in_use(port: Port, make_autoip: MakeDaemon) -> None:
    """def-probed, def-detect: what is no conflict is not defended against; probes and requests the kernel answers."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    since = port.sniffer.mark()
    for frame in harmless(port.mac, A).values():
        port.send(frame)
    port.send(frames.probe("02:00:00:00:ee:ff", A))
    reply = port.sniffer.wait_for(
        lambda f: f.op == frames.REPLY and f.tha == "02:00:00:00:ee:ff", 5, since=since
    )
    assert (reply.sha, reply.spa) == (port.mac, A)
    time.sleep(0.3)
    assert port.sniffer.announcements(since=since) == []
    assert port.host.link_local("eth0") == [A]
    assert not any("conflict" in line for line in daemon.lines)
    # After all that the first conflict is still the first.
    port.send(frames.conflict_request(RIVAL, A))
    [answer] = [f for f in _answers(port, since) if f.is_announcement]
    assert answer.spa == A


def test_probe_of_another_host_every_time(port: Port, make_autoip: MakeDaemon) -> None:
    """def-probed: however often another host probes for our address, it is answered and we keep it."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    since = port.sniffer.mark()
    for number in range(1, 13):
        port.send(frames.probe(RIVAL, A))
        port.sniffer.wait_count(lambda f: f.op == frames.REPLY, number, 5, since=since)
    assert port.host.link_local("eth0") == [A]
    assert not any("conflict" in line for line in daemon.lines)


def test_echo_of_the_defence(port: Port, make_autoip: MakeDaemon) -> None:
    """claim-echo, def-once: behind a hub that reflects, the defence is no conflict with itself."""
    daemon = make_autoip(port, *FAST)
    neighbour = port.neighbour(echoes)
    bind(port, daemon)
    since = port.sniffer.mark()
    neighbour.send(frames.conflict_request(RIVAL, A))
    [answer] = _answers(port, since)
    assert answer.is_announcement
    assert port.host.link_local("eth0") == [A]


def test_neighbour_that_never_yields(port: Port, make_autoip: MakeDaemon) -> None:
    """def-yield: a host that disputes every announcement wins; we leave, and claim elsewhere in peace."""
    daemon = make_autoip(port, *FAST)
    neighbour = port.neighbour(disputes_announcements(first=2))
    daemon.start()
    claimed_other(port, A)
    wait_until(lambda: len(neighbour.answered) == 2, "two disputes")
    # Announced, disputed, defended, disputed again, given up.
    assert len(port.sniffer.announcements(A)) == 2


def test_two_links_become_one(make_host: MakeHost, make_autoip: MakeDaemon) -> None:
    """def-detect, def-yield: two hosts claimed one address on two links that are then joined."""
    ports = [make_host() for _ in range(2)]
    daemons = [make_autoip(port, *FAST) for port in ports]
    for port, daemon in zip(ports, daemons, strict=True):
        wait_ready(port)
        daemon.start()
    assert [claimed(port) for port in ports] == [A, A]
    for daemon in daemons:
        daemon.wait_line("-> bound", PATIENCE)
    for port in ports:
        port.plug()
    marks = [port.sniffer.mark() for port in ports]
    # Silence, until one of them needs the link.
    ports[0].host.send_udp(PEER)

    def settled() -> bool:
        held = [port.host.link_local("eth0") for port in ports]
        return all(len(addresses) == 1 for addresses in held) and held[0] != held[1]

    wait_until(settled, "two different addresses")
    for port, mark in zip(ports, marks, strict=True):
        assert len(port.sniffer.announcements(A, mark)) <= 1
