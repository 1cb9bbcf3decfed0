"""The interface below the address: waiting, coming, going, and what autoip leaves behind."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest

from autoip.daemon.address_store import AddressStore
from lab import (
    AddressMonitor,
    Daemon,
    LabError,
    Namespace,
    Port,
    Switch,
    answers_probes,
    frames,
)
from lab.rtnl import Address

from .conftest import MakeDaemon, MakeHost, autoip_command
from .helpers import (
    LINK_LOCAL,
    NETNS,
    PATIENCE,
    PEER,
    RIVAL,
    A,
    B,
    bind,
    claim,
    claimed,
    claimed_other,
    configuration,
    link,
    probed,
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
    assert claimed(port, since=since) == address
    assert len(probed(port, address, since=since)) == 3


# The address


def test_alias_beside_a_static_address(port: Port, make_autoip: MakeDaemon) -> None:
    """if-alias: /16, broadcast, scope link, label and mark; the static address is as it was, before and after."""
    port.host.ip("addr add 192.0.2.5/24 brd + dev eth0")
    [static] = port.host.addresses("eth0")
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    index = port.host.index("eth0")
    ours = Address(
        index=index,
        address=A,
        prefixlen=16,
        scope=SCOPE_LINK,
        label="eth0:autoip",
        broadcast=LINK_LOCAL.broadcast_address,
        metric=1000 + index,
        proto=169,
    )
    assert {static, ours} == set(port.host.addresses("eth0"))
    assert daemon.stop() == 0
    assert port.host.addresses("eth0") == [static]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("enp0s31f", "enp0s31f:autoip"),
        ("enp0s31f6", "enp0s31f6"),
        (LONGEST, LONGEST),
        ("$(x)*[!]'\"\\;&", "$(x)*[!]'\"\\;&"),
        ("eth0.7@-_~", "eth0.7@-_~"),
        ("ünïc", "ünïc:autoip"),
        ("\udcff\udcfe", "\udcff\udcfe:autoip"),
        ("..a", "..a:autoip"),
    ],
    ids=["8", "9", "15", "shell", "dots", "utf-8", "bytes", "path"],
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


@pytest.mark.parametrize(("scope", "expected"), [("global", SCOPE_GLOBAL), ("link", SCOPE_LINK)])
@pytest.mark.parametrize("order", ["before", "after"])
def test_foreign_link_local_address(
    port: Port, make_autoip: MakeDaemon, scope: str, expected: int, order: str
) -> None:
    """if-alias: beside a 169.254/16 address that somebody else set; its scope is ours, and it is never removed."""
    foreign = f"addr add {PEER}/16 scope {scope} dev eth0"
    if order == "before":
        port.host.ip(foreign)
    daemon = make_autoip(port, *FAST)
    assert claim(port, daemon) == A
    if order == "after":
        if expected != SCOPE_LINK:
            with pytest.raises(LabError, match="scope"):  # the kernel's own demand
                port.host.ip(foreign)
            return
        port.host.ip(foreign)
    assert _entry(port, A).scope == expected
    kept = _entry(port, PEER)
    # Given up, claimed again, stopped: it stays all the time.
    since = port.sniffer.mark()
    for _ in range(2):
        port.send(frames.conflict_request(RIVAL, A))
    other = claimed_other(port, A, since=since)
    assert set(port.host.link_local("eth0")) == {PEER, other}
    assert _entry(port, PEER) == kept
    assert daemon.stop() == 0
    assert port.host.addresses("eth0") == [kept]


def test_address_of_this_host_is_no_candidate(port: Port, make_autoip: MakeDaemon) -> None:
    """if-alias: an address that the host already has on the interface is not claimed a second time."""
    port.host.ip(f"addr add {A}/16 dev eth0")
    daemon = make_autoip(port, *FAST)
    other = claim(port, daemon)
    assert other != A and set(port.host.link_local("eth0")) == {A, other}
    assert daemon.stop() == 0
    assert port.host.link_local("eth0") == [A]


def test_kernel_that_does_not_answer(port: Port, stack: ExitStack) -> None:
    """A request without an answer, when the address is to be added: after a pause it is tried again."""
    program = (
        "import asyncio, sys; from autoip.commands import main; from autoip.core import ipv4ll;"
        "from autoip.daemon import interface; from autoip.kernel import network;"
        "interface._REQUEST_TIMEOUT = 0.5;"
        "ipv4ll.CONFIGURE_RETRY = 1;"
        "add, calls = network.Network.add_address, []\n"
        "async def once(self, *words, **options):\n"
        "    calls.append(words)\n"
        "    if len(calls) == 1: await asyncio.sleep(3600)\n"
        "    return await add(self, *words, **options)\n"
        "network.Network.add_address = once\n"
        "sys.exit(main.main(sys.argv[1:]))"
    )
    command = [autoip_command()[0], "-c", program, "eth0", *FAST]
    daemon = stack.enter_context(Daemon(port.host, "eth0", command))
    daemon.start()
    daemon.wait_line("configuring -> paused: the kernel did not answer", PATIENCE)
    assert claimed(port) == A


# Waiting


def _waits(port: Port, daemon: Daemon, line: str) -> int:
    """It says why it waits, sends nothing, and lives; the sniffer's mark from then on."""
    daemon.wait_line(line)
    since = port.sniffer.mark()
    time.sleep(0.3)
    assert daemon.running and port.sniffer.arp() == []
    return since


