"""The parts of a scan without input or output: order, pace, frames, answers, hosts. And what a user can get wrong."""

from __future__ import annotations

import io
import itertools
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from autoip.commands.main import main
from autoip.commands.scan import likely, report, segment, udp, vendor
from autoip.commands.scan.hosts import HOSTS_MAX, MANY, Host, Hosts, clean, mask_fault, reach
from autoip.commands.scan.questions import dhcp, dns, gvcp, icmpv6, llmnr, mdns, ssdp, vxi11, wsd
from autoip.commands.scan.sweep import BATCH, PASS_TIME, PASSES, RATE_MIN, Sweep
from autoip.core.candidates import Candidates, Pool
from autoip.daemon.address_store import AddressStore
from autoip.kernel import interface_facts

FIRST = 0xA9FE0001
MAC = b"\x00\x11\x1c\x0a\x0b\x0c"
CAMERA = 0xC0A84D05
FAST = 1e7
"""Requests a second: `--rate max`."""
MASK24 = 0xFFFFFF00


def sweep(count: int = 1000, rate: float = 1000.0, **others: Any) -> Sweep:
    settings: dict[str, Any] = {"likely": (), "skip": (), "seed": 7, **others}
    return Sweep(FIRST, count, settings["likely"], settings["skip"], rate, settings["seed"])


def asked(one: Sweep, until: float = 1000.0, step: float = 0.01) -> Iterator[tuple[float, int]]:
    """When and for what a sweep asks, on a clock that is looked at every `step` seconds."""
    for tick in range(int(until / step)):
        due = list(one.due(tick * step))
        one.sent(len(due), tick * step)
        yield from ((tick * step, address) for address in due)
        if one.over:
            return


# --- the sweep -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 254, 1000, 1024])
def test_every_silent_address_is_asked_for_twice_and_no_other(count: int) -> None:
    found = [address for _, address in asked(sweep(count))]
    assert sorted(found) == sorted([*range(FIRST, FIRST + count)] * PASSES)


def test_likely_addresses_come_first_and_the_others_in_no_order() -> None:
    likely = (FIRST + 500, FIRST + 3)
    found = [address for _, address in asked(sweep(likely=(*likely, 0x0A000001)))]
    assert found[:2] == list(likely)
    others = found[2:1000]
    assert sum(after == before + 1 for before, after in itertools.pairwise(others)) < 50
    assert sorted(found) == sorted([*range(FIRST, FIRST + 1000)] * PASSES)
    assert others != [address for _, address in asked(sweep(likely=likely, seed=8))][2:1000]


def test_what_becomes_likely_on_the_way_is_next_and_no_request_is_added() -> None:
    one = sweep(1000, 1000.0)
    order = [address for _, address in asked(sweep(1000, 1000.0))][:1000]
    found = []
    for _, address in asked(one):
        found.append(address)
        if len(found) in (100, 1500):
            # Asked for already, just now, far ahead, twice, and of another network.
            for preferred in (order[3], address, order[900], order[901], order[901], 0x0A000001):
                one.prefer(preferred)
    place = found.index(order[900])
    assert place - 100 <= 10
    assert found[place + 1] == order[901]
    assert found[1000:1002] == [order[900], order[901]]
    assert sorted(found) == sorted([*range(FIRST, FIRST + 1000)] * PASSES)


def test_what_is_offered_now_cannot_become_likely() -> None:
    one = sweep(100, 1000.0)
    one.prefer(one.due(0.0)[0])
    assert sorted(address for _, address in asked(one)) == sorted(
        [*range(FIRST, FIRST + 100)] * PASSES
    )


@pytest.mark.parametrize(
    ("mac", "lxi"),
    [
        # The examples of the manual of VTI's LXI instruments.
        ("000d3f010001", 0xA9FE0101),
        ("000d3f01a328", 0xA9FEA328),
        ("000d3f01fffe", 0xA9FEFEFE),
    ],
)
def test_the_first_candidates_of_a_host_follow_from_its_mac(mac: str, lxi: int) -> None:
    raw = bytes.fromhex(mac)
    own = Candidates(Random(int.from_bytes(raw, "big")), lambda _: False, (), Pool()).take()
    assert list(likely.derived(raw)) == [int(own), lxi]


