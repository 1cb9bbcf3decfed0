"""One interface of a scan: its sockets, what is sent there when, and what is read."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from contextlib import suppress

from autoip.commands.scan import likely, udp
from autoip.commands.scan.hosts import (
    HOSTS_MAX,
    WRONG_MASK,
    Hosts,
    is_link_local,
    mask_fault,
    reach,
    text,
)
from autoip.commands.scan.questions import dhcp, gvcp, icmpv6, llmnr, mdns, ssdp, vxi11, wsd
from autoip.commands.scan.sweep import ANSWER_TIME, Sweep
from autoip.kernel.bulk_arp import BulkArp, ask_all_nodes, open_datagrams, open_echo_replies
from autoip.kernel.interface_facts import (
    addresses,
    is_wireless,
    neighbours,
    reaches_link_local,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # a scan must start fast
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from autoip.commands.scan.claim import Claim
    from autoip.commands.scan.hosts import Host

_ASKED = {"gvcp": gvcp, "mdns": mdns, "wsd": wsd, "ssdp": ssdp, "vxi-11": vxi11}
_ANSWERED = {**_ASKED, "llmnr": llmnr}
_HEARD = {
    module.PORT: (name, module)
    for name, module in _ANSWERED.items()
    if name in ("mdns", "llmnr", "ssdp", "wsd")
}
_DHCP = {67: ("dhcp", dhcp), 68: ("dhcp", dhcp)}

RATE, RATE_WIRELESS = 5000.0, 500.0
"""Requests a second, where none are chosen."""
_REPEAT = 1.0
"""Seconds until all is asked once more: a datagram may be lost."""
_FULL_PAUSE = 0.001
_READ_AT_ONCE = 256
_FRAME_MAX = 65536
_NAMES_WANTED = 512
_NAMES_PAUSE = 0.02
_GONE = (errno.ENETDOWN, errno.ENXIO, errno.ENODEV)
_REQUEST = 1


class Segment:
    """Asks on one interface, and reads the answers.

    Args:
        name: of the interface.
        index: of the interface.
        mac: its hardware address.
        ports: whether to open what `ask` needs; False: nothing is ever sent.
        hosts: where all that is learnt goes.
        report: called with a host of which something is new, and whether it is a new one.
        say: called with a line of what is done.

    Raises:
        OSError: EPERM without CAP_NET_RAW.
    """

    def __init__(
        self,
        name: str,
        index: int,
        mac: bytes,
        ports: bool,
        hosts: Hosts,
        report: Callable[[Host, bool], None],
        say: Callable[[str], None],
    ) -> None:
        self.name, self._index, self._mac = name, index, mac
        self._hosts, self._report, self._say = hosts, report, say
        self._own = addresses(name)
        self._reached = reaches_link_local(name)
        self.sweep: Sweep | None = None
        self._sender = 0
        self._claim: Claim | None = None
        self._asks: deque[float] = deque()
        self._asked_at = float("inf")
        self._unnamed: deque[int] = deque(maxlen=_NAMES_WANTED)
        self._names_at = 0.0
        self._reserved: dict[str, socket.socket] = {}
        self._by_port: dict[int, tuple[str, Any]] = {**_HEARD, **_DHCP}
        self._arp = BulkArp(index, mac)
        for protocol, module in _ANSWERED.items() if ports else ():
            # A socket of the kernel has the port, so that the kernel does not refuse the answers, which we read
            # from the packet socket: so they come with a MAC, and also while the address is not the kernel's.
            self._reserved[protocol] = reserved = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            reserved.bind(("", 0))
            self._by_port[reserved.getsockname()[1]] = (protocol, module)
        self._datagrams = open_datagrams(index, list(self._by_port))
        self._echoes = open_echo_replies(index)
        self._nodes: dict[bytes, bytes] = {}

    def ask(self, network: tuple[int, int], rate: float | None, delay: int | None) -> None:
        """Ask from now on.

        Args:
            network: the addresses to ask for: the first one, and the mask.
            rate: requests a second; None: as this kind of interface allows.
            delay: longest pause between two probes of an address that must be claimed, in milliseconds; None:
                RFC 3927's.
        """
        first, mask = network
        inside = [own for own, _ in self._own if own & mask == first]
        inside += [own for own, _ in self._own if is_link_local(own)]
        count = (~mask & 0xFFFFFFFF) + 1
        places = (first + 1, count - 2) if count > 2 else (first, count)
        if rate is None:
            rate = RATE_WIRELESS if is_wireless(self.name) else RATE
        self.sweep = Sweep(
            *places,
            [*neighbours(self.name), *likely.remembered(self._mac), *likely.FIXED],
            {own for own, _ in self._own},
            rate,
            int.from_bytes(os.urandom(8), "big"),
        )
        ask_all_nodes(self._index, icmpv6.question())  # is answered without an IPv4 address, too
        if inside:
            self._use(inside[0])
            return
        self._send(gvcp, "gvcp")  # is answered by broadcast
        from autoip.commands.scan.claim import Claim

        self._say(f"{self.name}: has no address there, so this scan claims a link-local one first")
        self._claim = Claim(self._index, self.name, self._mac, delay)

    def close(self) -> None:
        """Close all sockets, and give the claimed address back."""
        for opened in (
            self._arp,
            self._datagrams,
            self._echoes,
            self._claim,
            *self._reserved.values(),
        ):
            if opened is not None:
                opened.close()

    # --- sending -----------------------------------------------------------------------------

    def filenos(self) -> list[int]:
        """Return the descriptors to wait for."""
        found = (self._arp, self._datagrams, self._echoes, self._claim)
        return [opened.fileno() for opened in found if opened is not None]

    def step(self, now: float) -> float | None:
        """Send what is due; return the seconds until the next step, None: not before something comes."""
        waits = []
        if self._claim is not None:
            waits.append(self._claim.step())
            if (self._claim.address or 0) != self._sender:
                self._use(self._claim.address or 0)
        if not self._sender:
            return min((wait for wait in waits if wait is not None), default=None)
        if self._asks and self._asks[0] <= now:
            self._asks.popleft()
            self._asked_at = now
            for protocol, module in _ASKED.items():
                self._send(module, protocol)
            if not self._asks:
                ask_all_nodes(self._index, icmpv6.question())
        if self._unnamed and self._names_at <= now:
            wanted = [
                self._unnamed.popleft() for _ in range(min(len(self._unnamed), mdns.NAMES_MAX))
            ]
            self._send(mdns, "mdns", mdns.reverse(wanted))
            for address in wanted:
                self._send(llmnr, "llmnr", llmnr.reverse(address))
            self._asked_at = now
            self._names_at = now + _NAMES_PAUSE
        waits += [self._asks[0] - now] if self._asks else []
        waits += [self._names_at - now] if self._unnamed else []
        waits.append(self._ask_next(now))
        if not self._asks:
            waits.append(max(0.0, self._asked_at + ANSWER_TIME - now))
        return max(0.0, min(wait for wait in waits if wait is not None))

    def over(self, now: float) -> bool:
        """Return whether all was asked, and had time for an answer."""
        if self.sweep is None or not self.sweep.over or self._asks or self._unnamed:
            return False
        return now >= self._asked_at + ANSWER_TIME

    def _use(self, sender: int) -> None:
        """Ask with this address as the sender from now on; 0: not at all."""
        self._sender = sender
        if sender:
            self._say(f"{self.name}: asks as {text(sender)}")
            now = time.monotonic()
            self._asks = deque((now, now + _REPEAT))

    def _ask_next(self, now: float) -> float | None:
        """Send the ARP requests that are due; return the seconds until the next."""
        sweep = self.sweep
        if sweep is None or sweep.over:
            return None
        if due := sweep.due(now):
            wall = time.time()  # not after the call: an answer may come before it returns
            try:
                count = self._arp.send(self._sender, due)
            except OSError as error:
                if error.errno in _GONE:
                    raise
                if error.errno == errno.ENOBUFS:
                    sweep.refused(now)
                return _FULL_PAUSE
            sweep.sent(count, wall)
            self._asked_at = now
        at = sweep.next_time(now)
        return None if at is None else at - now

    def _send(self, module: Any, protocol: str, payload: bytes | None = None) -> None:
        port = self._reserved[protocol].getsockname()[1]
        question = module.question() if payload is None else payload
        datagram = udp.Datagram(self._mac, self._sender, module.GROUP, port, module.PORT, question)
        with suppress(BlockingIOError):
            try:
                self._datagrams.send(udp.emit(datagram, module.TTL))
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    # --- reading -----------------------------------------------------------------------------

    def read(self) -> None:
        """Read what waits, but never for long."""
        for packet in self._arp.receive():
            self._heard_arp(*packet)
        for frame in _waiting(self._datagrams):
            if (datagram := udp.parse(frame)) is not None:
                self._heard_datagram(datagram)
        for frame in _waiting(self._echoes):
            if (node := icmpv6.answer(frame)) is not None:
                self._heard_node(*node)

    def _heard_arp(self, ns: int, spa: int, tpa: int, kind: int, sha: bytes, tha: bytes) -> None:
        at, rtt = ns / 1e9, None
        if kind != _REQUEST:
            via = "arp"
            if tha == self._mac and self.sweep is not None:
                rtt = self.sweep.heard(spa, at)
        elif spa == 0:
            if self.sweep is None:  # it is of no use yet to who asks
                self._learn(None, sha, at, "arp probe", (), (f"probes for {text(tpa)}",))
            return
        else:
            via = "arp announcement" if spa == tpa else "arp request"
        self._learn(spa, sha, at, via, rtt=rtt)

    def _heard_datagram(self, datagram: udp.Datagram) -> None:
        protocol, module = self._by_port[datagram.port]
        answer = module.answer(datagram.payload)
        if answer is None:
            self._learn(datagram.source, datagram.mac, time.time(), protocol)
            return
        address = answer.address if answer.address is not None else datagram.source
        self._learn(
            address or None, answer.mac or datagram.mac, time.time(), protocol, answer.names, answer.kinds,
            mask=answer.mask,
        )  # fmt: skip

    def _heard_node(self, mac: bytes, address: bytes) -> None:
        if mac not in self._nodes and len(self._nodes) < HOSTS_MAX:
            self._nodes[mac] = address
            self._prefer(likely.derived(mac))

    def finish(self) -> None:
        """Report the hosts of which only IPv6 was found: before, the sweep might have found an IPv4 address."""
        for mac, address in self._nodes.items():
            if not self._hosts.knows(self.name, mac):
                shown = socket.inet_ntop(socket.AF_INET6, address)
                self._learn(None, mac, time.time(), "ipv6", (), ("ipv6", shown))

    def _learn(
        self,
        address: int | None,
        mac: bytes,
        at: float,
        via: str,
        names: tuple[str, ...] = (),
        kinds: tuple[str, ...] = (),
        *,
        rtt: float | None = None,
        mask: int | None = None,
    ) -> None:
        if mac == self._mac or mac[0] & 1 or not any(mac):
            return  # us, or not the address of a host
        if address is not None and not (0 < address < 0xE0000000 and address >> 24 != 127):
            return
        if (found := self._hosts.seen(self.name, address, mac, at)) is None:
            return
        host, new = found
        if host.rtt is None:
            host.rtt = rtt
        more = host.learn(via, names, kinds)
        if address is not None and mask is not None:
            more = self._check_mask(host, address, mask) or more
        if new and address is not None:
            others = [other.mac.hex(":") for other in self._hosts.rivals(host)]
            if others:
                host.notes.append(f"also in use by {others[0]}")
            if (how := reach(self.name, address, mask, self._own)) is not None:
                host.notes.append(how)
            if is_link_local(address) and not self._reached:
                self._advise()
            if self._sender and not host.names:
                self._unnamed.append(address)
        if new or more:
            self._report(host, new)
        if new and self.sweep is not None:
            self._prefer(likely.derived(mac))

    def _check_mask(self, host: Host, address: int, mask: int) -> bool:
        """Note a wrong mask, one for a host; return whether there is a new one."""
        fault = mask_fault(address, mask, self._own)
        if fault is None or any(note.startswith(WRONG_MASK) for note in host.notes):
            return False
        host.notes.append(fault)
        return True

    def _advise(self) -> None:
        line = f"{self.name}: has no route to link-local hosts: autoip {self.name}"
        if self._own:
            line += f", or without a second address: autoip {self.name} --route-only"
        self._hosts.advice[line] = None

    def _prefer(self, addresses: Iterable[int]) -> None:
        for address in addresses:
            if self.sweep is not None:
                self.sweep.prefer(address)


def _waiting(sock: socket.socket) -> Iterator[bytes]:
    """Yield the frames that wait at a socket, but not for long."""
    with suppress(BlockingIOError):
        for _ in range(_READ_AT_ONCE):
            yield sock.recv(_FRAME_MAX)
