"""IPv4 addresses that the kernel reports through rtnetlink, read without any library."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

NETLINK_ROUTE = 0
NLM_F_REQUEST = 0x1
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTMGRP_IPV4_IFADDR = 0x10

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_LABEL = 3
IFA_BROADCAST = 4
IFA_RT_PRIORITY = 9
IFA_PROTO = 11


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address of an interface."""

    index: int
    address: IPv4Address
    prefixlen: int
    scope: int
    """0 global, 253 link, 254 host."""
    label: str | None
    broadcast: IPv4Address | None
    metric: int | None
    proto: int | None

    @property
    def link_local(self) -> bool:
        return self.address.packed[:2] == b"\xa9\xfe"


def messages(data: bytes) -> list[tuple[int, bytes]]:
    """Yield (type, payload) of each message of a datagram, without a damaged rest."""
    found = []
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if not 16 <= length <= len(data):
            break
        found.append((kind, data[16:length]))
        data = data[(length + 3) & ~3 :]
    return found


def parse_address(payload: bytes) -> Address | None:
    """Return the value of an RTM_NEWADDR or RTM_DELADDR payload; None if it is not IPv4."""
    family, prefixlen, _, scope, index = struct.unpack_from("=BBBBI", payload)
    if family != socket.AF_INET:
        return None
    attributes: dict[int, bytes] = {}
    rest = payload[8:]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        if not 4 <= length <= len(rest):
            break
        attributes[kind & 0x3FFF] = rest[4:length]
        rest = rest[(length + 3) & ~3 :]
    raw = attributes.get(IFA_LOCAL, attributes.get(IFA_ADDRESS))
    if raw is None:
        return None
    label = attributes.get(IFA_LABEL)
    broadcast = attributes.get(IFA_BROADCAST)
    metric = attributes.get(IFA_RT_PRIORITY)
    proto = attributes.get(IFA_PROTO)
    return Address(
        index=index,
        address=IPv4Address(raw),
        prefixlen=prefixlen,
        scope=scope,
        label=None if label is None else label.rstrip(b"\0").decode(errors="replace"),
        broadcast=None if broadcast is None else IPv4Address(broadcast),
        metric=None if metric is None else int(struct.unpack("=I", metric)[0]),
        proto=None if proto is None else proto[0],
    )


def dump(sock: socket.socket) -> list[Address]:
    """Return every IPv4 address of the namespace of `sock`. Raises OSError (TimeoutError too)."""
    sock.send(
        struct.pack("=IHHIIBBBBI", 24, RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, 0, 2, 0, 0, 0, 0)
    )
    found: list[Address] = []
    while True:
        for kind, payload in messages(sock.recv(1 << 16)):
            if kind == NLMSG_DONE:
                return found
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                raise OSError(code, "RTM_GETADDR was refused")
            if kind == RTM_NEWADDR and (address := parse_address(payload)) is not None:
                found.append(address)