def test_remembered_addresses_are_read_where_they_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(likely, "AVAHI_STATE", str(tmp_path))
    assert list(likely.remembered(MAC)) == []
    (tmp_path / MAC.hex(":")).write_text("169.254.0.2\n")
    assert list(likely.remembered(MAC)) == [FIRST + 1]
    AddressStore(tmp_path).save(MAC, IPv4Address(FIRST + 0x700), "eth0")
    assert list(likely.remembered(MAC)) == [FIRST + 0x700, FIRST + 1]
    saved = tmp_path / f"{MAC.hex()}.json"
    for content in ("{", "x" * 70_000 + "169.254.7.7", '"10.0.0.1"', "169.254.999.1", "\0\xff"):
        saved.write_text(content)
        assert list(likely.remembered(MAC)) == [FIRST + 1]
    saved.unlink()
    os.mkfifo(saved)
    assert list(likely.remembered(MAC)) == [FIRST + 1]


def test_fixed_addresses_are_link_local_and_each_is_there_once() -> None:
    assert len(set(likely.FIXED)) == len(likely.FIXED)
    assert {address >> 16 for address in likely.FIXED} == {0xA9FE}


def test_our_own_addresses_are_not_asked_for() -> None:
    assert FIRST + 5 not in [address for _, address in asked(sweep(skip={FIRST + 5}))]


def test_a_host_that_has_answered_is_not_asked_for_in_the_second_pass() -> None:
    one = sweep(100, 10_000.0)
    found = []
    # Whether the first one that answers goes on with that is looked at again and again.
    assert one.heard(FIRST + 50, 0.0) is None
    for at, address in asked(one):
        found.append(address)
        if address == FIRST + 9:
            assert one.heard(address, at + 0.25) == pytest.approx(0.25)
    assert [found.count(FIRST + 8), found.count(FIRST + 9)] == [2, 1]


def test_the_pace_is_the_rate() -> None:
    times = [at for at, _ in asked(sweep(1000, 500.0))]
    assert len([at for at in times if at < 1.0]) in range(490, 511)
    assert times[-1] == pytest.approx(4.0, abs=0.1)


def test_what_was_missed_while_the_process_slept_is_not_sent_at_once() -> None:
    one = sweep(10_000, 1000.0)
    one.sent(len(one.due(0.0)), 0.0)
    assert len(one.due(5.0)) <= 50


def test_the_second_pass_is_not_at_once_on_a_small_network() -> None:
    times = [at for at, _ in asked(sweep(10, FAST))]
    assert times[9] < 0.05
    assert times[10] >= PASS_TIME


def test_at_the_greatest_rate_a_batch_is_due_at_any_time() -> None:
    one = sweep(10_000, FAST)
    one.sent(len(one.due(0.0)), 0.0)
    for now in (1.0, 1.001, 1.002):
        due = one.due(now)
        assert len(due) == BATCH
        one.sent(len(due), now)
        assert one.next_time(now) == now


def test_what_the_kernel_did_not_take_is_offered_again() -> None:
    one = sweep(rate=FAST)
    one.sent(len(one.due(0.0)), 0.0)
    due = list(one.due(1.0))
    one.sent(100, 1.0)
    assert list(one.due(1.0))[: BATCH - 100] == due[100:]


@pytest.mark.parametrize("rate", [5000.0, FAST])
def test_the_pace_is_halved_when_the_kernel_has_no_room_but_has_a_floor(rate: float) -> None:
    one = sweep(60_000, rate)
    one.sent(len(one.due(0.0)), 0.0)
    before = min(one.rate, 1e9)
    one.refused(1.0)
    assert one.rate <= before / 2
    assert len(one.due(1.0)) == 0  # a pause
    for again in range(60):
        one.refused(2.0 + again)
    assert one.rate == RATE_MIN


def test_the_pace_is_halved_when_a_known_host_stops_answering() -> None:
    one = sweep(60_000, 2000.0)
    silent = sweep(60_000, 2000.0)
    for both in (one, silent):
        both.heard(FIRST + 1, 0.0)
    for tick in range(400):
        for each in (one, silent):
            due = list(each.due(tick * 0.01))
            each.sent(len(due), 0.0)
            if each is one and FIRST + 1 in due:
                each.heard(FIRST + 1, 0.0)
    assert one.rate == 2000.0
    assert silent.rate <= 1000.0


# --- frames ----------------------------------------------------------------------------------------


