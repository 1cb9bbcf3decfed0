"""The neighbour's end of a cable: sends a frame, and reads the kernel's stamps of passing frames."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from lab import ArpFrame
from lab.frames import parse
from lab.sniffer import ETH_P_ALL, PACKET_OUTGOING, SO_RCVBUFFORCE, SO_TIMESTAMPNS

from .cables import Cable
from .stamps import stamp_ns

if TYPE_CHECKING:
    from typing_extensions import Self


class Tap:
    """Reads frames in both directions at the far end. No thread wakes up beside the measured program."""

    def __init__(self, cable: Cable) -> None:
        self.cable = cable
        self._listen = cable.yonder.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        # A socket does not get the frames that it sent itself, so another one sends.
        self._speak = cable.yonder.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._listen.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._listen.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)
        self._listen.setblocking(False)
        self._listen.bind((cable.far, ETH_P_ALL))
        self._speak.bind((cable.far, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._listen.close()
        self._speak.close()

    def send(self, frame: bytes) -> None:
        self._speak.send(frame)

    def read(self) -> list[ArpFrame]:
        """Return the ARP frames that passed since the last call, with their stamps."""
        found: list[ArpFrame] = []
        while True:
            try:
                data, ancillary, _, sender = self._listen.recvmsg(256, 256)
            except BlockingIOError:
                return found
            frame = parse(
                data,
                ns=stamp_ns(ancillary),
                port=self.cable.far,
                from_host=sender[2] != PACKET_OUTGOING,
            )
            if isinstance(frame, ArpFrame):
                found.append(frame)

    def wait(self, fits: Callable[[ArpFrame], bool], timeout: float) -> ArpFrame | None:
        """Wait for the first frame from the host that fits; drop the frames before it."""
        until = time.monotonic() + timeout
        while True:
            for frame in self.read():
                if frame.from_host and fits(frame):
                    return frame
            left = until - time.monotonic()
            if left <= 0:
                return None
            select.select([self._listen], [], [], left)

    def exchange(self, conflict: bytes, address: IPv4Address, timeout: float = 0.2) -> float | None:
        """Send a conflict about `address`; return seconds until the host's announcement, by kernel stamps.

        None if there was no answer within `timeout` seconds.
        """
        self.read()
        self.send(conflict)
        # This process sleeps while the host works: a reader that the frame's own copy wakes up
        # would take a processor from it.
        time.sleep(0.002)
        until = time.monotonic() + timeout
        asked = 0
        while True:
            for frame in self.read():
                if not frame.from_host and frame.data == conflict:
                    asked = frame.ns
                elif frame.from_host and frame.is_announcement and frame.spa == address and asked:
                    return (frame.ns - asked) / 1e9
            if time.monotonic() > until:
                return None
            time.sleep(0.005)
