"""Selection and claim (RFC 3927, 2.1 to 2.4), on the wire."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Iterable
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest

from autoip.daemon.address_store import AddressStore
from lab import (
    AddressMonitor,
    ArpFrame,
    Daemon,
    Neighbour,
    Port,
    Rule,
    answers_probes,
    echoes,
    frames,
    gaps,
    probes_too,
)

from .conftest import MakeDaemon, MakeHost
from .helpers import (
    CANDIDATES,
    ETHERTYPE_IPV4,
    NEIGHBOUR,
    NETNS,
    PATIENCE,
    RIVAL,
    A,
    B,
    after,
    bind,
    claim,
    claimed,
    claimed_other,
    harmless,
    kept_waiting,
    probed,
    wait_ready,
)

pytestmark = NETNS


def _tried(port: Port, since: int = 0) -> list[IPv4Address]:
    """The candidates, in the order of their first probes."""
    return list(dict.fromkeys(f.tpa for f in port.sniffer.probes(since=since)))


def _answers_candidates(number: int) -> Rule:
    """Answers each probe for the first so many candidates, however many there are of each."""
    seen: list[IPv4Address] = []

    def rule(host: Neighbour, frame: ArpFrame) -> Iterable[bytes]:
        if not frame.is_probe:
            return []
        if frame.tpa not in seen:
            seen.append(frame.tpa)
        return [frames.answer(host.mac, frame)] if seen.index(frame.tpa) < number else []

    return rule


# The rate limit comes first: it takes more than a minute, and the other tests run meanwhile.


@pytest.mark.long(120)
def test_rate_limit_and_recovery(port: Port, make_autoip: MakeDaemon) -> None:
    """claim-rate: ten conflicts one after the other, then a minute's pause, which a lost carrier does not cut
    short; after a successful claim the count begins again."""
    neighbour = port.neighbour(answers_probes())
    daemon = make_autoip(port, "--delay", "200")
    daemon.start()
    daemon.wait_line("rate-limited", PATIENCE)
    time.sleep(1)  # the sniffer may be behind the log
    assert len(_tried(port)) == 10
    tenth = next(f for f in port.sniffer.arp(from_host=False) if f.spa == _tried(port)[-1])
    assert all(CANDIDATES[0] <= address <= CANDIDATES[1] for address in _tried(port))
    assert {frame.tpa for frame in neighbour.answered} == set(_tried(port))
    since = port.sniffer.mark()
    port.carrier(False)
    daemon.wait_line("no carrier", since=len(daemon.lines) - 1)
    port.carrier(True)
    neighbour.become(_answers_candidates(1))
    first = port.sniffer.wait_probe(timeout=125, since=since)
    # At least RATE_LIMIT_INTERVAL, and never over 120 s (Bonjour Conformance Test, I.3).
    assert 60.0 <= (first.ns - tenth.ns) / 1e9 <= 120.0
    # Still limited: the eleventh conflict has the same pause.
    said = len(daemon.lines)
    daemon.wait_line("-> rate-limited", since=max(0, said - 5))
    since = port.sniffer.mark()
    second = port.sniffer.wait_probe(timeout=125, since=since)
    assert 60.0 <= (second.ns - first.ns) / 1e9 <= 120.0
    assert second.tpa not in _tried(port)[:11]
    address = claimed(port, since=since)
    # The count began again: two conflicts in a row, and the next candidate comes at once.
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, address))
    port.send(frames.conflict_request(RIVAL, address))
    claimed_other(port, address, since=since)


def test_silence_after_the_claim(port: Port, make_autoip: MakeDaemon) -> None:
    """no-periodic, announce: two announcements, then not one frame more."""
    address = bind(port, make_autoip(port, "--delay", "50"))
    since = port.sniffer.mark()
    time.sleep(20)
    assert port.sniffer.frames(since) == []
    # It has not gone deaf: the silence is kept by will.
    port.send(frames.conflict_request(RIVAL, address))
    port.sniffer.wait_announcement(address, since=since)


# Pace


@pytest.mark.parametrize("delay", [2000, 200])
def test_pace(make_host: MakeHost, make_autoip: MakeDaemon, delay: int) -> None:
    """claim-wait, claim-num, announce: exactly three probes, each pause within its bounds; 2000 is RFC 3927.

    Four hosts, each on a link of its own, for more draws. To the upper bounds comes the time in which the program
    could not run since the processors were busy: none on a quiet machine.
    """
    second = 1e9
    bound = delay / 1000
    ports = [make_host() for _ in range(4)]
    for port in ports:
        wait_ready(port)
    arguments = () if delay == 2000 else ("--delay", str(delay))
    daemons = [make_autoip(port, *arguments) for port in ports]
    monitors = [AddressMonitor(port.host) for port in ports]
    with ExitStack() as stack:
        for monitor in monitors:
            stack.enter_context(monitor)
        for daemon in daemons:
            daemon.start()
        waits, pauses = [], []
        for port, daemon, monitor in zip(ports, daemons, monitors, strict=True):
            seen = port.sniffer.wait_count(lambda f: f.is_announcement, 2, PATIENCE)
            address = seen[0].spa
            probes = probed(port, address)
            assert port.sniffer.arp() == [*probes, *seen]
            late = kept_waiting(daemon)
            pauses += gaps(probes)
            [begun] = [ns for ns, _, text in daemon.entries() if "no-link -> probing" in text]
            waits.append((probes[0].ns - begun) / second)
            # ANNOUNCE_WAIT before it is used, ANNOUNCE_INTERVAL (not scaled) between announcements.
            added, _, _ = monitor.wait_for(lambda new, a: new and a.link_local, 5)
            assert added - probes[-1].ns >= bound * second
            assert gaps([probes[-1], seen[0]])[0] >= bound
            assert gaps(seen)[0] >= 2.0
            # At most PROBE_WAIT + 2 PROBE_MAX + ANNOUNCE_WAIT from begin to announcement: 0.7 s
            # with delay 200. ANNOUNCE_WAIT has no room for lateness: half a second for this machine.
            assert (seen[0].ns - begun) / second <= 3.5 * bound + 0.5 + late
            assert all(bound / 2 <= pause <= bound + late for pause in gaps(probes)), gaps(probes)
            assert waits[-1] <= bound / 2 + late
    # At random: none of them is a constant.
    assert max(waits) - min(waits) > bound / 1000
    assert max(pauses) - min(pauses) > bound / 1000


# Frames


def test_bytes_of_probe_and_announcement(port: Port, make_autoip: MakeDaemon) -> None:
    """claim-probe, announce: every byte of the frames."""
    claim(port, make_autoip(port, "--delay", "50", "--ip", "169.254.20.20"))
    head = "ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001"
    probe = bytes.fromhex(head + " 00000000 000000000000 a9fe1414")
    announcement = bytes.fromhex(head + " a9fe1414 000000000000 a9fe1414")
    seen = [frame.data for frame in port.sniffer.frames() if frame.from_host]
    assert seen == [probe, probe, probe, announcement]


def test_not_used_before_it_is_claimed(port: Port, make_autoip: MakeDaemon) -> None:
    """claim-before-use: not on the interface, in no packet, and no answer for it, before the claim."""
    with AddressMonitor(port.host) as monitor:
        daemon = make_autoip(port, "--delay", "1500", "--ip", str(A))
        daemon.start()
        probes = []
        for number in range(1, 4):
            probes = port.sniffer.wait_count(lambda f: f.is_probe, number, PATIENCE)
            assert port.host.link_local("eth0") == []
            # Who asks for it gets no answer, and nothing can be sent from it.
            port.send(frames.arp(frames.REQUEST, sha=RIVAL, spa="169.254.9.9", tpa=A))
            with pytest.raises(OSError, match="unreachable") as refused:
                port.host.send_udp("169.254.9.9")
            assert refused.value.errno == errno.ENETUNREACH
        # The probes before the third one are older, so nothing else was sent meanwhile.
        assert port.sniffer.arp() == probes
        announced = port.sniffer.wait_announcement(A)
        monitor.wait_for(lambda new, _: new, 5)
        [(added, new, address)] = monitor.events()
        assert new and address.address == A
        assert added - probes[-1].ns >= 1.5e9
        sent = [f for f in port.sniffer.frames() if f.from_host]
        assert all(isinstance(f, ArpFrame) and f.spa != A for f in sent if f.ns < announced.ns)
        # From now on it is used.
        port.host.send_udp("169.254.9.9")
        assert port.sniffer.wait_for(lambda f: f.tpa == IPv4Address("169.254.9.9"), 5).spa == A
        assert not [f for f in port.sniffer.frames() if f.ethertype == ETHERTYPE_IPV4]


# Conflicts


def _answers_third(make: Rule) -> Rule:
    """What `make` would say to the third probe for an address: it comes in ANNOUNCE_WAIT."""
    heard: dict[IPv4Address, int] = {}

    def rule(host: Neighbour, frame: ArpFrame) -> Iterable[bytes]:
        heard[frame.tpa] = heard.get(frame.tpa, 0) + frame.is_probe
        return make(host, frame) if frame.is_probe and heard[frame.tpa] == 3 else []

    return rule


def _only_a(make: Rule) -> Rule:
    def rule(host: Neighbour, frame: ArpFrame) -> Iterable[bytes]:
        return make(host, frame) if frame.is_probe and frame.tpa == A else []

    return rule


CONFLICTS: dict[str, Rule] = {
    "unicast reply": answers_probes(),
    "broadcast reply": lambda host, f: [frames.conflict_reply(host.mac, f.tpa)],
    "request": lambda host, f: [frames.conflict_request(host.mac, f.tpa)],
    "unicast request": lambda host, f: [
        frames.arp(frames.REQUEST, sha=host.mac, spa=f.tpa, tpa="169.254.0.1", destination=f.sha)
    ],
    "announcement": lambda host, f: [frames.announcement(host.mac, f.tpa)],
    "probe": probes_too(None),
    "padded reply": lambda host, f: [frames.padded(frames.answer(host.mac, f))],
}


@pytest.mark.parametrize("phase", ["probing", "announce-wait"])
@pytest.mark.parametrize("kind", CONFLICTS)
def test_conflict_before_use(port: Port, make_autoip: MakeDaemon, kind: str, phase: str) -> None:
    """claim-conflict, sel-ip: what ends an attempt, also after the last probe; then a random candidate."""
    rule = _only_a(CONFLICTS[kind])
    port.neighbour(rule if phase == "probing" else _answers_third(rule))
    with AddressMonitor(port.host) as monitor:
        daemon = make_autoip(port, "--delay", "400", "--ip", str(A))
        address = claim(port, daemon)
        monitor.wait_for(lambda new, a: new and a.address == address, 5)
        assert [a.address for _, _, a in monitor.events()] == [address]
    assert address != A
    assert _tried(port) == [A, address]
    [conflict] = port.sniffer.arp(from_host=False)[:1]
    probes = port.sniffer.probes(A)
    # No probe more for it, and the next candidate is probed for in full.
    assert len(probes) in ((1, 2) if phase == "probing" else (3,))
    assert after(probes, conflict) == []
    assert len(probed(port, address)) == 3
    line = daemon.wait_line(f"{phase} -> probing: conflict")
    assert NEIGHBOUR in line and str(A) in line and str(address) in line


def test_no_conflict_before_use(port: Port, make_autoip: MakeDaemon) -> None:
    """claim-conflict, claim-echo: what is no conflict leaves the attempt alone, from the first probe to the last
    moment of ANNOUNCE_WAIT."""
    daemon = make_autoip(port, "--delay", "400", "--ip", str(A))
    daemon.start()
    for number in range(1, 4):
        port.sniffer.wait_count(lambda f: f.is_probe, number, PATIENCE)
        for frame in harmless(port.mac, A, number).values():
            port.send(frame)
    assert claimed(port) == A
    assert _tried(port) == [A]
    assert not any("conflict" in line for line in daemon.lines)


def test_reflecting_neighbour(port: Port, make_autoip: MakeDaemon) -> None:
    """claim-echo: a hub that sends everything back, at every stage of the claim and after it."""
    port.neighbour(echoes)
    daemon = make_autoip(port, "--delay", "100", "--ip", str(A))
    assert bind(port, daemon) == A
    echoed = port.sniffer.wait_count(lambda f: f.sha == port.mac, 5, 5, from_host=False)
    assert [f.is_probe for f in echoed] == [True, True, True, False, False]
    port.sniffer.assert_silent(0.3)
    assert len(port.sniffer.arp()) == 5


@pytest.mark.parametrize("which", [1, 3])
def test_unicast_probe(port: Port, make_autoip: MakeDaemon, which: int) -> None:
    """claim-unicast-probe: a switch's device tracking asks the prober by unicast."""

    def track(host: Neighbour, frame: ArpFrame) -> Iterable[bytes]:
        return [frames.probe(host.mac, frame.tpa, destination=frame.sha)] if frame.is_probe else []

    neighbour = port.neighbour(track if which == 1 else _answers_third(track))
    assert claim(port, make_autoip(port, "--delay", "100", "--ip", str(A))) == A
    assert len(neighbour.answered) == (3 if which == 1 else 1)


