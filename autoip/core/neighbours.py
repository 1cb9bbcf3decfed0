"""On which of several links each link-local neighbour is.

Several links of a host may lead to 169.254/16, and the kernel looks up one of them. `Neighbours` learns from the ARP of
all links, and decides which neighbour gets a route by which link, without a clock, input or output: it takes the
time as an argument, and returns what must be done.

A neighbour keeps its route for as long as it answers on its link, whatever comes on other links, and however many
strangers are on its own. Before a neighbour moves to another link, or leaves its place in a full table to a new one,
its link is asked for it. Silence counts only if no frame of the link was lost meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import final

LINK_MAX = 256
"""Neighbours of one link."""
CHECK_NUM = 3
"""So many requests without an answer show that a neighbour is gone..."""
CHECK_INTERVAL = 0.4
"""...and so many seconds are between them, and after the last one."""
ASK_INTERVAL = 1.0
"""Seconds between two questions, or two checks, about one address."""
QUESTIONS_MAX = 16
"""Checks in one second for which the frames of one link are the reason, and as many questions about unknown
destinations, for which this host's own programs are."""


@dataclass(slots=True)
class Neighbour:
    """A host on a link.

    Attributes:
        address: its link-local address.
        link: number of the interface.
        mac: its hardware address; None: its route is there, its ARP has not been seen yet.
        rival: the same address on another link, which has no route.
        checked: when its link was asked for it last.
    """

    address: IPv4Address
    link: int
    mac: bytes | None
    rival: Neighbour | None = None
    checked: float | None = None

    @property
    def ambiguous(self) -> bool:
        """Whether another host has the same address; the same host may well be on two links."""
        return self.rival is not None and self.rival.mac != self.mac


@dataclass(frozen=True, slots=True)
class AddRoute:
    """The address is reached by this link."""

    address: IPv4Address
    link: int


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """The address is not reached by this link any more."""

    address: IPv4Address
    link: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Send one ARP request for the address on this link."""

    address: IPv4Address
    link: int


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Report, once, that another host has the neighbour's address on another link."""

    address: IPv4Address
    link: int
    mac: bytes | None
    other_link: int
    other_mac: bytes | None


Effect = AddRoute | RemoveRoute | Ask | Ambiguous


@dataclass(slots=True)
class _Check:
    """A neighbour's link is asked whether it is still there; `newcomer` gets its place if it is not."""

    newcomer: Neighbour
    began: float
    next_at: float
    tries: int = 1


