"""RFC 5227: address conflict detection for one address on one link.

`Acd` is sans-IO: it opens no socket and reads no clock. The caller

* passes what arrives to `receive`, and calls `handle_timer` when `next_timer` has come;
* offers `to_send` to the kernel and reports `sent` or `refused`: only what was sent counts;
* takes each `next_event`, and after `ProbeSucceeded` puts the address on the interface and then
  calls `announce`.

Times are floats in seconds on one clock that never goes back and counts sleep (CLOCK_BOOTTIME).

Where the RFCs give a choice: probes are paced by the RFC's random pauses (RFC 5227 section 2.1.1);
an address in use is defended once per DEFEND_INTERVAL (section 2.4 (b)), or given up at the
first conflict (section 2.4 (a)) with `Defence.ABANDON`; it is never defended without end (c).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address
from random import Random
from typing import TypeAlias

from autoip.core.arp import ArpPacket, announcement, format_mac, probe
from autoip.core.constants import (
    ANNOUNCE_INTERVAL,
    ANNOUNCE_NUM,
    DEFEND_INTERVAL,
    PROBE_NUM,
    SEND_RETRY,
    SEND_RETRY_MAX,
    Timing,
)
from autoip.errors import CoreMisuse


class Defence(Enum):
    """What to do about a conflict for an address in use (RFC 5227 section 2.4)."""

    ONCE = "defend once per DEFEND_INTERVAL, then give up"
    ABANDON = "give up at the first conflict"


class Listen(Enum):
    """Which frames can matter; the kernel filter is made from this."""

    NOTHING = "nothing"
    PROBE = "claims of the address, and probes for it"
    DEFEND = "claims of the address"


# --- states: each carries its own data ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Probing:
    """`sent` probes are out; the next one is due at `next_at`. PROBE_WAIT counts as `sent` 0."""

    sent: int
    next_at: float


@dataclass(frozen=True, slots=True)
class AnnounceWait:
    """All probes are out; the address is free if nobody objects until `until`."""

    until: float


@dataclass(frozen=True, slots=True)
class Owed:
    """A defence against `packet`, which came at `since`; it must be sent at `next_at`."""

    packet: ArpPacket
    since: float
    next_at: float


@dataclass(frozen=True, slots=True)
class Guard:
    """What the defence of an address in use depends on.

    Attributes:
        last_conflict: when the last conflicting packet came; None: none has come.
        ready_at: when a conflict may be defended against again; None: now.
        owed: the defence that must still be sent.
    """

    last_conflict: float | None = None
    ready_at: float | None = None
    owed: Owed | None = None


@dataclass(frozen=True, slots=True)
class Configuring:
    """The address is free; the caller puts it on the interface and then calls `announce`.

    `guard` is kept from before if the address was in use already, and somebody removed it.
    """

    guard: Guard = Guard()


@dataclass(frozen=True, slots=True)
class Announcing:
    """In use; `sent` announcements are out, the next one is due at `next_at`."""

    sent: int
    next_at: float
    guard: Guard


@dataclass(frozen=True, slots=True)
class Bound:
    """In use and announced. Silence, until there is something to defend against."""

    guard: Guard


@dataclass(frozen=True, slots=True)
class Ended:
    """A conflict ended the claim. This state is never left."""


State: TypeAlias = Probing | AnnounceWait | Configuring | Announcing | Bound | Ended


class Trigger(Enum):
    """Why a state is left."""

    PROBES_SENT = "PROBE_NUM probes sent"
    SILENCE = "nobody objected for ANNOUNCE_WAIT"
    CONFIGURED = "address put on the interface"
    ANNOUNCED = "ANNOUNCE_NUM announcements sent"
    REMOVED = "address removed by somebody else"
    CONFLICT = "conflict before use"
    GIVEN_UP = "conflict in use, not defended"


TRANSITIONS: Mapping[tuple[type[State], Trigger], type[State]] = {
    (Probing, Trigger.PROBES_SENT): AnnounceWait,
    (Probing, Trigger.CONFLICT): Ended,
    (AnnounceWait, Trigger.SILENCE): Configuring,
    (AnnounceWait, Trigger.CONFLICT): Ended,
    (Configuring, Trigger.CONFIGURED): Announcing,
    (Configuring, Trigger.CONFLICT): Ended,
    (Announcing, Trigger.ANNOUNCED): Bound,
    (Announcing, Trigger.REMOVED): Configuring,
    (Announcing, Trigger.GIVEN_UP): Ended,
    (Bound, Trigger.REMOVED): Configuring,
    (Bound, Trigger.GIVEN_UP): Ended,
}


# --- events -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProbeSent:
    """Probe `number` (1 to PROBE_NUM) is on the wire."""

    address: IPv4Address
    number: int


@dataclass(frozen=True, slots=True)
class ProbeSucceeded:
    """Nobody uses the address. The caller may configure it and call `announce`."""

    address: IPv4Address


@dataclass(frozen=True, slots=True)
class AnnouncementSent:
    """Announcement `number` (1 to ANNOUNCE_NUM) is on the wire."""

    address: IPv4Address
    number: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another host uses the address, or probes for it.

    Attributes:
        packet: what the other host sent.
        in_use: the address was ours already, and is now given up.
    """

    address: IPv4Address
    packet: ArpPacket
    in_use: bool

    @property
    def why(self) -> str:
        """Who did what, in words."""
        verb = "claims" if self.packet.spa == self.address else "probes for"
        return f"conflict: {format_mac(self.packet.sha)} {verb} {self.address}"


