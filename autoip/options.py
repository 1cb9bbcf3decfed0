"""The options of `run`: their table, the functions that read their values, and `Options`, those of one interface.

To add an option, add a row, a field named like it (`Option.field`) in `Options` if it is chosen for each interface,
else in `commands.run.Arguments`, and the code that uses the field; then run `python -m tools.documents`. A choice is
kept by the name of its field: layers of choices (defaults, configuration, command line) become `Options(**choices)`.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path
from typing import Final, Literal, TypeAlias

from autoip.core.acd import Defence
from autoip.core.candidates import Pool
from autoip.core.constants import (
    DELAY_DEFAULT,
    DELAY_MAX,
    DELAY_MIN,
    EXCLUDED,
    FIRST_CANDIDATE,
    LAST_CANDIDATE,
    LINK_LOCAL_NETWORK,
    is_candidate,
)
from autoip.core.policy import Kind
from autoip.errors import UsageError
from autoip.option_table import SECONDS_MAX, Option, interface_name, seconds

FILE = Path("/etc/autoip.conf")
FOLDER = Path("/etc/autoip.conf.d")
CONTAINERS = ("docker", "veth", "br-", "virbr")
"""How names of interfaces of container engines begin: nothing is served on them unless a pattern means them."""

AFTER_DEFAULT = 10.0
"""Seconds without a routable address before a link-local one is claimed; 0 with `--hook`."""
LINGER_DEFAULT = 120.0
"""Seconds for which the link-local address stays beside a new routable one."""


MAC: Final = "mac"
"""Among the first candidates: the address that follows from the hardware address."""
First: TypeAlias = tuple[IPv4Address | Literal["mac"], ...]


@dataclass(frozen=True, slots=True)
class Options:
    """The user's choices for an interface.

    Attributes:
        ip: first candidates, in order; none: the last address of the interface, else one drawn for its MAC.
        network: from which all candidates come, less what RFC 3927 section 2.1 reserves.
        excluded: networks whose addresses are never candidates.
        defence: what to do about a conflict in use.
        delay: longest pause between two probes, in milliseconds.
        bring_up: whether to set the interface up if it is down when it appears.
        policy: whether to have a link-local address beside a routable one.
        after: seconds without a routable address before a link-local one is claimed (`fallback`).
        linger: seconds for which the address stays beside a new routable one (`fallback`).
        default_route: whether all destinations are on the link while there is no default route.
    """

    ip: First = ()
    network: IPv4Network = LINK_LOCAL_NETWORK
    excluded: tuple[IPv4Network, ...] = EXCLUDED
    defence: Defence = Defence.ONCE
    delay: int = DELAY_DEFAULT
    bring_up: bool = False
    policy: Kind = Kind.ALONGSIDE
    after: float = AFTER_DEFAULT
    linger: float = LINGER_DEFAULT
    default_route: bool = False

    @property
    def pool(self) -> Pool:
        """The addresses that may be candidates."""
        return Pool(self.network, self.excluded)

    def check(self) -> None:
        """Check what several options together make of the candidates.

        Raises:
            UsageError: there is no candidate, or a first candidate may not be claimed.
        """
        pool = self.pool
        if pool.empty:
            raise UsageError(f"range {self.network}: exclude leaves no address of it")
        for address in self.ip:
            if address == MAC or pool.allows(address):
                continue
            if (network := pool.excluding(address)) is not None:
                raise UsageError(
                    f"ip {address}: exclude has {network}; give another exclude, or none"
                )
            raise UsageError(f"ip {address}: not in the range {self.network}")


def _candidate(text: str) -> IPv4Address | Literal["mac"]:
    if text == MAC:
        return MAC
    with suppress(AddressValueError):
        if is_candidate(address := IPv4Address(text)):
            return address
    raise UsageError(
        f"not an address to claim; allowed are {FIRST_CANDIDATE} to {LAST_CANDIDATE}, and {MAC}"
    )


def _network(text: str) -> IPv4Network | None:
    """Return a network of link-local addresses, or an address as one; None if there is none."""
    with suppress(ValueError):
        if (network := IPv4Network(text)).subnet_of(LINK_LOCAL_NETWORK):
            return network
    return None


def _range(text: str) -> IPv4Network:
    network = _network(text)
    if network is None or not (
        network == LINK_LOCAL_NETWORK or (is_candidate(network[0]) and is_candidate(network[-1]))
    ):
        raise UsageError(
            f"not a network within {FIRST_CANDIDATE} to {LAST_CANDIDATE}, like 169.254.10.0/24"
        )
    return network


def _excluded(text: str) -> IPv4Network | None:
    if text != "none" and (network := _network(text)) is None:
        raise UsageError(
            f"not an address or a network of {LINK_LOCAL_NETWORK}, like 169.254.169.0/24, nor none"
        )
    return None if text == "none" else network


def _delay(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not DELAY_MIN <= int(text) <= DELAY_MAX:
        raise UsageError(f"not a whole number of milliseconds from {DELAY_MIN} to {DELAY_MAX}")
    return int(text)


def _script(text: str) -> str:
    """Return the absolute path: the script is run with another working directory."""
    if not os.path.isfile(text):
        raise UsageError("no such file")
    if not os.access(text, os.X_OK):
        raise UsageError("not executable")
    return os.path.abspath(text)


def _user(text: str) -> str:
    """Return the name of an existing user."""
    import pwd

    try:
        pwd.getpwnam(text)
    except (KeyError, ValueError):
        raise UsageError("no such user") from None
    return text


# A row has its names first, then its texts, then its behaviour. The AutoIP module's words come first, in its order.
# fmt: off
DELAY = Option(
    "delay", "MS",
    f"longest pause between two probes, {DELAY_MIN} to {DELAY_MAX} ms; default {DELAY_DEFAULT}, which is RFC 3927",
    "With the default an address is there after 4 to 7 seconds; with 200 after at most 0.7, and slow neighbours are"
    " missed more easily. The option is PROBE_MAX and ANNOUNCE_WAIT; PROBE_MIN and PROBE_WAIT are half of it."
    " No other time of the RFC is changed.",
    read=_delay, default=str(DELAY_DEFAULT), configured=True, word="delay",
)
_ROWS = (
    Option(
        "interfaces", "IFACE", "interface, or a pattern; default: see `--configured`",
        "Interfaces that match a pattern (`*`, `?`, `[...]`) are served as they appear. See `[SERVICE]`.",
        read=interface_name, word="if", repeat="all", operand="*", offers="interfaces",
    ),
    Option(
        "ip", "ADDRESS",
        f"first candidate, {FIRST_CANDIDATE} to {LAST_CANDIDATE}, or `mac`; after conflicts random ones follow",
        "Several are tried in order: `ip = 169.254.20.20, mac`. `mac` is the address whose last two octets are those of"
        " the hardware address, each clamped to the range: as LXI instruments do. Addresses only with one interface."
        " The default is the address that the interface had last, else one drawn from its hardware address.",
        read=_candidate, configured=True, word="ip", repeat="list",
    ),
    Option(
        "range", "NETWORK",
        f"the network from which candidates come; default {LINK_LOCAL_NETWORK}, less its first and last 256",
        f"Another one is within {FIRST_CANDIDATE} to {LAST_CANDIDATE}, like `169.254.10.0/24`. It departs from RFC 3927"
        " section 2.1, and conflicts get more likely. An address that the interface had last and that is not in the"
        " range is not tried again.",
        read=_range, into="network", configured=True, default=str(LINK_LOCAL_NETWORK),
    ),
    Option(
        "exclude", "NETWORK",
        f"addresses or networks that are never claimed, or `none`; default {','.join(map(str, EXCLUDED))}",
        "Several: `exclude = 169.254.169.0/24, 169.254.20.1`. What is given replaces the default, which has the clouds'"
        " metadata addresses.",
        read=_excluded, into="excluded", configured=True, repeat="list", default=",".join(map(str, EXCLUDED)),
    ),
    DELAY,
    Option("debug", "", "verbose", word="debug"),
    Option(
        "abandon", "", "give up at the first conflict; default: defend the address once per 10 s",
        read=lambda text: Defence.ABANDON if text == "yes" else Defence.ONCE,
        into="defence", configured=True, word="abandon",
    ),
    Option(
        "up", "", "set the interface up if it is down at the start, or when it appears",
        "If somebody sets it down later, it stays down.", into="bring_up", configured=True,
    ),
    Option(
        "policy", "POLICY",
        "when to have an address; `alongside`: whatever else there is (the default);"
        " `fallback`: only while there is no routable address; `route-only`: never",
        "See `[POLICY]`.",
        read=Kind, values=[kind.value for kind in Kind], default=Kind.ALONGSIDE.value, configured=True,
    ),
    Option(
        "after", "S",
        f"`fallback`: seconds, 0 to {SECONDS_MAX}, without a routable address before one is claimed;"
        f" default {AFTER_DEFAULT:g}, with `--hook` 0",
        read=seconds, default=f"{AFTER_DEFAULT:g}", configured=True,
    ),
    Option(
        "linger", "S",
        f"`fallback`: seconds, 0 to {SECONDS_MAX}, for which the address stays beside a new routable one;"
        f" default {LINGER_DEFAULT:g}",
        read=seconds, default=f"{LINGER_DEFAULT:g}", configured=True,
    ),
    Option(
        "route-only", "", "no address: reach link-local hosts from the routable one (`--policy route-only`)",
        implies=("policy", Kind.ROUTE_ONLY.value),
    ),
    Option(
        "default-route", "", "reach all destinations on the link while there is no default route",
        "While this host has no other IPv4 default route, of any interface and in any table, there is a route `default`"
        " of scope link with the address as its source; its metric is behind all others."
        " Every change of a route then wakes the daemon.",
        configured=True,
    ),
    Option(
        "configured", "", "serve what the configuration has with `serve = yes`, as it appears",
        "This is the default without interfaces if there is any such section; otherwise the one Ethernet-like interface"
        " that there is. See `[SERVICE]`.",
    ),
    Option(
        "config", "FILE", f"read `FILE` instead of `{FILE}` and `{FOLDER}/*.conf`", "See `autoip.conf(5)`.",
        offers="files",
    ),
    Option(
        "hook", "", "started by a DHCP client's hook: `fallback`, and at once",
        "The configuration and the command line go before this."
        " Ends with status 0 if the configuration does not let hooks start anything on this interface, if the"
        " interface does not speak ARP over Ethernet, or if another daemon serves it, which without `--early` waits for"
        " DHCP no longer.",
    ),
    Option("early", "", f"with `--hook`: DHCP has not had its chance yet, so `--after` is {AFTER_DEFAULT:g}"),
    Option("no-state", "", "neither read nor write the last address", read="no".__eq__, into="keep_state"),
    Option(
        "script", "FILE",
        "run `FILE` when the address comes and goes: BIND, CONFLICT, UNBIND or STOP, IFACE, ADDRESS",
        "See `[SCRIPTS]`.",
        read=_script, offers="files",
    ),
    Option(
        "script-style", "STYLE", "whose scripts: `avahi` (avahi-autoipd.action, the default) or `zcip` (BusyBox)",
        values=["avahi", "zcip"], default="avahi",
    ),
    Option(
        "user", "NAME",
        "started by root: become user `NAME`; default: `autoip`, or ids without a name where there is no such user",
        "The process opens what needs root before that, and keeps CAP_NET_RAW and CAP_NET_ADMIN. Scripts run as this"
        " user. With `--user root` it stays root's, without root's other capabilities, until a reload: the program"
        " that goes on is the service's user's.",
        read=_user,
    ),
    Option(
        "trace", "FILE", "append to `FILE` all that happens, for a report; `python -m tools.replay` runs it again",
        "JSON lines: frames, timers, what the kernel reports, what is decided, and by what."
        " A new file is readable by its owner alone. A trace ends at 64 MiB, or when the file system is full.",
        offers="files",
    ),
    Option("syslog", "", "log to syslog as well", "See `syslog(3)`.", into="to_syslog"),
    Option(
        "dry-run", "", "show which options are in force and where each comes from, and serve nothing",
        "Each comes from the command line, a file and its line, `--hook`, or is the default. Needs no permission.",
    ),
)
# fmt: on
WORDS = {option.word: option for option in _ROWS if option.word}
"""The words of `-o`."""
RUN: tuple[Option, ...] = (
    *_ROWS,
    Option(
        "o",
        "WORD[,WORD...]",
        f"the AutoIP module's option string: {' '.join(f'`{row.usage}`' for row in WORDS.values())}",
        "`debug` logs to syslog as well. The words mix with the other options.",
        repeat="all",
        offers="words",
    ),
    Option("version", "", "show the version"),
)
"""All options of `run`, in the order of its help."""
CONFIGURED = {option.name: option for option in RUN if option.configured}
"""The options that the configuration file may choose for an interface."""
