"""RFC 3927: which link-local address an interface has, from one candidate to the next.

`Ipv4ll` is sans-IO like `acd`, whose calling contract it keeps, and owns one `Acd` at a time:

    link_up -> candidate -> Acd probes -> Configure -> (caller adds it) configured ->
    Acd announces and defends -> conflict: Unconfigure, next candidate
                              -> link_down, stand_by: Unconfigure, the same address first next time

The random sources are arguments: `addresses`, seeded from the hardware address, draws the
candidates, so that a host finds the same address again (section 2.1); `jitter` the pauses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from random import Random
from typing import TypeAlias

from autoip.core import acd
from autoip.core.acd import Acd, Defence, Listen
from autoip.core.arp import ArpPacket, format_mac
from autoip.core.constants import (
    ANNOUNCE_NUM,
    CONFIGURE_RETRY,
    DEFEND_INTERVAL,
    FIRST_CANDIDATE,
    LAST_CANDIDATE,
    MAX_CONFLICTS,
    PROBE_NUM,
    RATE_LIMIT_INTERVAL,
    Timing,
    is_candidate,
)
from autoip.errors import CoreMisuse

_CANDIDATES = int(LAST_CANDIDATE) - int(FIRST_CANDIDATE) + 1
_DRAWS = 1000
"""Draws before an address that is merely to be avoided is accepted: the loop must end."""


def draw_candidate(addresses: Random) -> IPv4Address:
    """A candidate, uniform over all that `is_candidate` allows (section 2.1).

    Only `Random.random` is used, whose sequence for a seed is the same in every Python.
    """
    while True:
        candidate = FIRST_CANDIDATE + int(addresses.random() * _CANDIDATES)
        if is_candidate(candidate):
            return candidate


class State(Enum):
    """Where an interface stands.  Values are what people and scripts read."""

    NO_LINK = "no-link"
    STANDBY = "standby"
    PAUSED = "paused"
    RATE_LIMITED = "rate-limited"
    PROBING = "probing"
    ANNOUNCE_WAIT = "announce-wait"
    CONFIGURING = "configuring"
    ANNOUNCING = "announcing"
    BOUND = "bound"


ACD_STATES: Mapping[type[acd.State], State] = {
    acd.Probing: State.PROBING,
    acd.AnnounceWait: State.ANNOUNCE_WAIT,
    acd.Configuring: State.CONFIGURING,
    acd.Announcing: State.ANNOUNCING,
    acd.Bound: State.BOUND,
}
"""What the interface's state is called while its `Acd` is in one of these."""


class Cause(Enum):
    """Why a state is left, other than by a step of the `Acd` itself."""

    LINK_READY = "link is ready"
    LINK_LOST = "link is lost"
    NOT_WANTED = "no address is wanted now"
    CONFLICT = "conflict"
    REMOVED = "address was removed by somebody else"
    ELSEWHERE = "address is on another interface of this host"
    REFUSED = "kernel refused the address"
    PAUSE_OVER = "pause is over"


HELD = frozenset({State.ANNOUNCING, State.BOUND})
"""The states in which an address is held."""

_CANDIDATE = frozenset(ACD_STATES.values())  # a candidate is probed for or held
_WAIT = frozenset({State.PAUSED, State.RATE_LIMITED})
_IDLE = frozenset({State.NO_LINK, State.STANDBY})
_NEXT = frozenset({State.PROBING, State.RATE_LIMITED})

TRANSITIONS: Mapping[Cause, tuple[frozenset[State], frozenset[State]]] = {
    Cause.LINK_READY: (_IDLE, _NEXT),
    Cause.LINK_LOST: (_CANDIDATE | _WAIT | {State.STANDBY}, frozenset({State.NO_LINK})),
    Cause.NOT_WANTED: (_CANDIDATE | _WAIT | {State.NO_LINK}, frozenset({State.STANDBY})),
    Cause.CONFLICT: (_CANDIDATE, _NEXT),
    Cause.REMOVED: (
        HELD,
        _NEXT | {State.CONFIGURING},
    ),
    Cause.ELSEWHERE: (frozenset({State.CONFIGURING, State.ANNOUNCING, State.BOUND}), _NEXT),
    Cause.REFUSED: (frozenset({State.CONFIGURING}), frozenset({State.PAUSED})),
    Cause.PAUSE_OVER: (_WAIT, frozenset({State.PROBING})),
}
"""The states from which, and to which, each cause leads."""

