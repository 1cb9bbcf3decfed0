"""A scripted host: answers ARP frames by rules, and sends frames on demand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Container, Iterable
from ipaddress import IPv4Address
from typing import final

from . import frames
from .background import Reader
from .frames import ArpFrame, Ip
from .namespace import Namespace

ETH_P_ARP = 0x0806

Rule = Callable[["Neighbour", ArpFrame], Iterable[bytes]]
"""The host's answer to a frame: none, or some frames."""


def answers_probes(
    first: int | None = None, addresses: Container[IPv4Address] | None = None
) -> Rule:
    """Answer probes by a claim: the first so many (None: every one, as proxy ARP does), for these addresses."""
    answered = 0

    def rule(host: Neighbour, frame: ArpFrame) -> Iterable[bytes]:
        nonlocal answered
        if not frame.is_probe or (first is not None and answered >= first):
            return []
        if addresses is not None and frame.tpa not in addresses:
            return []
        answered += 1
        return [frames.answer(host.mac, frame)]

    return rule


def probes_too(first: int | None = 1) -> Rule:
    """Try the same address at the same time: answer the first so many probes by a probe."""
    sent = 0

    def rule(host: Neighbour, frame: ArpFrame) -> Iterable[bytes]:
        nonlocal sent
        if not frame.is_probe or (first is not None and sent >= first):
            return []
        sent += 1
        return [frames.probe(host.mac, frame.tpa)]

    return rule


def echoes(host: Neighbour, frame: ArpFrame) -> Iterable[bytes]:
    """A hub or an access point that sends every frame back."""
    return [frame.data]


@final
class Neighbour(Reader):
    """A host at an interface of a namespace (a port's far end, or a host's own interface)."""

    def __init__(
        self,
        namespace: Namespace,
        interface: str,
        *rules: Rule,
        mac: str = "02:00:00:00:00:fe",
    ) -> None:
        sock = namespace.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            sock.bind((interface, ETH_P_ARP))
        except BaseException:
            sock.close()
            raise
        super().__init__(sock, f"neighbour-{interface}")
        self.mac = mac
        self.interface = interface
        self._lock = threading.Lock()
        self._rules = list(rules)
        self._heard: list[ArpFrame] = []
        self._answered: list[ArpFrame] = []
        self.start()

    def __enter__(self) -> Neighbour:
        return self

    def rebind(self) -> None:
        """Open the interface again, after it was made anew under its name."""
        self._sock.bind((self.interface, ETH_P_ARP))

    def become(self, *rules: Rule) -> None:
        """Replace the rules."""
        with self._lock:
            self._rules = list(rules)

    @property
    def answered(self) -> list[ArpFrame]:
        """The frames that it answered, in order."""
        with self._lock:
            return list(self._answered)

    def received(self) -> None:
        # A socket bound to ETH_P_ARP never gets frames that leave: an echo does not echo itself.
        frame = frames.parse(self._sock.recv(2048), port=self.interface)
        if not isinstance(frame, ArpFrame):
            return
        with self._lock:
            rules = list(self._rules)
        for rule in rules:
            for answer in rule(self, frame):
                with self._lock:  # before anyone can have the answer
                    self._answered.append(frame)
                self._sock.send(answer)

    # On demand

    def send(self, frame: bytes) -> None:
        """Send any frame. Raises OSError."""
        self._sock.send(frame)

    def dispute(self, address: Ip, *, reply: bool = False) -> None:
        """Claim `address`: send an ordinary request for some other host, or a reply."""
        make = frames.conflict_reply if reply else frames.conflict_request
        self.send(make(self.mac, address))

    def probe(self, address: Ip) -> None:
        self.send(frames.probe(self.mac, address))

    def announce(self, address: Ip) -> None:
        self.send(frames.announcement(self.mac, address))
