"""What can be chosen for an interface, on the command line and in the configuration: names and checks.

A choice is kept by the name of its field in `Options`, so that several layers of choices (defaults,
configuration, command line) are put together with `Options(**choices)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Any, NamedTuple

from autoip.core.acd import Defence
from autoip.core.constants import (
    DELAY_DEFAULT,
    DELAY_MAX,
    DELAY_MIN,
    FIRST_CANDIDATE,
    LAST_CANDIDATE,
    METADATA_ADDRESS,
    is_candidate,
)
from autoip.core.policy import Kind
from autoip.errors import UsageError

AFTER_DEFAULT = 10.0
"""Seconds without a routable address before one is claimed, where the daemon comes with the interface."""
LINGER_DEFAULT = 120.0
"""Seconds for which the link-local address stays beside a new routable one."""
SECONDS_MAX = 86400


@dataclass(frozen=True, slots=True)
class Options:
    """What the user chose for an interface.

    Attributes:
        first: first candidate; None: what the interface had last, else one from its MAC.
        defence: what to do about a conflict in use.
        delay: longest pause between two probes, in milliseconds.
        bring_up: whether to set an interface up that is down when it appears.
        policy: whether there is to be an address beside a routable one.
        after: seconds without a routable address before one is claimed (`fallback`).
        linger: seconds for which the address stays beside a new routable one (`fallback`).
        default_route: whether all destinations are on the link while there is no default route.
    """

    first: IPv4Address | None = None
    defence: Defence = Defence.ONCE
    delay: int = DELAY_DEFAULT
    bring_up: bool = False
    policy: Kind = Kind.ALONGSIDE
    after: float = AFTER_DEFAULT
    linger: float = LINGER_DEFAULT
    default_route: bool = False


def candidate(text: str) -> IPv4Address:
    """Check an address that is to be claimed.

    Raises:
        UsageError: it is none that may be.
    """
    address: IPv4Address | None = None
    with suppress(AddressValueError):
        address = IPv4Address(text)
    if address is None or not is_candidate(address):
        raise UsageError(
            f"ip {text}: not an address to claim; allowed are {FIRST_CANDIDATE} to"
            f" {LAST_CANDIDATE} but for {METADATA_ADDRESS}"
        )
    return address


def delay(text: str) -> int:
    """Check the option `delay`, in milliseconds.

    Raises:
        UsageError: not a whole number in range.
    """
    if not re.fullmatch("[0-9]{1,9}", text) or not DELAY_MIN <= int(text) <= DELAY_MAX:
        raise UsageError(
            f"delay {text}: not a whole number of milliseconds from {DELAY_MIN} to {DELAY_MAX}"
        )
    return int(text)


def policy(text: str) -> Kind:
    """Check the name of a policy.

    Raises:
        UsageError: there is none of that name.
    """
    with suppress(ValueError):
        return Kind(text)
    raise UsageError(f"policy {text}: allowed are {', '.join(kind.value for kind in Kind)}")


def seconds(name: str, text: str) -> float:
    """Check a time.

    Raises:
        UsageError: not a number of seconds in range.
    """
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        value = float(text)
        if math.isfinite(value) and value <= SECONDS_MAX:
            return value
    raise UsageError(f"{name} {text}: not a number of seconds from 0 to {SECONDS_MAX}")


def flag(name: str, text: str) -> bool:
    """Check a choice between two.

    Raises:
        UsageError: neither yes nor no.
    """
    if text not in ("yes", "no"):
        raise UsageError(f"{name} {text}: allowed are yes and no")
    return text == "yes"


class Choice(NamedTuple):
    """How a name of the configuration becomes a field of `Options`.

    Attributes:
        field: of `Options`.
        read: from text to the field's value; raises UsageError.
    """

    field: str
    read: Callable[[str], Any]


CHOICES: Mapping[str, Choice] = {
    "ip": Choice("first", candidate),
    "abandon": Choice(
        "defence", lambda text: Defence.ABANDON if flag("abandon", text) else Defence.ONCE
    ),
    "delay": Choice("delay", delay),
    "up": Choice("bring_up", lambda text: flag("up", text)),
    "policy": Choice("policy", policy),
    "after": Choice("after", lambda text: seconds("after", text)),
    "linger": Choice("linger", lambda text: seconds("linger", text)),
    "default-route": Choice("default_route", lambda text: flag("default-route", text)),
}
"""The names of the configuration, which are those of the long options."""
