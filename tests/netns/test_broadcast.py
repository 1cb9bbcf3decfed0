"""def-broadcast: ARP with a link-local sender leaves by link-layer broadcast (RFC 3927, 2.5)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from autoip.kernel import arp_socket, tcx
from autoip.kernel.arp_broadcast import BY_FILTER, HANDLE, Broadcast
from autoip.kernel.model import Link
from autoip.kernel.network import Network
from lab import ArpFrame, Daemon, Frame, LabError, Namespace, Port, frames
from lab import tcx as foreign_tcx
from lab.packet_ring import PacketRing
from tests.fed_socket import feed

from .commands import report
from .conftest import MakeDaemon, autoip_command
from .helpers import (
    NETNS,
    NO_TCX,
    PATIENCE,
    PEER,
    RIVAL,
    WITHOUT_BPF,
    A,
    B,
    bind,
    broadcasting,
    claim,
    claimed,
    configuration,
    filters,
    has_tcx,
    reclaimed,
    wait_until,
)

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))
STATIC = IPv4Address("192.0.2.5")
NOT_IN_KERNEL = arp_socket.NOT_IN_KERNEL
BY_UNICAST = "the kernel sends ARP for the address by unicast"


def ours(port: Port) -> list[str]:
    return filters(port.host, port.name)


def where(port: Port) -> list[str]:
    return broadcasting(port.host, port.name)


@pytest.fixture
def without_tcx(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has none, for what runs in the test's own process."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "no tcx")

    monkeypatch.setattr(tcx.Link, "attach", refuse)


def hook(port: Port) -> str:
    """The qdisc that has the filters; empty if there is none."""
    found = json.loads(port.host.run("tc", "-j", "qdisc", "show", "dev", port.name))
    return next((one["kind"] for one in found if one["kind"] in ("clsact", "ingress")), "")


def tc(port: Port, words: str) -> str:
    return port.host.run("tc", *words.split())


def picture(port: Port) -> list[str]:
    """What belongs to others and must stay as it is."""
    shown = [tc(port, f"filter show dev {port.name} {where}") for where in ("ingress", "egress")]
    return [tc(port, "qdisc"), *shown]


def replies(port: Port, question: bytes, count: int = 1) -> list[ArpFrame]:
    """The first answers to a frame."""
    since = port.sniffer.mark()
    port.send(question)
    return port.sniffer.wait_count(lambda f: f.op == frames.REPLY, count, PATIENCE, since=since)


def question(port: Port, address: IPv4Address = A, **changed: Any) -> bytes:
    values: dict[str, Any] = {"sha": RIVAL, "spa": PEER, "tpa": address, **changed}
    return frames.arp(frames.REQUEST, **values)


def answers_by_broadcast(port: Port, address: IPv4Address = A) -> bool:
    """Whether the one answer to a question is a broadcast."""
    [reply] = replies(port, question(port, address))
    assert (reply.spa, reply.sha) == (address, port.mac)
    assert (reply.tpa, reply.tha) == (PEER, RIVAL)
    return reply.broadcast


def asks_again(port: Port, peer: IPv4Address) -> ArpFrame:
    """What the kernel sends to see whether a neighbour that it knows is still there."""
    port.host.run("sysctl", "-qw", f"net.ipv4.neigh.{port.name}.delay_first_probe_time=1")
    port.host.ip(f"neigh replace {peer} lladdr {RIVAL} dev {port.name} nud stale")
    since = port.sniffer.mark()
    port.host.send_udp(peer)
    return port.sniffer.wait_for(lambda f: f.tpa == peer, PATIENCE, since=since)


def unread(host: Namespace) -> int:
    """The bytes that wait in the packet sockets of a host."""
    rows = host.run("cat", "/proc/net/packet").splitlines()[1:]
    return sum(int(row.split()[6]) for row in rows)


# What leaves


QUESTIONS: dict[str, Callable[[Port], bytes]] = {
    "broadcast": question,
    "unicast": lambda port: question(port, destination=port.mac),
    "probe": lambda port: frames.probe(RIVAL, A),
    "unicast probe": lambda port: frames.probe(RIVAL, A, destination=port.mac),
    "from a routable address": lambda port: question(port, spa="192.0.2.9"),
    "padded": lambda port: frames.padded(question(port)),
}


def test_the_kernels_answer(port: Port, make_by: MakeDaemon) -> None:
    """def-broadcast: one answer, to everyone, whoever asks and how."""
    port.host.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
    bind(port, make_by(port, *FAST))
    since = port.sniffer.mark()
    for kind, make in QUESTIONS.items():
        [reply] = replies(port, make(port))
        assert reply.broadcast, (kind, reply)
        assert (reply.source, reply.sha, reply.spa) == (port.mac, port.mac, A), kind
        assert reply.tha == RIVAL, kind
    # Whoever was answered a second time would be so before the last answer.
    answers = [f for f in port.sniffer.arp(since) if f.op == frames.REPLY]
    assert len(answers) == len(QUESTIONS)


def test_a_flood_is_not_amplified(port: Port, make_autoip: MakeDaemon) -> None:
    """Of the answers to a flood by unicast a hundred are broadcasts, and fifty more a second; each is sent."""
    bind(port, make_autoip(port, *FAST))
    asked = question(port, destination=port.mac)
    since = port.sniffer.mark()
    began = time.monotonic()
    for _ in range(20):
        mark = port.sniffer.mark()
        for _ in range(40):
            port.send(asked)
        port.sniffer.wait_count(lambda f: f.op == frames.REPLY, 40, PATIENCE, since=mark)
    most = 101 + 50 * (time.monotonic() - began)
    answers = [f for f in port.sniffer.arp(since) if f.op == frames.REPLY]
    assert len(answers) == 800
    assert all(f.broadcast for f in answers[:90])
    assert 100 <= sum(f.broadcast for f in answers) <= most
    assert {f.destination for f in answers if not f.broadcast} == {RIVAL}


def test_without_it_both_are_unicast(port: Port) -> None:
    """What the tests above would see of the kernel alone: else they prove nothing."""
    port.host.ip(f"addr add {A}/16 dev eth0")
    assert not answers_by_broadcast(port)
    assert asks_again(port, PEER).destination == RIVAL


def _changed(at: int, value: bytes) -> bytes:
    frame = frames.conflict_reply("02:00:00:00:00:01", A, RIVAL, PEER, destination=RIVAL)
    return frame[:at] + value + frame[at + len(value) :]


REDIRECTED = {
    "reply": _changed(0, b""),
    "request": _changed(20, b"\0\1"),
    "InARP": _changed(20, b"\0\x09"),
    "to a group": _changed(0, b"\1"),
    "a broadcast already": _changed(0, b"\xff" * 6),
    "169.254.0.0": _changed(28, bytes([169, 254, 0, 0])),
    "169.254.255.255": _changed(28, bytes([169, 254, 255, 255])),
    "padded": frames.padded(_changed(0, b"")),
    "long": frames.padded(_changed(0, b""), 1514),
}
UNTOUCHED = {
    "169.253.255.255": _changed(28, bytes([169, 253, 255, 255])),
    "169.255.0.0": _changed(28, bytes([169, 255, 0, 0])),
    "168.254.20.20": _changed(28, bytes([168, 254, 20, 20])),
    "turned round": _changed(28, bytes([254, 169, 20, 20])),
    "probe": _changed(28, bytes(4)),
    "link-local is only asked for": _changed(28, bytes([192, 0, 2, 5, *bytes(6), 169, 254, 9, 9])),
    "RARP": _changed(12, b"\x80\x35"),
    "IPv4": _changed(12, b"\x08\x00"),
    "another hardware type": _changed(14, b"\0\6"),
    "another protocol": _changed(16, b"\x86\xdd"),
    "another hardware length": _changed(18, b"\x08"),
    "another protocol length": _changed(19, b"\x10"),
    "a byte too short": _changed(0, b"")[:41],
    "without sender": _changed(0, b"")[:28],
    "only a header": _changed(0, b"")[:14],
    "tagged": frames.tagged(_changed(0, b""), 5),
}


def _raw(interface: str) -> socket.socket:
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.bind((interface, 0))
    return sender


@pytest.mark.parametrize("how", [_raw, PacketRing])
def test_which_frames(
    port: Port, make_by: MakeDaemon, how: Callable[[str], socket.socket | PacketRing]
) -> None:
    """def-broadcast: six bytes of the right frames, and nothing of any other."""
    bind(port, make_by(port, *FAST))
    with contextlib.closing(port.host.call(how, "eth0")) as sender:

        def seen(frame: bytes) -> bytes:
            """What comes out of the cable. The marker tells when it has."""
            since = port.sniffer.mark()
            sender.send(frame)
            sender.send(_changed(0, b"\2\2\2\2\2\2")[:12] + b"\x88\xb5 end")

            def arrived() -> list[Frame]:
                found = [f for f in port.sniffer.frames(since) if f.from_host]
                return found if found and found[-1].ethertype == 0x88B5 else []

            wait_until(arrived, "the frame")
            [first, _] = arrived()
            assert first.vlan in (None, 5)
            tag = b"" if first.vlan is None else b"\x81\0\0\5"
            return first.data[:12] + tag + first.data[12:]

        for name, frame in UNTOUCHED.items():
            assert seen(frame) == frame[:256], name
        for name, frame in REDIRECTED.items():
            assert seen(frame) == b"\xff" * 6 + frame[6:256], name


def test_of_an_interface_above(port: Port, make_autoip: MakeDaemon) -> None:
    """def-broadcast: what leaves by the interface, if it comes from a MACVLAN on it as well."""
    try:
        port.host.ip("link add link eth0 name mv0 address 02:00:00:00:00:77 type macvlan")
    except LabError as error:
        pytest.skip(f"needs MACVLAN of the kernel: {error}")
    port.host.ip("link set mv0 up")
    port.host.ip(f"addr add {B}/32 dev mv0")
    bind(port, make_autoip(port, *FAST))
    port.host.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
    [reply] = replies(port, question(port, B))
    assert (reply.sha, reply.broadcast) == ("02:00:00:00:00:77", True)


# What it sets up and takes off


def test_set_up_once_and_taken_off(port: Port, make_by: MakeDaemon, by: str) -> None:
    """if-stop: once, from before the address is there until the end. What was refused is in the status."""
    before = configuration(port.host) + picture(port)
    daemon = make_by(port, *FAST)
    daemon.start()
    port.sniffer.wait_probe(timeout=PATIENCE)
    claimed(port)
    assert where(port) == [by]
    assert hook(port) == ("clsact" if by == "clsact" else "")
    handles = ours(port)
    for _ in range(3):
        since = port.sniffer.mark()
        daemon.request("refresh")
        reclaimed(port, since=since)
        assert (where(port), ours(port)) == ([by], handles)
    assert answers_by_broadcast(port)
    limits = [limit for limit in report(daemon)["limits"] if limit.startswith(BY_FILTER)]
    assert limits == ([f"{BY_FILTER}: {tcx.why(errno.EOPNOTSUPP)}"] if by == "clsact" else [])
    assert daemon.stop() == 0
    assert configuration(port.host) + picture(port) == before
    assert where(port) == []
    assert BY_UNICAST not in daemon.output
    assert daemon.output.count(BY_FILTER) == len(limits)


def test_taken_off_when_no_address_is_wanted(port: Port, make_by: MakeDaemon) -> None:
    """co-lease: when a routable address makes ours superfluous, the interface is as it was."""
    before = picture(port)
    daemon = make_by(port, *FAST, "--policy", "fallback", "--after", "0", "--linger", "0")
    bind(port, daemon)
    for _ in range(2):
        port.host.ip(f"addr add {STATIC}/24 dev eth0")
        wait_until(lambda: picture(port) == before and not where(port), "nothing left")
        assert daemon.addresses() == []
        since = port.sniffer.mark()
        port.host.ip(f"addr del {STATIC}/24 dev eth0")
        assert claimed(port, since=since) == A
        assert answers_by_broadcast(port)
    assert daemon.stop() == 0
    assert picture(port) == before


FOREIGN = (
    "qdisc add dev eth0 clsact",
    "filter add dev eth0 egress pref 50 u32 match u32 0 0 action mirred egress mirror dev eth1",
    "filter add dev eth0 ingress pref 3 protocol ip u32 match ip src 10.0.0.1/32 flowid 1:1",
    "filter add dev eth0 egress protocol ip u32 match ip dst 10.0.0.2/32 flowid 1:2",
)


def test_filters_of_others(port: Port, make_by: MakeDaemon, by: str) -> None:
    """They stay as they are, theirs and the clsact, and they see every frame after us."""
    other = port.switch.attach(port.host, "eth1")
    for words in FOREIGN:
        tc(port, words)
    before = picture(port)
    daemon = make_by(port, *FAST)
    bind(port, daemon)
    assert where(port) == [by]
    since = other.sniffer.mark()
    assert answers_by_broadcast(port)
    mirrored = other.sniffer.wait_for(lambda f: f.op == frames.REPLY, PATIENCE, since=since)
    assert (mirrored.spa, mirrored.broadcast) == (A, True)
    assert daemon.stop() == 0
    assert picture(port) == before


U32, BPF = "u32 match u32 0 0 flowid 1:1", "bpf bytecode 1,6_0_0_0"


@pytest.mark.parametrize(
    ("priority", "protocol", "first"),
    [(39, "all", U32), (39, "arp", BPF), (2, "all", BPF), (2, "arp", U32)],
)
def test_somebody_has_a_low_priority(
    port: Port, make_clsact: MakeDaemon, priority: int, protocol: str, first: str
) -> None:
    """Then ours gets a lower one: theirs may decide that no other filter runs."""
    tc(port, "qdisc add dev eth0 clsact")
    words = f"filter add dev eth0 egress pref {priority} protocol {protocol} {first}"
    port.host.run("tc", *[word.replace("_", " ") for word in words.split()])
    before = picture(port)
    daemon = make_clsact(port, *FAST)
    bind(port, daemon)
    assert len(ours(port)) == 1
    assert answers_by_broadcast(port)
    assert daemon.stop() == 0
    assert picture(port) == before


@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_somebody_uses_our_clsact(port: Port, make_clsact: MakeDaemon, side: str) -> None:
    """It stays, for what somebody else has put there."""
    daemon = make_clsact(port, *FAST)
    bind(port, daemon)
    tc(port, f"filter add dev eth0 {side} protocol ip u32 match u32 0 0 flowid 1:1")
    assert daemon.stop() == 0
    assert hook(port) == "clsact"
    assert ours(port) == []
    assert "match 00000000/00000000 at 0" in tc(port, f"filter show dev eth0 {side}")


def test_somebody_removes_the_clsact(port: Port, make_clsact: MakeDaemon) -> None:
    """The next claim puts it back."""
    daemon = make_clsact(port, *FAST)
    bind(port, daemon)
    tc(port, "qdisc del dev eth0 clsact")
    since = port.sniffer.mark()
    daemon.request("refresh")
    reclaimed(port, since=since)
    assert len(ours(port)) == 1
    tc(port, "qdisc del dev eth0 clsact")
    assert daemon.stop() == 0
    assert hook(port) == ""


@pytest.mark.parametrize("foreign", [False, True], ids=["our clsact", "a foreign clsact"])
def test_after_a_crash(port: Port, make_clsact: MakeDaemon, foreign: bool) -> None:
    """The next instance has the same one filter, and takes off what the first one has made."""
    if foreign:
        tc(port, "qdisc add dev eth0 clsact")
    before = configuration(port.host) + picture(port)
    daemon = make_clsact(port, *FAST)
    for _ in range(2):
        claim(port, daemon)
        assert len(ours(port)) == 1
        assert answers_by_broadcast(port)
        daemon.kill()
        assert len(ours(port)) == 1
    del daemon.command[
        : len(foreign_tcx.WITHOUT)
    ]  # as after the upgrade of the kernel, or of autoip
    if has_tcx(port.host):
        claim(port, daemon)
        wait_until(lambda: where(port) == ["tcx"], "the filter is gone")
        assert hook(port) == ("clsact" if foreign else "")
        assert answers_by_broadcast(port)
        daemon.kill()
        assert where(port) == []
    claim(port, daemon)
    assert daemon.stop() == 0
    assert configuration(port.host) + picture(port) == before


KILLED = """\
import asyncio, os, signal, socket
from ipaddress import IPv4Address
from autoip.kernel import arp_socket, netlink
from autoip.kernel.network import Network