ACD_STEPS: Mapping[tuple[State, State], acd.Trigger] = {
    (ACD_STATES[old], ACD_STATES[new]): trigger
    for (old, trigger), new in acd.TRANSITIONS.items()
    if new in ACD_STATES and trigger is not acd.Trigger.REMOVED
}
"""The steps that the `Acd` takes by itself, as states of the interface."""


# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transition:
    """The state changed.

    Attributes:
        old, new: the states.
        why: what brought it about, in words.
        address: the candidate or address that `new` is about; None if it is about none.
        step: what comes next, in words; empty if nothing is to be done.
        step_at: when it is due; None if nothing is to be done.
        lost: an address that was held is lost, and nobody asked for that.
    """

    old: State
    new: State
    why: str
    address: IPv4Address | None
    step: str
    step_at: float | None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Configure:
    """Put the address on the interface, then call `configured` or `configure_failed`."""

    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Unconfigure:
    """Take the address off the interface, at once.

    Attributes:
        conflict: it was lost to another host, so connections from it are dead.
    """

    address: IPv4Address
    conflict: bool


@dataclass(frozen=True, slots=True)
class Claimed:
    """The address is in use and its first announcement is on the wire."""

    address: IPv4Address


Event: TypeAlias = (
    Transition
    | Configure
    | Unconfigure
    | Claimed
    | acd.ProbeSent
    | acd.AnnouncementSent
    | acd.Conflict
    | acd.Defended
)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """No candidate before `until`."""

    state: State
    until: float


@dataclass(frozen=True, slots=True)
class Kept:
    """What an `Ipv4ll` hands over to the one that goes on for it, times included.

    Attributes:
        drawn: how many candidates were drawn from the random source.
        candidate, acd: the current one, and the state of its `Acd`; None: there is no candidate.
    """

    idle: State
    reported: tuple[State, IPv4Address | None]
    conflicts: int = 0
    drawn: int = 0
    candidate: IPv4Address | None = None
    acd: acd.State | None = None
    waiting: _Waiting | None = None
    next_candidate: IPv4Address | None = None
    lost: tuple[IPv4Address, ...] = ()
    not_before: float | None = None
    removals: int = 0
    held_since: float | None = None


