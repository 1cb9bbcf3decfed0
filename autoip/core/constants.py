"""The constants of the RFCs, their names verbatim, and after them our own.

Every time is in seconds. `Timing` is the one place where `delay` turns into the times of the probe
phase; everything else uses the constants as they stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

# --- RFC 3927 section 9, RFC 5227 section 1.1 ------------------------------------------------------

PROBE_WAIT = 1.0
"""Longest random pause before the first probe (scaled by `Timing`)."""
PROBE_NUM = 3
"""Number of probes."""
PROBE_MIN = 1.0
"""Shortest pause between two probes (scaled by `Timing`)."""
PROBE_MAX = 2.0
"""Longest pause between two probes (scaled by `Timing`)."""
ANNOUNCE_WAIT = 2.0
"""Pause from the last probe to the first announcement (scaled by `Timing`)."""
ANNOUNCE_NUM = 2
"""Number of announcements."""
ANNOUNCE_INTERVAL = 2.0
"""Pause between two announcements."""
MAX_CONFLICTS = 10
"""Conflicts before the rate limit sets in."""
RATE_LIMIT_INTERVAL = 60.0
"""Pause before each further candidate once the rate limit has set in."""
DEFEND_INTERVAL = 10.0
"""A second conflict within this time of the one before is not defended against."""

LINK_LOCAL_NETWORK = IPv4Network("169.254.0.0/16")
FIRST_CANDIDATE = IPv4Address("169.254.1.0")
"""RFC 3927 section 2.1 reserves the first 256 addresses of the network..."""
LAST_CANDIDATE = IPv4Address("169.254.254.255")
"""...and the last 256."""

# --- ours ------------------------------------------------------------------------------------------

EXCLUDED = (IPv4Network("169.254.169.0/24"), IPv4Network("169.254.170.0/24"))
"""Where clouds serve instance metadata: a host that took such an address would break its neighbours. The default of
the option `exclude`."""

QUIET_INTERVAL = MAX_CONFLICTS * RATE_LIMIT_INTERVAL
"""Conflicts count until there was none for this time. After it a host may probe for MAX_CONFLICTS further
addresses at full speed, so that on average it never probes for more than one per RATE_LIMIT_INTERVAL."""

SEND_RETRY = 0.1
"""Pause before a packet that the kernel refused is offered again; twice as long after each further refusal."""
SEND_RETRY_MAX = 10.0
"""The longest such pause."""
CONFIGURE_RETRY = 10.0
"""Pause before the next attempt when the kernel refused to add the address."""

DELAY_DEFAULT = 2000
DELAY_MIN = 1
DELAY_MAX = 8000
"""The option `delay`, in milliseconds."""

LATENESS_MAX = 0.1
"""Room left below each upper bound for a timer that wakes late; see `Timing.slack`."""


def is_candidate(address: IPv4Address) -> bool:
    """Return whether RFC 3927 section 2.1 lets a host claim the address."""
    return FIRST_CANDIDATE <= address <= LAST_CANDIDATE


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of the probe phase, in seconds.

    RFC 3927 draws the pauses at random between two bounds. A draw ends `slack` short of its upper
    bound, so that the frame is on the wire before the bound even when the timer wakes
    late: a probe gap over PROBE_MAX fails the Bonjour Conformance Test. The lower bound needs
    no room, because a gap is counted from the moment the frame before was sent.
    """

    probe_wait: float = PROBE_WAIT
    probe_min: float = PROBE_MIN
    probe_max: float = PROBE_MAX
    announce_wait: float = ANNOUNCE_WAIT

    @classmethod
    def from_delay(cls, milliseconds: int) -> Timing:
        """Scale the probe phase so that its longest pause is `milliseconds`.

        Args:
            milliseconds: DELAY_MIN to DELAY_MAX; 2000 gives the RFC's own times.

        Raises:
            ValueError: out of range.
        """
        if not DELAY_MIN <= milliseconds <= DELAY_MAX:
            raise ValueError(f"delay must be {DELAY_MIN} to {DELAY_MAX} ms, not {milliseconds}")
        factor = milliseconds / 1000.0 / PROBE_MAX
        return cls(
            PROBE_WAIT * factor, PROBE_MIN * factor, PROBE_MAX * factor, ANNOUNCE_WAIT * factor
        )

    @property
    def slack(self) -> float:
        """Room below an upper bound, in seconds: LATENESS_MAX, or half of a short range."""
        return min(LATENESS_MAX, (self.probe_max - self.probe_min) / 2)