def test_waits_for_an_interface_that_does_not_exist(port: Port, make_autoip: MakeDaemon) -> None:
    """if-wait: no such interface yet."""
    port.delete()
    daemon = make_autoip(port, *FAST)
    daemon.start()
    since = _waits(port, daemon, "waits: there is no such interface")
    port.create()
    _claims_again(port, since)


def test_waits_for_an_interface_that_is_down(make_host: MakeHost, make_autoip: MakeDaemon) -> None:
    """if-wait: down; the log tells how to bring it up."""
    port = make_host(up=False)
    daemon = make_autoip(port, *FAST)
    daemon.start()
    since = _waits(port, daemon, r"eth0: waits: it is down; .*ip link set eth0 up")
    assert "UP" not in link(port.host, "eth0")["flags"]
    port.up()
    _claims_again(port, since)


def test_up_brings_it_up(make_host: MakeHost, make_autoip: MakeDaemon) -> None:
    """if-wait: `--up` does it."""
    port = make_host(up=False)
    claim(port, make_autoip(port, *FAST, "--up"))
    assert "UP" in link(port.host, "eth0")["flags"]


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


def test_up_does_not_fight_over_one_that_was_up(port: Port, make_autoip: MakeDaemon) -> None:
    """if-wait: with `--up`, who sets an interface down that was up at the start is obeyed as well."""
    daemon = make_autoip(port, *FAST, "--up")
    claim(port, daemon)
    said = len(daemon.lines)
    port.down()
    daemon.wait_line("waits: it is down; .*ip link set eth0 up", since=said)
    time.sleep(0.5)
    assert "UP" not in link(port.host, "eth0")["flags"]


def test_waits_for_carrier(port: Port, make_autoip: MakeDaemon) -> None:
    """if-wait: up, without carrier."""
    port.carrier(False)
    wait_until(lambda: "LOWER_UP" not in link(port.host, "eth0")["flags"], "no carrier")
    daemon = make_autoip(port, *FAST)
    daemon.start()
    since = _waits(port, daemon, "waits: no carrier")
    port.carrier(True)
    _claims_again(port, since)


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
    # Replaced so quickly that the new one may be there when the loss of the former is told.
    since = port.sniffer.mark()
    port.delete()
    port.create()
    _claims_again(port, since, first)
    assert _rules(port.host) == [str(A)]


def test_replaced_while_probing(port: Port, make_autoip: MakeDaemon) -> None:
    """if-gone: the attempt begins again on the new interface."""
    daemon = make_autoip(port, "--delay", "400", "--ip", str(A))
    daemon.start()
    port.sniffer.wait_count(lambda f: f.is_probe, 2, PATIENCE)
    port.delete()
    since = port.sniffer.mark()
    port.create()
    _claims_again(port, since)