def test_a_datagram_becomes_a_frame_and_again_a_datagram() -> None:
    sent = udp.Datagram(MAC, FIRST, mdns.GROUP, 40000, 5353, b"payload")
    frame = udp.emit(sent, 255)
    assert frame[:6] == bytes.fromhex("01005e0000fb")
    assert sum(struct.unpack("!10H", frame[14:34])) % 0xFFFF == 0  # RFC 1071
    assert udp.parse(frame) == sent
    assert udp.parse(frame + bytes(20)) == sent  # the padding of a short frame
    assert udp.emit(sent._replace(destination=0xFFFFFFFF), 1)[:6] == b"\xff" * 6


@pytest.mark.parametrize(
    ("at", "byte"), [(12, 0x86), (14, 0x65), (14, 0x41), (20, 0x1F), (21, 1), (23, 6)]
)
def test_a_frame_that_is_not_a_datagram_is_nothing(at: int, byte: int) -> None:
    frame = bytearray(udp.emit(udp.Datagram(MAC, FIRST, CAMERA, 1, 2, b"x"), 1))
    frame[at] = byte
    assert udp.parse(bytes(frame)) is None
    assert udp.parse(bytes(frame[:41])) is None


# --- answers ---------------------------------------------------------------------------------------


def camera_ack(address: int = CAMERA, mask: int = MASK24) -> bytes:
    """DISCOVERY_ACK, field by field as the bootstrap registers have them."""
    device = struct.pack("!HHI2x6sII12xI12xI12xI", 1, 2, 0, MAC, 7, 5, address, mask, 0)
    for text, size in (
        ("ACME", 32),
        ("Eye 5", 32),
        ("1", 32),
        ("", 48),
        ("S123", 16),
        ("left", 16),
    ):
        device += text.encode().ljust(size, b"\0")
    assert len(device) == 248
    return struct.pack("!HHHH", 0, 3, len(device), 1) + device


def test_a_camera_says_what_it_is_and_where() -> None:
    found = gvcp.answer(camera_ack())
    assert found is not None
    assert found == (("left",), ("GigE Vision", "ACME Eye 5", "serial S123"), CAMERA, MAC, MASK24)
    assert gvcp.question() == bytes.fromhex("4211000200000001")
    assert gvcp.answer(camera_ack()[:-1]) is None
    assert gvcp.answer(b"\x80" + camera_ack()[1:]) is None


def record(owner: bytes, kind: int, data: bytes) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, 120, len(data)) + data


def response(*records: bytes, flags: int = 0x8400) -> bytes:
    return struct.pack("!HHHHHH", 0, flags, 0, len(records), 0, 0) + b"".join(records)


HTTP = b"\x05_http\x04_tcp\x05local\0"


def test_multicast_dns_names_hosts_and_services() -> None:
    message = response(
        record(HTTP, dns.PTR, b"\x03web\xc0\x0c"),
        record(b"\x03web\xc0\x0c", dns.SRV, struct.pack("!HHH", 0, 0, 80) + b"\x03box\x05local\0"),
        record(b"\x03box\x05local\0", dns.A, b"\xa9\xfe\x07\x07"),
        record(
            b"\x09_services\x07_dns-sd\x04_udp\x05local\0", dns.PTR, b"\x04_ssh\x04_tcp\x05local\0"
        ),
    )
    found = mdns.answer(message)
    assert found is not None
    assert found[:2] == (("box", "web"), ("_http._tcp", "_ssh._tcp"))
    assert (
        mdns.answer(response(record(HTTP, dns.PTR, b"\x03web\xc0\x0c"), flags=0)) is None
    )  # a question


def test_the_name_of_an_address_is_asked_for_and_read() -> None:
    message = mdns.reverse([0xA9FE0709])
    owner = b"\x019\x017\x03254\x03169\x07in-addr\x04arpa\0"
    assert message == struct.pack("!HHHHHH", 0, 0, 1, 0, 0, 0) + owner + b"\0\x0c\x80\x01"
    found = mdns.answer(response(record(owner, dns.PTR, b"\x03box\x05local\0")))
    assert found is not None
    assert found.names == ("box",)


@pytest.mark.parametrize(
    "name",
    [b"\xc0\x0c", b"\xc0\xff", b"\x03abc\xc0\x0c", b"\x40" + b"a" * 64 + b"\0", b"\x3f" + b"a" * 9],
    ids=["to itself", "forward", "loop", "label of 64", "cut"],
)
def test_a_name_that_loops_or_is_too_long_ends_the_reading(name: bytes) -> None:
    assert dns.records(response(record(name, dns.PTR, name))) == []


