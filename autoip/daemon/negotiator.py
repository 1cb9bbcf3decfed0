"""The negotiation on one link: a core, and the ARP socket that carries its packets.

Synchronous: no task, no timer, no policy. The caller calls `poll` after each event and at `next_timer`, and takes
the core's events.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from random import Random
from typing import Protocol, final

from autoip.core import arp
from autoip.core.acd import Listen
from autoip.core.arp import ArpPacket
from autoip.core.constants import Timing
from autoip.core.ipv4ll import Ipv4ll, State
from autoip.daemon.handover import KeptNegotiator
from autoip.daemon.protocols import ArpListener, ArpSocket
from autoip.kernel.arp_socket import KeptSocket, Phase, Received
from autoip.kernel.model import Link
from autoip.options import Options

_PHASES = {Listen.NOTHING: Phase.SILENT, Listen.PROBE: Phase.PROBE, Listen.DEFEND: Phase.DEFEND}
IDLE = (State.NO_LINK, State.STANDBY)
"""The states in which the core waits for `begin`."""
_GONE = (errno.ENODEV, errno.ENXIO, errno.ENETDOWN)
_JITTER = Random()
"""Draws the pauses of all cores: a generator takes 2.5 KB."""


class Sender(Protocol):
    """What has packets to send: `acd.Acd` or `ipv4ll.Ipv4ll`."""

    def to_send(self, now: float) -> ArpPacket | None: ...
    def sent(self, now: float) -> None: ...
    def refused(self, now: float) -> None: ...


def offer(
    sender: Sender,
    send: Callable[[bytes], float],
    clock: Callable[[], float],
    failed: Callable[[OSError], None],
) -> bool:
    """Send the packet that is due, and report to its sender whether the kernel took it.

    Args:
        sender: has the packet.
        send: hands a frame to the kernel and returns when it was sent; raises OSError.
        clock: seconds.
        failed: called with the error of a frame that the kernel did not take.

    Returns:
        Whether a packet was due.
    """
    if (packet := sender.to_send(clock())) is None:
        return False
    try:
        at = send(packet.emit())
    except OSError as error:
        failed(error)
        sender.refused(clock())
    else:
        sender.sent(at)
    return True


def new_core(
    mac: bytes,
    options: Options,
    first: Sequence[IPv4Address],
    avoid: Callable[[IPv4Address], bool],
    sibling: Callable[[bytes], bool],
    make: Callable[..., Ipv4ll] = Ipv4ll,
) -> Ipv4ll:
    """Make a core by `make`; for the other arguments see `Ipv4ll`."""
    return make(
        mac,
        Timing.from_delay(options.delay),
        Random(int.from_bytes(mac, "big")),
        _JITTER,
        defence=options.defence,
        first=first,
        pool=options.pool,
        avoid=avoid,
        sibling=sibling,
    )


@dataclass(slots=True)
class _Attachment:
    """A link's socket, and its present filter and reflex."""

    socket: ArpSocket
    watched: tuple[Phase, IPv4Address | None] | None = None
    armed: bool = False