class Fatal(socket.socket):
    def send(self, datagram, *flags):
        sent = super().send(datagram, *flags)
        if int.from_bytes(datagram[4:6], "little") == 36 and datagram[6:8] != b"\\5\\0":  # RTM_NEWQDISC, to create
            os.kill(os.getpid(), signal.SIGKILL)
        return sent

async def main():
    netlink.socket.socket = Fatal
    kernel = Network(program=arp_socket.load_broadcast())
    await kernel.open()
    links, _ = await kernel.snapshot()
    [link] = [link for link in links if link.name == "eth0"]
    await kernel.add_address(link, IPv4Address("169.254.7.7"))

asyncio.run(main())
"""


def test_killed_when_the_clsact_is_made(port: Port) -> None:
    """The next instance knows that it is ours."""
    before = configuration(port.host) + picture(port)
    killed = port.host.popen([*foreign_tcx.WITHOUT, sys.executable, "-c", KILLED])
    assert killed.wait(PATIENCE) == -signal.SIGKILL
    assert hook(port) == "clsact"

    async def release() -> None:
        kernel = Network()
        await kernel.open()
        await kernel.release(port.host.index("eth0"))
        kernel.close()

    port.host.call(asyncio.run, release())
    assert configuration(port.host) + picture(port) == before


@pytest.mark.usefixtures("without_tcx")
def test_somebody_makes_a_clsact_at_the_same_time(
    port: Port, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is not ours, and stays."""
    program = arp_socket.load_broadcast()
    assert isinstance(program, int), program
    stack.callback(os.close, program)
    has_hook = Broadcast._has_hook

    async def slow(broadcast: Broadcast, index: int) -> bool:
        found = await has_hook(broadcast, index)
        assert not found
        tc(port, "qdisc add dev eth0 clsact")
        return found

    monkeypatch.setattr(Broadcast, "_has_hook", slow)
    assert _added(port, program, lambda kernel: None) is None
    assert [int(handle, 16) for handle in ours(port)] == [HANDLE]


