"""RFC 3927 section 2.1: the candidates of an interface, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from random import Random

from autoip.core.constants import (
    EXCLUDED,
    FIRST_CANDIDATE,
    LAST_CANDIDATE,
    LINK_LOCAL_NETWORK,
    MAX_CONFLICTS,
)

_DRAWS = 1000
"""Draws after which an address that should be avoided is accepted: the loop must end."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The addresses that may be candidates.

    Attributes:
        network: from which they come, less what RFC 3927 section 2.1 reserves.
        excluded: networks whose addresses are never candidates.
    """

    network: IPv4Network = LINK_LOCAL_NETWORK
    excluded: tuple[IPv4Network, ...] = EXCLUDED

    @property
    def first(self) -> IPv4Address:
        """The first address, excluded or not."""
        return max(self.network[0], FIRST_CANDIDATE)

    @property
    def last(self) -> IPv4Address:
        """The last address, excluded or not."""
        return min(self.network[-1], LAST_CANDIDATE)

    def allows(self, address: IPv4Address) -> bool:
        """Return whether the address may be claimed."""
        return self.first <= address <= self.last and self.excluding(address) is None

    def excluding(self, address: IPv4Address) -> IPv4Network | None:
        """Return the excluded network that has the address; None: there is none."""
        return next((network for network in self.excluded if address in network), None)

    @property
    def empty(self) -> bool:
        """Whether no address may be claimed."""
        address = self.first
        while address <= self.last:
            if (network := self.excluding(address)) is None:
                return False
            address = network[-1] + 1
        return True

    def draw(self, addresses: Random) -> IPv4Address:
        """Draw a candidate, uniformly from all that are allowed; the pool must not be empty.

        Only `Random.random` is used, whose sequence for a seed is the same in every Python.
        """
        while True:
            draw = addresses.random() * (int(self.last) - int(self.first) + 1)
            candidate = self.first + int(draw)
            if self.allows(candidate):
                return candidate

    def of_mac(self, mac: bytes) -> IPv4Address:
        """Return the address whose last octets are those of the MAC (6 bytes), each clamped to the pool.

        The first and the last address of a network bound each octet by itself, so the result is in between;
        it may be excluded.
        """
        low, high = self.first.packed, self.last.packed
        wanted = low[:2] + mac[-2:]
        return IPv4Address(
            bytes(
                min(max(octet, least), most)
                for octet, least, most in zip(wanted, low, high, strict=True)
            )
        )


ALL = Pool()
"""What may be claimed unless the user chooses otherwise."""


def derived(mac: bytes) -> tuple[IPv4Address, ...]:
    """Return the first candidates of a host with this MAC (6 bytes): autoip's, and that of `ip = mac` and of LXI."""
    return ALL.draw(Random(int.from_bytes(mac, "big"))), ALL.of_mac(mac)


@dataclass(frozen=True, slots=True)
class Kept:
    """What `Candidates` hand over; `drawn`: how many were drawn from the random source."""

    preferred: IPv4Address | None = None
    listed: tuple[IPv4Address, ...] = ()
    lost: tuple[IPv4Address, ...] = ()
    drawn: int = 0


class Candidates:
    """The candidates of one interface.

    Args:
        addresses: random source.
        avoid: whether a sibling has the address, so that it cannot be a candidate.
        listed: the first candidates, in order; random ones follow.
        pool: the addresses that may be candidates.
    """

    def __init__(
        self,
        addresses: Random,
        avoid: Callable[[IPv4Address], bool],
        listed: Sequence[IPv4Address],
        pool: Pool,
    ) -> None:
        self.preferred: IPv4Address | None
        """The next candidate, if it is allowed; None: the next of the list, or a random one."""
        self._listed: deque[IPv4Address]
        self.begin(listed)
        self._addresses = addresses
        self._avoid = avoid
        self._pool = pool
        self._lost: deque[IPv4Address] = deque(maxlen=MAX_CONFLICTS)
        self._drawn = 0

    def begin(self, listed: Sequence[IPv4Address]) -> None:
        """Take these first, in order."""
        self.preferred = next(iter(listed), None)
        self._listed = deque(listed[1:])

    def take(self) -> IPv4Address:
        """Return the next candidate: the preferred one, once, else the next of the list, else a random one."""
        while wanted := self.preferred or (self._listed.popleft() if self._listed else None):
            self.preferred = None
            if self._pool.allows(wanted) and not self._avoid(wanted):
                return wanted
        for _ in range(_DRAWS):
            candidate = self._draw()
            if candidate not in self._lost and not self._avoid(candidate):
                return candidate
        return self._draw()

    def _draw(self) -> IPv4Address:
        self._drawn += 1
        return self._pool.draw(self._addresses)

    def keep(self) -> Kept:
        """Return what `resume` takes."""
        return Kept(self.preferred, tuple(self._listed), tuple(self._lost), self._drawn)

    def resume(self, kept: Kept) -> None:
        """Go on for others, whose random source had the same seed."""
        self.preferred = kept.preferred
        self._listed = deque(kept.listed)
        self._lost.extend(kept.lost)
        while self._drawn < kept.drawn:
            self._draw()

    def lose(self, candidate: IPv4Address) -> None:
        """Do not draw this address again soon: another host or a sibling has it."""
        self._lost.append(candidate)