def test_two_hosts_want_one_address(make_host: MakeHost, make_autoip: MakeDaemon) -> None:
    """claim-conflict: both probe for it at the same time; at most one of them gets it."""
    ports = [make_host(plugged=True) for _ in range(2)]
    for port in ports:
        wait_ready(port)
    daemons = [make_autoip(port, "--delay", "400", "--ip", str(A)) for port in ports]
    for daemon in daemons:
        daemon.start()
    held = [claimed(port) for port in ports]
    assert held[0] != held[1]
    for daemon in daemons:
        daemon.wait_line(f"no-link -> probing: .*{A}")
    for port, address in zip(ports, held, strict=True):
        assert port.host.link_local("eth0") == [address]


# Selection


def test_seed(make_host: MakeHost, make_autoip: MakeDaemon) -> None:
    """sel-seed, sel-range, sel-metadata: the MAC decides on the sequence of candidates; a restart begins it again."""
    macs = ["02:00:00:00:00:31", "02:00:00:00:00:31", "02:00:00:00:00:32"]
    ports = [make_host(mac=mac) for mac in macs]
    daemons = [make_autoip(port, "--delay", "200", "--no-state") for port in ports]
    neighbours = [port.neighbour(_answers_candidates(4)) for port in ports]
    for daemon in daemons:
        daemon.start()
    for port in ports:
        claimed(port)
    tried = [_tried(port) for port in ports]
    assert [len(addresses) for addresses in tried] == [5, 5, 5]
    assert tried[0] == tried[1]
    assert not set(tried[0]) & set(tried[2])
    for address in {*tried[0], *tried[2]}:
        assert CANDIDATES[0] <= address <= CANDIDATES[1]
        assert address != IPv4Address("169.254.169.254")
    assert daemons[0].stop() == 0
    neighbours[0].become(_answers_candidates(4))
    since = ports[0].sniffer.mark()
    claim(ports[0], daemons[0])
    assert _tried(ports[0], since) == tried[0]