def test_stopped_before_it_claims(
    port: Port, make_autoip: MakeDaemon, make_clsact: MakeDaemon
) -> None:
    """Then as well what a crash has left is taken off, also if the address is gone."""
    before = configuration(port.host) + picture(port)
    daemon = make_clsact(port, *FAST)
    claim(port, daemon)
    daemon.kill()
    port.host.ip(f"addr del {A}/16 dev eth0")
    port.host.ip("rule del pref 1690")
    table = 169254000 + port.host.index("eth0")
    port.host.ip(f"route flush table {table}")
    assert len(ours(port)) == 1
    since = port.sniffer.mark()
    slow = make_autoip(port, "--delay", "8000")
    slow.env = daemon.env
    slow.start()
    port.sniffer.wait_probe(timeout=PATIENCE, since=since)
    assert slow.stop() == 0
    assert configuration(port.host) + picture(port) == before


@pytest.mark.parametrize(("processes", "by"), [(1, "clsact"), (2, "tcx")], indirect=["by"])
def test_two_interfaces(port: Port, make_by: MakeDaemon, by: str, processes: int) -> None:
    """if-many: each has its filter; the end of one does not touch the other."""
    other = port.switch.attach(port.host, "eth1")
    daemons = [make_by(port, "--delay", "50")]
    if processes == 2:
        daemons.append(make_by(other, "--delay", "50"))
    else:
        daemons[0].command.append("eth1")
    for daemon in daemons:
        daemon.start()
    first, second = claimed(port), claimed(other)
    assert answers_by_broadcast(port, first)
    assert answers_by_broadcast(other, second)
    if processes == 2:
        daemons[1].kill()
        claim(other, daemons[1])
    stop = [*autoip_command(), "stop", "eth0"]
    told = port.host.popen(stop, env=daemons[0].env)
    assert told.wait(PATIENCE) == 0
    wait_until(lambda: not where(port) and not hook(port), "nothing left")
    assert where(other) == [by]
    assert answers_by_broadcast(other, second)
    if processes == 2:  # it had nothing else to serve
        assert daemons.pop(0).wait() == 0
    assert daemons[0].stop() == 0
    assert (hook(other), where(other)) == ("", [])


