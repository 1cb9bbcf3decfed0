"""rtnetlink: its messages, one bounded socket, and requests. The sole importer of pyroute2."""

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
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, final

from autoip.errors import KernelRefused
from autoip.kernel.model import Address, Link, Route


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

RECEIVE_BUFFER = 4 * 1024 * 1024
# Messages of the event socket that wait to be looked at, at most. Beyond that: messages were lost.
EVENT_QUEUE = 2048
# A dump while another one is under way is refused, and a dump of a table that changes is void.
READ_TRIES = 50
READ_PAUSE = 0.02

# include/uapi/linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_NEWQDISC, RTM_DELQDISC = 36, 37
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
RTNLGRP_IPV4_ROUTE = 7
RTEXT_FILTER_SKIP_STATS = 8
RTN_UNICAST, RTN_THROW = 1, 9
RT_SCOPE_LINK = 253
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
FR_ACT_TO_TBL = 1
# include/uapi/linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
GET = NLM_F_REQUEST
CHANGE = NLM_F_REQUEST | NLM_F_ACK
CREATE = CHANGE | NLM_F_CREATE | NLM_F_EXCL
REPLACE = CHANGE | NLM_F_CREATE | NLM_F_REPLACE
DUMP = NLM_F_REQUEST | NLM_F_DUMP
# include/uapi/linux/if.h
OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
# include/uapi/linux/if_addr.h
IFA_F_SECONDARY = 0x01
# include/uapi/linux/if_link.h and ip.h
IFLA_INET_CONF, IPV4_DEVCONF_PROMOTE_SECONDARIES = 1, 20

# The kernel was built without CONFIG_IP_MULTIPLE_TABLES.
NO_RULES = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
# An answer was lost with its socket, which was renewed: the request may have been carried out.
RENEWED = (errno.ENOBUFS, errno.ECONNRESET)
# What to remove is not there, or went away with its interface.
GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL)


def _bytes(*names: str) -> tuple[tuple[str, str], ...]:
    """Fields of one byte each."""
    return tuple((name, "B") for name in names)


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
        (6, "RTA_PRIORITY", "uint32"),
        (7, "RTA_PREFSRC", "cdata"),
        (15, "RTA_TABLE", "uint32"),
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


_MESSAGES: dict[int, Any] = {
    RTM_NEWLINK: _LinkMessage,
    RTM_DELLINK: _LinkMessage,
    RTM_NEWADDR: _AddressMessage,
    RTM_DELADDR: _AddressMessage,
    RTM_NEWROUTE: _RouteMessage,
    RTM_DELROUTE: _RouteMessage,
    RTM_NEWRULE: _RuleMessage,
    RTM_NEWQDISC: _TrafficMessage,
    RTM_NEWTFILTER: _TrafficMessage,
}


def nest(payload: bytes) -> dict[int, bytes]:
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


def attribute(number: int, payload: bytes) -> bytes:
    """One attribute on the wire, its padding included."""
    return struct.pack("=HH", len(payload) + 4, number) + payload + bytes(-len(payload) % 4)


def text(value: bytes) -> str:
    """A name from the kernel, which may be any bytes."""
    return os.fsdecode(value.rstrip(b"\0"))


def read_link(message: Any) -> Link | None:
    """The Link of an RTM_NEWLINK message; None if it is about something else."""
    # A bridge tells of its ports (family AF_BRIDGE), a Wi-Fi driver of its events (IFLA_WIRELESS)
    # in messages of this type that hold next to nothing. A description of a link has its MTU.
    if message["family"] != socket.AF_UNSPEC or message.get_attr("IFLA_MTU") is None:
        return None
    info = nest(message.get_attr("IFLA_LINKINFO") or b"")
    kind, port_kind = info.get(1), info.get(4)
    state = message.get_attr("IFLA_OPERSTATE") or 0
    altnames = _attributes(message.get_attr("IFLA_PROP_LIST") or b"")
    return Link(
        index=message["index"],
        name=text(message.get_attr("IFLA_IFNAME") or b""),
        mac=message.get_attr("IFLA_ADDRESS") or b"",
        hardware_type=message["ifi_type"],
        flags=message["flags"],
        kind=None if kind is None else text(kind),
        master=message.get_attr("IFLA_MASTER"),
        port_of_bridge=port_kind is not None and text(port_kind) in ("bridge", "openvswitch"),
        operstate=OPERSTATES[state] if state < len(OPERSTATES) else str(state),
        altnames=tuple(text(name) for number, name in altnames if number == 53),
        carrier_changes=message.get_attr("IFLA_CARRIER_CHANGES") or 0,
    )


def read_address(message: Any) -> Address | None:
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
        label=None if label is None else text(label),
        proto=message.get_attr("IFA_PROTO"),
    )


def read_route(message: Any) -> Route | None:
    """The Route of an RTM_NEWROUTE or RTM_DELROUTE message; None if it routes nothing by IPv4."""
    if message["family"] != socket.AF_INET or message["type"] == RTN_THROW:
        return None
    table = message.get_attr("RTA_TABLE")
    return Route(
        index=message.get_attr("RTA_OIF"),
        prefixlen=message["dst_len"],
        table=message["table"] if table is None else table,
        proto=message["proto"],
    )