class Ipv4ll:
    """The link-local address of one interface with one hardware address.

    Args:
        mac: hardware address, 6 bytes.
        timing: the times of the probe phase.
        addresses: random source of the candidates.
        jitter: random source of the pauses.
        defence: what to do about a conflict in use.
        first: first candidate; after a conflict random ones follow.
        avoid: tells whether this host has the address elsewhere, so that it is no candidate.
        sibling: whether a hardware address is another interface's of this host; see `Acd`.
    """

    def __init__(
        self,
        mac: bytes,
        timing: Timing,
        addresses: Random,
        jitter: Random,
        *,
        defence: Defence = Defence.ONCE,
        first: IPv4Address | None = None,
        avoid: Callable[[IPv4Address], bool] = lambda _: False,
        sibling: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        self.mac = mac
        self.conflicts = 0  # since the last successful claim
        self._drawn = 0  # candidates, from `addresses`
        self._timing = timing
        self._addresses = addresses
        self._jitter = jitter
        self._defence = defence
        self._avoid = avoid
        self._sibling = sibling
        self._next_candidate = first
        self._lost: deque[IPv4Address] = deque(maxlen=MAX_CONFLICTS)
        self._acd: Acd | None = None
        self._waiting: _Waiting | None = None
        self._idle = State.NO_LINK  # why there is neither a candidate nor a pause
        self._not_before: float | None = None  # set by the rate limit, outlives the link
        self._removals = 0
        self._held_since: float | None = None  # when the address was put on the interface
        self._events: deque[Event] = deque()
        self._reported: tuple[State, IPv4Address | None] = (State.NO_LINK, None)

    # --- what it is about --------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where the interface stands."""
        if self._acd is not None:
            return ACD_STATES[type(self._acd.state)]
        return self._waiting.state if self._waiting is not None else self._idle

    @property
    def candidate(self) -> IPv4Address | None:
        """The address that is probed for or held."""
        return self._acd.address if self._acd is not None else None

    @property
    def address(self) -> IPv4Address | None:
        """The address that is held: claimed, and on the interface."""
        return self.candidate if self._held_since is not None else None

    @property
    def remembered(self) -> IPv4Address | None:
        """What the next start would try first."""
        return self._next_candidate or self.candidate

    @property
    def step(self) -> str:
        """What is done at `next_timer`, in words; empty if nothing that shows."""
        if self._waiting is not None:
            return "next candidate"
        match self._acd and self._acd.state:
            case acd.Probing(sent=sent):
                return f"probe {sent + 1}/{PROBE_NUM}"
            case acd.AnnounceWait():
                return "claim"
            case acd.Announcing(sent=sent):
                return f"announcement {sent + 1}/{ANNOUNCE_NUM}"
            case _:
                return ""

    # --- what the caller tells ---------------------------------------------------------------

    def link_up(self, now: float, why: str = "link is ready") -> None:
        """The interface can send and receive, and is to have an address: look for one."""
        if self.state not in _IDLE:
            raise CoreMisuse(f"link_up() in {self.state.name}")
        if self._not_before is not None and now < self._not_before:
            self._waiting = _Waiting(State.RATE_LIMITED, self._not_before)
        else:
            self._try_candidate(now)
        self._report(why, Cause.LINK_READY)

    def link_down(self, why: str = "link is lost", *, asked: bool = False) -> None:
        """The link is no longer the one that was probed: section 2.2.  Harmless when repeated.

        Args:
            why: in words.
            asked: it is to be probed again, or to end, by somebody's wish.
        """
        self._leave(State.NO_LINK, why, Cause.LINK_LOST, asked=asked)

    def stand_by(self, why: str = Cause.NOT_WANTED.value) -> None:
        """No address is wanted until `link_up`: section 1.9.  Harmless when repeated."""
        self._leave(State.STANDBY, why, Cause.NOT_WANTED, asked=True)

    def removed(self, now: float) -> None:
        """Somebody else took our address off the interface: put it there again, at once.

        Some DHCP clients do so when they get a lease.  Whoever does it again and again is not fought
        at full speed: if the removal before was within DEFEND_INTERVAL as well, the address is probed
        first; after MAX_CONFLICTS removals in a row the rate limit sets in.
        """
        if self._acd is None or self._held_since is None:
            return
        self._removals = self._removals + 1 if now - self._held_since < DEFEND_INTERVAL else 1
        address = self._acd.address
        self._held_since = None  # nothing is left to take off
        if self._removals == 1:
            self._acd.removed()
        else:
            self._next_candidate = address
            self._drop(conflict=False)
            self._try_unless(self._removals >= MAX_CONFLICTS, now)
        self._report(Cause.REMOVED.value, Cause.REMOVED)
        if self.state is State.CONFIGURING:
            self._events.append(Configure(address))

    def elsewhere(self, address: IPv4Address, now: float) -> None:
        """The address of a `Configure`, or the one held, is on another interface of this host.

        Like a conflict: section 3.4 wants different addresses where both are on one link, and that
        cannot be known.  The connections from it may be the other interface's.
        """
        if self.candidate != address or self.state not in TRANSITIONS[Cause.ELSEWHERE][0]:
            return
        self._take_next(address, now, conflict=False)
        self._report(Cause.ELSEWHERE.value, Cause.ELSEWHERE)

    def configured(self, address: IPv4Address, now: float) -> None:
        """The address of a `Configure` is on the interface."""
        if self._acd is None or self._acd.address != address or self.state is not State.CONFIGURING:
            # A conflict, or the loss of the link, was faster.
            self._events.append(Unconfigure(address, conflict=False))
            return
        self._acd.announce(now)
        self._held_since = now
        self.conflicts = 0
        self._report("address is on the interface")

    def configure_failed(self, address: IPv4Address, now: float, why: str) -> None:
        """The kernel refused the address of a `Configure`: try again after a pause."""
        if self._acd is None or self._acd.address != address or self.state is not State.CONFIGURING:
            return
        self._next_candidate = address
        self._acd = None
        self._waiting = _Waiting(State.PAUSED, now + CONFIGURE_RETRY)
        self._report(why, Cause.REFUSED)

    def receive(self, packet: ArpPacket, at: float, defended_at: float | None = None) -> None:
        """Judge a packet; the arguments are those of `Acd.receive`."""
        if self._acd is not None:
            self._acd.receive(packet, at, defended_at)
            self._take_events(at)

    def next_timer(self) -> float | None:
        """When `handle_timer` and `to_send` are to be called next."""
        if self._acd is not None:
            return self._acd.next_timer()
        return self._waiting.until if self._waiting is not None else None

    def handle_timer(self, now: float) -> None:
        """Do what the passing of time brings about.  Harmless when called early."""
        if self._acd is not None:
            self._acd.handle_timer(now)
            self._take_events(now)
        elif self._waiting is not None and now >= self._waiting.until:
            self._try_candidate(now)
            self._report(Cause.PAUSE_OVER.value, Cause.PAUSE_OVER)

    def to_send(self, now: float) -> ArpPacket | None:
        """The packet that is due.  Offer it to the kernel, then say `sent` or `refused`."""
        return self._acd.to_send(now) if self._acd is not None else None

    def sent(self, now: float) -> None:
        """The kernel took the packet that `to_send` gave; see `Acd.sent`."""
        self._current().sent(now)
        self._take_events(now)

    def refused(self, now: float) -> None:
        """The kernel did not take the packet that `to_send` gave."""
        self._current().refused(now)

    def next_event(self) -> Event | None:
        """The oldest event not yet taken."""
        return self._events.popleft() if self._events else None

    # --- from one program to the next --------------------------------------------------------

    def keep(self) -> Kept:
        """Return what `resume` takes. All events must have been taken."""
        return Kept(
            idle=self._idle,
            reported=self._reported,
            conflicts=self.conflicts,
            drawn=self._drawn,
            candidate=self.candidate,
            acd=self._acd.state if self._acd is not None else None,
            waiting=self._waiting,
            next_candidate=self._next_candidate,
            lost=tuple(self._lost),
            not_before=self._not_before,
            removals=self._removals,
            held_since=self._held_since,
        )

    def resume(self, kept: Kept, first: IPv4Address | None = None) -> None:
        """Go on where another one was, with the arguments of this one.

        Args:
            kept: of the other one.
            first: candidate of the next claim, if that is another one than the other had to try.
        """
        while self._drawn < kept.drawn:
            self._draw_one()
        if kept.candidate is not None and kept.acd is not None:
            self._acd = self._new_acd(kept.candidate, 0.0, kept.acd)
        self.conflicts = kept.conflicts
        self._idle = kept.idle
        self._reported = kept.reported
        self._waiting = kept.waiting
        self._next_candidate = first or kept.next_candidate
        self._lost.extend(kept.lost)
        self._not_before = kept.not_before
        self._removals = kept.removals
        self._held_since = kept.held_since

    # --- for the filter and the reflex -------------------------------------------------------

    @property
    def listen(self) -> Listen:
        """Which frames can matter now."""
        return self._acd.listen if self._acd is not None else Listen.NOTHING

    @property
    def reflex(self) -> ArpPacket | None:
        """What a conflict that came now would be answered with; see `Acd.reflex`."""
        return self._acd.reflex if self._acd is not None else None

    # --- inside ------------------------------------------------------------------------------

    def _current(self) -> Acd:
        if self._acd is None:
            raise CoreMisuse("no packet was to be sent")
        return self._acd

    def _take_events(self, now: float) -> None:
        """Pass on what the Acd says, and do what follows from it."""
        while self._acd is not None and (event := self._acd.next_event()) is not None:
            match event:
                case acd.ProbeSucceeded():
                    self._report("nobody objected")
                    self._events.append(Configure(event.address))
                case acd.Conflict():
                    self._events.append(event)
                    self._after_conflict(event, now)
                case acd.AnnouncementSent(number=1):
                    self._events.append(event)
                    self._events.append(Claimed(event.address))
                case _:
                    self._events.append(event)
        if self.state is State.ANNOUNCE_WAIT:
            self._report(f"{PROBE_NUM} probes sent")
        elif self.state is State.BOUND:
            self._report(f"{ANNOUNCE_NUM} announcements sent")

    def _after_conflict(self, conflict: acd.Conflict, now: float) -> None:
        """Take the next candidate: at once, or when the rate limit of section 2.2.1 allows it."""
        self._take_next(conflict.address, now, conflict=True)
        verb = "claims" if conflict.packet.spa == conflict.address else "probes for"
        why = f"conflict: {format_mac(conflict.packet.sha)} {verb} {conflict.address}"
        self._report(why, Cause.CONFLICT)

    def _take_next(self, lost: IPv4Address, now: float, *, conflict: bool) -> None:
        self.conflicts += 1
        self._lost.append(lost)
        self._drop(conflict=conflict)
        self._try_unless(self.conflicts >= MAX_CONFLICTS, now)

    def _leave(self, idle: State, why: str, cause: Cause, *, asked: bool) -> None:
        if self.state is idle:
            return
        self._next_candidate = self.remembered
        self._drop(conflict=False)
        self._idle = idle
        self._report(why, cause, asked=asked)

    def _drop(self, *, conflict: bool) -> None:
        """Leave the current candidate or pause; take its address off if it is on."""
        if self._acd is not None and self._held_since is not None:
            self._events.append(Unconfigure(self._acd.address, conflict))
        self._acd = None
        self._waiting = None
        self._held_since = None

    def _try_unless(self, limited: bool, now: float) -> None:
        if limited:
            self._not_before = now + RATE_LIMIT_INTERVAL
            self._waiting = _Waiting(State.RATE_LIMITED, self._not_before)
        else:
            self._try_candidate(now)

    def _try_candidate(self, now: float) -> None:
        candidate = self._next_candidate
        if candidate is None or not is_candidate(candidate) or self._avoid(candidate):
            candidate = self._draw()
        self._next_candidate = None
        self._waiting = None
        self._acd = self._new_acd(candidate, now)

    def _new_acd(self, candidate: IPv4Address, now: float, state: acd.State | None = None) -> Acd:
        parts = (self.mac, self._timing, self._jitter, now, self._defence, self._sibling)
        return Acd(candidate, *parts, state)

    def _draw(self) -> IPv4Address:
        candidate = self._draw_one()
        for _ in range(_DRAWS):
            if candidate not in self._lost and not self._avoid(candidate):
                break
            candidate = self._draw_one()
        return candidate

    def _draw_one(self) -> IPv4Address:
        self._drawn += 1
        return draw_candidate(self._addresses)

    def _report(self, why: str, cause: Cause | None = None, *, asked: bool = False) -> None:
        """Say that the state or the candidate changed; the one maker of a `Transition`.

        Args:
            why: in words.
            cause: None for a step of the `Acd`.
            asked: the loss of an address that was held was somebody's wish.
        """
        old, candidate = self._reported
        new = self.state
        if (new, self.candidate) == (old, candidate):
            return
        if cause is None:
            known = (old, new) in ACD_STEPS
        else:
            sources, targets = TRANSITIONS[cause]
            known = old in sources and new in targets
        if not known:
            raise CoreMisuse(f"{old.name} cannot be left for {new.name} by {cause}")
        step = self.step
        at = self.next_timer() if step else None
        lost = old in HELD and new not in HELD and not asked
        self._events.append(Transition(old, new, why, self.candidate, step, at, lost))
        self._reported = (new, self.candidate)