@pytest.mark.parametrize(("links", "names"), [(3, 1), (4, 0), (200, 0)])
def test_pointers_are_not_followed_beyond_the_length_of_a_name(links: int, names: int) -> None:
    first = 12 + 11  # behind the header, and what is before the data of the first record
    chain = b"\x3f" + b"a" * 63 + b"\0"
    at = first
    for _ in range(links - 1):
        chain += b"\x3f" + b"b" * 63 + struct.pack("!H", 0xC000 | at)
        at = first + len(chain) - 66
    text = record(b"\0", 16, chain)
    last = record(struct.pack("!H", 0xC000 | at), dns.PTR, b"\x01x\0")
    assert len(dns.records(response(text, last))) == names


def test_a_camera_of_onvif_is_read_without_an_xml_parser() -> None:
    text = (
        "<e:Envelope><d:ProbeMatches><d:Types>dn:NetworkVideoTransmitter tds:Device</d:Types><d:Scopes>"
        "onvif://www.onvif.org/name/Front%20door onvif://www.onvif.org/hardware/X1</d:Scopes></d:ProbeMatches>"
    )
    found = wsd.answer(text.encode())
    assert found is not None
    assert found[:2] == (("Front door",), ("NetworkVideoTransmitter", "Device", "X1"))
    assert wsd.answer(wsd.question()) is None
    assert wsd.question() != wsd.question()  # each has a number of its own


def test_upnp_names_device_and_software() -> None:
    lines = (
        "HTTP/1.1 200 OK",
        "Server: Linux UPnP/1.0",
        "ST: urn:schemas-upnp-org:device:Basic:1",
        "",
        "",
    )
    found = ssdp.answer("\r\n".join(lines).encode())
    assert found is not None
    assert found.kinds == ("Basic", "Linux UPnP/1.0")
    assert ssdp.answer(ssdp.question()) is None


def test_an_instrument_has_a_port_for_vxi_11() -> None:
    reply = (0x6175746F, 1, 0, 0, 0, 0)
    found = vxi11.answer(struct.pack("!7I", *reply, 1024))
    assert found is not None
    assert found.kinds == ("VXI-11",)
    found = vxi11.answer(struct.pack("!7I", *reply, 0))
    assert found is not None
    assert found.kinds == ()
    assert vxi11.answer(struct.pack("!7I", 1, *reply[1:], 1024)) is None


NODE = bytes.fromhex("fe8000000000000002111cfffe0a0b0c")
ECHO_REPLY = bytes.fromhex(
    # What a host of Linux answered to a question that went to ff02::1, recorded on a veth pair.
    "020000000001 00111c0a0b0c 86dd 600a9a8d 0008 3a 40"
    "fe8000000000000002111cfffe0a0b0c fe80000000000000000000fffe000001 8100 5a91 0001 0001"
)
LLMNR_RESPONSE = (
    # RFC 4795 section 2.1.1: a response repeats the question.
    bytes.fromhex("0000 8000 0001 0001 0000 0000")
    + b"\x019\x017\x03254\x03169\x07in-addr\x04arpa\0\0\x0c\0\x01"
    + b"\xc0\x0c\0\x0c\0\x01\0\0\0\x1e\0\x05\x03box\0"
)


def test_a_host_without_multicast_dns_has_a_name_by_llmnr() -> None:
    found = llmnr.answer(LLMNR_RESPONSE)
    assert found == (("box",), (), None, None, None)
    # The bit of multicast DNS for a unicast answer is not one of LLMNR's.
    assert llmnr.reverse(0xA9FE0709) == bytes.fromhex("0000 0000 0001") + bytes(6) + (
        b"\x019\x017\x03254\x03169\x07in-addr\x04arpa\0\0\x0c\0\x01"
    )
    assert llmnr.answer(llmnr.reverse(0xA9FE0709)) is None
    assert llmnr.answer(LLMNR_RESPONSE.replace(b"arpa", b"arpb")) is None


def test_an_echo_of_ipv6_has_a_mac() -> None:
    assert icmpv6.answer(ECHO_REPLY) == (MAC, NODE)
    assert icmpv6.answer(ECHO_REPLY + b"more") == (MAC, NODE)
    assert icmpv6.answer(ECHO_REPLY[:-1]) is None
    for at in (12, 14, 20, 54):  # type of the frame, version, next header, type of ICMPv6
        frame = bytearray(ECHO_REPLY)
        frame[at] ^= 0x20
        assert icmpv6.answer(bytes(frame)) is None
    assert icmpv6.question() == bytes.fromhex("8000 0000 0001 0001")


