"""The ARP codec: bytes to a value and back, and what is refused."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoip.core.arp import FRAME, ArpPacket, Operation, announcement, format_mac, parse, probe

MAC = bytes.fromhex("02000000000a")
A = IPv4Address("169.254.7.9")

macs = st.binary(min_size=6, max_size=6)
addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
packets = st.builds(ArpPacket, st.sampled_from(Operation), macs, addresses, macs, addresses, macs)

PROBE = bytes.fromhex(
    "ffffffffffff 02000000000a 0806"  # to, from, ARP
    "0001 0800 06 04 0001"  # Ethernet, IPv4, lengths, request
    "02000000000a 00000000"  # SHA, SPA
    "000000000000 a9fe0709"  # THA, TPA
)


def test_probe_and_announcement_on_the_wire() -> None:
    assert probe(MAC, A).emit() == PROBE
    assert announcement(MAC, A).emit() == PROBE[:28] + A.packed + PROBE[32:]
    assert len(PROBE) == FRAME.size == 42


@given(packets, st.binary(max_size=30))
def test_round_trip_with_padding(packet: ArpPacket, padding: bytes) -> None:
    assert parse(packet.emit() + padding) == packet


@given(st.binary(max_size=80))
def test_any_bytes_are_a_packet_or_nothing(frame: bytes) -> None:
    packet = parse(frame)
    if packet is not None:
        # The Ethernet source is not part of the value: the SHA counts.
        assert packet.emit()[:6] + packet.emit()[12:] == frame[:6] + frame[12:42]


@pytest.mark.parametrize("length", range(42))
def test_short_frames_are_refused(length: int) -> None:
    assert parse(PROBE[:length]) is None


@pytest.mark.parametrize(
    ("offset", "what"),
    [
        (12, "EtherType"),
        (13, "EtherType"),
        (14, "hardware type"),
        (15, "hardware type"),
        (16, "protocol type"),
        (17, "protocol type"),
        (18, "hardware length"),
        (19, "protocol length"),
        (20, "operation"),
    ],
)
def test_one_changed_field_is_refused(offset: int, what: str) -> None:
    changed = bytearray(PROBE)
    changed[offset] ^= 0x40
    assert parse(bytes(changed)) is None, what


@pytest.mark.parametrize("operation", [0, 3, 4, 8, 9, 256, 65535])
def test_other_operations_are_refused(operation: int) -> None:
    assert parse(PROBE[:20] + operation.to_bytes(2, "big") + PROBE[22:]) is None


def test_format_mac() -> None:
    assert format_mac(MAC) == "02:00:00:00:00:0a"
