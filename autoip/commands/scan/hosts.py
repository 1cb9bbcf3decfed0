"""What a scan has learnt of the hosts, in bounded memory, and what it means. No input and no output."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # a scan must start fast
    from collections.abc import Iterable, Iterator, Sequence

HOSTS_MAX = 8192
"""So many hosts are remembered; forged ones must not exhaust the memory."""
MANY = 16
"""Addresses of one MAC that are shown; one with more answers for others."""
_TEXTS_MAX = 8
_TEXT_MAX = 64
WRONG_MASK = "wrong mask: "
LINK_LOCAL, LINK_LOCAL_MASK = 0xA9FE0000, 0xFFFF0000


def text(number: int) -> str:
    """Return an IPv4 address as people write it."""
    return ".".join(str(octet) for octet in number.to_bytes(4, "big"))


def is_link_local(address: int) -> bool:
    """Return whether it is in 169.254.0.0/16."""
    return address & LINK_LOCAL_MASK == LINK_LOCAL


def clean(words: str) -> str:
    """Return a stranger's text so that it cannot command a terminal: one line of printable characters."""
    shown = "".join(char if char.isprintable() else "?" for char in words[: 2 * _TEXT_MAX])
    return shown.strip()[:_TEXT_MAX]


class Host:
    """An address of a host on an interface.

    Attributes:
        interface: its name.
        address: a number; None: the host has not got one yet.
        mac: 6 bytes.
        first_seen: seconds since 1970.
        rtt: seconds from the ARP request to the answer; None: it was not asked.
        names: what it calls itself.
        kinds: what it says it is.
        via: by which protocols it was found.
        notes: what it means, in words.
    """

    __slots__ = (
        "address",
        "first_seen",
        "interface",
        "kinds",
        "mac",
        "names",
        "notes",
        "rtt",
        "via",
    )

    def __init__(self, interface: str, address: int | None, mac: bytes, first_seen: float) -> None:
        self.interface, self.address, self.mac, self.first_seen = (
            interface,
            address,
            mac,
            first_seen,
        )
        self.rtt: float | None = None
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.via: list[str] = []
        self.notes: list[str] = []

    def learn(self, via: str, names: Iterable[str], kinds: Iterable[str]) -> bool:
        """Add what a packet says; return whether anything but the protocol is new."""
        if via not in self.via:
            self.via.append(via)
        new = False
        for known, words in ((self.names, names), (self.kinds, kinds)):
            for word in map(clean, words):
                if word and word not in known and len(known) < _TEXTS_MAX:
                    known.append(word)
                    new = True
        return new


class Hosts:
    """All hosts of a scan.

    Args:
        everything: also remember each address of a MAC that has more than MANY.
    """

    def __init__(self, everything: bool = False) -> None:
        self.advice: dict[str, None] = {}
        """More lines on what the hosts together mean, in the order in which they were found."""
        self.left_out = 0
        """Hosts for which there was no room, or that were too many."""
        self._everything = everything
        self._found: dict[tuple[str, int | None, bytes], Host] = {}
        self._by_address: dict[tuple[str, int], list[Host]] = {}
        self._by_mac: dict[tuple[str, bytes], int] = {}

    def __len__(self) -> int:
        return len(self._found)

    def seen(
        self, interface: str, address: int | None, mac: bytes, at: float
    ) -> tuple[Host, bool] | None:
        """Return the host with this address and MAC, and whether it is new; None: there is no room for it."""
        key = (interface, address, mac)
        if (host := self._found.get(key)) is not None:
            return host, False
        if len(self._found) >= HOSTS_MAX:
            self.left_out += 1
            return None
        has = self._by_mac[interface, mac] = self._by_mac.get((interface, mac), 0) + 1
        if has > MANY and not self._everything:
            return None
        host = self._found[key] = Host(interface, address, mac, at)
        if address is not None:
            self._by_address.setdefault((interface, address), []).append(host)
        return host, True

    def knows(self, interface: str, mac: bytes) -> bool:
        """Return whether a host has this MAC."""
        return (interface, mac) in self._by_mac

    def rivals(self, host: Host) -> list[Host]:
        """Return the other hosts with the same address on the same interface."""
        if host.address is None:
            return []
        return [
            other for other in self._by_address[host.interface, host.address] if other is not host
        ]

    def findings(self) -> Iterator[str]:
        """Yield what the hosts together mean, a line each."""
        for (interface, address), hosts in self._by_address.items():
            if len(hosts) > 1:
                macs = " and ".join(host.mac.hex(":") for host in hosts[:MANY])
                yield f"{interface}: {text(address)} is in use by {len(hosts)} hosts: {macs}"
        for (interface, mac), has in self._by_mac.items():
            if has > MANY:
                yield (
                    f"{interface}: {mac.hex(':')} answers for {has} addresses: proxy ARP, or a host with many"
                    f" ({MANY} shown; all: --all)"
                )
        yield from self.advice
        if self.left_out:
            yield f"{self.left_out} answers left out: only {HOSTS_MAX} hosts are remembered"


def reach(
    interface: str, address: int, mask: int | None, own: Sequence[tuple[int, int]]
) -> str | None:
    """Return how to reach a host that is in no network of ours, nor link-local; None: it is.

    Args:
        interface: where the host is.
        address: its address.
        mask: its mask, if it names one.
        own: our addresses on the interface, with their masks.
    """
    if is_link_local(address) or _mask_here(address, own) is not None:
        return None
    if mask is None or not 0xFF000000 <= mask < 0xFFFFFFFD:
        mask = 0xFFFFFF00
    near = (
        address + 1
        if (address + 1) & ~mask & 0xFFFFFFFF not in (0, ~mask & 0xFFFFFFFF)
        else address - 1
    )
    length = mask.bit_count()
    return f"in another subnet: ip address add {text(near)}/{length} dev {interface}"


def mask_fault(address: int, mask: int, own: Sequence[tuple[int, int]]) -> str | None:
    """Return what is wrong with the mask that a host has; None: nothing, or it is not known.

    Args:
        address: its address.
        mask: its mask; 0: it has none.
        own: our addresses on the interface, with their masks.
    """
    zeros = ~mask & 0xFFFFFFFF
    if zeros & (zeros + 1):
        return f"{WRONG_MASK}{text(mask)} is not one"
    right = LINK_LOCAL_MASK if is_link_local(address) else _mask_here(address, own)
    if not mask or right in (None, mask):
        return None
    return f"{WRONG_MASK}{text(mask)}, in this network {text(right or 0)}"


def _mask_here(address: int, own: Sequence[tuple[int, int]]) -> int | None:
    """Return the mask of our network that an address is in; None: it is in none."""
    return next((mask for ours, mask in own if (address ^ ours) & mask == 0), None)
