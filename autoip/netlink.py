"""Links, addresses, routes and rules, by rtnetlink. The sole importer of pyroute2.

Two sockets. One receives events (link and IPv4 address changes; nothing else, since every message
wakes the process up); one makes requests, so that the parts of a dump never mix with events. When
events were lost, for whatever reason, the next event is a `Resync` with the whole truth.

What `add_address` sets up for an address A on interface number N, and `remove_address` takes off:

* A/16, broadcast 169.254.255.255, with the connected route's metric 1000 + N, so that several
  interfaces with link-local addresses have one route each;
* a rule ``from A lookup 169254000+N``, priority 1690, and in that table
  ``169.254.0.0/16 dev N scope link src A``. Without it a reply from the second interface's address
  leaves by the first interface, whose metric is lower.

The table: decimal 169254000 + N (N < 2^31 fits 32 bits), far from the reserved 253 to 255, from the small
numbers that people choose (systemd's VRFs, for one), from 51820 (wg-quick) and 1000 + N (Android,
systemd-networkd's examples). The priority: after l3mdev (1000), so that a VRF decides first, and before
5210 and up (Tailscale), 32764 (wg-quick) and main (32766), any of which can have a route for
everything: link-local must not end in a tunnel. Since the rule matches one source address and the
table holds one link-local prefix, no other traffic sees any of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import importlib.util
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, final

from .errors import KernelRefused


def _load_pyroute2() -> None:
    """Make pyroute2's modules importable without loading the ones that we do not need.

    `import pyroute2` loads every protocol that it knows (nftables, 9p, WireGuard, a database...): 6 MB of
    memory and a third of the time, for nothing. To import its modules, a package whose own code has
    not been run is enough. That code is run when somebody asks the package for something.
    """
    spec = importlib.util.find_spec("pyroute2")
    if "pyroute2" in sys.modules or spec is None or spec.loader is None:
        return
    loader = spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules["pyroute2"] = package
    try:
        importlib.import_module("pyroute2.iproute.linux")
    except ImportError:
        # A release whose modules need the package's code. The plain import is the next to run.
        del sys.modules["pyroute2"]
        return

    def load(name: str) -> Any:
        del vars(package)["__getattr__"]
        loader.exec_module(package)
        return getattr(package, name)

    vars(package)["__getattr__"] = load


_load_pyroute2()

from pyroute2.iproute.linux import AsyncIPRoute
from pyroute2.netlink import nlmsg
from pyroute2.netlink.exceptions import NetlinkError

PROTOCOL = 169
"""IFA_PROTO, FRA_PROTOCOL and rtm_protocol of all that is ours. Not in iproute2's lists."""
METRIC_BASE = 1000
TABLE_BASE = 169254000
RULE_PRIORITY = 1690
PREFIX = IPv4Network("169.254.0.0/16")
LABEL_SUFFIX = "autoip"
"""After the interface's name and a colon, the label."""
LABEL_MAX = 15

RECEIVE_BUFFER = 4 * 1024 * 1024
# Messages of the event socket that wait to be looked at, at most. Beyond that: Resync.
EVENT_QUEUE = 2048
# Seconds between two resynchronisations, and the bounds of the pause between failed ones.
RESYNC_INTERVAL = 1.0
REOPEN_PAUSE_MIN = 0.1
REOPEN_PAUSE_MAX = 5.0
# A dump while another one is under way is refused, and a dump of a table that changes is void.
READ_TRIES = 50
READ_PAUSE = 0.02

# include/uapi/linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTMGRP_LINK, RTMGRP_IPV4_IFADDR = 0x1, 0x10
RTEXT_FILTER_SKIP_STATS = 8
RTN_UNICAST = 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
FR_ACT_TO_TBL = 1
# include/uapi/linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
_GET = NLM_F_REQUEST
_CHANGE = NLM_F_REQUEST | NLM_F_ACK
_CREATE = _CHANGE | NLM_F_CREATE | NLM_F_EXCL
_REPLACE = _CHANGE | NLM_F_CREATE | NLM_F_REPLACE
_DUMP = NLM_F_REQUEST | NLM_F_DUMP
# include/uapi/linux/if.h
IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_NOARP = 0x1, 0x8, 0x40, 0x80
IFF_LOWER_UP, IFF_DORMANT = 0x10000, 0x20000
OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
ARPHRD_ETHER = 1
# include/uapi/linux/if_addr.h
IFA_F_SECONDARY = 0x01
# include/uapi/linux/if_link.h and ip.h
IFLA_INET_CONF, IPV4_DEVCONF_PROMOTE_SECONDARIES = 1, 20

