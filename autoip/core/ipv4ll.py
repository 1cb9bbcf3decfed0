"""RFC 3927: which link-local address an interface has, from one candidate to the next.

`Ipv4ll` is sans-IO like `acd`, whose calling contract it keeps, and owns one `Acd` at a time:

    link_up -> candidate -> Acd probes -> Configure -> (caller adds it) configured ->
    Acd announces and defends -> conflict: Unconfigure, next candidate
                              -> link_down, stand_by: Unconfigure, the same address first next time

The random sources are arguments: `addresses`, seeded from the hardware address, for the candidates,
so that a host finds the same address again (section 2.1); `jitter` for the pauses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address
from random import Random
from typing import TypeAlias

from autoip.core import acd, candidates
from autoip.core.acd import Acd, Defence, Listen
from autoip.core.arp import ArpPacket
from autoip.core.candidates import ALL, Candidates, Pool
from autoip.core.constants import (
    ANNOUNCE_NUM,
    CONFIGURE_RETRY,
    DEFEND_INTERVAL,
    MAX_CONFLICTS,
    PROBE_NUM,
    QUIET_INTERVAL,
    RATE_LIMIT_INTERVAL,
    Timing,
)
from autoip.errors import CoreMisuse


class State(Enum):
    """Where an interface stands. Values are what people and scripts read."""

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
"""The name of the interface's state for each state of its `Acd`."""


class Cause(Enum):
    """Why a state is left, other than by a step of the `Acd` itself."""

    LINK_READY = "link is ready"
    LINK_LOST = "link is lost"
    NOT_WANTED = "no address is wanted now"
    CONFLICT = "conflict"
    REMOVED = "address was removed by somebody else"
    ON_SIBLING = "address is on another interface of this host"
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
    Cause.REMOVED: (HELD, _NEXT | {State.CONFIGURING}),
    Cause.ON_SIBLING: (HELD | {State.CONFIGURING}, _NEXT),
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


def allowed(old: State, new: State, cause: Cause | None) -> bool:
    """Return whether the cause, or the `Acd` itself (None), leads from one state to the other."""
    if cause is None:
        return (old, new) in ACD_STEPS
    sources, targets = TRANSITIONS[cause]
    return old in sources and new in targets


# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transition:
    """The state changed.

    Attributes:
        old, new: the states.
        why: what brought it about, in words.
        address: the candidate or address that `new` is about; None: about none.
        step: what comes next, in words; empty: nothing.
        step_at: when that is due; None: nothing is.
        lost: an address that was held is lost, and nobody asked for that.
    """

    old: State
    new: State
    why: str
    address: IPv4Address | None
    step: str
    step_at: float | None
    lost: bool