@pytest.mark.usefixtures("without_tcx")
def test_many_interfaces(stack: contextlib.ExitStack) -> None:
    """One program for a hundred interfaces; every one has its filter, and none at the end."""
    count = 100
    host = stack.enter_context(Namespace("host"))
    for number in range(count):
        host.ip(f"link add d{number} type veth peer name e{number}")
        host.ip(f"link set d{number} up")
    program = arp_socket.load_broadcast()
    assert isinstance(program, int), program
    stack.callback(os.close, program)
    before = host.run("tc", "qdisc"), host.ip("rule"), host.ip("route show table all")

    async def on_each(step: Callable[[Network, Link, IPv4Address], Awaitable[object]]) -> None:
        kernel = Network(program=program)
        await kernel.open()
        try:
            links = [link for link in (await kernel.snapshot())[0] if link.name.startswith("d")]
            assert len(links) == count
            for number, link in enumerate(links):
                await step(kernel, link, IPv4Address("169.254.1.0") + number)
                assert kernel.by_unicast(link.index) is None
        finally:
            kernel.close()

    async def off(kernel: Network, link: Link, address: IPv4Address) -> None:
        await kernel.remove_address(link.index, address)
        await kernel.release(link.index)

    for _ in range(2):  # the second time as after a crash
        host.call(asyncio.run, on_each(Network.add_address))
        for number in range(count):
            shown = host.run("tc", "filter", "show", "dev", f"d{number}", "egress")
            assert len(re.findall("autoip direct-action", shown)) == 1
        assert host.ip("rule").count("proto 169") == count
        host.run("ip", "addr", "flush", "to", "169.254.0.0/16")
    host.call(asyncio.run, on_each(off))
    after = host.run("tc", "qdisc"), host.ip("rule"), host.ip("route show table all")
    assert after == before