# The kernel was built without CONFIG_IP_MULTIPLE_TABLES.
_NO_RULES = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
# What to remove is not there, or went away with its interface.
_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL)


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as the kernel describes it."""

    index: int
    name: str
    """As os.fsdecode makes it: any bytes but '/', ':' and white space are possible."""
    mac: bytes
    """Link-layer address; 6 bytes for Ethernet, other lengths (also 0) for others."""
    hardware_type: int
    """ARPHRD_*, the ar$hrd of RFC 826: 1 is Ethernet."""
    flags: int
    """IFF_*."""
    kind: str | None
    """Driver kind of a virtual interface ("veth", "bridge", "vlan"); None for hardware."""
    master: int | None
    """Index of the bridge, bond, team or VRF that this is a port of."""
    port_of_bridge: bool
    operstate: str
    """RFC 2863 state in lower case: "up", "down", "dormant", "lowerlayerdown", "unknown"..."""
    altnames: tuple[str, ...] = ()
    """Alternative names (Linux 5.5)."""
    carrier_changes: int = 0
    """How often the carrier came or went: tells of a flap too short to be seen otherwise."""

    @property
    def up(self) -> bool:
        """Set up by the administrator."""
        return bool(self.flags & IFF_UP)

    @property
    def ready(self) -> bool:
        """Frames can be sent and received: up, with carrier, and not waiting for 802.1X or Wi-Fi."""
        wanted = IFF_UP | IFF_RUNNING | IFF_LOWER_UP
        return self.flags & (wanted | IFF_DORMANT) == wanted

    @property
    def loopback(self) -> bool:
        return bool(self.flags & IFF_LOOPBACK)

    @property
    def speaks_arp(self) -> bool:
        """Ethernet or like it, so that RFC 826 and RFC 5227 apply."""
        return (
            self.hardware_type == ARPHRD_ETHER
            and len(self.mac) == 6
            and not self.flags & (IFF_LOOPBACK | IFF_NOARP)
        )


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address of an interface."""

    index: int
    address: IPv4Address
    prefixlen: int
    scope: int
    """RT_SCOPE_*: 0 global, 253 link."""
    label: str | None
    proto: int | None
    """IFA_PROTO: who set it; None if nobody said so, or before Linux 5.18."""


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """A link appeared, or something in `Link` changed."""

    link: Link


@dataclass(frozen=True, slots=True)
class LinkRemoved:
    """A link is gone: deleted, unplugged, or moved to another network namespace."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class AddressAdded:
    """An address was added, or its lifetime or label changed."""

    address: Address


@dataclass(frozen=True, slots=True)
class AddressRemoved:
    """An address is gone."""

    address: Address


@dataclass(frozen=True, slots=True)
class Resync:
    """Messages were lost: these are all links and addresses there are.

    Events that follow can be older than this; the newest ones come last, as always.
    """

    links: tuple[Link, ...]
    addresses: tuple[Address, ...]
    reason: str


Event = LinkChanged | LinkRemoved | AddressAdded | AddressRemoved | Resync


def ethernet_like(links: Sequence[Link]) -> list[Link]:
    """The links among which to choose when the user names none.

    Those that speak ARP, without ports of a bridge, bond or team, and without what containers use.
    """
    return [
        link
        for link in links
        if link.speaks_arp
        and link.master is None
        and not link.port_of_bridge
        and link.kind != "veth"
        and not _is_docker(link.name)
    ]


def _is_docker(name: str) -> bool:
    """docker0, docker_gwbridge, and br- with the first 12 hexadecimal digits of a network's id."""
    if name.startswith("br-"):
        return len(name) == 15 and all(digit in "0123456789abcdef" for digit in name[3:])
    return name.startswith("docker")


# The messages, with the attributes that we use and no others: the rest is not even decoded. Text and
# addresses are taken as bytes. (pyroute2's own classes read six bytes of every link-layer address,
# whatever its length, and turn a name that is not UTF-8 into another type.)
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
        (16, "IFLA_OPERSTATE", "uint8"),
        (18, "IFLA_LINKINFO", "cdata"),
        (26, "IFLA_AF_SPEC", "cdata"),
        (29, "IFLA_EXT_MASK", "uint32"),
        (35, "IFLA_CARRIER_CHANGES", "uint32"),
        (52, "IFLA_PROP_LIST", "cdata"),
    )