@dataclass(frozen=True, slots=True)
class Defended:
    """A conflict in use was answered by one announcement.

    Attributes:
        packet: what the other host sent.
        delay: seconds from its arrival to our answer.
        reflex: the answer was sent by the armed helper.
    """

    address: IPv4Address
    packet: ArpPacket
    delay: float
    reflex: bool


Event: TypeAlias = ProbeSent | ProbeSucceeded | AnnouncementSent | Conflict | Defended


class Acd:
    """Conflict detection for one address: probe, announce, defend.

    Args:
        address: the address to claim.
        mac: the interface's hardware address, 6 bytes.
        timing: the times of the probe phase.
        jitter: random source of the pauses.
        now: seconds; the pause before the first probe starts here.
        defence: what to do about a conflict once the address is in use.
        sibling: whether a hardware address is that of another interface of this host. Its frames
            are not conflicts once the probes have succeeded: by default Linux answers ARP for all
            its addresses on all its interfaces, and sends with any of them (arp_ignore,
            arp_announce). Before, they are: RFC 3927 section 3.4 demands different addresses.
        state: of the one that this goes on for; None: a new claim, whose first pause starts `now`.
    """

    def __init__(
        self,
        address: IPv4Address,
        mac: bytes,
        timing: Timing,
        jitter: Random,
        now: float,
        defence: Defence = Defence.ONCE,
        sibling: Callable[[bytes], bool] = lambda _: False,
        state: State | None = None,
    ) -> None:
        self.address = address
        self._mac = mac
        self._timing = timing
        self._jitter = jitter
        self._defence = defence
        self._sibling = sibling
        self._events: deque[Event] = deque()
        self._retry = SEND_RETRY  # the pause after the next refusal
        # RFC 5227 section 2.1.1: a random pause of 0 to PROBE_WAIT comes first.
        self.state: State = state or Probing(0, now + self._draw(0.0, timing.probe_wait))

    # --- what comes in ---------------------------------------------------------------------

    def receive(self, packet: ArpPacket, at: float, defended_at: float | None = None) -> None:
        """Judge a packet.

        Args:
            packet: any ARP packet; what does not concern the address is ignored.
            at: when it arrived.
            defended_at: when the armed helper answered it with our announcement; None if it did not. An
                answer does not count if the helper did not know of a conflict that came shortly before.
        """
        claimed = packet.claims(self.address, self._mac)
        match self.state:
            case Configuring() | Announcing() | Bound() if self._sibling(packet.sha):
                pass  # our own kernel, which may have the address before `announce`
            case Probing() | AnnounceWait() | Configuring():
                if claimed or packet.probes(self.address, self._mac):
                    self._go(Trigger.CONFLICT, Ended())
                    self._events.append(Conflict(self.address, packet, in_use=False))
            case Announcing() | Bound():
                # Another host's *probe* is answered by the kernel and is not a reason to
                # give the address up.
                if claimed:
                    self._conflict_in_use(self.state, packet, at, defended_at)
            case Ended():
                pass

    def _conflict_in_use(
        self, state: Announcing | Bound, packet: ArpPacket, at: float, defended_at: float | None
    ) -> None:
        last = state.guard.last_conflict
        too_soon = last is not None and at - last < DEFEND_INTERVAL
        if too_soon or self._defence is Defence.ABANDON:
            self._go(Trigger.GIVEN_UP, Ended())
            self._events.append(Conflict(self.address, packet, in_use=True))
            return
        guard = Guard(last_conflict=at, ready_at=at + DEFEND_INTERVAL)
        if defended_at is None:
            guard = replace(guard, owed=Owed(packet, since=at, next_at=at))
        else:
            self._events.append(Defended(self.address, packet, defended_at - at, reflex=True))
        self.state = replace(state, guard=guard)

    def announce(self, now: float) -> None:
        """Announce the address, which is on the interface, and defend it from now on.

        Raises:
            CoreMisuse: there was no `ProbeSucceeded`, or a conflict has come since.
        """
        if not isinstance(self.state, Configuring):
            raise CoreMisuse(f"announce() in {type(self.state).__name__}")
        self._go(Trigger.CONFIGURED, Announcing(0, now, self.state.guard))

    def removed(self) -> None:
        """Wait for `announce` again: somebody on this host removed the address from the interface.

        The address is not probed again, because it was defended all the time: the claim of another
        host would have come as a packet (RFC 5227 section 2.3), and a probe that came meanwhile is
        answered by the announcement, long before that host may use the address.

        Raises:
            CoreMisuse: the address is not in use.
        """
        if not isinstance(self.state, Announcing | Bound):
            raise CoreMisuse(f"removed() in {type(self.state).__name__}")
        self._go(Trigger.REMOVED, Configuring(replace(self.state.guard, owed=None)))

    # --- time ------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """Return when to call `handle_timer` and `to_send` next; None: not before a packet comes."""
        times = [self._send_at()]
        match self.state:
            case AnnounceWait(until=until):
                times.append(until)
            case Announcing(guard=guard) | Bound(guard=guard):
                times.append(guard.ready_at)
        return min((at for at in times if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Do what is due. Harmless when called early."""
        match self.state:
            case AnnounceWait(until=until) if now >= until:
                self._go(Trigger.SILENCE, Configuring())
                self._events.append(ProbeSucceeded(self.address))
            case Announcing(guard=guard) | Bound(guard=guard):
                if guard.ready_at is not None and now >= guard.ready_at:
                    self.state = replace(self.state, guard=replace(guard, ready_at=None))

    # --- what goes out ---------------------------------------------------------------------

    def _send_at(self) -> float | None:
        """When the next packet is due. A defence that is owed goes before an announcement."""
        match self.state:
            case (
                Announcing(guard=Guard(owed=Owed(next_at=at)))
                | Bound(guard=Guard(owed=Owed(next_at=at)))
            ):
                return at
            case Probing(next_at=at) | Announcing(next_at=at):
                return at
            case _:
                return None

    def to_send(self, now: float) -> ArpPacket | None:
        """Return the packet that is due. Offer it to the kernel, then call `sent` or `refused`."""
        at = self._send_at()
        if at is None or now < at:
            return None
        make = probe if isinstance(self.state, Probing) else announcement
        return make(self._mac, self.address)

    def sent(self, now: float) -> None:
        """Count the packet that `to_send` returned: the kernel took it.

        Args:
            now: not before the frame left, so that the pause to the next one is never short.
        """
        self._retry = SEND_RETRY
        match self.state:
            case Probing(sent=sent):
                self._events.append(ProbeSent(self.address, sent + 1))
                if sent + 1 < PROBE_NUM:
                    pause = self._draw(self._timing.probe_min, self._timing.probe_max)
                    self.state = Probing(sent + 1, now + pause)
                else:
                    self._go(Trigger.PROBES_SENT, AnnounceWait(now + self._timing.announce_wait))
            case (
                Announcing(guard=Guard(owed=Owed() as owed) as guard)
                | Bound(guard=Guard(owed=Owed() as owed) as guard)
            ):
                self._events.append(
                    Defended(self.address, owed.packet, now - owed.since, reflex=False)
                )
                self.state = replace(self.state, guard=replace(guard, owed=None))
            case Announcing(sent=sent, guard=guard):
                self._events.append(AnnouncementSent(self.address, sent + 1))
                if sent + 1 < ANNOUNCE_NUM:
                    self.state = Announcing(sent + 1, now + ANNOUNCE_INTERVAL, guard)
                else:
                    self._go(Trigger.ANNOUNCED, Bound(guard))
            case _:
                raise CoreMisuse(f"sent() in {type(self.state).__name__}")

    def refused(self, now: float) -> None:
        """Offer the packet again after a pause, SEND_RETRY to SEND_RETRY_MAX: the kernel did not take it."""
        again = now + self._retry
        self._retry = min(2 * self._retry, SEND_RETRY_MAX)
        match self.state:
            case (
                Announcing(guard=Guard(owed=Owed() as owed) as guard)
                | Bound(guard=Guard(owed=Owed() as owed) as guard)
            ):
                guard = replace(guard, owed=replace(owed, next_at=again))
                self.state = replace(self.state, guard=guard)
            case Probing() | Announcing():
                self.state = replace(self.state, next_at=again)
            case _:
                raise CoreMisuse(f"refused() in {type(self.state).__name__}")

    def next_event(self) -> Event | None:
        """Return the oldest event that was not taken yet; None: there is none."""
        return self._events.popleft() if self._events else None

    # --- for the filter and the reflex -------------------------------------------------------

    @property
    def listen(self) -> Listen:
        """Which frames can matter in this state."""
        match self.state:
            case Ended():
                return Listen.NOTHING
            case Announcing() | Bound():
                return Listen.DEFEND
            case _:
                return Listen.PROBE

    @property
    def reflex(self) -> ArpPacket | None:
        """The answer to a conflict that came now; None: there would be none."""
        match self.state:
            case Announcing(guard=guard) | Bound(guard=guard):
                may = self._defence is Defence.ONCE and guard.ready_at is None
                return announcement(self._mac, self.address) if may else None
            case _:
                return None

    # --- inside ------------------------------------------------------------------------------

    def _draw(self, low: float, high: float) -> float:
        """Draw a pause between the bounds; it ends the slack short of `high` (see Timing.slack)."""
        return low + self._jitter.random() * max(high - self._timing.slack - low, 0.0)

    def _go(self, trigger: Trigger, state: State) -> None:
        """Leave the state for another one. Nothing else does."""
        if TRANSITIONS.get((type(self.state), trigger)) is not type(state):
            raise CoreMisuse(f"{type(self.state).__name__} cannot be left by {trigger.name}")
        self.state = state
