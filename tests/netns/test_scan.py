"""`autoip scan` on real links: the hosts are found, each by what it speaks, and nobody is disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from autoip.kernel.bulk_arp import BulkArp, open_datagrams, open_echo_replies
from lab import LabError, Port, answers_probes, frames
from lab.crowd import answers
from lab.daemon import REPOSITORY
from lab.devices import Camera, NetworkCamera
from lab.peers import PEERS, AvahiDaemon, Peer
from tests.require import requires_program

from .conftest import MakeDaemon, MakeHost, autoip_command
from .helpers import ETHERTYPE_IPV4, NEIGHBOUR, NETNS, PATIENCE, PEER, A, bind, wait_until

pytestmark = NETNS

OURS = "169.254.9.9"
CONFLICT = ("02:00:00:00:00:aa", "02:00:00:00:00:bb")
CAMERA_MAC = "00:11:1c:0a:0b:0c"


def requires(name: str, kind: type[Peer]) -> Any:
    return pytest.param(kind, id=name, marks=requires_program(name, kind.package))


@contextlib.contextmanager
def started(port: Port, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`autoip scan` at a host."""
    child = port.host.popen(
        [*autoip_command(), "scan", port.name, *words],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def scan(port: Port, *words: str, status: int = 0) -> tuple[list[dict[str, Any]], str]:
    """The objects that a scan prints, and what it writes to standard error."""
    with started(port, "--json", *words) as child:
        out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == status, err
    assert b"Traceback" not in err
    return [json.loads(line) for line in out.splitlines()], err.decode()


@pytest.fixture
def addressed(port: Port) -> Port:
    """A host that has an address, at a cable."""
    port.host.ip(f"address add {OURS}/16 dev {port.name}")
    return port


def test_all_of_a_thousand_hosts_are_found_by_real_requests(addressed: Port) -> None:
    port = addressed
    command = [sys.executable, "-m", "lab.crowd", port.far, "1000", "5"]
    crowd = port.switch.namespace.popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert crowd.stdout is not None
    assert crowd.stdout.readline() == b"ready\n"
    since = port.sniffer.mark()
    found, _ = scan(port, "--rate", "30000")
    hosts = {
        (".".join(map(str, address)), mac.hex(":")) for address, mac in answers(1000, 5).items()
    }
    assert {(host["address"], host["mac"]) for host in found} == hosts
    assert all(0 <= host["rtt_ms"] < PATIENCE * 1e3 for host in found if host["via"] == ["arp"])
    # A probe would make a host that is just probing the same address give it up: RFC 3927 section 2.2.1.
    requests = [f for f in port.sniffer.arp(since=since) if f.from_host and f.op == frames.REQUEST]
    assert len(requests) > 1000
    assert {str(frame.spa) for frame in requests if frame.tpa != frame.spa} == {OURS}


def test_a_camera_in_another_subnet_is_found_with_the_command_that_reaches_it(
    make_host: MakeHost,
) -> None:
    port = make_host(plugged=True)
    device = make_host(plugged=True, mac=CAMERA_MAC)
    device.host.ip("address add 192.168.77.5/24 dev eth0")
    texts = ("ACME", "Eye \x1b[31m5", "1", "", "S123", "left")
    where = (CAMERA_MAC, "192.168.77.5", "255.255.255.0")
    with Camera(device.host, "eth0", *where, *texts):
        found, err = scan(port, "--first", "--mac", CAMERA_MAC[:8])
    [host] = found
    assert host["address"] == "192.168.77.5"
    assert host["mac"] == CAMERA_MAC
    assert host["names"] == ["left"]
    assert host["kinds"] == ["GigE Vision", "ACME Eye ?[31m5", "serial S123"]
    assert host["via"] == ["gvcp"]
    assert "claims a link-local one first" in err
    assert "asks as" not in err  # a camera is asked before there is an address
    [note] = host["notes"]
    port.host.ip(note.partition(": ip ")[2])
    port.host.run("ping", "-c", "1", "-W", "5", "192.168.77.5")


def test_a_scan_without_an_address_claims_one_and_gives_it_back(make_host: MakeHost) -> None:
    port = make_host(plugged=True)
    device = make_host(plugged=True)
    device.host.ip("address add 169.254.44.55/16 dev eth0")
    since = port.sniffer.mark()
    with NetworkCamera(device.host, "eth0", "Front%20door"):
        # The sweep does not ask the device, which would learn from that who we are.
        found, err = scan(port, "--delay", "200", "--net", "169.254.45.0/24", "--mac", device.mac)
    assert found[-1]["address"] == "169.254.44.55"
    # The device asked by ARP who we are, and was answered, before it could send this.
    assert found[-1]["names"] == ["Front door"]
    assert found[-1]["kinds"] == ["NetworkVideoTransmitter"]
    assert "wsd" in found[-1]["via"]
    sender = err.rpartition("asks as ")[2].split()[0]
    assert "has no route to link-local hosts: autoip eth0" in err
    sent = [f for f in port.sniffer.arp(since=since) if f.from_host]
    asked = [f for f in sent if f.op == frames.REQUEST and f.tpa != f.spa and not f.is_probe]
    assert {str(f.spa) for f in asked} == {sender}
    assert len([f for f in sent if f.is_probe and str(f.tpa) == sender]) == 3
    assert not port.host.addresses("eth0")
    assert any(f.op == frames.REPLY and str(f.spa) == sender for f in sent)


@pytest.mark.parametrize("kind", [requires(name, kind) for name, kind in PEERS.items()])
def test_the_hosts_of_other_programs_are_found(
    kind: type[Peer], make_host: MakeHost, stack: contextlib.ExitStack
) -> None:
    port = make_host(plugged=True)
    device = make_host(plugged=True)
    port.host.ip(f"address add {OURS}/16 dev eth0")
    peer = stack.enter_context(kind(device))
    peer.start()
    address = peer.wait_address(PATIENCE)
    found, _ = scan(port, "--rate", "max", "--mac", device.mac, "--first")
    assert [(host["address"], host["mac"]) for host in found] == [(str(address), device.mac)]
    assert device.host.link_local("eth0") == [address]


@requires_program(AvahiDaemon.program, AvahiDaemon.package)
def test_avahi_gives_a_host_a_name_and_its_services(make_host: MakeHost) -> None:
    port = make_host(plugged=True)
    device = make_host(plugged=True)
    port.host.ip(f"address add {OURS}/16 dev eth0")
    device.host.ip("address add 169.254.44.55/16 dev eth0")
    with AvahiDaemon(device) as avahi:
        avahi.start()
        avahi.wait_line("Server startup complete", PATIENCE)
        found, _ = scan(port, "--net", "169.254.44.0/24")
    last = found[-1]
    assert (last["address"], last["mac"]) == ("169.254.44.55", device.mac)
    assert {AvahiDaemon.NAME, "Front page"} <= set(last["names"])
    assert "_http._tcp" in last["kinds"]
    assert "mdns" in last["via"]
    wanted = b"\x0255\x0244\x03254\x03169\x07in-addr\x04arpa"
    assert any(wanted in frame.data for frame in port.sniffer.frames() if frame.from_host)


def test_a_host_that_has_only_ipv6_is_shown_with_its_mac(make_host: MakeHost) -> None:
    port, device = make_host(plugged=True), make_host(plugged=True)
    port.host.ip(f"address add {OURS}/16 dev eth0")
    for one, address in ((port, "fe80::1"), (device, "fe80::2")):
        one.host.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0")
        one.host.ip(f"address add {address}/64 dev eth0 nodad")
    found, _ = scan(port, "--net", "169.254.77.0/30", "--mac", device.mac)
    [host] = found
    assert (host["address"], host["mac"], host["via"]) == (None, device.mac, ["ipv6"])
    assert host["kinds"][0] == "ipv6"
    assert host["kinds"][1].startswith("fe80::")


def test_a_running_daemon_is_neither_disturbed_nor_needed(
    port: Port, make_autoip: MakeDaemon
) -> None:
    daemon = make_autoip(port, "--ip", str(A), "--delay", "100")
    bind(port, daemon)
    port.neighbour(answers_probes())
    seen = len(daemon.lines)
    since = port.sniffer.mark()
    _, err = scan(port, "--net", "169.254.20.0/24", status=1)
    assert f"asks as {A}" in err
    assert not [f for f in port.sniffer.arp(since=since) if f.is_announcement]
    assert daemon.addresses() == [A]
    assert daemon.lines[seen:] == []


def test_two_hosts_of_one_address_and_one_of_all_are_named(addressed: Port) -> None:
    def proxy(host: Any, frame: Any) -> list[bytes]:
        return [frames.answer(host.mac, frame)] if not frame.is_probe else []

    addressed.neighbour(proxy)
    for mac in CONFLICT:
        addressed.neighbour(
            lambda host, f: [frames.answer(host.mac, f)] if f.tpa == PEER else [], mac=mac
        )
    with started(addressed, "--net", "169.254.77.0/24") as child:
        out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, err
    *_, conflict, everything = out.decode().splitlines()
    assert f"eth0: {PEER} is in use by " in conflict
    assert all(mac in conflict for mac in CONFLICT)
    assert f"{NEIGHBOUR} answers for 254 addresses: proxy ARP" in everything


def test_who_listens_sends_nothing_and_sees_who_is_switched_on(port: Port) -> None:
    since = port.sniffer.mark()
    with started(port, "--listen", "--json", "--count", "3") as child:
        assert child.stdout is not None

        def switch_on() -> bool:
            port.send(frames.probe("02:00:00:00:00:11", PEER))
            port.send(frames.announcement("02:00:00:00:00:12", PEER))
            port.send(_discover("02:00:00:00:00:13"))
            time.sleep(0.05)
            return child.poll() is not None

        wait_until(switch_on, "all three were shown")
        found = [json.loads(line) for line in child.stdout.read().splitlines()]
    assert child.returncode == 0
    assert {(host["mac"][-2:], host["address"], *host["via"]) for host in found} == {
        ("11", None, "arp probe"),
        ("12", str(PEER), "arp announcement"),
        ("13", None, "dhcp"),
    }
    assert {"box", f"probes for {PEER}"} <= {
        word for host in found for word in host["names"] + host["kinds"]
    }
    with pytest.raises(LabError):
        port.sniffer.wait_for(lambda f: f.from_host, 0.2, since=since)


def _discover(mac: str) -> bytes:
    """DHCPDISCOVER of a host that is called box."""
    raw = frames.mac_bytes(mac)
    dhcp = struct.pack("!BBBB24x6s202x4s", 1, 1, 6, 0, raw, b"\x63\x82\x53\x63")
    dhcp += b"\x35\x01\x01\x0c\x03box\xff"
    udp = struct.pack("!HHHH", 68, 67, 8 + len(dhcp), 0) + dhcp
    ip = struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, 0, 0xFFFFFFFF)
    return b"\xff" * 6 + raw + b"\x08\x00" + ip + udp