def test_renamed_away_and_back(port: Port, make_autoip: MakeDaemon) -> None:
    """if-gone: an interface that is called otherwise is not ours any more; one that gets the name is."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    port.rename("lan0")
    wait_until(lambda: port.host.link_local("lan0") == [], "the address is taken off")
    daemon.wait_line("waits: there is no such interface")
    wait_until(lambda: _rules(port.host) == [], "the rule is taken off")
    since = port.sniffer.mark()
    time.sleep(0.3)
    assert port.sniffer.arp(since) == []
    port.rename("eth0")
    _claims_again(port, since)


def test_another_interface_gets_the_name(
    port: Port, switch: Switch, make_autoip: MakeDaemon
) -> None:
    """if-gone: eth0 is renamed away and another interface becomes eth0."""
    spare = switch.attach(port.host, "spare")
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    port.rename("lan0")
    since = spare.sniffer.mark()
    spare.rename("eth0")
    wait_until(lambda: port.host.link_local("lan0") == [], "the address is taken off")
    address = claimed(spare, since=since)
    assert spare.sniffer.probes(address, since)[0].sha == spare.mac


def test_carrier_lost_and_back(port: Port, make_autoip: MakeDaemon) -> None:
    """if-carrier: the address goes with the carrier, and is probed again before use, the former first."""
    daemon = make_autoip(port, "--delay", "50")
    with AddressMonitor(port.host) as monitor:
        claim(port, daemon, "--ip", str(A))
        said = len(daemon.lines)
        port.carrier(False)
        daemon.wait_line("no carrier", since=said)
        daemon.wait_no_address()
        since = port.sniffer.mark()
        port.carrier(True)
        _claims_again(port, since)
        wait_until(lambda: len(monitor.events()) >= 3, "three changes")
        assert [(new, a.address) for _, new, a in monitor.events()] == [
            (True, A),
            (False, A),
            (True, A),
        ]


def test_carrier_back_on_a_link_where_the_address_is_taken(
    port: Port, make_autoip: MakeDaemon
) -> None:
    """if-carrier: it is somebody else's there: another one, and the former was never used."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    port.carrier(False)
    daemon.wait_no_address()
    port.neighbour(answers_probes(addresses=[A]))
    since = port.sniffer.mark()
    port.carrier(True)
    other = claimed(port, since=since)
    assert other != A
    assert {f.spa for f in port.sniffer.arp(since)} == {frames.NO_ADDRESS, other}
    assert port.sniffer.probes(since=since)[0].tpa == A


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


def test_carrier_comes_and_goes(port: Port, make_autoip: MakeDaemon) -> None:
    """if-carrier: the former address comes first, also when the kernel's word of its removal is still underway."""
    daemon = make_autoip(port, "--delay", "1", "--ip", str(A))
    claim(port, daemon)
    rng = random.Random(7)
    for _ in range(100):
        time.sleep(rng.random() * 0.03)
        port.switch.namespace.run("ip", "link", "set", port.far, "down")
        time.sleep(rng.random() * 0.002)
        port.switch.namespace.run("ip", "link", "set", port.far, "up")
    since = port.sniffer.mark()
    daemon.signal(signal.SIGHUP)
    assert claimed(port, since=since) == A
    assert {f.tpa for f in port.sniffer.probes()} == {A}


def test_carrier_lost_while_probing(port: Port, make_autoip: MakeDaemon) -> None:
    """if-carrier: probes on a former link do not count."""
    # The kernel tells of it up to a second late: time enough before the claim.
    daemon = make_autoip(port, "--delay", "1500", "--ip", str(A))
    daemon.start()
    port.sniffer.wait_count(lambda f: f.is_probe, 2, PATIENCE)
    port.carrier(False)
    daemon.wait_line("(probing|announce-wait) -> no-link")
    since = port.sniffer.mark()
    port.carrier(True)
    _claims_again(port, since)


def test_set_down_and_up(port: Port, make_autoip: MakeDaemon) -> None:
    """if-carrier: the kernel keeps addresses of an interface that is set down; ours is probed again all the same."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    port.down()
    daemon.wait_no_address()
    since = port.sniffer.mark()
    port.up()
    _claims_again(port, since)
    assert len(_rules(port.host)) == 1


def test_changed_hardware_address(port: Port, make_autoip: MakeDaemon) -> None:
    """if-mac: probed again with the new one, and nothing more from the former."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    since = port.sniffer.mark()
    port.set_mac("02:00:00:00:00:77")
    address = claimed(port, since=since)
    assert len(probed(port, address, since=since)) == 3
    assert {f.sha for f in port.sniffer.arp(since)} == {port.mac}
    # The filter knows the new one: our echo is none, the former MAC a stranger's.
    mark = port.sniffer.mark()
    port.send(frames.announcement(port.mac, address))
    port.send(frames.probe(RIVAL, address))
    port.sniffer.wait_for(lambda f: f.op == frames.REPLY, 5, since=mark)
    assert not any("conflict" in line for line in daemon.lines)
    port.send(frames.announcement("02:00:00:00:00:01", address))
    daemon.wait_line("conflict: 02:00:00:00:00:01 .*defended")