def test_a_client_that_asks_for_a_lease_is_known_by_its_mac() -> None:
    discover = struct.pack("!BBBB8xI12x6s202x4s", 1, 1, 6, 0, 0, MAC, b"\x63\x82\x53\x63")
    found = dhcp.answer(discover + b"\0\x35\x01\x01\x0c\x03box\xff")
    assert found == (("box",), ("asks for a lease",), None, MAC, None)
    offer = b"\x02" + discover[1:]
    found = dhcp.answer(offer + b"\x35\x01\x02\xff")
    assert found is not None
    assert found.kinds == ("DHCP server",)
    assert dhcp.answer(discover[:-1] + b"\0") is None


@pytest.mark.parametrize(
    "module", [gvcp, mdns, llmnr, wsd, ssdp, vxi11, dhcp, icmpv6], ids=lambda one: one.__name__
)
def test_no_bytes_raise(module: ModuleType) -> None:
    rng = random.Random(1)
    good = [
        camera_ack(),
        response(record(HTTP, dns.PTR, b"\x03web\xc0\x0c")),
        b"NOTIFY \r\nNT:urn",
        b"Hello<Types",
        ECHO_REPLY,
        LLMNR_RESPONSE,
    ]
    good.append(
        struct.pack("!BBBB8xI12x6s202x4s", 1, 1, 6, 0, 0, MAC, b"\x63\x82\x53\x63")
        + b"\x35\x01\x01"
    )
    for _ in range(3000):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        module.answer(bytes(data[: rng.randrange(len(data) + 1)]))
        module.answer(rng.randbytes(rng.randrange(64)))
    module.answer(b"\xc0" * 65535)
    module.answer(b"Hello" + b"<Types" * 10000)


# --- hosts -----------------------------------------------------------------------------------------


def test_a_strangers_text_cannot_command_a_terminal() -> None:
    assert clean("a\x1b[2Jb\r\n\u202ec\x9b") == "a?[2Jb???c?"
    assert len(clean("x" * 65535)) == 64
    host = Host("eth0", FIRST, MAC, 1.0)
    host.learn("mdns", ["evil\x1b]0;x\a"] * 3, [f"kind {number}" for number in range(1000)])
    assert report.line(host).isprintable()
    assert len(host.names) + len(host.kinds) <= 16


def test_forged_hosts_cost_bounded_memory() -> None:
    hosts = Hosts()
    for number in range(100_000):
        hosts.seen("eth0", FIRST + number, struct.pack("!HI", 2, number), 1.0)
    assert len(hosts) == HOSTS_MAX
    assert hosts.left_out == 100_000 - HOSTS_MAX
    assert len(list(hosts.findings())) == 1
    everything = Hosts(everything=True)
    for number in range(100_000):
        everything.seen("eth0", FIRST + number, MAC, 1.0)
    assert len(everything) == HOSTS_MAX


def test_one_mac_that_answers_everything_is_one_line() -> None:
    hosts = Hosts()
    shown = [hosts.seen("eth0", FIRST + number, MAC, 1.0) for number in range(1000)]
    assert len([one for one in shown if one is not None]) == MANY
    (line,) = hosts.findings()
    assert "answers for 1000 addresses: proxy ARP" in line


def test_one_address_of_two_hosts_is_a_conflict() -> None:
    hosts = Hosts()
    first, again = (hosts.seen("eth0", FIRST, MAC, 1.0) for _ in range(2))
    other = hosts.seen("eth0", FIRST, b"\2" + MAC[1:], 1.0)
    hosts.seen("eth1", FIRST, b"\4" + MAC[1:], 1.0)
    assert first is not None and again is not None and other is not None
    assert (first[1], again[1], other[1]) == (True, False, True)
    assert hosts.rivals(other[0]) == [first[0]]
    (line,) = hosts.findings()
    assert line == "eth0: 169.254.0.1 is in use by 2 hosts: 00:11:1c:0a:0b:0c and 02:11:1c:0a:0b:0c"