def _added(port: Port, program: int, before: Callable[[Network], object]) -> str | None:
    """Adds the address without a daemon; why ARP is not by broadcast."""

    async def body() -> str | None:
        kernel = Network(program=program)
        await kernel.open()
        try:
            [link] = [link for link in (await kernel.snapshot())[0] if link.name == "eth0"]
            before(kernel)
            await kernel.add_address(link, A)
            return kernel.by_unicast(link.index)
        finally:
            kernel.close()

    return port.host.call(asyncio.run, body())


@pytest.mark.usefixtures("without_tcx")
def test_an_answer_of_the_kernel_is_lost(port: Port, stack: contextlib.ExitStack) -> None:
    """That is no refusal."""
    program = arp_socket.load_broadcast()
    assert isinstance(program, int), program
    stack.callback(os.close, program)

    def lose(kernel: Network) -> None:
        feed(kernel._requests._socket, OSError(errno.ENOBUFS, "overrun"))

    assert _added(port, program, lose) is None
    assert len(ours(port)) == 1
    assert answers_by_broadcast(port)


# By tcx


def test_programs_of_others(
    port: Port, make_autoip: MakeDaemon, stack: contextlib.ExitStack
) -> None:
    """One that was there first, and lets nothing follow, does not hide ours; a qdisc ingress is not in the way."""
    if not has_tcx(port.host):
        pytest.skip(NO_TCX)
    index = port.host.index(port.name)
    link = port.host.call(foreign_tcx.attach, index, verdict=foreign_tcx.PASS)
    stack.callback(os.close, link)
    tc(port, "qdisc add dev eth0 ingress")
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    assert port.host.call(tcx.programs, index, egress=True) == (2, 0)
    assert answers_by_broadcast(port)
    assert report(daemon)["limits"] == []
    later = port.host.call(foreign_tcx.attach, index, before=True)
    stack.callback(os.close, later)
    assert port.host.call(tcx.programs, index, egress=True) == (3, 1)
    assert answers_by_broadcast(port)
    assert daemon.stop() == 0
    assert port.host.call(tcx.programs, index, egress=True) == (2, None)
    assert hook(port) == "ingress"