def test_changed_hardware_address_while_probing(port: Port, make_autoip: MakeDaemon) -> None:
    """if-mac: the attempt begins again."""
    daemon = make_autoip(port, "--delay", "400", "--ip", str(A))
    daemon.start()
    port.sniffer.wait_count(lambda f: f.is_probe, 2, PATIENCE)
    since = port.sniffer.mark()
    port.set_mac("02:00:00:00:00:77")
    announced = port.sniffer.wait_announcement(timeout=PATIENCE, since=since)
    new = [f for f in port.sniffer.probes(announced.spa, since) if f.sha == port.mac]
    assert len(new) == 3 and announced.sha == port.mac


# Removed by others


@pytest.mark.parametrize("how", [f"addr del {A}/16 dev eth0", "addr flush dev eth0"])
def test_removed_by_somebody(port: Port, make_autoip: MakeDaemon, how: str) -> None:
    """if-removed: noticed, put back without a probe and announced; soon after that probed first."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    before = configuration(port.host)
    since = port.sniffer.mark()
    port.host.ip(how)
    assert claimed(port, since=since) == A
    assert port.sniffer.probes(since=since) == []
    daemon.wait_line("bound -> configuring: .*removed by somebody else")
    assert configuration(port.host)[1:3] == before[1:3]
    since = port.sniffer.mark()
    port.host.ip(how)
    _claims_again(port, since)
    assert _rules(port.host) == [str(A)]


def test_removed_with_its_routes(port: Port, make_autoip: MakeDaemon) -> None:
    """if-removed: who takes the addresses off and then the routes does not get the route of one that is back."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    before = configuration(port.host)
    since = port.sniffer.mark()
    port.host.run("sh", "-c", "ip -4 addr flush dev eth0; sleep 0.2; ip -4 route flush dev eth0")
    assert claimed(port, since=since) == A
    assert configuration(port.host)[:3] == before[:3]


def test_removed_again_and_again(port: Port, make_autoip: MakeDaemon) -> None:
    """if-removed: who removes it ten times in a row is not fought at full speed."""
    daemon = make_autoip(port, *FAST)
    since = 0
    daemon.start()
    for _ in range(10):
        # Not before the announcement: an address that goes while it is being set up is no removal.
        assert claimed(port, since=since) == A
        since = port.sniffer.mark()
        port.host.ip("addr flush dev eth0")
    daemon.wait_line("-> rate-limited: .*removed", PATIENCE)
    since = port.sniffer.mark()
    time.sleep(2)
    assert port.sniffer.arp(since) == [] and port.host.addresses("eth0") == []
    assert daemon.stop() == 0


def test_removed_with_its_primary(port: Port, make_autoip: MakeDaemon) -> None:
    """if-removed: the kernel takes ours along with a foreign address of the same prefix; it comes back."""
    port.host.ip(f"addr add {PEER}/16 dev eth0")
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
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
        assert claimed(port, since=since) == A
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


def test_second_instance_is_refused(port: Port, make_autoip: MakeDaemon, stack: ExitStack) -> None:
    """if-one: status 3, one line with the first one's pid; the first one is not disturbed."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    since = port.sniffer.mark()
    second = stack.enter_context(_beside(daemon))
    second.start()
    assert second.wait() == 3
    [line] = second.lines
    assert f"eth0: autoip already runs here, by process {daemon.pid}" in line
    time.sleep(0.3)
    assert port.sniffer.arp(since) == [] and port.host.link_local("eth0") == [A]
    # The lock is the first one's still, and free when it has ended.
    second.start()
    assert second.wait() == 3
    assert daemon.stop() == 0
    since = port.sniffer.mark()
    second.start()
    claimed(port, since=since)


def _beside(daemon: Daemon, namespace: Namespace | None = None) -> Daemon:
    """Another program with the same command and the same run-time folder."""
    return Daemon(
        namespace or daemon.namespace,
        daemon.interface,
        daemon.command,
        env={"RUNTIME_DIRECTORY": str(daemon.runtime)},
    )


def test_same_name_in_two_namespaces(
    make_host: MakeHost, make_autoip: MakeDaemon, stack: ExitStack
) -> None:
    """if-one: two containers that share the run-time folder may each have an eth0; also after a crash."""
    ports = [make_host() for _ in range(2)]
    daemon = make_autoip(ports[0], *FAST)
    second = stack.enter_context(_beside(daemon, ports[1].host))
    claim(ports[0], daemon)
    claim(ports[1], second)
    assert len(list(daemon.runtime.glob("*.lock"))) == 2
    daemon.kill()
    since = ports[1].sniffer.mark()
    assert second.stop() == 0
    second.start()
    assert claimed(ports[1], since=since) == A
    assert ports[0].host.link_local("eth0") == [A]
    since = ports[0].sniffer.mark()
    daemon.start()
    _claims_again(ports[0], since)
    assert not any("takes over" in line for line in second.lines)


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


def test_leftover_of_a_crash_that_another_host_has_taken(
    port: Port, make_autoip: MakeDaemon
) -> None:
    """if-one: then it is given up, and not a frame is sent from it."""
    daemon = make_autoip(port, "--delay", "100")
    claim(port, daemon, "--ip", str(A))
    daemon.kill()
    port.neighbour(answers_probes(addresses=[A]))
    since = port.sniffer.mark()
    daemon.start()
    other = claimed(port, since=since)
    assert other != A and port.host.link_local("eth0") == [other]
    assert port.sniffer.probes(since=since)[0].tpa == A
    assert _rules(port.host) == [str(other)]
    assert all(f.spa in (frames.NO_ADDRESS, other) for f in port.sniffer.arp(since))


def test_rules_of_a_crash_are_swept(port: Port, switch: Switch, make_autoip: MakeDaemon) -> None:
    """if-stop: what a killed one left of an address that is gone is removed at the next start."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    daemon.kill()
    port.host.ip("addr flush dev eth0")
    assert _rules(port.host) == [str(A)]
    daemon = make_autoip(port, "--delay", "50", "--no-state", "--ip", str(B))
    since = port.sniffer.mark()
    daemon.start()
    assert claimed(port, since=since) == B
    assert _rules(port.host) == [str(B)]


