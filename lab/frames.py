"""ARP frames, taken apart and put together without autoip's code.

Independent on purpose: a mistake in autoip's codec must not be able to hide behind the same mistake here.
MAC addresses are strings ("02:00:00:00:00:01"), IPv4 addresses are `IPv4Address`; the builders take strings as well.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

BROADCAST = "ff:ff:ff:ff:ff:ff"
NO_MAC = "00:00:00:00:00:00"
NO_ADDRESS = IPv4Address(0)
LINK_LOCAL = IPv4Address("169.254.0.0")

ETHERTYPE_ARP = 0x0806
ETHERTYPE_VLAN = 0x8100
REQUEST = 1
REPLY = 2

Ip = IPv4Address | str


def mac_bytes(mac: str) -> bytes:
    """Return the six bytes of "02:00:00:00:00:01"; ValueError for anything else."""
    raw = bytes.fromhex(mac.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"not a MAC address: {mac!r}")
    return raw


def mac_text(raw: bytes) -> str:
    """Return the usual notation of six bytes."""
    return raw.hex(":")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that a sniffer recorded."""

    ns: int
    """CLOCK_REALTIME in nanoseconds: the kernel's stamp (SO_TIMESTAMPNS)."""
    port: str
    """Interface of the sniffer."""
    from_host: bool
    """True: it came in at the sniffer's end, so the host at the other end of the cable sent it."""
    data: bytes
    vlan: int | None = None
    """The tag's VLAN id; the kernel takes the tag out of `data`."""

    @property
    def destination(self) -> str:
        return mac_text(self.data[0:6])

    @property
    def source(self) -> str:
        return mac_text(self.data[6:12])

    @property
    def ethertype(self) -> int:
        return int.from_bytes(self.data[12:14], "big")

    def __str__(self) -> str:
        arrow = "->" if self.from_host else "<-"
        tag = "" if self.vlan is None else f" vlan {self.vlan}"
        return f"{arrow}{tag} {self.source} > {self.destination} {self.ethertype:#06x} {len(self.data)} bytes"


@dataclass(frozen=True, slots=True)
class ArpFrame(Frame):
    """A frame that is ARP for IPv4 over Ethernet (RFC 826), with the RFC's fields."""

    op: int = 0
    sha: str = NO_MAC
    spa: IPv4Address = NO_ADDRESS
    tha: str = NO_MAC
    tpa: IPv4Address = NO_ADDRESS

    @property
    def broadcast(self) -> bool:
        """Sent to every host of the link."""
        return self.destination == BROADCAST

    @property
    def is_probe(self) -> bool:
        """An ARP probe (RFC 5227, 1.1): a broadcast request without sender IP address."""
        return (
            self.op == REQUEST
            and self.broadcast
            and self.spa == NO_ADDRESS
            and self.tpa != NO_ADDRESS
        )

    @property
    def is_announcement(self) -> bool:
        """An ARP announcement (RFC 5227, 1.1): a broadcast request with sender IP = target IP."""
        return (
            self.op == REQUEST
            and self.broadcast
            and self.spa == self.tpa
            and self.spa != NO_ADDRESS
        )

    def __str__(self) -> str:
        arrow = "->" if self.from_host else "<-"
        tag = "" if self.vlan is None else f" vlan {self.vlan}"
        cast = "" if self.broadcast else f" to {self.destination}"
        if self.is_probe:
            what = f"probe {self.tpa} from {self.sha}"
        elif self.is_announcement:
            what = f"announcement {self.spa} is {self.sha}"
        elif self.op == REQUEST:
            what = f"request {self.tpa} from {self.spa} is {self.sha}"
        elif self.op == REPLY:
            what = f"reply {self.spa} is {self.sha} for {self.tpa} {self.tha}"
        else:
            what = f"arp op {self.op} {self.sha} {self.spa} {self.tha} {self.tpa}"
        return f"{arrow}{tag} {what}{cast}"