def test_somebody_detaches_the_program(port: Port, make_autoip: MakeDaemon) -> None:
    """Whoever asks for the status has it put back; the next claim does so, too."""
    if not has_tcx(port.host):
        pytest.skip(NO_TCX)
    index = port.host.index(port.name)
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    foreign_tcx.detach(daemon.pid, index)
    assert where(port) == []
    assert not answers_by_broadcast(port)
    report(daemon)
    wait_until(lambda: where(port) == ["tcx"], "the program again")
    assert answers_by_broadcast(port)
    note = "somebody removed our filter; it was put back"
    wait_until(lambda: note in report(daemon)["notes"], "the note")
    foreign_tcx.detach(daemon.pid, index)
    since = port.sniffer.mark()
    daemon.request("refresh")
    reclaimed(port, since=since)
    assert where(port) == ["tcx"]
    assert daemon.stop() == 0


def test_no_frame_is_lost(port: Port, stack: contextlib.ExitStack) -> None:
    """All that is sent while the program is attached and detached arrives."""
    if not has_tcx(port.host):
        pytest.skip(NO_TCX)
    program = arp_socket.load_broadcast()
    assert isinstance(program, int), program
    stack.callback(os.close, program)
    sender = port.host.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    stack.callback(sender.close)
    sender.bind((port.name, 0))
    frame = _changed(0, b"")
    ended = threading.Event()
    sent = [0]

    def send() -> None:
        while not ended.is_set():
            sent[0] += sender.send(frame) == len(frame)
            time.sleep(0.0002)

    async def body() -> None:
        kernel = Network(program=program)
        await kernel.open()
        try:
            [link] = [link for link in (await kernel.snapshot())[0] if link.name == "eth0"]
            for _ in range(10):
                await kernel.add_address(link, A)
                await kernel.remove_address(link.index, A)
                await kernel.release(link.index)
            assert kernel.limits == []
        finally:
            kernel.close()

    def arrived() -> int:
        return sum(f.tpa == PEER and f.op == frames.REPLY for f in port.sniffer.arp(since))

    since = port.sniffer.mark()
    thread = threading.Thread(target=send)
    thread.start()
    try:
        port.host.call(asyncio.run, body())
    finally:
        ended.set()
        thread.join()
    wait_until(lambda: arrived() == sent[0], "each frame")
    assert sent[0] > 10


