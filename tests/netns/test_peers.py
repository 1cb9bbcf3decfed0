"""autoip and the real programs of Debian on one link: who comes first keeps the address, all end with different ones.

What stands in for autoip may be named in AUTOIP_SUBJECT: `stand-in`, or a program that can be told its candidate
(avahi-autoipd). With that these tests were proven before autoip was there.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from lab import Daemon, LabError, Port, journal
from lab.peers import PEERS, AvahiAutoipd, Peer
from tests.require import requires_kernel_feature, requires_program, requires_root

from .conftest import MakeHost, autoip_command

SUBJECT = os.environ.get("AUTOIP_SUBJECT", "autoip")
OUR_MAC = "02:00:00:5e:00:01"
PEER_MAC = "02:00:00:5e:00:02"
CHOSEN = IPv4Address("169.254.77.88")

# A peer needs up to 9 s for a claim; twice that for one conflict, and room for a busy machine.
CLAIM = 30.0

pytestmark = [
    requires_root,
    requires_kernel_feature("bridge"),
]
each_peer = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=name, marks=requires_program(name, kind.package))
        for name, kind in PEERS.items()
    ],
)

MakeSubject = Callable[..., Daemon]


@pytest.fixture
def make_subject(stack: contextlib.ExitStack) -> MakeSubject:
    """`make_subject(port, candidate, delay=2000)`: autoip, or what stands in for it; not started."""

    def make(port: Port, candidate: IPv4Address, delay: int = 2000) -> Daemon:
        if AvahiAutoipd.program == SUBJECT:
            return stack.enter_context(AvahiAutoipd(port, candidate))
        command = autoip_command()
        if SUBJECT == "stand-in":
            command = [sys.executable, "-m", "tests.netns.standin"]
        command += [port.name, "--ip", str(candidate), "--delay", str(delay)]
        daemon = stack.enter_context(Daemon(port.host, port.name, command))
        daemon.label = SUBJECT
        return daemon

    return make


MakePeer = Callable[[type[Peer], Port], tuple[Peer, IPv4Address]]


@pytest.fixture
def make_peer(stack: contextlib.ExitStack) -> MakePeer:
    """The peer, not started, and the candidate that it will try first."""

    def make(kind: type[Peer], port: Port) -> tuple[Peer, IPv4Address]:
        if kind.takes_candidate:
            return stack.enter_context(kind(port, CHOSEN)), CHOSEN
        return stack.enter_context(kind(port)), kind.first_candidate(port.mac)

    return make


def _wait_announced(port: Port, address: IPv4Address) -> None:
    """Both announcements are out: one that came later would be noticed without any probe."""
    port.sniffer.wait_count(lambda f: f.is_announcement and f.spa == address, 2, CLAIM)


def _stays(seconds: float, **holders: tuple[Daemon, IPv4Address]) -> None:
    """Each has this very address, now and for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, (daemon, address) in holders.items():
            assert daemon.addresses() == [address], f"{name} lost {address}\n{daemon.output}"
        time.sleep(0.1)


@each_peer
def test_same_candidate_at_the_same_time(
    kind: type[Peer], make_host: MakeHost, make_subject: MakeSubject, make_peer: MakePeer
) -> None:
    """claim-conflict: two that want the same address end with different ones."""
    ours = make_host(mac=OUR_MAC, plugged=True)
    theirs = make_host(mac=PEER_MAC, plugged=True)
    peer, candidate = make_peer(kind, theirs)
    subject = make_subject(ours, candidate)
    peer.start()
    subject.start()
    held, other = subject.wait_address(2 * CLAIM), peer.wait_address(2 * CLAIM)
    assert held != other
    # Who hears the other's first probe before its own goes elsewhere without a word: so only one needs to have probed.
    assert ours.sniffer.probes(candidate) or theirs.sniffer.probes(candidate)
    assert str(candidate) in subject.output, "autoip did not try the common candidate"
    _stays(3, autoip=(subject, held), peer=(peer, other))
    assert subject.stop() == 0


