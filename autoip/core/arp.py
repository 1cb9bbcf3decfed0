"""The ARP packet for IPv4 over Ethernet (RFC 826) as a value, and what RFC 5227 reads in it.

`parse` is the only place where bytes become a packet, `ArpPacket.emit` the only one where a
packet becomes bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

ETHERTYPE_ARP = 0x0806
_HARDWARE_ETHERNET = 1
_PROTOCOL_IPV4 = 0x0800

BROADCAST = b"\xff" * 6
NO_HARDWARE = bytes(6)
NO_ADDRESS = IPv4Address(0)

FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")
"""Ethernet header, then the ARP packet: 42 bytes. What follows them on the wire is padding."""


class Operation(IntEnum):
    """ar$op; other operations (RARP, InARP) are ignored."""

    REQUEST = 1
    REPLY = 2


@dataclass(frozen=True, slots=True)
class ArpPacket:
    """An ARP packet with the link-layer destination of the frame that carried it.

    Attributes:
        operation: request or reply.
        sha: sender hardware address, 6 bytes.
        spa: sender protocol address.
        tha: target hardware address, 6 bytes.
        tpa: target protocol address.
        destination: link-layer destination of the frame, 6 bytes.
    """

    operation: Operation
    sha: bytes
    spa: IPv4Address
    tha: bytes
    tpa: IPv4Address
    destination: bytes = BROADCAST

    def emit(self) -> bytes:
        """Return the Ethernet frame, 42 bytes, sent from `sha`."""
        return FRAME.pack(
            self.destination,
            self.sha,
            ETHERTYPE_ARP,
            _HARDWARE_ETHERNET,
            _PROTOCOL_IPV4,
            6,
            4,
            self.operation,
            self.sha,
            self.spa.packed,
            self.tha,
            self.tpa.packed,
        )

    @property
    def is_probe(self) -> bool:
        """An ARP Probe (RFC 5227 section 1.1): a broadcast request with an all-zero SPA.

        One that came by unicast is a switch's device tracking, not a host that claims.
        """
        return (
            self.operation is Operation.REQUEST
            and self.spa == NO_ADDRESS
            and self.destination == BROADCAST
        )

    def claims(self, address: IPv4Address, mac: bytes) -> bool:
        """Whether somebody else uses `address`: RFC 3927 sections 2.2.1 and 2.5.

        A frame of our own that a hub or an access point reflects has our SHA: not a conflict.
        """
        return self.spa == address and self.sha != mac

    def probes(self, address: IPv4Address, mac: bytes) -> bool:
        """Whether somebody else is probing for `address`: RFC 3927 section 2.2.1."""
        return self.is_probe and self.tpa == address and self.sha != mac


def parse(frame: bytes) -> ArpPacket | None:
    """Read an Ethernet frame; None if it is not an ARP request or reply for IPv4 over Ethernet.

    Args:
        frame: from the link-layer destination on; bytes after the ARP packet are padding.
    """
    if len(frame) < FRAME.size:
        return None
    (destination, _, ethertype, hardware, protocol, hlen, plen, operation, sha, spa, tha, tpa) = (
        FRAME.unpack_from(frame)
    )
    if (ethertype, hardware, protocol, hlen, plen) != (
        ETHERTYPE_ARP,
        _HARDWARE_ETHERNET,
        _PROTOCOL_IPV4,
        6,
        4,
    ):
        return None
    if operation not in (Operation.REQUEST, Operation.REPLY):
        return None
    return ArpPacket(
        Operation(operation), sha, IPv4Address(spa), tha, IPv4Address(tpa), destination
    )


def probe(mac: bytes, candidate: IPv4Address) -> ArpPacket:
    """Return an ARP Probe: RFC 3927 section 2.2.1. THA is zero, as that section demands."""
    return ArpPacket(Operation.REQUEST, mac, NO_ADDRESS, NO_HARDWARE, candidate)


def announcement(mac: bytes, address: IPv4Address) -> ArpPacket:
    """Return an ARP Announcement: RFC 3927 section 2.4; a probe but for SPA = TPA = `address`."""
    return ArpPacket(Operation.REQUEST, mac, address, NO_HARDWARE, address)


def question(mac: bytes, source: IPv4Address, address: IPv4Address) -> ArpPacket:
    """Return a request for the hardware address of `address`."""
    return ArpPacket(Operation.REQUEST, mac, source, NO_HARDWARE, address)


def format_mac(mac: bytes) -> str:
    """Return six bytes as people write them, e.g. ``02:00:00:00:00:0a``."""
    return mac.hex(":")
