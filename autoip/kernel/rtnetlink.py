"""rtnetlink: the messages about links, addresses, routes, rules and filters, as the kernel defines them."""

from __future__ import annotations

import os
import socket
import struct
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any

from autoip.kernel.model import PROTOCOL, Address, Link, Neighbour, Route
from autoip.kernel.netlink import Family, Request, nlmsg

# include/uapi/linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_TC, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE = (
    0x1,
    0x4,
    0x8,
    0x10,
    0x40,
    0x80,
)
RTNLGRP_IPV4_ROUTE = 7
RTEXT_FILTER_SKIP_STATS = 8
RTN_UNICAST, RTN_THROW = 1, 9
RTPROT_KERNEL = 2
RT_SCOPE_LINK = 253
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
FR_ACT_TO_TBL = 1
# include/uapi/linux/if_addr.h
IFA_F_SECONDARY = 0x01
# include/uapi/linux/if_link.h and ip.h
IFLA_INET_CONF, IPV4_DEVCONF_PROMOTE_SECONDARIES = 1, 20
# Offsets in a message about a route: behind struct nlmsghdr is struct rtmsg.
_ROUTE_DST_LEN_AT, _ROUTE_PROTOCOL_AT = 17, 21


def _bytes(*names: str) -> tuple[tuple[str, str], ...]:
    """Return fields of one byte each."""
    return tuple((name, "B") for name in names)


# The messages, with the attributes that are used and no others: the rest is not decoded. Text and
# addresses stay bytes. (pyroute2's own classes read six bytes of every link-layer address, whatever its
# length, and return another type for a name that is not UTF-8.)
class _LinkMessage(nlmsg):  # type: ignore[misc]
    prefix = "IFLA_"
    fields = (
        ("family", "B"),
        ("__align", "x"),
        ("ifi_type", "H"),
        ("index", "i"),
        ("flags", "I"),
        ("change", "I"),
    )
    nla_map = (
        (1, "IFLA_ADDRESS", "cdata"),
        (3, "IFLA_IFNAME", "cdata"),
        (4, "IFLA_MTU", "uint32"),
        (10, "IFLA_MASTER", "uint32"),
        (18, "IFLA_LINKINFO", "cdata"),
        (26, "IFLA_AF_SPEC", "cdata"),
        (29, "IFLA_EXT_MASK", "uint32"),
        (35, "IFLA_CARRIER_CHANGES", "uint32"),
        (52, "IFLA_PROP_LIST", "cdata"),
    )


class _AddressMessage(nlmsg):  # type: ignore[misc]
    prefix = "IFA_"
    fields = (
        *_bytes("family", "prefixlen", "flags", "scope"),
        ("index", "I"),
    )
    nla_map = (
        (1, "IFA_ADDRESS", "cdata"),
        (2, "IFA_LOCAL", "cdata"),
        (3, "IFA_LABEL", "cdata"),
        (4, "IFA_BROADCAST", "cdata"),
        (6, "IFA_CACHEINFO", "cdata"),
        (8, "IFA_FLAGS", "uint32"),
        (9, "IFA_RT_PRIORITY", "uint32"),
        (11, "IFA_PROTO", "uint8"),
    )


class _RouteMessage(nlmsg):  # type: ignore[misc]
    prefix = "RTA_"
    fields = (
        *_bytes("family", "dst_len", "src_len", "tos", "table", "proto", "scope", "type"),
        ("flags", "I"),
    )
    nla_map = (
        (1, "RTA_DST", "cdata"),
        (4, "RTA_OIF", "uint32"),
        (5, "RTA_GATEWAY", "cdata"),
        (6, "RTA_PRIORITY", "uint32"),
        (7, "RTA_PREFSRC", "cdata"),
        (15, "RTA_TABLE", "uint32"),
        (18, "RTA_VIA", "cdata"),
        (30, "RTA_NH_ID", "uint32"),
    )


class _NeighbourMessage(nlmsg):  # type: ignore[misc]
    prefix = "NDA_"
    fields = (
        ("family", "B"),
        ("__align", "xxx"),
        ("index", "i"),
        ("state", "H"),
        *_bytes("flags", "type"),
    )
    nla_map = (
        (1, "NDA_DST", "cdata"),
        (2, "NDA_LLADDR", "cdata"),
    )


