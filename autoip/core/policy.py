"""Whether an interface should have a link-local address now: RFC 3927 section 1.9, and the user's choice.

`alongside`: always. `fallback`: while the interface has no routable address:

    Waiting -> (no routable address for `after`, or DHCP has failed) Wanted -> (one comes) Lingering for `linger`
            -> Draining, while connections use the link-local address -> Superseded
    Superseded -> (the routable address goes) Waiting
    Lingering, Draining -> (the routable address goes) Wanted, and nothing was given up
    Lingering, Draining -> (another host has the link-local address now) Superseded

A link that flaps, a machine that slept, and a user's `refresh` take the address off until it has been probed again. The
connections that use it survive that, so the policy remembers the address, and wants it back beside a routable one.

`route-only`: never; link-local destinations are reached from the routable address.

Others can forbid an address by closing a gate: the interface's master, and a network manager that must not
see a foreign address yet. Sans-IO as `acd` is: the time is an argument, and `next_timer` returns when to call.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from typing import TypeAlias

CONNECTIONS_INTERVAL = 5.0
"""Seconds between two looks for connections, once the linger is over."""


class Kind(Enum):
    """The user's choice. Values are what people write."""

    ALONGSIDE = "alongside"
    FALLBACK = "fallback"
    ROUTE_ONLY = "route-only"


class Gate(Enum):
    """What can forbid an address. Where several do, the reason of the first one is reported."""

    MASTER = "the interface is a port of another one"
    MANAGER = "a network manager"