def test_first_candidate_may_be_at_either_end(port: Port, make_autoip: MakeDaemon) -> None:
    """sel-ip, sel-range: the first and the last address of the range are claimed when asked for."""
    daemon = make_autoip(port, "--delay", "30")
    for address in CANDIDATES:
        assert claim(port, daemon, "--ip", str(address)) == address
        assert daemon.stop() == 0


# Memory


def test_last_address_is_tried_first(port: Port, make_autoip: MakeDaemon) -> None:
    """sel-memory: kept over a restart, probed before use, `--ip` goes before it, `--no-state` ignores it."""
    daemon = make_autoip(port, "--delay", "30")
    assert claim(port, daemon, "--ip", str(A)) == A
    assert daemon.stop() == 0
    [file] = daemon.state.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) & 0o022 == 0
    since = port.sniffer.mark()
    assert claim(port, daemon) == A
    assert len(probed(port, A, since=since)) == 3
    assert daemon.stop() == 0
    assert claim(port, daemon, "--ip", str(B)) == B
    assert daemon.stop() == 0
    kept = file.read_bytes()
    assert claim(port, daemon, "--no-state") not in (A, B)
    assert daemon.stop() == 0
    assert file.read_bytes() == kept
    # After a conflict it is the new one that is remembered.
    neighbour = port.neighbour(answers_probes(addresses=[B]))
    other = claim(port, daemon)
    assert other != B and neighbour.answered
    assert daemon.stop() == 0
    assert claim(port, daemon) == other