# Where it is refused


def test_the_kernel_refuses_the_filter(port: Port, stack: contextlib.ExitStack) -> None:
    """The address comes all the same; the clsact that was made for the filter goes again."""
    before = tc(port, "qdisc")
    program = os.open("/dev/null", os.O_RDONLY)  # is none
    stack.callback(os.close, program)
    why = _added(port, program, lambda kernel: None)
    assert why is not None and "add a filter" in why
    assert port.host.link_local("eth0") == [A]
    assert tc(port, "qdisc") == before


@pytest.fixture
def refused(stack: contextlib.ExitStack, port: Port) -> Daemon:
    """autoip where no program can be loaded, not started."""
    command = [*WITHOUT_BPF, *autoip_command(), "eth0", *FAST]
    return stack.enter_context(Daemon(port.host, "eth0", command))


def test_refused_answers_besides(port: Port, refused: Daemon) -> None:
    """def-broadcast: the kernel's answer, and the same once more for everyone."""
    bind(port, refused)
    for kind, make in QUESTIONS.items():
        pair = replies(port, make(port), 2)
        assert sorted(f.broadcast for f in pair) == [False, True], (kind, pair)
        kernels, helpers = sorted(pair, key=lambda f: f.broadcast)
        assert kernels.data[6:42] == helpers.data[6:42], kind
    assert ours(port) == []


