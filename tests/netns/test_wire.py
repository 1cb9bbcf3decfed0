"""Frames that nobody would send in good faith, and more of them than anybody would.

AUTOIP_FUZZ_SEED chooses other frames than the usual ones.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator

import pytest

from attack.noise import noise
from lab import ArpFrame, Daemon, Neighbour, Port, frames

from .conftest import MakeDaemon
from .helpers import (
    NETNS,
    PATIENCE,
    RIVAL,
    A,
    bind,
    claimed,
    claimed_other,
    probed,
    wait_until,
)

pytestmark = NETNS

SEED = int(os.environ.get("AUTOIP_FUZZ_SEED", "3927"))
GROWTH_KIB = 3000
"""What the process may grow by: a queue that fills once, not one that grows with the frames."""


def _take(frames_: Iterator[bytes], number: int) -> list[bytes]:
    return [next(frames_) for _ in range(number)]


def _still_defends(port: Port, daemon: Daemon) -> None:
    """It lives, has its address, took nothing for a conflict, and knows one when it comes."""
    assert port.host.link_local("eth0") == [A]
    for word in ("conflict", "Traceback", "internal error"):
        assert not any(word in line for line in daemon.lines), (SEED, word)
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    port.sniffer.wait_announcement(A, since=since)
    daemon.wait_line(f"conflict: {RIVAL}")
    assert daemon.stop() == 0


def test_noise_while_probing(port: Port, make_autoip: MakeDaemon) -> None:
    """Thousands of frames between the first probe and the claim: the address is claimed as if there were none."""
    daemon = make_autoip(port, "--delay", "1500", "--ip", str(A))
    source = noise(port.mac, A, SEED)
    daemon.start()
    port.sniffer.wait_probe(A, PATIENCE)
    sent = 0
    until = time.monotonic() + PATIENCE
    while not port.host.link_local("eth0") and time.monotonic() < until:
        for frame in _take(source, 150):
            port.send(frame)
            sent += 1
        time.sleep(0.01)
    assert sent > 2000
    assert claimed(port) == A
    assert len(probed(port, A)) == 3
    port.sniffer.wait_count(lambda f: f.is_announcement and f.spa == A, 2, PATIENCE)
    _still_defends(port, daemon)


@pytest.mark.parametrize(("by", "seed"), [("tcx", SEED), ("clsact", SEED + 1)], indirect=["by"])
def test_noise_while_bound(port: Port, make_by: MakeDaemon, seed: int) -> None:
    """A flood of it wakes nobody up: the kernel's filter keeps every frame that is no conflict."""
    daemon = make_by(port, "--delay", "20", "--ip", str(A))
    bind(port, daemon)
    _at_rest(daemon)
    flood = _take(noise(port.mac, A, seed), 10_000)
    before = daemon.usage()
    since = port.sniffer.mark()
    for number, frame in enumerate(flood):
        if number % 500 == 0:
            time.sleep(0.01)  # beyond the kernel's queue all is dropped
        port.send(frame)
    _drained(port)
    cost = daemon.usage() - before
    assert cost.voluntary == 0, cost
    assert cost.rss_kib < GROWTH_KIB, cost
    assert port.sniffer.announcements(since=since) == []
    _still_defends(port, daemon)


def _at_rest(daemon: Daemon) -> None:
    """Until it has done all that follows from the claim: it sleeps for half a second."""

    def sleeps() -> bool:
        before = daemon.usage().voluntary
        time.sleep(0.5)
        return daemon.usage().voluntary == before

    wait_until(sleeps, "the daemon at rest")


def _drained(port: Port) -> None:
    """The host has seen all that was sent to it: it answers a request that came last.

    Asked again and again, since the kernel drops what comes faster than it can take it.
    """
    since = port.sniffer.mark()
    mac = "02:00:00:00:dd:ee"
    request = frames.arp(frames.REQUEST, sha=mac, spa="169.254.9.9", tpa=A)

    def answered() -> bool:
        port.send(request)
        time.sleep(0.1)
        return any(f.op == frames.REPLY and f.tha == mac for f in port.sniffer.arp(since))

    wait_until(answered, "the last request is answered")


def test_flood_of_conflicts(port: Port, make_by: MakeDaemon) -> None:
    """Twenty thousand claims of our address, by as many hosts: it moves away once, and does not grow."""
    daemon = make_by(port, "--delay", "20", "--ip", str(A))
    bind(port, daemon)
    before = daemon.usage()
    since = port.sniffer.mark()
    rng = random.Random(SEED)
    for _ in range(20_000):
        mac = frames.mac_text(b"\x02" + rng.randbytes(5))
        port.send(frames.conflict_request(mac, A))
    other = claimed_other(port, A, since=since)
    cost = daemon.usage() - before
    assert cost.rss_kib < GROWTH_KIB, cost
    assert len(port.sniffer.announcements(A, since)) <= 1
    assert {f.tpa for f in port.sniffer.probes(since=since)} == {other}
    assert port.host.link_local("eth0") == [other]
    assert len([line for line in daemon.lines if "conflict" in line]) <= 2
    assert daemon.stop() == 0


def test_flood_of_answers_to_each_probe(port: Port, make_autoip: MakeDaemon) -> None:
    """A neighbour that answers each probe a hundred times: each candidate counts once, then the rate limit."""

    def many(host: Neighbour, frame: ArpFrame) -> Iterable[bytes]:
        return [frames.answer(host.mac, frame)] * 100 if frame.is_probe else []

    port.neighbour(many)
    daemon = make_autoip(port, "--delay", "400")
    daemon.start()
    daemon.wait_line("-> rate-limited", PATIENCE)
    before = daemon.usage()
    # The sniffer may be behind the log.
    wait_until(lambda: len({f.tpa for f in port.sniffer.probes()}) >= 10, "all candidates")
    time.sleep(1)
    assert len({f.tpa for f in port.sniffer.probes()}) == 10
    assert (daemon.usage() - before).rss_kib < GROWTH_KIB
    assert daemon.stop() == 0