class _AddressMessage(nlmsg):  # type: ignore[misc]
    prefix = "IFA_"
    fields = (
        ("family", "B"),
        ("prefixlen", "B"),
        ("flags", "B"),
        ("scope", "B"),
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
        ("family", "B"),
        ("dst_len", "B"),
        ("src_len", "B"),
        ("tos", "B"),
        ("table", "B"),
        ("proto", "B"),
        ("scope", "B"),
        ("type", "B"),
        ("flags", "I"),
    )
    nla_map = (
        (1, "RTA_DST", "cdata"),
        (4, "RTA_OIF", "uint32"),
        (7, "RTA_PREFSRC", "cdata"),
        (15, "RTA_TABLE", "uint32"),
    )


class _RuleMessage(nlmsg):  # type: ignore[misc]
    prefix = "FRA_"
    fields = (
        ("family", "B"),
        ("dst_len", "B"),
        ("src_len", "B"),
        ("tos", "B"),
        ("table", "B"),
        ("res1", "B"),
        ("res2", "B"),
        ("action", "B"),
        ("flags", "I"),
    )
    nla_map = (
        (2, "FRA_SRC", "cdata"),
        (6, "FRA_PRIORITY", "uint32"),
        (15, "FRA_TABLE", "uint32"),
        (21, "FRA_PROTOCOL", "uint8"),
    )


_MESSAGES = {
    RTM_NEWLINK: _LinkMessage,
    RTM_DELLINK: _LinkMessage,
    RTM_NEWADDR: _AddressMessage,
    RTM_DELADDR: _AddressMessage,
    RTM_NEWROUTE: _RouteMessage,
    RTM_NEWRULE: _RuleMessage,
}


def _nest(payload: bytes) -> dict[int, bytes]:
    """The attributes inside a nested one; of several with one number the last."""
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


def _attribute(number: int, payload: bytes) -> bytes:
    """One attribute on the wire, its padding included."""
    return struct.pack("=HH", len(payload) + 4, number) + payload + bytes(-len(payload) % 4)


def _text(value: bytes) -> str:
    return os.fsdecode(value.rstrip(b"\0"))


def _link(message: Any) -> Link | None:
    """The Link of an RTM_NEWLINK message; None if it is about something else."""
    # A bridge tells of its ports (family AF_BRIDGE), a Wi-Fi driver of its events (IFLA_WIRELESS)
    # in messages of this type that hold next to nothing. A description of a link has its MTU.
    if message["family"] != socket.AF_UNSPEC or message.get_attr("IFLA_MTU") is None:
        return None
    info = _nest(message.get_attr("IFLA_LINKINFO") or b"")
    kind, port_kind = info.get(1), info.get(4)
    state = message.get_attr("IFLA_OPERSTATE") or 0
    altnames = _attributes(message.get_attr("IFLA_PROP_LIST") or b"")
    return Link(
        index=message["index"],
        name=_text(message.get_attr("IFLA_IFNAME") or b""),
        mac=message.get_attr("IFLA_ADDRESS") or b"",
        hardware_type=message["ifi_type"],
        flags=message["flags"],
        kind=None if kind is None else _text(kind),
        master=message.get_attr("IFLA_MASTER"),
        port_of_bridge=port_kind is not None and _text(port_kind) in ("bridge", "openvswitch"),
        operstate=OPERSTATES[state] if state < len(OPERSTATES) else str(state),
        altnames=tuple(_text(name) for number, name in altnames if number == 53),
        carrier_changes=message.get_attr("IFLA_CARRIER_CHANGES") or 0,
    )


def _address(message: Any) -> Address | None:
    """The Address of an RTM_NEWADDR or RTM_DELADDR message; None if it is not of IPv4."""
    # On a point-to-point link IFA_ADDRESS is the other end's.
    local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    if message["family"] != socket.AF_INET or local is None:
        return None
    label = message.get_attr("IFA_LABEL")
    return Address(
        index=message["index"],
        address=IPv4Address(local),
        prefixlen=message["prefixlen"],
        scope=message["scope"],
        label=None if label is None else _text(label),
        proto=message.get_attr("IFA_PROTO"),
    )