# Probe again when asked


def test_hangup_probes_again(port: Port, make_autoip: MakeDaemon) -> None:
    """SIGHUP: the same address, from the first probe on; also while it is being probed for."""
    daemon = make_autoip(port, "--delay", "400", "--ip", str(A))
    bind(port, daemon)
    since = port.sniffer.mark()
    daemon.signal(signal.SIGHUP)
    port.sniffer.wait_count(lambda f: f.is_probe, 2, PATIENCE, since=since)
    assert port.host.link_local("eth0") == []
    since = port.sniffer.mark()
    daemon.signal(signal.SIGHUP)
    announced = port.sniffer.wait_announcement(A, PATIENCE, since=since)
    assert 3 <= len([f for f in port.sniffer.probes(A, since) if f.ns < announced.ns]) <= 4
    assert port.host.link_local("eth0") == [A]


def test_hangup_while_there_is_no_link(port: Port, make_autoip: MakeDaemon) -> None:
    """SIGHUP: nothing to do, nothing lost."""
    port.delete()
    daemon = make_autoip(port, *FAST)
    daemon.start()
    daemon.wait_line("no such interface")
    daemon.signal(signal.SIGHUP)
    since = port.sniffer.mark()
    port.create()
    _claims_again(port, since)


# Several interfaces


@pytest.fixture
def two_links(port: Port) -> Iterator[tuple[Port, Port]]:
    """A host with eth0 and eth1, each on a link of its own with a neighbour PEER at the other end."""
    with Switch() as other:
        ports = (port, other.attach(port.host, "eth1", mac="02:00:00:00:00:e1"))
        for each in ports:
            each.switch.namespace.ip(f"addr add {PEER}/16 brd + dev {each.far}")
        yield ports


def _both(daemon: Daemon, ports: tuple[Port, Port], *arguments: str) -> list[IPv4Address]:
    marks = [port.sniffer.mark() for port in ports]
    daemon.start(*arguments)
    return [claimed(port, since=mark) for port, mark in zip(ports, marks, strict=True)]


def test_two_links_are_both_reached(two_links: tuple[Port, Port], make_autoip: MakeDaemon) -> None:
    """if-many: a neighbour on each link reaches its interface by ping and TCP, though both have one prefix."""
    daemon = make_autoip(two_links[0], "eth1", "--delay", "50")
    held = _both(daemon, two_links)
    assert held[0] != held[1]
    host = two_links[0].host
    listener = host.call(socket.create_server, ("0.0.0.0", 7000))
    with listener:
        for each, address in zip(two_links, held, strict=True):
            neighbour = each.switch.namespace
            neighbour.run("ping", "-c", "1", "-W", "5", str(address))
            listener.settimeout(5)
            connect = neighbour.call(socket.create_connection, (str(address), 7000), timeout=5)
            with connect:
                accepted, (peer, _) = listener.accept()
                with accepted:
                    assert peer == str(PEER)
                    accepted.sendall(b"hello")
                    assert connect.recv(5) == b"hello"
            # And the other way, from the interface's address.
            host.run("ping", "-c", "1", "-W", "5", "-I", str(address), str(PEER))
    metrics = {e.metric for e in host.addresses() if e.link_local}
    assert len(metrics) == 2
    assert daemon.stop() == 0
    assert host.addresses() == [] and _rules(host) == []