@pytest.mark.parametrize(
    ("address", "mask", "how"),
    [
        (0xC0A84D05, MASK24, "ip address add 192.168.77.6/24 dev eth0"),
        (0xC0A84DFE, None, "ip address add 192.168.77.253/24 dev eth0"),
        (0x0A000001, 0xFF000000, "ip address add 10.0.0.2/8 dev eth0"),
        (0xA9FE0101, None, None),
        (0xC0A80505, None, None),
        (0x0A000001, 0x12345678, "ip address add 10.0.0.2/24 dev eth0"),
    ],
)
def test_the_command_that_reaches_a_host(address: int, mask: int | None, how: str | None) -> None:
    found = reach("eth0", address, mask, [(0xC0A80501, MASK24)])
    assert found == (how and f"in another subnet: {how}")


@pytest.mark.parametrize(
    ("address", "mask", "fault"),
    [
        (0xA9FE0707, 0xFFFF0000, None),
        (0xA9FE0707, MASK24, "wrong mask: 255.255.255.0, in this network 255.255.0.0"),
        (0xC0A80505, MASK24, None),
        (0xC0A80505, 0xFFFF0000, "wrong mask: 255.255.0.0, in this network 255.255.255.0"),
        (0xC0A80505, 0xFFFFFFFF, "wrong mask: 255.255.255.255, in this network 255.255.255.0"),
        (0x0A000001, 0xFF000000, None),
        (0x0A000001, 0xFF00FF00, "wrong mask: 255.0.255.0 is not one"),
        (0x0A000001, 0x000000FF, "wrong mask: 0.0.0.255 is not one"),
        (0xC0A80505, 0, None),
    ],
)
def test_a_wrong_mask(address: int, mask: int, fault: str | None) -> None:
    assert mask_fault(address, mask, [(0xC0A80501, MASK24)]) == fault


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        ("eth0\t0000FEA9\t00000000\t0001\t0\t0\t2002\t0000FFFF\t0\t0\t0", True),
        ("eth1\t0000FEA9\t00000000\t0001\t0\t0\t2002\t0000FFFF\t0\t0\t0", False),
        ("eth0\t0000FEA9\t00000000\t0001\t0\t0\t2002\t00FFFFFF\t0\t0\t0", False),
        ("eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0", False),
        ("eth0\t0000FEA9", False),
        ("", False),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="/proc/net/route has the host's byte order")