@final
class Neighbours:
    """The neighbours of all links. Links are the numbers of interfaces; times are in seconds."""

    def __init__(self) -> None:
        # Of each link the neighbours by address, the least recently confirmed first.
        self._links: dict[int, dict[IPv4Address, Neighbour]] = {}
        self._found: dict[IPv4Address, Neighbour] = {}
        self._checks: dict[IPv4Address, _Check] = {}
        self._asked: dict[IPv4Address, float] = {}
        self._lost: dict[int, float] = {}  # when frames of a link were lost last
        self._seconds: dict[int | None, tuple[int, int]] = {}  # see `_may_ask`
        self._reported: set[IPv4Address] = set()

    # --- links -------------------------------------------------------------------------------

    def join(self, link: int) -> None:
        """Learn from this link too."""
        self._links.setdefault(link, {})

    def leave(self, link: int, now: float) -> list[Effect]:
        """Forget the link; addresses that are on another link as well are reached there."""
        left = self._links.pop(link, {})
        self._lost.pop(link, None)
        self._seconds.pop(link, None)
        for address, check in [*self._checks.items()]:
            if check.newcomer.link == link:
                del self._checks[address]
        for neighbour in self._found.values():
            if neighbour.rival is not None and neighbour.rival.link == link:
                neighbour.rival = None
        effects: list[Effect] = []
        for neighbour in left.values():
            effects.append(RemoveRoute(neighbour.address, link))
            del self._found[neighbour.address]
            pending = self._checks.pop(neighbour.address, None)
            heir = neighbour.rival if pending is None else pending.newcomer
            if heir is not None:
                effects += self._admit(heir, now)
        return effects

    def on(self, link: int) -> list[Neighbour]:
        """Return the neighbours that are reached by the link, the least recently confirmed first."""
        return [*self._links.get(link, {}).values()]

    def nothing_new(self, link: int) -> set[tuple[IPv4Address, bytes]]:
        """Return address and hardware address of each neighbour whose further ARP on the link teaches nothing."""
        own = [one for one in self.on(link) if one.address not in self._checks]
        rivals = [one.rival for one in self._found.values() if one.rival is not None]
        here = [*own, *(one for one in rivals if one.link == link)]
        return {(one.address, one.mac) for one in here if one.mac is not None}

    # --- what happens ------------------------------------------------------------------------

    def learn(self, link: int, address: IPv4Address, mac: bytes | None, now: float) -> list[Effect]:
        """Take in that a host on the link uses the address; mac None: a route of before shows that."""
        if link not in self._links:
            return []
        known = self._found.get(address)
        if known is None:
            return self._admit(Neighbour(address, link, mac), now)
        if mac is None:
            return []
        if known.link == link:
            return self._confirm(known, mac)
        return self._check(known, Neighbour(address, link, mac), now)

    def unknown(self, link: int, address: IPv4Address, now: float) -> list[Effect]:
        """Take in that this host asks the link for the address: it has no route by another one."""
        known = self._found.get(address)
        if known is None:
            return self._ask(address, link, now)
        if known.link != link and self._due(address, now):
            return [AddRoute(address, known.link)]  # somebody may have removed it
        return []

    def failed(self, link: int, address: IPv4Address, now: float) -> list[Effect]:
        """Take in that the kernel has asked the link for the address in vain."""
        known = self._found.get(address)
        if known is None:
            return self._ask(address, link, now)
        if known.link != link:
            return []
        return [*self._gone(known, now), *self._ask(address, link, now)]

    def lost(self, link: int, now: float) -> None:
        """Take in that frames of the link were lost: nobody's silence there can be believed."""
        if link in self._links:
            self._lost[link] = now

    def next_timer(self) -> float | None:
        """Return when to call `handle_timer` next; None: not before something happens."""
        return min((check.next_at for check in self._checks.values()), default=None)

    def handle_timer(self, now: float) -> list[Effect]:
        """Ask again, or give up who has not answered. Harmless when called early."""
        effects: list[Effect] = []
        for address, check in [*self._checks.items()]:
            if now < check.next_at:
                continue
            known = self._found[address]
            if check.tries < CHECK_NUM:
                check.tries += 1
                check.next_at = now + CHECK_INTERVAL
                effects.append(Ask(address, known.link))
            elif self._lost_since(known.link, check.began):
                del self._checks[address]
            else:
                effects += self._gone(known, now)
        return effects

    # --- inside ------------------------------------------------------------------------------

    def _admit(self, new: Neighbour, now: float) -> list[Effect]:
        """Give a new neighbour a route, or have the least recently confirmed one of its full link checked."""
        table = self._links[new.link]
        if new.address in self._found:
            return []
        if len(table) < LINK_MAX:
            self._found[new.address] = table[new.address] = new
            return [AddRoute(new.address, new.link)]
        oldest = next((one for one in table.values() if one.address not in self._checks), None)
        if oldest is None or self._lost_since(new.link, now - CHECK_NUM * CHECK_INTERVAL):
            return []
        return self._check(oldest, new, now)

    def _lost_since(self, link: int, time: float) -> bool:
        """Return whether frames of the link were lost at this time or later."""
        return self._lost.get(link, -math.inf) >= time

    def _confirm(self, known: Neighbour, mac: bytes) -> list[Effect]:
        table = self._links[known.link]
        table[known.address] = table.pop(known.address)
        known.mac = mac
        check = self._checks.pop(known.address, None)
        if check is None or check.newcomer.address != known.address:
            return []
        known.rival = check.newcomer
        if (
            not known.ambiguous
            or known.address in self._reported
            or len(self._reported) >= LINK_MAX
        ):
            return []
        self._reported.add(known.address)
        return [Ambiguous(known.address, known.link, mac, known.rival.link, known.rival.mac)]

    def _check(self, known: Neighbour, newcomer: Neighbour, now: float) -> list[Effect]:
        pending = known.address in self._checks
        recent = known.checked is not None and now - known.checked < ASK_INTERVAL
        if pending or recent or not self._may_ask(newcomer.link, now):
            return []
        known.checked = now
        self._checks[known.address] = _Check(newcomer, now, now + CHECK_INTERVAL)
        return [Ask(known.address, known.link)]

    def _gone(self, known: Neighbour, now: float) -> list[Effect]:
        """Forget a neighbour that does not answer; who waits for its place gets it."""
        del self._found[known.address], self._links[known.link][known.address]
        check = self._checks.pop(known.address, None)
        effects: list[Effect] = [RemoveRoute(known.address, known.link)]
        return effects if check is None else [*effects, *self._admit(check.newcomer, now)]

    def _ask(self, address: IPv4Address, link: int, now: float) -> list[Effect]:
        """Ask all other links for an address that nobody has on this one, as far as is known."""
        if address in self._found or not self._due(address, now):
            return []
        return [Ask(address, other) for other in self._links if other != link]

    def _due(self, address: IPv4Address, now: float) -> bool:
        """Return whether a question about the address may be asked now, and count it."""
        self._asked = {one: at for one, at in self._asked.items() if now - at < ASK_INTERVAL}
        if address in self._asked or not self._may_ask(None, now):
            return False
        self._asked[address] = now
        return True

    def _may_ask(self, reason: int | None, now: float) -> bool:
        """Count a check for which frames of a link are the reason, or a question of this host (None), if it may be."""
        second, count = self._seconds.get(reason, (0, 0))
        count = count + 1 if second == int(now) else 1
        self._seconds[reason] = int(now), min(count, QUESTIONS_MAX + 1)
        return count <= QUESTIONS_MAX