def test_without_the_capability_a_scan_is_refused_and_without_hosts_it_fails(
    addressed: Port,
) -> None:
    command = ["setpriv", "--bounding-set", "-net_raw", "--", *autoip_command(), "scan", "eth0"]
    child = addressed.host.popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)
    _, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, err.count(b"\n")) == (4, 1)
    assert b"CAP_NET_RAW missing" in err
    # Without a name it looks on all interfaces that are like Ethernet and have a carrier: not on lo.
    addressed.host.ip("address add 192.168.5.1/24 dev eth0")
    command = [*autoip_command(), "scan", "--net", "192.168.5.0/30", "--timeout", "1"]
    child = addressed.host.popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out) == (1, b"")
    assert err == b"eth0: asks as 192.168.5.1\n"


def test_a_request_without_a_sender_is_never_sent(port: Port) -> None:
    sock = port.host.call(BulkArp, port.host.index("eth0"), frames.mac_bytes(port.mac))
    with contextlib.closing(sock):
        for sender in (0, 1 << 32):
            with pytest.raises(ValueError, match="sender"):
                sock.send(sender, array("I", [int(PEER)]))
        with pytest.raises(TypeError, match="type I"):
            sock.send(int(A), array("H", [1]))
        assert sock.send(int(A), array("I", [int(PEER)])) == 1
    port.sniffer.wait_for(lambda f: f.tpa == PEER, PATIENCE)