@dataclass(frozen=True, slots=True)
class Waiting:
    """No routable address: one may still come until `until`; None: the link is not ready."""

    until: float | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The interface should have a link-local address."""


@dataclass(frozen=True, slots=True)
class Lingering:
    """A routable address has come; what uses the link-local one has until `until` to end."""

    until: float


@dataclass(frozen=True, slots=True)
class Draining:
    """The address stays while connections use it; the next look for them is at `look_at`."""

    look_at: float


@dataclass(frozen=True, slots=True)
class Superseded:
    """The routable address suffices."""


State: TypeAlias = Waiting | Wanted | Lingering | Draining | Superseded


@dataclass(frozen=True, slots=True)
class Kept:
    """What a `Policy` hands over to the one that goes on for it."""

    kind: Kind
    state: State
    routable: IPv4Address | None
    link: bool
    closed: tuple[tuple[Gate, str], ...]
    used: IPv4Address | None = None


class Policy:
    """The decision for one interface.

    Args:
        kind: the user's choice.
        after: seconds without a routable address before one is claimed.
        linger: seconds for which the link-local address stays beside a new routable one.
    """

    def __init__(self, kind: Kind, after: float, linger: float) -> None:
        self.kind = kind
        self.routable: IPv4Address | None = None
        """The interface's routable address, the first if there are several."""
        self.used: IPv4Address | None = None
        """The link-local address that connections may use: held, or held before it had to be probed again."""
        # With ROUTE_ONLY it never changes.
        self.state: State = Wanted() if kind is Kind.ALONGSIDE else Waiting(None)
        self._after = after
        self._linger = linger
        self._link = False
        self._closed: dict[Gate, str] = {}  # the gates that are closed, and why

    # --- what the caller reports -------------------------------------------------------------

    def link(self, ready: bool, now: float) -> None:
        """Take in whether the link can carry frames.

        Without a link no DHCP server could have answered, so `after` starts with the link. What has
        been decided stays: a link that returns in a moment has the same servers.
        """
        if ready != self._link:
            self._link = ready
            if self.kind is Kind.FALLBACK and isinstance(self.state, Waiting):
                self._wait(now)

    def negotiated(self, candidate: IPv4Address | None, *, held: bool) -> None:
        """Take in the link-local address that is probed for or held; another one than before: that one was lost."""
        if held and not isinstance(self.state, Waiting | Superseded):
            self.used = candidate
        elif candidate is not None and candidate != self.used:
            self.used = None
            if self.yields:
                self.state = Superseded()

    def addressed(self, routable: IPv4Address | None, now: float) -> None:
        """Take in the routable address of the interface (any, if there are several), or that it has none."""
        self.routable = routable
        if self.kind is not Kind.FALLBACK:
            return
        match self.state:
            case Waiting() if routable is not None:
                self.state = Superseded()
            case Wanted() if routable is not None:
                self.state = Superseded() if self.used is None else Lingering(now + self._linger)
            case Lingering() | Draining() if routable is None:
                self.state = Wanted()
            case Superseded() if routable is None:
                self._wait(now)

    def permit(self, gate: Gate, allowed: bool, why: str) -> None:
        """Open or close a gate; `why` is the reason for closing it, in words."""
        self._closed.pop(gate, None)
        if not allowed:
            self._closed[gate] = why

    def failed(self) -> None:
        """Take in that DHCP has failed: there is nothing to wait for until `after` is over."""
        if isinstance(self.state, Waiting) and self.state.until is not None:
            self.state = Wanted()

    def connections(self, used: bool, now: float) -> None:
        """Take in the answer to `asks`: whether connections have the address `used`."""
        if isinstance(self.state, Draining):
            self.state = Draining(now + CONNECTIONS_INTERVAL) if used else Superseded()
            self.used = self.used if used else None

    # --- from one program to the next --------------------------------------------------------

    def keep(self) -> Kept:
        """Return what `resume` takes."""
        closed = tuple(self._closed.items())
        return Kept(self.kind, self.state, self.routable, self._link, closed, self.used)

    def resume(self, kept: Kept, now: float) -> None:
        """Go on where another one was; with another kind decide anew, by what that one knew."""
        self._closed = dict(kept.closed)
        if self.kind is kept.kind:
            self.state, self.routable, self._link = kept.state, kept.routable, kept.link
            self.used = kept.used
        else:
            self.link(kept.link, now)
            self.addressed(kept.routable, now)

    # --- time --------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """Return when to call `handle_timer` next; None: not before something happens."""
        match self.state:
            case Waiting(until=at) | Lingering(until=at) | Draining(look_at=at):
                return at
            case _:
                return None

    def handle_timer(self, now: float) -> None:
        """Do what is due. Harmless when called early."""
        match self.state:
            case Waiting(until=at) if at is not None and now >= at:
                self.state = Wanted()
            case Lingering(until=at) if now >= at:
                self.state = Draining(now)

    # --- what follows ------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether the interface should have a link-local address."""
        return not self._closed and not isinstance(self.state, Waiting | Superseded)

    @property
    def yields(self) -> bool:
        """Whether new connections of this host must not use the link-local address."""
        return isinstance(self.state, Lingering | Draining)

    @property
    def source(self) -> IPv4Address | None:
        """The routable address from which to reach link-local destinations, if any."""
        if Gate.MASTER in self._closed:
            return None
        return self.routable if self.yields or self.kind is Kind.ROUTE_ONLY else None

    def asks(self, now: float) -> bool:
        """Whether the caller must look for connections now, and call `connections`."""
        return isinstance(self.state, Draining) and now >= self.state.look_at

    @property
    def step(self) -> str:
        """What is done at `next_timer`, in words; empty if nothing."""
        match self.state:
            case Waiting(until=at) if at is not None:
                return "claim"
            case Lingering():
                return "release"
            case Draining():
                return "look for connections"
            case _:
                return ""

    @property
    def why(self) -> str:
        """Why an address is wanted, or not, in words."""
        for gate in Gate:
            if gate in self._closed:
                return self._closed[gate]
        if self.kind is Kind.ROUTE_ONLY:
            return f"only a route, from {self.routable or 'a routable address, once there is one'}"
        match self.state:
            case Waiting(until=None):
                return "waits for the link"
            case Waiting():
                return f"waits {self._after:g} s for a routable address"
            case Superseded():
                return f"the interface has {self.routable}"
            case Lingering():
                return f"the interface has {self.routable}; ours stays {self._linger:g} s longer"
            case Draining():
                return f"the interface has {self.routable}; connections use ours"
            case Wanted():
                return "wanted" if self.kind is Kind.ALONGSIDE else "no routable address"

    # --- inside ------------------------------------------------------------------------------

    def _wait(self, now: float) -> None:
        if not self._link:
            self.state = Waiting(None)
        elif self._after > 0:
            self.state = Waiting(now + self._after)
        else:
            self.state = Wanted()
