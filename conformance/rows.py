"""The requirements, by their ids: RFC 3927, RFC 5227, the link-local part of the Bonjour Conformance Test.

Level: M = MUST, S = SHOULD, with the section of RFC 3927; A = what the AutoIP module of old did; B = the Bonjour
Conformance Test checks it; users = people asked for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PROBE_WAIT: Final = 1.0
PROBE_NUM: Final = 3
PROBE_MIN: Final = 1.0
PROBE_MAX: Final = 2.0
ANNOUNCE_WAIT: Final = 2.0
ANNOUNCE_NUM: Final = 2
ANNOUNCE_INTERVAL: Final = 2.0
MAX_CONFLICTS: Final = 10
RATE_LIMIT_INTERVAL: Final = 60.0
DEFEND_INTERVAL: Final = 10.0
LONGEST_PAUSE: Final = 120.0
"""Of the Bonjour Conformance Test: after the conflicts have ended."""


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement."""

    level: str
    text: str

    @property
    def must(self) -> bool:
        return self.level.startswith("M")


ROWS: Final[Mapping[str, Row]] = {
    "sel-range": Row("M 2.1", "candidates are uniform over 169.254.1.0 to 169.254.254.255"),
    "sel-seed": Row("M/S 2.1", "same MAC, same sequence of candidates; another MAC, another one"),
    "sel-ip": Row("A", "the first candidate can be given; random ones follow"),
    "sel-memory": Row("S 2.1", "the address last held is tried first after a restart"),
    "sel-metadata": Row("users", "169.254.169.254 is never picked"),
    "claim-wait": Row("S 2.2.1", "a random pause of 0 to 1 s before the first probe"),
    "claim-probe": Row(
        "M 2.2.1", "a probe: broadcast, sender IP 0.0.0.0, target hardware address 0"
    ),
    "claim-num": Row("S 2.2.1, B", "exactly 3 probes, 1 to 2 s apart at random"),
    "claim-conflict": Row(
        "M 2.2.1", "until 2 s after the last probe a conflict ends the attempt: another candidate"
    ),
    "claim-echo": Row(
        "M 2.2.1, 3.4", "own frames, reflected, are no conflict; two interfaces on a link differ"
    ),
    "claim-unicast-probe": Row("users", "a probe that came by unicast is no conflict"),
    "claim-rate": Row(
        "M 2.2.1, B",
        "after 10 conflicts one new candidate a minute, never a pause over 120 s, also after a claim",
    ),
    "claim-before-use": Row("M 2.2", "the address is used only after the claim"),
    "announce": Row("M 2.4", "2 announcements, 2 s apart, by broadcast"),
    "no-periodic": Row("M 2.2, S 4", "no periodic probes, no periodic gratuitous ARP"),
    "def-detect": Row("M 2.5", "a conflict is noticed for as long as the address is held"),
    "def-once": Row("A, 2.5(b)", "the first conflict is answered by one announcement"),
    "def-yield": Row("M 2.5(b), B", "a second conflict within 10 s: another address"),
    "def-again": Row("2.5(b)", "conflicts more than 10 s apart are each defended"),
    "def-abandon": Row("A, 2.5(a)", "given up at the first conflict, if so wanted"),
    "def-reset": Row("S 2.5", "connections are reset before the address is given up"),
    "def-broadcast": Row("M 2.5", "every ARP packet with a link-local sender IP is broadcast"),
    "def-probed": Row("2.2.1", "another host's probe for the address is answered, nothing more"),
    "if-alias": Row(
        "A", "the address: /16, broadcast 169.254.255.255, scope link; others stay untouched"
    ),
    "if-wait": Row("A", "an interface that is missing, down or without carrier is waited for"),
    "if-gone": Row("A", "an interface that comes back: from the beginning"),
    "if-carrier": Row("M 2.2, B", "the carrier returns: probed again before use"),
    "if-mac": Row("2.2.1", "a changed hardware address: probed again"),
    "if-removed": Row("users", "an address deleted by someone else is claimed again"),
    "if-resume": Row("M 2.2", "after the machine slept: probed again"),
    "if-stop": Row("A", "on stop all that was set up is taken off"),
    "if-one": Row("A", "a second instance for an interface is refused"),
    "if-many": Row("users", "several interfaces in one process, each on its own"),
    "fwd-onlink": Row("M 2.6.2", "169.254/16 is on the link, from a routable address too"),
    "fwd-source": Row("M 1.9(2), 2.6.1", "new connections use a routable address if there is one"),
    "fwd-any": Row(
        "M 2.6.2, B",
        "if wanted: every destination is on the link, while there is no other default route",
    ),
    "fwd-several": Row(
        "users, 3.3", "with several links each neighbour is reached on its own link, unbound"
    ),
    "co-dhcp": Row("M 1.9(1), 2.11", "a DHCP client's address and routes stay untouched"),
    "co-lease": Row(
        "M 1.9(2)", "a routable address comes: link-local stays for what is underway, or altogether"
    ),
    "co-lost": Row("1.9(3)", "the routable address goes: link-local is there"),
}