def test_an_interface_that_goes_down_ends_its_scan_and_who_has_read_enough_another(
    addressed: Port,
) -> None:
    def await_shown(child: subprocess.Popen[bytes]) -> None:
        def shown() -> bool:
            addressed.send(frames.announcement(NEIGHBOUR, PEER))
            assert child.stdout is not None
            return str(PEER).encode() in child.stdout.readline()

        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        wait_until(shown, "a host was shown")

    with started(addressed, "--listen") as child:
        await_shown(child)
        addressed.down()
        _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 6
    assert err.splitlines()[-1] == b"autoip: scan: Network is down"
    addressed.up()
    addressed.host.ip(f"address replace {OURS}/16 dev eth0")
    with started(addressed, "--listen") as child:
        await_shown(child)
        assert child.stdout is not None
        child.stdout.close()

        def another() -> bool:
            addressed.send(frames.announcement("02:00:00:00:00:cc", A))
            return child.poll() is not None

        wait_until(another, "it has ended")
    assert child.returncode == 0


ETHERTYPE_IPV6 = 0x86DD


def packet(ethertype: int, header: bytes, payload: bytes, mac: str = CAMERA_MAC) -> bytes:
    start = frames.mac_bytes(frames.BROADCAST) + frames.mac_bytes(mac)
    return start + struct.pack("!H", ethertype) + header + payload


