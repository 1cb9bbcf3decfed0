"""RFC 3927 section 2.1: the candidates of an interface, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from random import Random

from autoip.core.constants import FIRST_CANDIDATE, LAST_CANDIDATE, MAX_CONFLICTS, is_candidate

_DRAWS = 1000
"""Draws after which an address that should be avoided is accepted: the loop must end."""


def draw_candidate(addresses: Random) -> IPv4Address:
    """Draw a candidate, uniformly from all that `is_candidate` allows.

    Only `Random.random` is used, whose sequence for a seed is the same in every Python.
    """
    while True:
        draw = addresses.random() * (int(LAST_CANDIDATE) - int(FIRST_CANDIDATE) + 1)
        candidate = FIRST_CANDIDATE + int(draw)
        if is_candidate(candidate):
            return candidate


@dataclass(frozen=True, slots=True)
class Kept:
    """What `Candidates` hand over; `drawn`: how many were drawn from the random source."""

    preferred: IPv4Address | None = None
    lost: tuple[IPv4Address, ...] = ()
    drawn: int = 0


class Candidates:
    """The candidates of one interface.

    Args:
        addresses: random source.
        avoid: whether a sibling has the address, so that it cannot be a candidate.
        preferred: the first candidate; None: a random one.
    """

    def __init__(
        self,
        addresses: Random,
        avoid: Callable[[IPv4Address], bool],
        preferred: IPv4Address | None,
    ) -> None:
        self.preferred = preferred
        """The next candidate, if it is allowed; None: a random one."""
        self._addresses = addresses
        self._avoid = avoid
        self._lost: deque[IPv4Address] = deque(maxlen=MAX_CONFLICTS)
        self._drawn = 0

    def take(self) -> IPv4Address:
        """Return the next candidate: the preferred one, once, else a random one."""
        preferred, self.preferred = self.preferred, None
        if preferred is not None and is_candidate(preferred) and not self._avoid(preferred):
            return preferred
        for _ in range(_DRAWS):
            candidate = self._draw()
            if candidate not in self._lost and not self._avoid(candidate):
                return candidate
        return self._draw()

    def _draw(self) -> IPv4Address:
        self._drawn += 1
        return draw_candidate(self._addresses)

    def keep(self) -> Kept:
        """Return what `resume` takes."""
        return Kept(self.preferred, tuple(self._lost), self._drawn)

    def resume(self, kept: Kept) -> None:
        """Go on for others, whose random source had the same seed."""
        self.preferred = kept.preferred
        self._lost.extend(kept.lost)
        while self._drawn < kept.drawn:
            self._draw()

    def lose(self, candidate: IPv4Address) -> None:
        """Do not draw this address again soon: another host or a sibling has it."""
        self._lost.append(candidate)
