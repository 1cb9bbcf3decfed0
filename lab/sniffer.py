"""Frames as they pass one end of a cable, with the kernel's time stamps."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import final

from . import frames, journal, rtnl
from .background import Reader
from .frames import ArpFrame, Frame
from .namespace import PATIENCE, LabError, Namespace

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_AUXDATA = 8
PACKET_OUTGOING = 4
TP_STATUS_VLAN_VALID = 0x10
# Python's socket module has no name for these. The same on every Linux but Alpha, MIPS, PA-RISC and SPARC.
SO_TIMESTAMPNS = 35
SO_RCVBUFFORCE = 33
KEPT_BYTES = 256

Predicate = Callable[[ArpFrame], bool]


@final
class Sniffer(Reader):
    """Records every frame at `interface`, both directions, in a background thread; at most `limit` of them.

    ETH_P_ALL, because a socket bound to ETH_P_ARP does not get frames that leave. Frames dropped by an nft ingress rule
    of this end are recorded too: the tap comes first.
    """

    def __init__(self, namespace: Namespace, interface: str, limit: int = 50_000) -> None:
        sock = namespace.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
            except PermissionError:  # root of a user namespace only
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.bind((interface, ETH_P_ALL))
        except BaseException:
            sock.close()
            raise
        super().__init__(sock, f"sniffer-{interface}")
        self.interface = interface
        self.overflow = 0
        """The number of frames that came after `limit` was reached."""
        self._limit = limit
        self._frames: list[Frame] = []
        self._news = threading.Condition()
        journal.register(self)
        self.start()

    def __enter__(self) -> Sniffer:
        return self

    def rebind(self) -> None:
        """Open the interface again, after it was made anew under its name."""
        self._sock.bind((self.interface, ETH_P_ALL))

    def received(self) -> None:
        data, ancillary, _, sender = self._sock.recvmsg(KEPT_BYTES, 256)
        ns = 0
        vlan = None
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                seconds, nanoseconds = struct.unpack("@ll", value[:16])
                ns = seconds * 1_000_000_000 + nanoseconds
            elif level == SOL_PACKET and kind == PACKET_AUXDATA:
                status, _, _, _, _, tci, _ = struct.unpack("=IIIHHHH", value[:20])
                if status & TP_STATUS_VLAN_VALID:
                    vlan = tci & 0x0FFF
        frame = frames.parse(
            data,
            ns=ns or time.time_ns(),
            port=self.interface,
            from_host=sender[2] != PACKET_OUTGOING,
            vlan=vlan,
        )
        with self._news:
            if len(self._frames) < self._limit:
                self._frames.append(frame)
            else:
                self.overflow += 1
            self._news.notify_all()

    # The record

    def frames(self, since: int = 0) -> list[Frame]:
        """Return all frames, ARP or not, from the mark `since` on."""
        with self._news:
            return self._frames[since:]

    def mark(self) -> int:
        """Return the number of frames; as `since` it leaves only frames that come after now."""
        with self._news:
            return len(self._frames)

    def arp(self, since: int = 0, *, from_host: bool | None = True) -> list[ArpFrame]:
        """Return ARP frames that the host sent (False: that were sent to it; None: both)."""
        return [
            frame
            for frame in self.frames(since)
            if isinstance(frame, ArpFrame) and from_host in (None, frame.from_host)
        ]

    def probes(self, address: IPv4Address | None = None, since: int = 0) -> list[ArpFrame]:
        """Return the host's probes, all or those for one address."""
        return [f for f in self.arp(since) if f.is_probe and address in (None, f.tpa)]

    def announcements(self, address: IPv4Address | None = None, since: int = 0) -> list[ArpFrame]:
        """Return the host's announcements, all or those for one address."""
        return [f for f in self.arp(since) if f.is_announcement and address in (None, f.spa)]

    def entries(self) -> Iterable[tuple[int, str, str]]:
        """For the timeline."""
        return [(frame.ns, self.interface, str(frame)) for frame in self.frames()]

    # Waiting

    def wait_count(
        self,
        predicate: Predicate,
        count: int,
        timeout: float,
        *,
        since: int = 0,
        from_host: bool | None = True,
    ) -> list[ArpFrame]:
        """Wait for the first `count` ARP frames that fit. Raises LabError after `timeout` seconds."""
        until = time.monotonic() + timeout
        found: list[ArpFrame] = []
        position = since
        with self._news:
            while True:
                found += [
                    frame
                    for frame in self._frames[position:]
                    if isinstance(frame, ArpFrame)
                    and from_host in (None, frame.from_host)
                    and predicate(frame)
                ]
                position = len(self._frames)
                if len(found) >= count:
                    return found[:count]
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._news.wait(left)
        raise LabError(
            f"{self.interface}: {len(found)} of {count} awaited frames within {timeout} s"
        )

    def wait_for(
        self,
        predicate: Predicate,
        timeout: float,
        *,
        since: int = 0,
        from_host: bool | None = True,
    ) -> ArpFrame:
        """Wait for the first ARP frame that fits; as `wait_count`."""
        return self.wait_count(predicate, 1, timeout, since=since, from_host=from_host)[0]

    def wait_probe(
        self, address: IPv4Address | None = None, timeout: float = PATIENCE, *, since: int = 0
    ) -> ArpFrame:
        """Wait for the host's next probe."""
        return self.wait_for(
            lambda f: f.is_probe and address in (None, f.tpa), timeout, since=since
        )

    def wait_announcement(
        self, address: IPv4Address | None = None, timeout: float = PATIENCE, *, since: int = 0
    ) -> ArpFrame:
        """Wait for the host's next announcement."""
        return self.wait_for(
            lambda f: f.is_announcement and address in (None, f.spa), timeout, since=since
        )

    def assert_silent(self, seconds: float, *, since: int | None = None) -> None:
        """Wait so long and check that the host sends no ARP frame. Raises LabError."""
        start = self.mark() if since is None else since
        time.sleep(seconds)
        if sent := self.arp(start):
            raise LabError(f"{self.interface}: not silent: {sent[0]}")