def over_ipv4(port: int, *, protocol: int = 17, options: int = 0, piece: int = 0) -> bytes:
    """A datagram to a port; `options`: words of 4 bytes, each as the wanted port, `piece`: flags and offset."""
    words = struct.pack("!BBHHHBBH", 0x45 + options, 0, 28 + 4 * options, 0, piece, 1, protocol, 0)
    header = (
        words + bytes([169, 254, 7, 7, 224, 0, 0, 251]) + struct.pack("!HH", 5353, 5353) * options
    )
    return packet(ETHERTYPE_IPV4, header, struct.pack("!HHHH", 5353, port, 8, 0))


def over_ipv6(kind: int, *, following: int = 58) -> bytes:
    header = struct.pack("!IHBB", 6 << 28, 8, following, 255) + bytes(32)
    return packet(ETHERTYPE_IPV6, header, struct.pack("!BBHI", kind, 0, 0, 0))


MORE_FOLLOWS = 0x2000
DATAGRAMS = (
    [
        over_ipv4(5353),
        over_ipv4(1900),
        over_ipv4(1900, options=3),
        over_ipv4(1900, piece=MORE_FOLLOWS),
    ],
    [
        *(over_ipv4(53), over_ipv4(5353, protocol=6), over_ipv4(5353, piece=1)),
        *(over_ipv4(53, options=2), over_ipv4(53, options=10), over_ipv6(129)),
    ],
)
ECHO_REPLIES = ([over_ipv6(129)], [over_ipv6(128), over_ipv6(129, following=17), over_ipv4(5353)])


@pytest.mark.parametrize(
    ("opened", "passing", "dropped"),
    [
        pytest.param(lambda index: open_datagrams(index, [1900, 5353]), *DATAGRAMS, id="datagrams"),
        pytest.param(open_echo_replies, *ECHO_REPLIES, id="echo replies"),
    ],
)
def test_the_filter_of_answers(
    port: Port, opened: Callable[[int], socket.socket], passing: list[bytes], dropped: list[bytes]
) -> None:
    """What others send, of the right kind; what this host sends is not an answer."""
    with (
        port.host.call(opened, port.host.index(port.name)) as sock,
        port.host.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as own,
    ):
        sock.settimeout(PATIENCE)
        own.bind((port.name, 0))
        for frame in passing:
            own.send(frame)
        for frame in [*dropped, *passing]:
            port.send(frame)
        assert [sock.recv(2048) for _ in passing] == passing
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(2048)


def test_the_filter_of_arp(port: Port) -> None:
    """What others send; not our own requests, whatever else of this host sends them."""
    index, mac = port.host.index(port.name), frames.mac_bytes(port.mac)
    with contextlib.closing(port.host.call(BulkArp, index, mac)) as bulk:
        address = int.from_bytes(b"\xa9\xfe\x09\x09", "big")
        assert bulk.send(address, array("I", [address + 1])) == 1
        port.send(over_ipv4(5353))
        port.send(frames.announcement(CAMERA_MAC, A))
        heard: list[tuple[int, int, int, int, bytes, bytes]] = []

        def arrived() -> bool:
            heard.extend(bulk.receive())
            return heard != []

        wait_until(arrived, "the announcement")
        assert [(spa, sha) for _, spa, _, _, sha, _ in heard] == [
            (int(A), frames.mac_bytes(CAMERA_MAC))
        ]