def test_one_interface_deleted_does_not_disturb_the_other(
    two_links: tuple[Port, Port], make_autoip: MakeDaemon
) -> None:
    """if-many: one goes, comes back, is disputed: the other is silent and keeps its address."""
    first, second = two_links
    daemon = make_autoip(first, "eth1", "--delay", "50")
    held = _both(daemon, two_links)
    second.sniffer.wait_count(lambda f: f.is_announcement, 2, PATIENCE)
    quiet = second.sniffer.mark()
    first.delete()
    daemon.wait_line("waits: there is no such interface")
    since = first.sniffer.mark()
    first.create()
    assert claimed(first, since=since) == held[0]
    since = first.sniffer.mark()
    for _ in range(2):
        first.send(frames.conflict_request(RIVAL, held[0]))
    claimed_other(first, held[0], since=since)
    assert second.sniffer.arp(quiet) == []
    assert first.host.link_local("eth1") == [held[1]]
    # The other one is served still.
    second.send(frames.conflict_request(RIVAL, held[1]))
    second.sniffer.wait_announcement(held[1], since=quiet)


def test_two_interfaces_on_one_link(
    make_host: MakeHost, switch: Switch, make_autoip: MakeDaemon
) -> None:
    """if-many, claim-echo: both on one link, both remember one address: they end with different ones and stay so."""
    first = make_host(plugged=True)
    second = switch.attach(first.host, "eth1", plugged=True)
    daemon = make_autoip(first, "eth1", "--delay", "200")
    for port in (first, second):
        wait_ready(port)
        AddressStore(daemon.state).save(frames.mac_bytes(port.mac), A, port.name)
    held = _both(daemon, (first, second))
    assert held[0] != held[1] and A in held
    for port in (first, second):
        port.sniffer.wait_count(lambda f: f.is_announcement, 2, PATIENCE)
    time.sleep(1)
    assert [first.host.link_local(name) for name in ("eth0", "eth1")] == [[held[0]], [held[1]]]
    # A probe on this link is answered for both interfaces; our own is no conflict with ourselves.
    since = first.sniffer.mark()
    daemon.signal(signal.SIGHUP)
    assert claimed(first, since=since) == held[0]
    assert claimed(second, since=since) == held[1]


def test_two_instances_on_one_host(
    make_host: MakeHost, switch: Switch, make_autoip: MakeDaemon
) -> None:
    """if-many: one process for each interface, on one link, with the same first candidate."""
    first = make_host(plugged=True)
    second = switch.attach(first.host, "eth1", plugged=True)
    daemons = [make_autoip(port, "--delay", "200", "--ip", str(A)) for port in (first, second)]
    for port in (first, second):
        wait_ready(port)
    for daemon in daemons:
        daemon.start()
    held = [claimed(port) for port in (first, second)]
    assert held[0] != held[1]
    for daemon in daemons:
        daemon.wait_line("-> bound", PATIENCE)
    assert [first.host.link_local(name) for name in ("eth0", "eth1")] == [[held[0]], [held[1]]]
    # One that stops takes off its own, not the other's.
    assert daemons[0].stop() == 0
    assert first.host.link_local("eth0") == []
    assert first.host.link_local("eth1") == [held[1]] and _rules(first.host) == [str(held[1])]


def test_many_interfaces(port: Port, switch: Switch, stack: ExitStack) -> None:
    """if-many: twenty in one process, each with an address of its own."""
    ports = [port, *(switch.attach(port.host, f"eth{n}") for n in range(1, 20))]
    command = [*autoip_command(), *(p.name for p in ports), "--delay", "200"]
    daemon = stack.enter_context(Daemon(port.host, "eth0", command))
    daemon.start()
    held = [claimed(p) for p in ports]
    assert len(set(held)) == 20
    assert all(len(probed(p, address)) == 3 for p, address in zip(ports, held, strict=True))
    assert sorted(_rules(port.host)) == sorted(map(str, held))
    assert daemon.stop() == 0
    assert port.host.addresses() == [] and _rules(port.host) == []