class _RuleMessage(nlmsg):  # type: ignore[misc]
    prefix = "FRA_"
    fields = (
        *_bytes("family", "dst_len", "src_len", "tos", "table", "res1", "res2", "action"),
        ("flags", "I"),
    )
    nla_map = (
        (2, "FRA_SRC", "cdata"),
        (6, "FRA_PRIORITY", "uint32"),
        (15, "FRA_TABLE", "uint32"),
        (21, "FRA_PROTOCOL", "uint8"),
    )


class _TrafficMessage(nlmsg):  # type: ignore[misc]
    """A queueing discipline, or a filter of one."""

    prefix = "TCA_"
    fields = (
        ("family", "B"),
        ("__align", "xxx"),
        ("index", "i"),
        ("handle", "I"),
        ("parent", "I"),
        ("info", "I"),
    )
    nla_map = (
        (1, "TCA_KIND", "cdata"),
        (2, "TCA_OPTIONS", "cdata"),
    )


_BY_FIRST_TYPE: dict[int, Any] = {
    RTM_NEWLINK: _LinkMessage,
    RTM_NEWADDR: _AddressMessage,
    RTM_NEWROUTE: _RouteMessage,
    RTM_NEWNEIGH: _NeighbourMessage,
    RTM_NEWRULE: _RuleMessage,
    RTM_NEWQDISC: _TrafficMessage,
    RTM_NEWTFILTER: _TrafficMessage,
}
# Four types (NEW, DEL, GET, SET) share a message; the kernel sends NEW and DEL.
ROUTE = Family(
    socket.NETLINK_ROUTE,
    questions={first + n: kind for first, kind in _BY_FIRST_TYPE.items() for n in range(4)},
    answers={first + n: kind for first, kind in _BY_FIRST_TYPE.items() for n in range(2)},
)


def nest(payload: bytes) -> dict[int, bytes]:
    """Return the attributes inside a nested one; of several with one number the last."""
    return dict(_attributes(payload))


def _attributes(payload: bytes) -> list[tuple[int, bytes]]:
    found = []
    while len(payload) >= 4:
        length, number = struct.unpack_from("=HH", payload)
        if not 4 <= length <= len(payload):
            break
        found.append((number & 0x3FFF, payload[4:length]))
        payload = payload[(length + 3) & ~3 :]
    return found


def attribute(number: int, payload: bytes) -> bytes:
    """Return one attribute on the wire, its padding included."""
    return struct.pack("=HH", len(payload) + 4, number) + payload + bytes(-len(payload) % 4)


def text(value: bytes) -> str:
    """Return a name from the kernel, which may be any bytes, as text."""
    return os.fsdecode(value.rstrip(b"\0"))


def read_link(message: Any) -> Link | None:
    """Return the Link of an RTM_NEWLINK message; None: it is about something else."""
    # A bridge reports its ports (family AF_BRIDGE), a Wi-Fi driver its events (IFLA_WIRELESS)
    # in nearly empty messages of this type. A description of a link has its MTU.
    if message["family"] != socket.AF_UNSPEC or message.get_attr("IFLA_MTU") is None:
        return None
    info = nest(message.get_attr("IFLA_LINKINFO") or b"")
    kind, port_kind = info.get(1), info.get(4)
    altnames = _attributes(message.get_attr("IFLA_PROP_LIST") or b"")
    return Link(
        index=message["index"],
        name=text(message.get_attr("IFLA_IFNAME") or b""),
        mac=message.get_attr("IFLA_ADDRESS") or b"",
        hardware_type=message["ifi_type"],
        flags=message["flags"],
        kind=None if kind is None else text(kind),
        master=message.get_attr("IFLA_MASTER"),
        port_kind=None if port_kind is None else text(port_kind),
        altnames=tuple(text(name) for number, name in altnames if number == 53),
        carrier_changes=message.get_attr("IFLA_CARRIER_CHANGES") or 0,
    )


def read_address(message: Any) -> Address | None:
    """Return the Address of an RTM_NEWADDR or RTM_DELADDR message; None: it is not of IPv4."""
    # On a point-to-point link IFA_ADDRESS is that of the other end.
    local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    if message["family"] != socket.AF_INET or local is None or len(local) != 4:
        return None
    label = message.get_attr("IFA_LABEL")
    return Address(
        index=message["index"],
        address=IPv4Address(local),
        prefixlen=message["prefixlen"],
        scope=message["scope"],
        label=None if label is None else text(label),
        proto=message.get_attr("IFA_PROTO"),
    )