def test_refused_is_told_once(port: Port, refused: Daemon) -> None:
    """One warning for each program, and `status` says so; the address is claimed, defended and taken off as ever."""
    before = configuration(port.host) + picture(port)
    bind(port, refused)
    for _ in range(2):
        since = port.sniffer.mark()
        refused.request("refresh")
        reclaimed(port, since=since)
    limits = report(refused)["limits"]
    for what in (BY_UNICAST, NOT_IN_KERNEL):
        [limit] = [limit for limit in limits if what in limit]
        assert "CAP_BPF" in limit
        assert refused.output.count(what) == 1
    assert len(limits) == 2
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    assert refused.stop() == 0
    assert configuration(port.host) + picture(port) == before


def test_refused_answers_nothing_else(port: Port, refused: Daemon) -> None:
    """No answer for another address, to an echo of our own, to what is no question; none at the end."""
    bind(port, refused)
    since = port.sniffer.mark()
    port.send(question(port, B))
    port.send(question(port, sha=port.mac))
    port.send(frames.arp(frames.REPLY, sha=RIVAL, spa=PEER, tpa=A))
    port.send(question(port, destination="02:00:00:00:dd:dd"))
    port.send(frames.tagged(question(port), 5))
    port.send(question(port, tpa=A, sha="02:00:00:00:00:bb"))
    answer = port.sniffer.wait_for(
        lambda f: f.op == frames.REPLY and f.broadcast, PATIENCE, since=since
    )
    assert answer.tha == "02:00:00:00:00:bb"
    assert refused.stop() == 0
    since = port.sniffer.mark()
    port.send(question(port))
    port.sniffer.assert_silent(0.5, since=since)


def test_refused_and_flooded(port: Port, refused: Daemon) -> None:
    """def-bounded: however many ask, there are a few answers by broadcast; and a conflict is still defended against."""
    bind(port, refused)
    since = port.sniffer.mark()
    first = port.send_stamped(question(port))
    for number in range(2000):
        port.send(question(port, sha=f"02:00:00:01:{number >> 8:02x}:{number & 255:02x}"))
    # Not before, since the kernel drops what finds no room in the socket.
    wait_until(lambda: unread(port.host) == 0, "the questions are read")
    port.send(frames.conflict_request(RIVAL, A))
    defence = port.sniffer.wait_announcement(A, PATIENCE, since=since)
    seconds = (defence.ns - first) / 1e9
    answers = [f for f in port.sniffer.arp(since) if f.op == frames.REPLY and f.broadcast]
    assert 0 < len(answers) <= 16 + seconds / 0.05 + 1


def test_refused_but_a_filter_was_left(
    port: Port, make_clsact: MakeDaemon, refused: Daemon
) -> None:
    """What an instance with more privileges left does as well; at the end it is gone."""
    before = configuration(port.host) + picture(port)
    first = make_clsact(port, *FAST)
    claim(port, first)
    first.kill()
    refused.env = first.env
    bind(port, refused)
    assert answers_by_broadcast(port)
    [limit] = report(refused)["limits"]
    assert NOT_IN_KERNEL in limit
    assert BY_UNICAST not in refused.output
    assert refused.stop() == 0
    assert configuration(port.host) + picture(port) == before


def test_an_ingress_qdisc_is_in_the_way(port: Port, make_clsact: MakeDaemon) -> None:
    """It is at the clsact's place: it stays, with its filters, and we answer besides."""
    tc(port, "qdisc add dev eth0 ingress")
    tc(port, "filter add dev eth0 parent ffff: protocol ip u32 match u32 0 0 flowid 1:1")
    before = configuration(port.host) + picture(port)
    daemon = make_clsact(port, *FAST)
    bind(port, daemon)
    [limit] = [limit for limit in report(daemon)["limits"] if BY_UNICAST in limit]
    assert "ingress" in limit
    assert picture(port) == before[-3:]
    assert sorted(f.broadcast for f in replies(port, question(port), 2)) == [False, True]
    tc(port, "qdisc del dev eth0 ingress")
    since = port.sniffer.mark()
    daemon.request("refresh")
    reclaimed(port, since=since)
    assert BY_UNICAST not in str(report(daemon)["limits"])
    assert answers_by_broadcast(port)
    assert daemon.stop() == 0
    assert hook(port) == ""