class _Socket(AsyncIPRoute):  # type: ignore[misc]
    """One netlink socket, with a bounded queue."""

    def __init__(self) -> None:
        super().__init__(rcvbuf=RECEIVE_BUFFER, strict_check=True)
        self.overrun = False
        """Events were thrown away since there were too many."""
        self.broken = False
        """The transport reported an error; pyroute2 then refuses all further use."""
        self.register_policy(_MESSAGES)

    async def open(self, groups: int) -> None:
        """Bind to the multicast `groups`; 0 makes a socket for requests."""
        # Not pid=0: with any pid given, pyroute2 0.9.7 does not bind at all.
        await self.bind(groups=groups)
        # Beyond net.core.rmem_max. Refused in a user namespace; then there are more Resyncs.
        with contextlib.suppress(OSError):
            self.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BUFFER)  # SO_RCVBUFFORCE

    def enqueue(self, data: bytes, addr: tuple[int, int] | None) -> None:
        """Take what pyroute2's transport received. Called by it, also with errors of its own."""
        queues = self.msg_queue.queues
        if addr is None:
            # An error of the socket as a netlink message without sequence number. In pyroute2 it
            # would wait in the queue for events, and who waits for an answer would wait for ever.
            self.broken = True
            for queue in queues.values():
                queue.put_nowait(data)
            return
        if addr[0] != 0:
            # Another process can send here; only the kernel is to be believed.
            return
        (sequence,) = struct.unpack_from("=I", data, 8)
        if self.status["groups"]:
            if self.overrun:
                return
            if self.msg_queue.root.qsize() >= EVENT_QUEUE:
                self.overrun = True
                while not self.msg_queue.root.empty():
                    self.msg_queue.root.get_nowait()
                self.protocol.enqueue_error(errno.ENOBUFS)
                return
            queues[0].put_nowait(data)
        elif sequence in queues and sequence != 0:
            queues[sequence].put_nowait(data)
        # else: the rest of an answer that nobody waits for any more.

    def close(self, code: int = errno.ECONNRESET) -> None:
        """Close it, also when it could be opened in part only."""
        super().close(code)
        # Short of descriptors, pyroute2 has a first one here but no second one, and forgets it.
        first = getattr(self.local, "prime", None)
        if first is not None:
            first.close()