@final
class AddressMonitor(Reader):
    """Records when IPv4 addresses come and go in a namespace: (ns, added, address). The stamp is this program's own."""

    def __init__(self, namespace: Namespace) -> None:
        sock = namespace.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, rtnl.NETLINK_ROUTE)
        sock.bind((0, rtnl.RTMGRP_IPV4_IFADDR))
        super().__init__(sock, "addresses")
        self.name = namespace.name
        self._events: list[tuple[int, bool, rtnl.Address]] = []
        self._news = threading.Condition()
        journal.register(self)
        self.start()

    def __enter__(self) -> AddressMonitor:
        return self

    def received(self) -> None:
        data = self._sock.recv(1 << 16)
        ns = time.time_ns()
        with self._news:
            for kind, payload in rtnl.messages(data):
                if kind in (rtnl.RTM_NEWADDR, rtnl.RTM_DELADDR):
                    address = rtnl.parse_address(payload)
                    if address is not None:
                        self._events.append((ns, kind == rtnl.RTM_NEWADDR, address))
            self._news.notify_all()

    def events(self) -> list[tuple[int, bool, rtnl.Address]]:
        """Return the events so far, in order."""
        with self._news:
            return list(self._events)

    def wait_for(
        self, predicate: Callable[[bool, rtnl.Address], bool], timeout: float
    ) -> tuple[int, bool, rtnl.Address]:
        """Wait for the first event whose (added, address) fits. Raises LabError after `timeout` seconds."""

        def found() -> tuple[int, bool, rtnl.Address] | None:
            return next((event for event in self._events if predicate(event[1], event[2])), None)

        with self._news:
            if (event := self._news.wait_for(found, timeout)) is None:
                raise LabError(f"no such address event within {timeout} s")
            return event

    def entries(self) -> Iterable[tuple[int, str, str]]:
        """For the timeline."""
        return [
            (ns, "address", f"{'+' if added else '-'} {a.address}/{a.prefixlen} on {a.index}")
            for ns, added, a in self.events()
        ]