@each_peer
def test_candidate_that_a_peer_holds(
    kind: type[Peer], make_host: MakeHost, make_subject: MakeSubject, make_peer: MakePeer
) -> None:
    """claim-conflict: an address in use is left to its owner."""
    ours = make_host(mac=OUR_MAC, plugged=True)
    theirs = make_host(mac=PEER_MAC, plugged=True)
    peer, candidate = make_peer(kind, theirs)
    peer.start()
    taken = peer.wait_address(CLAIM)
    assert taken == candidate
    _wait_announced(theirs, taken)
    subject = make_subject(ours, taken, delay=500)
    subject.start()
    held = subject.wait_address(CLAIM)
    assert held != taken
    assert ours.sniffer.probes(taken), "autoip never probed the address that it was told"
    assert not [f for f in ours.sniffer.arp() if f.spa == taken], "autoip spoke as its owner"
    _stays(3, autoip=(subject, held), peer=(peer, taken))
    assert subject.stop() == 0


@each_peer
def test_peer_wants_what_we_hold(
    kind: type[Peer], make_host: MakeHost, make_subject: MakeSubject, make_peer: MakePeer
) -> None:
    """def-probed: a newcomer's probe costs us nothing, and the newcomer goes elsewhere."""
    ours = make_host(mac=OUR_MAC, plugged=True)
    theirs = make_host(mac=PEER_MAC, plugged=True)
    peer, candidate = make_peer(kind, theirs)
    subject = make_subject(ours, candidate, delay=500)
    subject.start()
    assert subject.wait_address(CLAIM) == candidate
    _wait_announced(ours, candidate)
    peer.start()
    other = peer.wait_address(2 * CLAIM)
    assert theirs.sniffer.probes(candidate), "the peer never wanted it"
    assert other != candidate
    _stays(3, autoip=(subject, candidate), peer=(peer, other))
    assert subject.stop() == 0


@pytest.mark.parametrize("first", ["autoip", "peer"])
@each_peer
def test_two_links_with_one_address_are_joined(
    kind: type[Peer],
    first: str,
    make_host: MakeHost,
    make_subject: MakeSubject,
    make_peer: MakePeer,
) -> None:
    """def-detect, def-once, def-yield: who speaks first makes the other one notice."""
    ours = make_host(mac=OUR_MAC)
    theirs = make_host(mac=PEER_MAC)
    peer, candidate = make_peer(kind, theirs)
    subject = make_subject(ours, candidate, delay=500)
    peer.start()
    subject.start()
    assert subject.wait_address(CLAIM) == candidate
    assert peer.wait_address(CLAIM) == candidate
    # Both claimed in peace; let both finish their announcements before the links meet.
    for port in (ours, theirs):
        _wait_announced(port, candidate)
    since = ours.sniffer.mark()
    ours.plug()
    theirs.plug()
    speaker = ours if first == "autoip" else theirs
    for attempt in range(12):
        # The kernel asks for another neighbour each time: a request with the common address as its sender.
        with contextlib.suppress(OSError):  # in between it may have no address
            speaker.host.send_udp(f"169.254.200.{attempt + 1}")
        until = time.monotonic() + 3
        while time.monotonic() < until:
            mine, other = subject.addresses(), peer.addresses()
            if len(mine) == len(other) == 1 and mine != other:
                break
            time.sleep(0.05)
        else:
            continue
        break
    held, others = subject.wait_address(CLAIM), peer.wait_address(CLAIM)
    assert held != others, journal.timeline(60)
    if first == "peer":
        defence = ours.sniffer.announcements(candidate, since)
        assert defence, "autoip did not defend its address"
        disputed = ours.sniffer.wait_for(
            lambda f: f.spa == candidate and f.sha == theirs.mac,
            CLAIM,
            since=since,
            from_host=False,
        )
        assert disputed.ns < defence[0].ns
    _stays(3, autoip=(subject, held), peer=(peer, others))
    with contextlib.suppress(LabError):
        peer.stop()
    assert subject.stop() == 0