@final
class Netlink:
    """The kernel's network configuration, in the network namespace of the process.

    All methods belong to one asyncio event loop. Requests are done one after the other.
    """

    limits: list[str]
    """What this kernel cannot do, one line each, as far as it was noticed. Grows."""

    def __init__(self, label_suffix: str = LABEL_SUFFIX) -> None:
        """Not open yet. `label_suffix`: see LABEL_SUFFIX."""
        self.limits = []
        self._label_suffix = label_suffix
        self._open = False
        self._events: Any = None
        self._requests: Any = None
        self._request_lock = asyncio.Lock()
        self._remove_lock = asyncio.Lock()
        self._pending: deque[Event] = deque()
        self._links: dict[int, Link] = {}
        self._lost: str | None = None
        self._resynced_at: float | None = None
        self._checked = False

    async def open(self) -> None:
        """Open both sockets. From now on no event is lost without a Resync.

        Raises KernelRefused.
        """
        self._open = True
        try:
            self._events = await self._new_socket(RTMGRP_LINK | RTMGRP_IPV4_IFADDR)
            self._requests = await self._new_socket(0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close both sockets. May be called more than once."""
        self._open = False
        self._close_events()
        self._close_requests()

    async def snapshot(self) -> tuple[list[Link], list[Address]]:
        """All links and all IPv4 addresses. Raises KernelRefused.

        Events that are still to come can be older than what is returned here.
        """
        messages = await self._dump(
            _LinkMessage,
            RTM_GETLINK,
            {},
            [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)],
            "list links",
        )
        links = [link for link in map(_link, messages) if link is not None]
        addresses = await self._addresses(0)
        self._links = {link.index: link for link in links}
        return links, [found for found in map(_address, addresses) if found is not None]

    async def next_event(self) -> Event:
        """Wait for the next event. May be cancelled without losing one.

        Lost messages and a broken socket become a Resync. Raises KernelRefused(EBADF) once closed.
        """
        while True:
            self._require_open()
            if self._pending:
                return self._pending.popleft()
            if self._lost is not None:
                return await self._resync(self._lost)
            try:
                async with contextlib.aclosing(self._events.get()) as messages:
                    async for message in messages:
                        self._decode(message)
            except OSError as problem:
                self._lost = _reason(problem.errno)
            except NetlinkError as problem:
                self._lost = _reason(problem.code)
            except Exception as problem:  # noqa: BLE001
                # A message that pyroute2 or we cannot read must not end the daemon; what it was
                # about is in the dump.
                self._lost = f"a message cannot be read: {problem!r}"

    async def add_address(
        self, link: Link, address: IPv4Address, *, replace: bool = False
    ) -> Address:
        """Add `address` to `link`, and what belongs to it (see the module's text).

        With `replace` it may be there already: then it gets the metric and the mark that ours have,
        and what belongs to it is put back.

        Raises KernelRefused, with EEXIST if the address is there already. Then nothing was changed.
        """
        what = f"add {address} to {link.name}"
        scope = RT_SCOPE_LINK
        try:
            await self._add(link, address, scope, what, replace=replace)
        except KernelRefused as problem:
            if problem.errno != errno.EINVAL:
                raise
            # The kernel demands one scope of all addresses of a prefix. Looked up only now: the
            # address should be there as soon as it may be.
            scope = await self._foreign_scope(link.index)
            if scope == RT_SCOPE_LINK:
                raise
            await self._add(link, address, scope, what, replace=replace)
        try:
            await self._add_rule(link, address)
        except KernelRefused:
            await self.remove_address(link.index, address)
            raise
        return await self._check(link, address, scope)

    async def remove_address(self, index: int, address: IPv4Address) -> bool:
        """Remove `address` from the interface `index`, and what belongs to it.

        Return False if the address was not there, or the interface is gone. Raises KernelRefused.
        """
        await self._remove_rule(index, address)
        # One at a time: what is true of the others' addresses must stay so until it is done.
        async with self._remove_lock:
            return await self._remove_alone(index, address)

    async def set_up(self, index: int) -> None:
        """Set the interface up, as `ip link set up` does. Raises KernelRefused."""
        fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
        what = f"set interface {index} up"
        await self._request(_LinkMessage, RTM_NEWLINK, _CHANGE, fields, [], what)

    async def sweep(self) -> int:
        """Remove rules and routes that a crashed instance left. Return how many.

        Those of addresses that are on their interface stay: another instance can serve them.
        Raises KernelRefused.
        """
        living = {
            (found.index, found.address)
            for found in map(_address, await self._addresses(0))
            if found is not None
        }
        swept = 0
        for index, address in await self._our_rules() - living:
            swept += await self._remove_rule(index, address)
        routes = await self._dump(
            _RouteMessage,
            RTM_GETROUTE,
            {"family": socket.AF_INET, "proto": PROTOCOL},
            [],
            "list routes",
        )
        for route in routes:
            source = route.get_attr("RTA_PREFSRC")
            index = (route.get_attr("RTA_TABLE") or 0) - TABLE_BASE
            if source is not None and index > 0 and (index, IPv4Address(source)) not in living:
                swept += await self._remove_rule(index, IPv4Address(source))
        return swept

    # Addresses

    async def _add(
        self, link: Link, address: IPv4Address, scope: int, what: str, *, replace: bool
    ) -> None:
        attributes: list[tuple[str, object]] = [
            ("IFA_ADDRESS", address.packed),
            ("IFA_LOCAL", address.packed),
            ("IFA_BROADCAST", PREFIX.broadcast_address.packed),
            ("IFA_RT_PRIORITY", METRIC_BASE + link.index),
            ("IFA_PROTO", PROTOCOL),
        ]
        label = self._label(link)
        if len(label) <= LABEL_MAX:
            # Without one the kernel makes the interface's name the label.
            attributes.append(("IFA_LABEL", label + b"\0"))
        fields = {
            "family": socket.AF_INET,
            "prefixlen": PREFIX.prefixlen,
            "scope": scope,
            "index": link.index,
        }
        flags = _REPLACE if replace else _CREATE
        await self._request(_AddressMessage, RTM_NEWADDR, flags, fields, attributes, what)

    def _label(self, link: Link) -> bytes:
        return os.fsencode(f"{link.name}:{self._label_suffix}")

    async def _foreign_scope(self, index: int) -> int:
        """The scope of the addresses of our prefix on this interface, RT_SCOPE_LINK if none."""
        for other in await self._addresses(index):
            if _in_prefix(other):
                return int(other["scope"])
        return RT_SCOPE_LINK

    async def _check(self, link: Link, address: IPv4Address, scope: int) -> Address:
        """What was added, as an Address. The first time as the kernel has it, to learn its limits."""
        label = self._label(link)
        name = _text(label) if len(label) <= LABEL_MAX else link.name
        wanted = Address(link.index, address, PREFIX.prefixlen, scope, name, PROTOCOL)
        if self._checked:
            return wanted
        for message in await self._addresses(link.index):
            if _is(message, address):
                self._checked = True
                if message.get_attr("IFA_PROTO") != PROTOCOL:
                    self._limit("the kernel does not keep who set an address (IFA_PROTO, 5.18)")
                if message.get_attr("IFA_RT_PRIORITY") != METRIC_BASE + link.index:
                    self._limit("the kernel gives addresses no metric (IFA_RT_PRIORITY, 4.18)")
                return _address(message) or wanted
        return wanted

    async def _remove_alone(self, index: int, address: IPv4Address) -> bool:
        what = f"remove {address} from interface {index}"
        others = await self._addresses(index)
        ours = next((other for other in others if _is(other, address)), None)
        if ours is None:
            return False
        # Deleting the first address ("primary") of a prefix makes the kernel delete the others of
        # that prefix ("secondary") as well, unless promote_secondaries is set. They are not ours.
        secondaries = [
            other
            for other in others
            if other["flags"] & IFA_F_SECONDARY and _in_prefix(other) and other is not ours
        ]
        if ours["flags"] & IFA_F_SECONDARY or not secondaries:
            return await self._remove(index, address, what)
        async with self._promoting(index) as promoting:
            removed = await self._remove(index, address, what)
        if not promoting:
            await self._restore(index, secondaries)
        return removed

    async def _remove(self, index: int, address: IPv4Address, what: str) -> bool:
        fields = {"family": socket.AF_INET, "prefixlen": PREFIX.prefixlen, "index": index}
        attributes = [("IFA_ADDRESS", address.packed), ("IFA_LOCAL", address.packed)]
        return await self._delete(_AddressMessage, RTM_DELADDR, fields, attributes, what)

    @contextlib.asynccontextmanager
    async def _promoting(self, index: int) -> AsyncIterator[bool]:
        """Have promote_secondaries set on the interface; gives whether it is.

        The kernel then makes the next address primary, without deleting any: sockets and routes of
        the others live on, and nobody hears of it. By netlink, since /proc/sys is read-only in most
        containers. The promotion is done when the request to delete is answered, so that the
        setting can be put back then.
        """
        before = await self._promotes(index)
        promoting = before != 0
        if not promoting:
            with contextlib.suppress(KernelRefused):
                await self._set_promotes(index, 1)
                promoting = True
        try:
            yield promoting and before is not None
        finally:
            if before == 0 and promoting:
                with contextlib.suppress(KernelRefused):
                    await self._set_promotes(index, 0)

    async def _promotes(self, index: int) -> int | None:
        """net.ipv4.conf.INTERFACE.promote_secondaries, None if the kernel does not say."""
        what = f"look at interface {index}"
        try:
            found = await self._request(_LinkMessage, RTM_GETLINK, _GET, {"index": index}, [], what)
        except KernelRefused:
            return None
        for message in found:
            inet = _nest(message.get_attr("IFLA_AF_SPEC") or b"").get(socket.AF_INET, b"")
            values = _nest(inet).get(IFLA_INET_CONF, b"")
            offset = 4 * (IPV4_DEVCONF_PROMOTE_SECONDARIES - 1)
            if len(values) >= offset + 4:
                return int(struct.unpack_from("=I", values, offset)[0])
        return None

    async def _set_promotes(self, index: int, value: int) -> None:
        setting = _attribute(IPV4_DEVCONF_PROMOTE_SECONDARIES, struct.pack("=I", value))
        nested = _attribute(socket.AF_INET, _attribute(IFLA_INET_CONF, setting))
        what = f"set promote_secondaries of interface {index}"
        attributes = [("IFLA_AF_SPEC", nested)]
        fields = {"index": index}
        await self._request(_LinkMessage, RTM_SETLINK, _CHANGE, fields, attributes, what)

    async def _restore(self, index: int, secondaries: list[Any]) -> None:
        """Add again, just as they were, those of `secondaries` that went with the primary one.

        The last resort: until then they are missing, and their programs hear of it.
        """
        present = {_key(message) for message in await self._addresses(index)}
        for message in secondaries:
            if _key(message) in present:
                continue
            attributes = []
            for slot in message["attrs"]:
                name, value = slot[0], slot[1]
                if name == "IFA_FLAGS":
                    value &= ~IFA_F_SECONDARY
                if name != "UNKNOWN":
                    attributes.append((name, value))
            fields = {name: message[name] for name, _ in _AddressMessage.fields}
            fields["flags"] &= ~IFA_F_SECONDARY
            what = f"restore {IPv4Address(message.get_attr('IFA_LOCAL'))} of interface {index}"
            with contextlib.suppress(KernelRefused):
                await self._request(_AddressMessage, RTM_NEWADDR, _CREATE, fields, attributes, what)

    async def _addresses(self, index: int) -> list[Any]:
        """RTM_NEWADDR messages of the interface's IPv4 addresses; of all interfaces if 0."""
        fields = {"family": socket.AF_INET, "index": index}
        try:
            found = await self._dump(_AddressMessage, RTM_GETADDR, fields, [], "list addresses")
        except KernelRefused as problem:
            if index and problem.errno in _GONE:
                return []
            raise
        return [message for message in found if index in (0, message["index"])]

    # Rules and routes

    async def _add_rule(self, link: Link, address: IPv4Address) -> None:
        """Make replies from `address` leave by `link`."""
        what = f"add a rule for {address} on {link.name}"
        try:
            await self._rule(RTM_NEWRULE, _CREATE, link.index, address, what)
        except KernelRefused as problem:
            if problem.errno in _NO_RULES:
                # And no route: without CONFIG_IP_MULTIPLE_TABLES it would end in the main table.
                self._limit("the kernel has no routing rules: of several interfaces one is reached")
                return
            # A crashed instance left the very same rule.
            if problem.errno != errno.EEXIST:
                raise
        what = f"add a route for {address} on {link.name}"
        try:
            await self._route(RTM_NEWROUTE, _CREATE, link.index, address, what)
        except KernelRefused as problem:
            if problem.errno != errno.EEXIST:
                raise

    async def _remove_rule(self, index: int, address: IPv4Address) -> bool:
        """Undo `_add_rule`. Return whether there was anything."""
        what = f"remove the rule for {address} on interface {index}"
        rule = await self._ignoring(self._rule(RTM_DELRULE, _CHANGE, index, address, what))
        what = f"remove the route for {address} on interface {index}"
        route = await self._ignoring(self._route(RTM_DELROUTE, _CHANGE, index, address, what))
        return rule or route

    async def _rule(
        self, kind: int, flags: int, index: int, address: IPv4Address, what: str
    ) -> None:
        fields = {"family": socket.AF_INET, "src_len": 32, "action": FR_ACT_TO_TBL}
        attributes = [
            ("FRA_SRC", address.packed),
            ("FRA_PRIORITY", RULE_PRIORITY),
            ("FRA_TABLE", TABLE_BASE + index),
            ("FRA_PROTOCOL", PROTOCOL),
        ]
        await self._request(_RuleMessage, kind, flags, fields, attributes, what)

    async def _route(
        self, kind: int, flags: int, index: int, address: IPv4Address, what: str
    ) -> None:
        fields = {
            "family": socket.AF_INET,
            "dst_len": PREFIX.prefixlen,
            "proto": PROTOCOL,
            "scope": RT_SCOPE_LINK,
            "type": RTN_UNICAST,
        }
        attributes = [
            ("RTA_DST", PREFIX.network_address.packed),
            ("RTA_OIF", index),
            ("RTA_PREFSRC", address.packed),
            ("RTA_TABLE", TABLE_BASE + index),
        ]
        await self._request(_RouteMessage, kind, flags, fields, attributes, what)

    async def _our_rules(self) -> set[tuple[int, IPv4Address]]:
        """Interface and address of each rule that is ours."""
        fields = {"family": int(socket.AF_INET)}
        try:
            rules = await self._dump(_RuleMessage, RTM_GETRULE, fields, [], "list rules")
        except KernelRefused as problem:
            if problem.errno in _NO_RULES:
                return set()
            raise
        return {
            (rule.get_attr("FRA_TABLE") - TABLE_BASE, IPv4Address(rule.get_attr("FRA_SRC")))
            for rule in rules
            if rule.get_attr("FRA_PROTOCOL") == PROTOCOL
            and rule.get_attr("FRA_PRIORITY") == RULE_PRIORITY
            and rule["src_len"] == 32
            and rule.get_attr("FRA_TABLE", 0) > TABLE_BASE
        }

    # Requests

    async def _ignoring(self, request: Any) -> bool:
        """Whether something was removed. Not there, or no such thing in this kernel, is no error."""
        try:
            await request
        except KernelRefused as problem:
            if problem.errno in _GONE or problem.errno in _NO_RULES:
                return False
            raise
        return True

    async def _delete(
        self,
        message: Any,
        kind: int,
        fields: dict[str, int],
        attributes: Sequence[tuple[str, object]],
        what: str,
    ) -> bool:
        return await self._ignoring(self._request(message, kind, _CHANGE, fields, attributes, what))

    async def _dump(
        self,
        message: Any,
        kind: int,
        fields: dict[str, int],
        attributes: Sequence[tuple[str, object]],
        what: str,
    ) -> list[Any]:
        """All answers to a dump request, repeated until it was not disturbed."""
        for _ in range(READ_TRIES):
            try:
                found = await self._request(message, kind, _DUMP, fields, attributes, what)
            except KernelRefused as problem:
                # Busy: a cancelled dump is still under way. The other two: the socket was renewed.
                if problem.errno not in (errno.EBUSY, errno.ENOBUFS, errno.ECONNRESET):
                    raise
            else:
                if not any(answer["header"]["flags"] & NLM_F_DUMP_INTR for answer in found):
                    return found
            await asyncio.sleep(READ_PAUSE)
        raise KernelRefused(errno.EBUSY, what)

    async def _request(
        self,
        message: Any,
        kind: int,
        flags: int,
        fields: dict[str, int],
        attributes: Sequence[tuple[str, object]],
        what: str,
    ) -> list[Any]:
        """Send one request and return all answers. Raises KernelRefused."""
        async with self._request_lock:
            self._require_open()
            if self._requests is None:
                self._requests = await self._new_socket(0)
            body = message()
            body.update(fields)
            body["attrs"] = list(attributes)
            try:
                answers = await self._requests.nlm_request(body, msg_type=kind, msg_flags=flags)
                async with contextlib.aclosing(answers):
                    return [answer async for answer in answers]
            except NetlinkError as problem:
                if self._requests is not None and self._requests.broken:
                    self._close_requests()
                raise KernelRefused(problem.code, what) from problem
            except OSError as problem:
                self._close_requests()
                raise KernelRefused(problem.errno or errno.EIO, what) from problem

    # Sockets

    def _require_open(self) -> None:
        if not self._open:
            raise KernelRefused(errno.EBADF, "use netlink after it was closed")

    async def _new_socket(self, groups: int) -> Any:
        opened = _Socket()
        try:
            await opened.open(groups)
        except OSError as problem:
            opened.close()
            raise KernelRefused(problem.errno or errno.EIO, "open a netlink socket") from problem
        except KeyError as problem:
            # All port numbers that pyroute2 tries are taken.
            opened.close()
            raise KernelRefused(errno.EADDRINUSE, "open a netlink socket") from problem
        except BaseException:
            opened.close()
            raise
        return opened

    def _close_events(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def _close_requests(self) -> None:
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    def _decode(self, message: Any) -> None:
        """Make an event of a message, if it is about something that we watch."""
        kind = message["header"]["type"]
        if kind == RTM_NEWLINK:
            link = _link(message)
            # The kernel repeats itself, for instance for changes of what is not in Link.
            if link is not None and self._links.get(link.index) != link:
                self._links[link.index] = link
                self._pending.append(LinkChanged(link))
        elif kind == RTM_DELLINK:
            # Family AF_BRIDGE: the link is no port of a bridge any more, but it is still there.
            if message["family"] == socket.AF_UNSPEC:
                self._links.pop(message["index"], None)
                name = _text(message.get_attr("IFLA_IFNAME") or b"")
                self._pending.append(LinkRemoved(message["index"], name))
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            address = _address(message)
            if address is not None:
                event = AddressAdded if kind == RTM_NEWADDR else AddressRemoved
                self._pending.append(event(address))

    async def _resync(self, reason: str) -> Resync:
        """A new event socket, then a snapshot: whatever happens in between is an event."""
        self._close_events()
        now = asyncio.get_running_loop().time
        pause = REOPEN_PAUSE_MIN
        if self._resynced_at is not None:
            # More events than can be handled: without a socket they cost nothing for a while.
            await asyncio.sleep(self._resynced_at + RESYNC_INTERVAL - now())
        while True:
            self._require_open()
            try:
                self._events = await self._new_socket(RTMGRP_LINK | RTMGRP_IPV4_IFADDR)
                links, addresses = await self.snapshot()
            except KernelRefused:
                self._require_open()
                self._close_events()
                await asyncio.sleep(pause)
                pause = min(2 * pause, REOPEN_PAUSE_MAX)
            else:
                self._resynced_at = now()
                # Not before: if this was cancelled, it has to begin again.
                self._lost = None
                return Resync(tuple(links), tuple(addresses), reason)

    def _limit(self, text: str) -> None:
        if text not in self.limits:
            self.limits.append(text)


def _reason(number: int | None) -> str:
    if number == errno.ENOBUFS:
        return "messages were lost"
    return f"the socket failed: {os.strerror(number or errno.EIO)}"


def _key(message: Any) -> tuple[bytes, int]:
    return bytes(message.get_attr("IFA_LOCAL") or b""), int(message["prefixlen"])


def _is(message: Any, address: IPv4Address) -> bool:
    """Whether an RTM_NEWADDR message is about `address`/16."""
    return _key(message) == (address.packed, PREFIX.prefixlen)


def _in_prefix(message: Any) -> bool:
    """Whether an RTM_NEWADDR message is about an address of 169.254.0.0/16."""
    local, prefixlen = _key(message)
    return prefixlen == PREFIX.prefixlen and IPv4Address(local) in PREFIX