def read_route(message: Any) -> Route | None:
    """Return the Route of an RTM_NEWROUTE or RTM_DELROUTE message; None: it routes nothing by IPv4."""
    if message["family"] != socket.AF_INET or message["type"] == RTN_THROW:
        return None
    table = message.get_attr("RTA_TABLE")
    return Route(
        index=message.get_attr("RTA_OIF"),
        prefixlen=message["dst_len"],
        table=message["table"] if table is None else table,
        proto=message["proto"],
        unicast=message["type"] == RTN_UNICAST,
        destination=_ipv4(message.get_attr("RTA_DST")),
        via=_router(message),
        metric=message.get_attr("RTA_PRIORITY") or 0,
        source=_ipv4(message.get_attr("RTA_PREFSRC")),
    )


def may_be_default_or_ours(kind: int, message: bytes) -> bool:
    """Return whether a message may matter to whoever follows default routes: False for most routes.

    This looks at the two bytes of struct rtmsg and decodes nothing, since somebody may have 50,000 routes.
    """
    if kind not in (RTM_NEWROUTE, RTM_DELROUTE) or len(message) < _ROUTE_PROTOCOL_AT + 1:
        return True
    return message[_ROUTE_DST_LEN_AT] == 0 or message[_ROUTE_PROTOCOL_AT] == PROTOCOL


def _ipv4(value: bytes | str | None) -> IPv4Address | None:
    """Return the address of an attribute; None: there is none, or one of another length."""
    try:
        return None if value is None else IPv4Address(value)
    except AddressValueError:
        return None


def _router(message: Any) -> str:
    """The router of a route, as `Route.via` has it."""
    if (gateway := _ipv4(message.get_attr("RTA_GATEWAY"))) is not None:
        return str(gateway)
    via = message.get_attr("RTA_VIA") or b""  # struct rtvia: the family, then the address
    return f"inet6 {IPv6Address(via[2:])}" if len(via) == 18 else ""


def read_neighbour(message: Any) -> Neighbour | None:
    """The Neighbour of an RTM_NEWNEIGH message; None if its hardware address is not known."""
    address, mac = _ipv4(message.get_attr("NDA_DST")), message.get_attr("NDA_LLADDR")
    if message["family"] != socket.AF_INET or address is None or mac is None:
        return None
    return Neighbour(message["index"], address, mac)


def promote_secondaries(message: Any) -> int | None:
    """Return net.ipv4.conf.INTERFACE.promote_secondaries of an RTM_NEWLINK message; None: missing."""
    inet = nest(message.get_attr("IFLA_AF_SPEC") or b"").get(socket.AF_INET, b"")
    values = nest(inet).get(IFLA_INET_CONF, b"")
    offset = 4 * (IPV4_DEVCONF_PROMOTE_SECONDARIES - 1)
    if len(values) < offset + 4:
        return None
    return int(struct.unpack_from("=I", values, offset)[0])


def set_promote_secondaries(index: int, value: int) -> Request:
    """Return the request that sets promote_secondaries of the interface `index`."""
    setting = attribute(IPV4_DEVCONF_PROMOTE_SECONDARIES, struct.pack("=I", value))
    nested = attribute(socket.AF_INET, attribute(IFLA_INET_CONF, setting))
    what = f"set promote_secondaries of interface {index}"
    return Request(what, RTM_SETLINK, {"index": index}, [("IFLA_AF_SPEC", nested)])


def restore_address(message: Any) -> Request:
    """Return the request that adds the address of an RTM_NEWADDR message again, without IFA_F_SECONDARY."""
    attributes = []
    for slot in message["attrs"]:
        name, value = slot[0], slot[1]
        if name == "IFA_FLAGS":
            value &= ~IFA_F_SECONDARY
        if name != "UNKNOWN":
            attributes.append((name, value))
    fields = {name: message[name] for name, _ in _AddressMessage.fields}
    fields["flags"] &= ~IFA_F_SECONDARY
    address = IPv4Address(message.get_attr("IFA_LOCAL"))
    what = f"restore {address} of interface {message['index']}"
    return Request(what, RTM_NEWADDR, fields, attributes)