def promote_secondaries(message: Any) -> int | None:
    """net.ipv4.conf.INTERFACE.promote_secondaries in an RTM_NEWLINK message; None if not there."""
    inet = nest(message.get_attr("IFLA_AF_SPEC") or b"").get(socket.AF_INET, b"")
    values = nest(inet).get(IFLA_INET_CONF, b"")
    offset = 4 * (IPV4_DEVCONF_PROMOTE_SECONDARIES - 1)
    if len(values) < offset + 4:
        return None
    return int(struct.unpack_from("=I", values, offset)[0])


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the kernel, without the flags."""

    what: str
    """In words, for who reads that it was refused."""
    kind: int
    """RTM_*."""
    fields: dict[str, int]
    attributes: Sequence[tuple[str, object]] = ()


def set_promote_secondaries(index: int, value: int) -> Request:
    """The request that sets promote_secondaries of the interface `index`."""
    setting = attribute(IPV4_DEVCONF_PROMOTE_SECONDARIES, struct.pack("=I", value))
    nested = attribute(socket.AF_INET, attribute(IFLA_INET_CONF, setting))
    what = f"set promote_secondaries of interface {index}"
    return Request(what, RTM_SETLINK, {"index": index}, [("IFLA_AF_SPEC", nested)])


def restore_address(message: Any) -> Request:
    """The request that adds again what an RTM_NEWADDR message describes, without IFA_F_SECONDARY."""
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


class Socket(AsyncIPRoute):  # type: ignore[misc]
    """One netlink socket, with a bounded queue."""

    def __init__(self) -> None:
        super().__init__(rcvbuf=RECEIVE_BUFFER, strict_check=True)
        self.overrun = False
        """Events were thrown away since there were too many."""
        self.broken = False
        """The transport reported an error; pyroute2 then refuses all further use."""
        self.register_policy(_MESSAGES)

    def join(self, group: int) -> None:
        """Hear what is sent to one more multicast group. Raises OSError."""
        self.setsockopt(270, 1, group)  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP

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


async def open_socket(groups: int) -> Any:
    """A new Socket of the multicast `groups`; 0: for requests. Raises KernelRefused."""
    opened = Socket()
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


def why_lost(problem: Exception) -> str:
    """In words, what became of messages when reading a socket ended with `problem`."""
    if isinstance(problem, OSError):
        number = problem.errno
    elif isinstance(problem, NetlinkError):
        number = problem.code
    else:
        return f"a message cannot be read: {problem!r}"
    if number == errno.ENOBUFS:
        return "messages were lost"
    return f"the socket failed: {os.strerror(number or errno.EIO)}"


@final
class Requests:
    """Requests to the kernel, one after the other, on a socket of their own.

    A socket that failed is replaced when the next request comes.
    """

    def __init__(self) -> None:
        """Not open yet."""
        self._open = False
        self._socket: Any = None
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Open the socket. Raises KernelRefused."""
        self._open = True
        self._socket = await open_socket(0)

    def close(self) -> None:
        """Close the socket. May be called more than once."""
        self._open = False
        self._close_socket()

    def require_open(self) -> None:
        """Raise KernelRefused(EBADF) before `open` and after `close`."""
        if not self._open:
            raise KernelRefused(errno.EBADF, "use netlink after it was closed")

    async def send(self, request: Request, flags: int) -> list[Any]:
        """Send one request and return all answers. Raises KernelRefused."""
        async with self._lock:
            self.require_open()
            if self._socket is None:
                self._socket = await open_socket(0)
            # The numbers come in fours (NEW, DEL, GET, SET) that share a message.
            body = _MESSAGES[request.kind & ~3]()
            body.update(request.fields)
            body["attrs"] = list(request.attributes)
            try:
                answers = await self._socket.nlm_request(
                    body, msg_type=request.kind, msg_flags=flags
                )
                async with contextlib.aclosing(answers):
                    return [answer async for answer in answers]
            except NetlinkError as problem:
                if self._socket is not None and self._socket.broken:
                    self._close_socket()
                raise KernelRefused(problem.code, request.what) from problem
            except OSError as problem:
                self._close_socket()
                raise KernelRefused(problem.errno or errno.EIO, request.what) from problem

    async def delete(self, request: Request) -> bool:
        """Whether something was removed. Not there, or no such thing in this kernel, is no error.

        Raises KernelRefused.
        """
        try:
            await self.send(request, CHANGE)
        except KernelRefused as problem:
            if problem.errno in GONE or problem.errno in NO_RULES:
                return False
            raise
        return True

    async def dump(self, request: Request) -> list[Any]:
        """All answers to a dump request, repeated until it was not disturbed.

        Raises KernelRefused.
        """
        for _ in range(READ_TRIES):
            try:
                found = await self.send(request, DUMP)
            except KernelRefused as problem:
                # Busy: a cancelled dump is still under way.
                if problem.errno not in (errno.EBUSY, *RENEWED):
                    raise
            else:
                if not any(answer["header"]["flags"] & NLM_F_DUMP_INTR for answer in found):
                    return found
            await asyncio.sleep(READ_PAUSE)
        raise KernelRefused(errno.EBUSY, request.what)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