def test_no_state_writes_nothing(port: Port, make_autoip: MakeDaemon) -> None:
    """sel-memory: with `--no-state` there is no file."""
    daemon = make_autoip(port, "--delay", "30", "--no-state")
    claim(port, daemon)
    assert daemon.stop() == 0
    assert list(daemon.state.iterdir()) == []


def _save(port: Port, daemon: Daemon) -> bytes:
    AddressStore(daemon.state).save(frames.mac_bytes(port.mac), A, port.name)
    [file] = daemon.state.iterdir()
    return file.read_bytes()


@pytest.mark.parametrize(
    "damage", ["empty", "half", "noise", "huge", "out of range", "fifo", "folder"]
)
def test_damaged_state(port: Port, make_autoip: MakeDaemon, damage: str) -> None:
    """sel-memory: a damaged file is a warning, and is put right."""
    daemon = make_autoip(port, "--delay", "30")
    good = _save(port, daemon)
    [file] = daemon.state.iterdir()
    if damage in ("fifo", "folder"):
        file.unlink()
        os.mkfifo(file) if damage == "fifo" else file.mkdir()
    else:
        contents = {
            "empty": b"",
            "half": good[: len(good) // 2],
            "noise": bytes(range(256)) * 2,
            "huge": good.rstrip()[:-1] + b" " * 100_000 + b"}",
            "out of range": good.replace(str(A).encode(), b"169.254.0.7"),
        }
        file.write_bytes(contents[damage])
    address = claim(port, daemon)
    assert address in port.host.link_local("eth0")
    assert address != A
    daemon.wait_line("eth0: .*" + str(daemon.state))
    assert not any("Traceback" in line for line in daemon.lines)
    assert daemon.stop() == 0
    if damage != "folder":
        assert file.is_file() and str(address).encode() in file.read_bytes()


@pytest.mark.parametrize("why", ["file in the way", "full", "read-only"])
def test_state_cannot_be_written(port: Port, make_autoip: MakeDaemon, why: str) -> None:
    """sel-memory: a warning, and all else works."""
    daemon = make_autoip(port, "--delay", "30")
    place = daemon.state
    if why == "file in the way":
        place.rmdir()
        place.touch()
    else:
        options = "size=4k,nr_inodes=1" if why == "full" else "ro"
        port.host.run("mount", "-t", "tmpfs", "-o", options, "small", str(place))
    assert claim(port, daemon, "--ip", str(A)) == A
    line = daemon.wait_line(f"eth0: .*{place}")
    assert "cannot" in line
    assert daemon.stop() == 0
    assert port.host.link_local("eth0") == []


def test_every_candidate_is_another(port: Port, make_autoip: MakeDaemon) -> None:
    """sel-ip, claim-conflict: after the address asked for come random ones, none of them twice."""
    port.neighbour(_answers_candidates(6))
    claim(port, make_autoip(port, "--delay", "30", "--ip", str(A)))
    tried = _tried(port)
    assert tried[0] == A and len(tried) == 7
    # No order in them: they neither rise nor fall throughout.
    signs = {b > a for a, b in itertools.pairwise(tried)}
    assert signs == {True, False}
