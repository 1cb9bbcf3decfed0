"""The ARP requests of a sweep: in which order, at what pace, and when to ask again. No input and no output.

`now` is in seconds of any one clock.
"""

from __future__ import annotations

from array import array
from collections import deque
from itertools import islice

TYPE_CHECKING = False
if TYPE_CHECKING:  # a scan must start fast
    from collections.abc import Container, Iterator, Sequence

PASSES = 2
ANSWER_TIME = 1.0
"""Seconds that a host has for its answer after the last request."""
PASS_TIME = 0.5
"""Seconds from the begin of one pass to that of the next, at least: a host may be busy for a moment."""
BURST_TIME = 0.05
"""A process that the machine stopped makes up for so many seconds, and not for more."""
BATCH = 256
"""Requests offered at once, at most."""
RATE_MIN = 100.0
"""Requests a second, however often the kernel refuses."""
_REFUSED_PAUSE = 0.02
_CANARY_TIME = 0.5
_CANARIES_SILENT = 3
_MULTIPLIER = 0x5DEECE66D
"""Of a linear congruential generator; modulo a power of two its period is the whole, as it is 1 modulo 4."""


class Sweep:
    """The addresses `first` to `first + count - 1`: the likely ones first, then the others in random order.

    Args:
        first: an address.
        count: how many addresses.
        likely: addresses to ask for first.
        skip: addresses not to ask for.
        rate: requests a second.
        seed: of the order; any number.
    """

    def __init__(
        self,
        first: int,
        count: int,
        likely: Sequence[int],
        skip: Container[int],
        rate: float,
        seed: int,
    ) -> None:
        self.rate = rate
        self.asked = 0
        self.turn = 0
        """Which pass it is, from 1; 0: not begun."""
        self._first, self._count, self._skip, self._seed = first, count, skip, seed
        self._likely: dict[int, None] = {}
        self._soon: deque[int] = deque()
        self._answered = bytearray(count)
        self._sent_at = array("d", bytes(8 * count))
        self._offered = array("I")
        for address in likely:
            self.prefer(address)
        self._order = self._all()
        self._credit = 1.0
        self._last: float | None = None
        self._turn_began = self._not_before = 0.0
        self._ended = False
        self._canary = 0
        self._canary_at = self._canaries_silent = 0.0

    @property
    def total(self) -> int:
        """How many requests there will be, if nobody answers."""
        return PASSES * self._count

    @property
    def over(self) -> bool:
        """Whether all has been asked."""
        return self._ended and not self._offered

    def due(self, now: float) -> array[int]:
        """Return the addresses to ask for now, of which `sent` reports how many were."""
        last, self._last = self._last, now
        if last is not None:
            most = max(1.0, self.rate * BURST_TIME)
            self._credit = min(self._credit + (now - last) * self.rate, most)
        if self.turn == 0:
            self._turn_began = now
        if now < self._not_before:
            return array("I")
        self._check_canary(now)
        wanted = int(min(self._credit, BATCH)) - len(self._offered)
        for address in islice(self._order, max(0, wanted)):
            if address is None:
                self._not_before = self._turn_began + PASS_TIME
                self._turn_began = max(now, self._not_before)
                break
            self._offered.append(address)
        self._ended = self.turn > PASSES
        return self._offered

    def sent(self, count: int, wall: float) -> None:
        """Report that the first `count` of the addresses due were asked for, at `wall` on CLOCK_REALTIME."""
        for address in self._offered[:count]:
            self._sent_at[address - self._first] = wall
        del self._offered[:count]
        self._credit -= count
        self.asked += count

    def prefer(self, address: int) -> None:
        """Ask for this address before the others, unless it was asked for already."""
        place = address - self._first
        if not 0 <= place < self._count or self._sent_at[place] or address in self._likely:
            return
        if address not in self._offered:
            self._likely[address] = None
            self._soon.append(address)

    def refused(self, now: float) -> None:
        """Report that the kernel has no room (ENOBUFS): pause, and go on at half the pace."""
        self._slow_down(now)
        self._not_before = now + _REFUSED_PAUSE

    def heard(self, address: int, wall: float) -> float | None:
        """Report that a host has the address; return the seconds since it was asked for, None: it was not."""
        place = address - self._first
        if not 0 <= place < self._count:
            return None
        self._answered[place] = 1
        if address == self._canary or not self._canary:
            self._canary, self._canaries_silent = address, 0
        sent = self._sent_at[place]
        return wall - sent if 0 < sent <= wall else None

    def next_time(self, now: float) -> float | None:
        """Return when `due` has something; None: never again."""
        if self.over:
            return None
        missing = max(0.0, 1.0 - self._credit) / self.rate
        return max((self._last or now) + missing, self._not_before)

    def seconds_left(self) -> float:
        """Return how long it will take from now on, about."""
        return max(0, self.total - self.asked) / self.rate + ANSWER_TIME

    def _all(self) -> Iterator[int | None]:
        """Yield the addresses of all passes, with None between two of these."""
        size = 1 << (self._count - 1).bit_length()
        for self.turn in range(1, PASSES + 1):
            if self.turn > 1:
                yield None
                self._soon.extend(self._likely)
            place = self._seed % size
            for _ in range(size):
                while self._soon:
                    if self._wanted(address := self._soon.popleft()):
                        yield address
                place = (place * _MULTIPLIER + (self._seed | 1)) % size
                address = self._first + place
                if place < self._count and address not in self._likely and self._wanted(address):
                    yield address
        self.turn = PASSES + 1

    def _wanted(self, address: int) -> bool:
        return not self._answered[address - self._first] and address not in self._skip

    def _check_canary(self, now: float) -> None:
        """Ask a host that has answered again and again: if it stops, we are too fast for the link."""
        if not self._canary or now - self._canary_at < _CANARY_TIME or self._ended:
            return
        if self._canaries_silent >= _CANARIES_SILENT:
            self._slow_down(now)
            self._canary = 0  # it may have been switched off: the next one that answers
            self._canaries_silent = 0
            return
        self._canaries_silent += 1
        self._canary_at = now
        self._offered.insert(0, self._canary)

    def _slow_down(self, now: float) -> None:
        measured = self.asked / max(now - self._turn_began, BURST_TIME)
        self.rate = max(RATE_MIN, min(self.rate, measured) / 2)
        self._credit = min(self._credit, 1.0)