def parse(
    data: bytes, *, ns: int = 0, port: str = "", from_host: bool = True, vlan: int | None = None
) -> Frame:
    """Return an `ArpFrame` if the bytes are ARP for IPv4 over Ethernet, else a plain `Frame`. Never raises."""
    if len(data) >= 42 and data[12:20] == b"\x08\x06\x00\x01\x08\x00\x06\x04":
        op, sha, spa, tha, tpa = struct.unpack("!H6s4s6s4s", data[20:42])
        return ArpFrame(
            ns=ns,
            port=port,
            from_host=from_host,
            data=data,
            vlan=vlan,
            op=op,
            sha=mac_text(sha),
            spa=IPv4Address(spa),
            tha=mac_text(tha),
            tpa=IPv4Address(tpa),
        )
    return Frame(ns=ns, port=port, from_host=from_host, data=data, vlan=vlan)


def arp(
    op: int,
    *,
    sha: str,
    spa: Ip,
    tha: str = NO_MAC,
    tpa: Ip,
    destination: str = BROADCAST,
    source: str | None = None,
) -> bytes:
    """Return 42 bytes; `source` (the Ethernet header's sender) is `sha` unless given."""
    return (
        mac_bytes(destination)
        + mac_bytes(sha if source is None else source)
        + struct.pack("!HHHBBH", ETHERTYPE_ARP, 1, 0x0800, 6, 4, op)
        + mac_bytes(sha)
        + IPv4Address(spa).packed
        + mac_bytes(tha)
        + IPv4Address(tpa).packed
    )


def probe(mac: str, address: Ip, *, destination: str = BROADCAST) -> bytes:
    """Return a probe for `address`; with a unicast `destination`, as switches send it for device tracking."""
    return arp(REQUEST, sha=mac, spa=NO_ADDRESS, tpa=address, destination=destination)


def announcement(mac: str, address: Ip) -> bytes:
    """ "`address` is mine", as a request."""
    return arp(REQUEST, sha=mac, spa=address, tpa=address)


def conflict_request(mac: str, address: Ip, target: Ip = "169.254.0.1") -> bytes:
    """Return a request for another host whose sender claims `address`."""
    return arp(REQUEST, sha=mac, spa=address, tpa=target)


def conflict_reply(
    mac: str, address: Ip, tha: str = NO_MAC, tpa: Ip = NO_ADDRESS, destination: str = BROADCAST
) -> bytes:
    """Return a reply whose sender claims `address`."""
    return arp(REPLY, sha=mac, spa=address, tha=tha, tpa=tpa, destination=destination)


def answer(mac: str, request: ArpFrame) -> bytes:
    """Return the answer of the host with the address: a unicast reply (RFC 826)."""
    return arp(
        REPLY,
        sha=mac,
        spa=request.tpa,
        tha=request.sha,
        tpa=request.spa,
        destination=request.sha,
    )


def tagged(frame: bytes, vlan: int) -> bytes:
    """Return the frame with an 802.1Q tag."""
    return frame[:12] + struct.pack("!HH", ETHERTYPE_VLAN, vlan) + frame[12:]


def padded(frame: bytes, length: int = 60) -> bytes:
    """Return the frame, filled up with zeros to the Ethernet minimum."""
    return frame.ljust(length, b"\0")


def garbage(rng: random.Random, *, arp_like: bool = True, longest: int = 200) -> bytes:
    """Return random bytes of a random length with a valid Ethernet header: broadcast, optionally of ARP."""
    head = mac_bytes(BROADCAST) + b"\x02" + rng.randbytes(5)
    head += struct.pack("!H", ETHERTYPE_ARP) if arp_like else rng.randbytes(2)
    return head + rng.randbytes(rng.randrange(longest))


def gaps(frames: Sequence[Frame]) -> list[float]:
    """Return the seconds between each frame and the next."""
    return [(b.ns - a.ns) / 1e9 for a, b in itertools.pairwise(frames)]