def test_a_route_to_link_local_hosts(
    row: str, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = f"Iface\tDestination\n{row}\n"
    monkeypatch.setattr(interface_facts, "open", lambda *_, **__: io.StringIO(table), raising=False)
    assert interface_facts.reaches_link_local("eth0") is reached


def test_vendors_come_from_the_systems_list(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hwdb, oui = tmp_path / "hwdb", tmp_path / "oui.txt"
    hwdb.write_text(
        "# list\n\nOUI:00111C*\n ID_OUI_FROM_DATABASE=Pleora Technologies\n\n"
        "OUI:0050C2*\n ID_OUI_FROM_DATABASE=IEEE Registration Authority\n\n"
        "OUI:0050C2001*\n ID_OUI_FROM_DATABASE=JMBS Developpements\n"
    )
    oui.write_text("00-11-1C   (hex)\t\tPleora\n00111C     (base 16)\t\tPleora\n\t\t\t\tQuebec\n")
    of_hwdb, *_, of_ieee = vendor._LISTS.values()
    monkeypatch.setattr(vendor, "_LISTS", {str(tmp_path / "none"): b"", str(hwdb): of_hwdb})
    vendor._listed.cache_clear()
    assert vendor.vendor(MAC) == "Pleora Technologies"
    assert vendor.vendor(bytes.fromhex("0050c2001234")) == "JMBS Developpements"
    assert vendor.vendor(bytes.fromhex("0050c2fff234")) == "IEEE Registration Authority"
    assert vendor.vendor(bytes.fromhex("001122334455")) is None
    assert vendor.vendor(b"\2" + MAC[1:]) == "locally administered"
    monkeypatch.setattr(vendor, "_LISTS", {str(oui): of_ieee})
    vendor._listed.cache_clear()
    assert vendor.vendor(MAC) == "Pleora"
    monkeypatch.undo()
    vendor._listed.cache_clear()


# --- an interface ----------------------------------------------------------------------------------


OURS = FIRST + 0x908
OWN_MAC = b"\2\0\0\0\0\1"
REPLY = 2
NO_ROUTE = "eth0: has no route to link-local hosts: autoip eth0"


class Echoes:
    """A socket for the echoes of IPv6."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes]] = []
        self.frames: list[bytes] = []

    def recv(self, _: int) -> bytes:
        if not self.frames:
            raise BlockingIOError
        return self.frames.pop(0)

    def close(self) -> None:
        pass


class Cable(Echoes):
    """The sockets of a scan on an interface, without a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[int] = []
        self.sent: list[udp.Datagram] = []
        self.heard: list[tuple[int, int, int, int, bytes, bytes]] = []
        self.echoes = Echoes()

    def receive(self) -> list[tuple[int, int, int, int, bytes, bytes]]:
        heard, self.heard = self.heard, []
        return heard

    def send(self, *what: Any) -> int:
        if isinstance(what[0], bytes):
            sent = udp.parse(what[0])
            assert sent is not None
            self.sent.append(sent)
            return len(what[0])
        self.targets += what[1]
        return len(what[1])

    def answer(self, protocol_port: int, payload: bytes, source: int, mac: bytes = MAC) -> None:
        """Answer the last question that went to this port."""
        asker = next(one for one in reversed(self.sent) if one.port == protocol_port)
        there = udp.Datagram(mac, source, OURS, protocol_port, asker.source_port, payload)
        self.frames.append(udp.emit(there, 1))


@pytest.fixture
def cable(monkeypatch: pytest.MonkeyPatch) -> Cable:
    one = Cable()
    for name, value in {
        "BulkArp": lambda *_: one,
        "open_datagrams": lambda *_: one,
        "open_echo_replies": lambda *_: one.echoes,
        "ask_all_nodes": lambda *what: one.echoes.asked.append(what),
        "addresses": lambda _: [(OURS, 0xFFFF0000)],
        "neighbours": lambda _: [FIRST + 77],
        "is_wireless": lambda _: False,
        "reaches_link_local": lambda _: True,
    }.items():
        monkeypatch.setattr(segment, name, value)
    monkeypatch.setattr(likely, "remembered", lambda _: iter([FIRST + 88]))
    return one


@pytest.fixture
def shown() -> list[Host]:
    return []


@pytest.fixture
def scanning(cable: Cable, shown: list[Host]) -> Iterator[segment.Segment]:
    hosts = Hosts()
    one = segment.Segment(
        "eth0", 1, OWN_MAC, True, hosts, lambda host, _: shown.append(host), lambda _: None
    )
    one.ask((0xA9FE0000, 0xFFFF0000), 100.0, None)
    yield one
    one.close()


def test_likely_addresses_are_asked_for_first_on_an_interface(
    cable: Cable, scanning: segment.Segment
) -> None:
    now = time.monotonic() + 1
    for _ in range(8):
        scanning.step(now)
        now += 0.01
    assert cable.targets[:7] == [FIRST + 77, FIRST + 88, *likely.FIXED]
    cable.heard = [(0, FIRST + 1000, OURS, REPLY, MAC, OWN_MAC)]
    before = len(cable.targets)
    scanning.read()
    for _ in range(2):
        now += 0.01
        scanning.step(now)
    assert set(likely.derived(MAC)) <= set(cable.targets[before:])


def test_a_host_that_was_found_has_its_name_asked_for_by_llmnr(
    cable: Cable, scanning: segment.Segment, shown: list[Host]
) -> None:
    now = time.monotonic()
    scanning.step(now)
    cable.heard = [(0, 0xA9FE0709, OURS, REPLY, MAC, OWN_MAC)]
    scanning.read()
    scanning.step(now + 0.1)
    assert cable.sent[-1].payload == llmnr.reverse(0xA9FE0709)
    assert cable.sent[-1].destination == 0xE00000FC
    cable.answer(5355, LLMNR_RESPONSE, 0xA9FE0709)
    scanning.read()
    assert (shown[-1].names, shown[-1].via) == (["box"], ["arp", "llmnr"])


def test_a_host_that_has_only_ipv6_is_reported_at_the_end(
    cable: Cable, scanning: segment.Segment, shown: list[Host]
) -> None:
    now = time.monotonic()
    for _ in range(4):
        scanning.step(now)
        now += 1
    assert cable.echoes.asked == [(1, icmpv6.question())] * 2
    other = b"\0\x11\x1c\x0a\x0b\x0d"
    for mac in (MAC, other, OWN_MAC, b"\1" + MAC[1:]):
        cable.echoes.frames.append(ECHO_REPLY[:6] + mac + ECHO_REPLY[12:])
    scanning.read()
    before = len(cable.targets)
    for _ in range(5):
        scanning.step(now)
        now += 0.01
    assert set(likely.derived(other)) <= set(cable.targets[before:])
    cable.heard = [(0, FIRST + 1000, OURS, REPLY, other, OWN_MAC)]
    scanning.read()
    assert [host.mac for host in shown] == [other]
    scanning.finish()
    assert [(host.address, host.mac) for host in shown[1:]] == [(None, MAC)]
    assert (shown[1].kinds, shown[1].via) == (["ipv6", "fe80::211:1cff:fe0a:b0c"], ["ipv6"])


def test_a_wrong_mask_is_noted_once_also_of_a_host_that_was_found_before(
    cable: Cable, scanning: segment.Segment, shown: list[Host]
) -> None:
    scanning.step(time.monotonic())
    cable.heard = [(0, FIRST + 1000, OURS, REPLY, MAC, OWN_MAC)]
    scanning.read()
    assert shown[-1].notes == []
    for mask in (0xFFFF0000, MASK24, 0xFFFFFF80, 0xFF00FF00):
        cable.answer(3956, camera_ack(FIRST + 1000, mask), FIRST + 1000)
    scanning.read()
    assert shown[-1].notes == ["wrong mask: 255.255.255.0, in this network 255.255.0.0"]
    assert len(shown) == 3


@pytest.mark.parametrize(
    ("own", "routed", "lines"),
    [
        ([], False, [NO_ROUTE]),
        (
            [(0xC0A80501, MASK24)],
            False,
            [f"{NO_ROUTE}, or without a second address: autoip eth0 --route-only"],
        ),
        ([(0xC0A80501, MASK24)], True, []),
    ],
)
def test_link_local_hosts_that_are_not_reached_are_one_finding(
    own: list[tuple[int, int]],
    routed: bool,
    lines: list[str],
    cable: Cable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segment, "addresses", lambda _: own)
    monkeypatch.setattr(segment, "reaches_link_local", lambda _: routed)
    hosts = Hosts()
    one = segment.Segment("eth0", 1, OWN_MAC, False, hosts, lambda *_: None, lambda _: None)
    cable.heard = [(0, 0x0A000001, OURS, REPLY, MAC, MAC)]
    one.read()
    assert list(hosts.findings()) == []
    cable.heard = [(0, FIRST + number, OURS, REPLY, MAC, MAC) for number in range(3)]
    one.read()
    one.close()
    assert list(hosts.findings()) == lines


def test_forged_hosts_of_ipv6_cost_bounded_memory(
    cable: Cable, scanning: segment.Segment, shown: list[Host]
) -> None:
    for number in range(2 * HOSTS_MAX):
        mac = struct.pack("!HI", 2, number)
        cable.echoes.frames.append(ECHO_REPLY[:6] + mac + ECHO_REPLY[12:])
    while cable.echoes.frames:
        scanning.read()
    assert len(scanning._nodes) == HOSTS_MAX
    scanning.finish()
    assert len(shown) == HOSTS_MAX


# --- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--rate", "0"], "--rate 0: not a whole number from 1 to 10000000, or 'max'"),
        (["--count", "none"], "--count none: not a whole number from 1 to 999999"),
        (["--mac", "00:1"], "--mac 00:1: not a hardware address"),
        (
            ["--net", "10.0.0.0/8"],
            "--net 10.0.0.0/8: too large; allowed are networks from /16 to /32",
        ),
        (["--net", "10.0.0.1/24"], "--net 10.0.0.1/24: not a network"),
        (["--delay", "0"], "--delay 0: not a whole number of milliseconds"),
        (["no-such-if"], "no-such-if: no such interface"),
    ],
)
def test_a_wrong_word_is_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", *words]) == 2
    assert line in capsys.readouterr().err


def test_what_takes_long_to_load_is_not_loaded_before_the_first_frame() -> None:
    slow = {"asyncio", "dataclasses", "inspect", "json", "random", "typing", "pyroute2"}
    program = (
        "import sys; before = set(sys.modules);"
        "import autoip.commands.scan.command, autoip.commands.scan.segment;"
        "print(*set(sys.modules) - before)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not slow & set(loaded)
    assert "autoip.commands.scan.segment" in loaded


def test_an_interface_without_arp_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", "lo"]) == 5
    assert "lo: not an interface that speaks ARP" in capsys.readouterr().err
