"""An address for the time of a scan, on an interface that has none: claimed and defended, never configured."""

from __future__ import annotations

import time
from random import Random

from autoip.core.candidates import Pool
from autoip.core.constants import Timing
from autoip.core.ipv4ll import Configure, Ipv4ll
from autoip.daemon.negotiator import Negotiator
from autoip.kernel.arp_socket import ArpListener
from autoip.kernel.model import ARPHRD_ETHER, Link


class Claim:
    """Claims a link-local address by RFC 3927, defends it, and answers who asks for it, until `close`.

    Args:
        index: of the interface.
        name: of the interface.
        mac: its hardware address.
        delay: longest pause between two probes, in milliseconds; None: RFC 3927's.

    Raises:
        OSError: the socket cannot be opened.
    """

    def __init__(self, index: int, name: str, mac: bytes, delay: int | None) -> None:
        self.address: int | None = None
        """What may be used now."""
        self._listener = ArpListener()
        self._negotiator = Negotiator(
            self._listener.open,
            lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
            lambda own: Ipv4ll(
                own,
                Timing() if delay is None else Timing.from_delay(delay),
                Random(),
                Random(),
                pool=Pool(),
            ),
            lambda _: None,
        )
        self._negotiator.answers = True
        self._negotiator.attach(Link(index, name, mac, ARPHRD_ETHER, 0, None, None, None))
        self._negotiator.begin("a scan")

    def fileno(self) -> int:
        """Return a descriptor that is readable when `step` has something to do."""
        return self._listener.fileno()

    def step(self) -> float | None:
        """Do what is due; return the seconds until the next step, None: not before something comes."""
        for received in self._listener.drain():
            self._negotiator.receive(received)
        core = self._negotiator.core
        while core is not None and (self._negotiator.poll() or self._take_events(core)):
            pass
        at = self._negotiator.next_timer()
        return None if at is None else max(0.0, at - self._negotiator.clock())

    def close(self) -> None:
        """Give the address back."""
        self._listener.close()

    def _take_events(self, core: Ipv4ll) -> bool:
        """Use the address as soon as nobody objects; return whether there was an event."""
        event = core.next_event()
        if isinstance(event, Configure):
            core.configured(event.address, self._negotiator.clock())
        self.address = None if core.address is None else int(core.address)
        return event is not None