@dataclass(frozen=True, slots=True)
class Configure:
    """Put the address on the interface, then call `configured` or `configure_failed`."""

    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Unconfigure:
    """Remove the address from the interface, at once.

    Attributes:
        conflict: the address was lost to another host, so connections from it are dead.
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


@dataclass(slots=True)
class Conflicts:
    """The addresses lost, with less than QUIET_INTERVAL between any two conflicts.

    Attributes:
        count: of them.
        last: when the last conflict came; the address may have been defended.
    """

    count: int = 0
    last: float | None = None

    def happened(self, now: float) -> None:
        """Forget all before this conflict if there was a quiet time."""
        if self.last is not None and now - self.last >= QUIET_INTERVAL:
            self.count = 0
        self.last = now


@dataclass(frozen=True, slots=True)
class Kept:
    """What an `Ipv4ll` hands over to the one that goes on for it, times included.

    Attributes:
        candidate, acd: the current one, and the state of its `Acd`; None: there is no candidate.
    """

    idle: State
    reported: tuple[State, IPv4Address | None]
    conflicts: int = 0
    last_conflict: float | None = None
    candidates: candidates.Kept = field(default_factory=candidates.Kept)
    candidate: IPv4Address | None = None
    acd: acd.State | None = None
    waiting: _Waiting | None = None
    not_before: float | None = None
    removals: int = 0
    held_since: float | None = None


class _Resumable:
    """The part of `Ipv4ll` that is for a reload. Its fields are those of `Ipv4ll`."""

    conflicts: Conflicts
    _acd: Acd | None
    _candidates: Candidates
    _held_since: float | None
    _idle: State
    _new_acd: Callable[..., Acd]
    _not_before: float | None
    _removals: int
    _reported: tuple[State, IPv4Address | None]
    _waiting: _Waiting | None

    def keep(self) -> Kept:
        """Return what `resume` takes. All events must have been taken."""
        return Kept(
            idle=self._idle,
            reported=self._reported,
            conflicts=self.conflicts.count,
            last_conflict=self.conflicts.last,
            candidates=self._candidates.keep(),
            candidate=self._acd.address if self._acd is not None else None,
            acd=self._acd.state if self._acd is not None else None,
            waiting=self._waiting,
            not_before=self._not_before,
            removals=self._removals,
            held_since=self._held_since,
        )

    def resume(self, kept: Kept, first: Sequence[IPv4Address] = ()) -> None:
        """Go on where another one was, with the arguments of this one.

        Args:
            kept: of the other one.
            first: the first candidates of the next claim, if they are others than the other had to try.
        """
        self._candidates.resume(kept.candidates)
        if first:
            self._candidates.begin(first)
        if kept.candidate is not None and kept.acd is not None:
            self._acd = self._new_acd(kept.candidate, 0.0, kept.acd)
        self.conflicts = Conflicts(kept.conflicts, kept.last_conflict)
        self._idle = kept.idle
        self._reported = kept.reported
        self._waiting = kept.waiting
        self._not_before = kept.not_before
        self._removals = kept.removals
        self._held_since = kept.held_since


class Ipv4ll(_Resumable):
    """The link-local address of one interface with one hardware address.

    Args:
        mac: hardware address, 6 bytes.
        timing: the times of the probe phase.
        addresses: random source of the candidates.
        jitter: random source of the pauses.
        defence: what to do about a conflict in use.
        first: the first candidates, in order; after a conflict with the last random ones follow.
        pool: the addresses that may be candidates.
        avoid: whether a sibling has the address, so that it cannot be a candidate.
        sibling: whether a hardware address is that of a sibling; see `Acd`.
    """

    def __init__(
        self,
        mac: bytes,
        timing: Timing,
        addresses: Random,
        jitter: Random,
        *,
        defence: Defence = Defence.ONCE,
        first: Sequence[IPv4Address] = (),
        pool: Pool = ALL,
        avoid: Callable[[IPv4Address], bool] = lambda _: False,
        sibling: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        self.mac = mac
        self.conflicts = Conflicts()
        self._timing = timing
        self._jitter = jitter
        self._defence = defence
        self._sibling = sibling
        self._candidates = Candidates(addresses, avoid, first, pool)
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
        return self._candidates.preferred or self.candidate

    @property
    def step(self) -> str:
        """What is done at `next_timer`, in words; empty: nothing that a user notices."""
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

    # --- what the caller reports -------------------------------------------------------------

    def link_up(self, now: float, why: str = "link is ready") -> None:
        """Look for an address: the interface can send and receive, and should have one."""
        if self.state not in _IDLE:
            raise CoreMisuse(f"link_up() in {self.state.name}")
        if self._not_before is not None and now < self._not_before:
            self._waiting = _Waiting(State.RATE_LIMITED, self._not_before)
        else:
            self._try_candidate(now)
        self._report(why, Cause.LINK_READY)

    def link_down(self, why: str = "link is lost", *, asked: bool = False) -> None:
        """Give up candidate or address: the link may be another one (section 2.2). Harmless when repeated.

        Args:
            why: in words.
            asked: somebody asked for a new probe, or for the end.
        """
        self._leave(State.NO_LINK, why, Cause.LINK_LOST, asked=asked)

    def stand_by(self, why: str = Cause.NOT_WANTED.value) -> None:
        """Have no address until `link_up`: none is wanted (section 1.9). Harmless when repeated."""
        self._leave(State.STANDBY, why, Cause.NOT_WANTED, asked=True)

    def removed(self, now: float) -> None:
        """Have our address, which somebody else removed, put on the interface again at once.

        Some DHCP clients remove it when they get a lease. Repeated removals are not fought at full
        speed: if the removal before was within DEFEND_INTERVAL as well, the address is probed
        first; after MAX_CONFLICTS removals in a row the rate limit sets in.
        """
        if self._acd is None or self._held_since is None:
            return
        self._removals = self._removals + 1 if now - self._held_since < DEFEND_INTERVAL else 1
        address = self._acd.address
        self._held_since = None  # nothing is left to remove
        if self._removals == 1:
            self._acd.removed()
        else:
            self._candidates.preferred = address
            self._drop(conflict=False)
            self._try_unless(self._removals >= MAX_CONFLICTS, now)
        self._report(Cause.REMOVED.value, Cause.REMOVED)
        if self.state is State.CONFIGURING:
            self._events.append(Configure(address))

    def elsewhere(self, address: IPv4Address, now: float) -> None:
        """Take the next candidate: the address of a `Configure`, or the one held, is on a sibling.

        Like a conflict: section 3.4 demands different addresses where both are on one link, and
        that cannot be known. The connections from the address may be the sibling's.
        """
        if self.candidate != address or self.state not in TRANSITIONS[Cause.ON_SIBLING][0]:
            return
        self._take_next(address, now, conflict=False)
        self._report(Cause.ON_SIBLING.value, Cause.ON_SIBLING)

    def configured(self, address: IPv4Address, now: float) -> None:
        """Announce the address of a `Configure`, which is on the interface now."""
        if self._acd is None or self._acd.address != address or self.state is not State.CONFIGURING:
            # A conflict, or the loss of the link, was faster.
            self._events.append(Unconfigure(address, conflict=False))
            return
        self._acd.announce(now)
        self._held_since = now
        self._report("address is on the interface")

    def configure_failed(self, address: IPv4Address, now: float, why: str) -> None:
        """Pause before another attempt: the kernel refused the address of a `Configure`."""
        if self._acd is None or self._acd.address != address or self.state is not State.CONFIGURING:
            return
        self._candidates.preferred = address
        self._acd = None
        self._waiting = _Waiting(State.PAUSED, now + CONFIGURE_RETRY)
        self._report(why, Cause.REFUSED)

    def receive(self, packet: ArpPacket, at: float, defended_at: float | None = None) -> None:
        """Judge a packet; the arguments are those of `Acd.receive`."""
        if self._acd is not None:
            self._acd.receive(packet, at, defended_at)
            self._take_events(at)

    def next_timer(self) -> float | None:
        """Return when to call `handle_timer` and `to_send` next; None: not before something happens."""
        if self._acd is not None:
            return self._acd.next_timer()
        return self._waiting.until if self._waiting is not None else None

    def handle_timer(self, now: float) -> None:
        """Do what is due. Harmless when called early."""
        if self._acd is not None:
            self._acd.handle_timer(now)
            self._take_events(now)
        elif self._waiting is not None and now >= self._waiting.until:
            self._try_candidate(now)
            self._report(Cause.PAUSE_OVER.value, Cause.PAUSE_OVER)

    def to_send(self, now: float) -> ArpPacket | None:
        """Return the packet that is due. Offer it to the kernel, then call `sent` or `refused`."""
        return self._acd.to_send(now) if self._acd is not None else None

    def sent(self, now: float) -> None:
        """Count the packet that `to_send` returned; see `Acd.sent`."""
        self._current().sent(now)
        self._take_events(now)

    def refused(self, now: float) -> None:
        """Offer the packet again later; see `Acd.refused`."""
        self._current().refused(now)

    def next_event(self) -> Event | None:
        """Return the oldest event that was not taken yet; None: there is none."""
        return self._events.popleft() if self._events else None

    # --- for the filter and the reflex -------------------------------------------------------

    @property
    def listen(self) -> Listen:
        """Which frames can matter now."""
        return self._acd.listen if self._acd is not None else Listen.NOTHING

    @property
    def reflex(self) -> ArpPacket | None:
        """The answer to a conflict that came now; see `Acd.reflex`."""
        return self._acd.reflex if self._acd is not None else None

    # --- inside ------------------------------------------------------------------------------

    def _current(self) -> Acd:
        if self._acd is None:
            raise CoreMisuse("no packet was due")
        return self._acd

    def _take_events(self, now: float) -> None:
        """Pass the events of the Acd on, and do what follows from them."""
        while self._acd is not None and (event := self._acd.next_event()) is not None:
            match event:
                case acd.ProbeSucceeded():
                    self._report("nobody objected")
                    self._events.append(Configure(event.address))
                case acd.Conflict():
                    self._events.append(event)
                    self._after_conflict(event, now)
                case acd.Defended():
                    self._events.append(event)
                    self.conflicts.happened(now)
                case acd.AnnouncementSent(number=1):
                    self._events.extend((event, Claimed(event.address)))
                case _:
                    self._events.append(event)
        if self.state is State.ANNOUNCE_WAIT:
            self._report(f"{PROBE_NUM} probes sent")
        elif self.state is State.BOUND:
            self._report(f"{ANNOUNCE_NUM} announcements sent")

    def _after_conflict(self, conflict: acd.Conflict, now: float) -> None:
        """Take the next candidate: at once, or when the rate limit of section 2.2.1 allows it."""
        self._take_next(conflict.address, now, conflict=True)
        self._report(conflict.why, Cause.CONFLICT)

    def _take_next(self, lost: IPv4Address, now: float, *, conflict: bool) -> None:
        self.conflicts.happened(now)
        self.conflicts.count += 1
        self._candidates.lose(lost)
        self._drop(conflict=conflict)
        self._try_unless(self.conflicts.count >= MAX_CONFLICTS, now)

    def _leave(self, idle: State, why: str, cause: Cause, *, asked: bool) -> None:
        self._candidates.preferred = self.remembered
        self._drop(conflict=False)
        self._idle = idle
        self._report(why, cause, asked=asked)

    def _drop(self, *, conflict: bool) -> None:
        """Leave the current candidate or pause; have its address removed if it is held."""
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
        candidate = self._candidates.take()
        self._waiting = None
        self._acd = self._new_acd(candidate, now)

    def _new_acd(self, candidate: IPv4Address, now: float, state: acd.State | None = None) -> Acd:
        parts = (self.mac, self._timing, self._jitter, now, self._defence, self._sibling)
        return Acd(candidate, *parts, state)

    def _report(self, why: str, cause: Cause | None = None, *, asked: bool = False) -> None:
        """Make a `Transition`, which nothing else does, if the state or the candidate changed.

        Args:
            why: in words.
            cause: None for a step of the `Acd`.
            asked: somebody asked for the loss of an address that was held.
        """
        old, candidate = self._reported
        new = self.state
        if (new, self.candidate) == (old, candidate):
            return
        if not allowed(old, new, cause):
            raise CoreMisuse(f"{old.name} cannot be left for {new.name} by {cause}")
        step = self.step
        at = self.next_timer() if step else None
        lost = old in HELD and new not in HELD and not asked
        self._events.append(Transition(old, new, why, self.candidate, step, at, lost))
        self._reported = (new, self.candidate)
