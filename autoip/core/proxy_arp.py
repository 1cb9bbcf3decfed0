"""Detect proxy ARP: a host that claims whatever address is probed for.

A middlebox that answers for the whole network, or a faulty switch, does the same. No candidate
can succeed there, and each loss looks like an ordinary conflict.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import final

from autoip.core.arp import ArpPacket, format_mac

CANDIDATES = 3
"""A host that claims this many different candidates, while none of ours succeeds, is reported."""
HOSTS_MAX = 64
"""At most this many hosts are remembered, so that forged senders cannot exhaust memory."""


@final
class ProxyArpDetector:
    """Watch the candidates that one interface loses before they are in use."""

    def __init__(self) -> None:
        self._taken: dict[bytes, set[IPv4Address]] = {}
        self._reported: set[bytes] = set()

    def conflict(self, address: IPv4Address, packet: ArpPacket) -> str | None:
        """Count a candidate that was lost to this packet.

        Returns:
            What to report of the packet's sender, once for each sender; None if there is nothing new.
        """
        if packet.spa != address:
            return None  # the sender probes for the address itself
        taken = self._taken.get(packet.sha)
        if taken is None:
            if len(self._taken) >= HOSTS_MAX:
                self._taken.pop(next(iter(self._taken)))
            taken = self._taken[packet.sha] = set()
        taken.add(address)
        reported = packet.sha in self._reported or len(self._reported) >= HOSTS_MAX
        if len(taken) < CANDIDATES or reported:
            return None
        self._reported.add(packet.sha)
        addresses = ", ".join(map(str, sorted(taken)))
        return (
            f"{format_mac(packet.sha)} claims every address that is probed for ({addresses}):"
            " proxy ARP there? It has to be off for 169.254.0.0/16"
        )

    def claimed(self) -> None:
        """Forget what was counted: a candidate succeeded, so no host claims every address."""
        self._taken.clear()