@final
class Negotiator:
    """One link's negotiation. Without a link it keeps the core and the core's memory.

    Args:
        opener: opens the ARP socket of an interface, by index and hardware address; raises OSError.
        clock: seconds.
        make_core: makes the core for a hardware address.
        failed: called with the error of a frame that the kernel did not take.
    """

    answers: bool
    """Whether the helper answers by broadcast a host that asks for the address."""

    def __init__(
        self,
        opener: Callable[[int, bytes], ArpSocket],
        clock: Callable[[], float],
        make_core: Callable[[bytes], Ipv4ll],
        failed: Callable[[OSError], None],
    ) -> None:
        self.core: Ipv4ll | None = None
        self.clock = clock
        self.answers = False
        self._opener = opener
        self._make_core = make_core
        self._failed = failed
        self._attachment: _Attachment | None = None

    # --- questions ---------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether there is a link on which frames can be sent."""
        return self._attachment is not None

    @property
    def token(self) -> int | None:
        """The mark of the socket's received frames; None without a socket."""
        return self.socket.token if self.socket is not None else None

    @property
    def socket(self) -> ArpSocket | None:
        """The link's socket; None without one."""
        return self._attachment.socket if self._attachment is not None else None

    @property
    def state(self) -> State:
        """The core's state; NO_LINK while there is no core."""
        return self.core.state if self.core is not None else State.NO_LINK

    @property
    def candidate(self) -> IPv4Address | None:
        """The address that is probed for or held."""
        return self.core.candidate if self.core is not None else None

    @property
    def address(self) -> IPv4Address | None:
        """The address that is held."""
        return self.core.address if self.core is not None else None

    # --- the link ----------------------------------------------------------------------------

    def attach(self, link: Link) -> bool:
        """Open the socket of a link that is ready. Return False if the link is gone or down again.

        A core for the same hardware address stays.

        Raises:
            OSError: the socket cannot be opened.
        """
        try:
            self._attachment = _Attachment(self._opener(link.index, link.mac))
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise
        if self.core is None or self.core.mac != link.mac:
            self.core = self._make_core(link.mac)
        return True

    def detach(self, why: str, *, asked: bool = False) -> None:
        """Give the link up: it is lost, or somebody `asked` for that. Harmless when repeated."""
        self._close()
        if self.core is not None:
            self.core.link_down(why, asked=asked)

    def abandon(self) -> None:
        """Close the socket and forget the core, whatever state the two are in."""
        self.core = None
        self._close()

    def _close(self) -> None:
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            attachment.socket.close()

    # --- from one program to the next --------------------------------------------------------

    def keep(self, mac: bytes) -> KeptNegotiator:
        """Return what `resume` takes, for a link with this hardware address."""
        core = self.core.keep() if self.core is not None else None
        if (at := self._attachment) is None:
            return KeptNegotiator(mac if self.core is None else self.core.mac, core)
        phase, address = at.watched or (Phase.SILENT, None)
        sock = at.socket
        parts = (
            sock.fileno(),
            phase,
            address,
            at.armed,
            self.answers,
            sock.generation,
            sock.attached,
        )
        return KeptNegotiator(mac, core, *parts)

    def resume(self, kept: KeptNegotiator, core: Ipv4ll | None, listener: ArpListener) -> None:
        """Go on for another one, with its socket and a core that goes on for its core. Raises OSError."""
        self.core, self.answers = core, kept.answers
        if kept.descriptor is None:
            return
        # As it was, not as it would be now: what waits in the socket came before now.
        armed = core.reflex.emit() if kept.armed and core is not None and core.reflex else None
        watched = kept.phase, kept.address
        before = kept.descriptor, kept.mac, *watched
        socket = listener.take_over(
            KeptSocket(*before, armed=armed, generation=kept.generation, attached=kept.attached)
        )
        self._attachment = _Attachment(socket, watched, armed is not None)

    # --- what is wanted ----------------------------------------------------------------------

    def begin(self, why: str) -> None:
        """Look for an address, if there is a link and the core is idle."""
        if self.core is not None and self.attached and self.core.state in IDLE:
            self.core.link_up(self.clock(), why)

    def stand_by(self, why: str) -> bool:
        """Hold no address until `begin`. Return whether that is a change."""
        if self.core is None or not self.attached or self.core.state is State.STANDBY:
            return False
        self.core.stand_by(why)
        return True

    def restart(self, why: str, *, asked: bool = True) -> bool:
        """Give up the address until `begin`, to probe it again. Return False if there is nothing to probe.

        Args:
            why: in words.
            asked: somebody asked for it; otherwise an address that is held counts as lost.
        """
        if self.core is None or not self.attached or self.core.state is State.STANDBY:
            return False
        self.core.link_down(why, asked=asked)
        return True

    # --- what happens ------------------------------------------------------------------------

    def receive(self, received: Received) -> None:
        """Judge a frame that passed the filter."""
        at = self._attachment
        if at is None or self.core is None or received.generation != at.socket.generation:
            return  # the frame passed the filter of another candidate
        if received.defended_at is None:
            at.socket.disarm()  # until the core has judged it
        at.armed = False
        if (packet := arp.parse(received.frame)) is not None:
            self.core.receive(packet, received.at, received.defended_at)

    def poll(self) -> bool:
        """Handle the timer, set the filter, send one packet. Return whether to poll again.

        Handle no timer while a conflict waits: the address must not be taken for free. `receive` follows.
        """
        if self.core is None or self.conflict_waits():
            return False
        self.core.handle_timer(self.clock())
        # First the filter, then the probe whose answers it lets through.
        self.watch()
        at = self._attachment
        return at is not None and offer(self.core, at.socket.send, self.clock, self._failed)

    def conflict_waits(self) -> bool:
        """Return whether a conflict that `receive` has not got yet may end the silence of ANNOUNCE_WAIT."""
        core, at = self.core, self._attachment
        if core is None or at is None or core.state not in (State.ANNOUNCE_WAIT, State.CONFIGURING):
            return False
        due = core.next_timer()
        return (due is None or due <= self.clock()) and at.socket.pending()

    def watch(self) -> None:
        """Set filter and reflex as the core's state demands."""
        core, at = self.core, self._attachment
        if core is None or at is None:
            return
        phase = _PHASES[core.listen]
        if phase is Phase.DEFEND and self.answers:
            phase = Phase.ANSWER
        if at.watched != (phase, core.candidate):
            at.socket.watch(phase, core.candidate)
            at.watched = phase, core.candidate
            at.armed = False
        reflex = core.reflex
        if reflex is not None and not at.armed:
            # A conflict that has come is judged first.
            at.armed = not at.socket.pending() and at.socket.arm(reflex.emit())
        elif reflex is None and at.armed:
            at.socket.disarm()
            at.armed = False

    def next_timer(self) -> float | None:
        """When to `poll`; None: not before something happens."""
        return self.core.next_timer() if self.core is not None else None
