"""The status object of one interface, as `autoip status --json` shows it: see `protocol.STATUS`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any

from autoip.control.protocol import VERSION
from autoip.core.acd import Defence
from autoip.core.arp import format_mac
from autoip.core.ipv4ll import State
from autoip.core.policy import Policy
from autoip.daemon.host import Host
from autoip.daemon.negotiator import Negotiator
from autoip.daemon.protocols import Network
from autoip.daemon.reporter import Reporter
from autoip.kernel.model import Address, Link
from autoip.options import Options


def status(
    reporter: Reporter,
    options: Options,
    link: Link | None,
    policy: Policy,
    negotiator: Negotiator,
    others: Iterable[Address],
    neighbours: Sequence[dict[str, Any]],
    limits: Sequence[str],
) -> dict[str, Any]:
    """Make the object.

    Args:
        reporter: of the interface.
        options: what the user chose.
        link: the present link of the interface; None: there is no link.
        policy: of the interface.
        negotiator: of the interface.
        others: addresses of the interface that are not owned.
        neighbours: those that are reached by the link, where there are several links.
        limits: what cannot be done here.
    """
    step, at = _step(negotiator, policy)
    others = list(others)
    return {
        "version": VERSION,
        "interface": reporter.name,
        "index": link.index if link is not None else None,
        "mac": format_mac(link.mac) if link is not None else None,
        "pid": os.getpid(),
        "state": negotiator.state.value,
        "why": reason(reporter, policy, negotiator),
        "address": _text(negotiator.address),
        "since": reporter.since,
        "candidate": _text(negotiator.candidate),
        "step": step,
        "step_in": max(at - negotiator.clock(), 0.0) if at is not None else None,
        "policy": options.policy.value,
        "defence": "abandon" if options.defence is Defence.ABANDON else "defend",
        "delay": options.delay,
        "others": [_prefixed(other) for other in others],
        "routable": [_prefixed(other) for other in others if other.routable],
        "conflicts": reporter.conflicts,
        "defences": reporter.defences,
        "last_conflict": reporter.last_conflict,
        "kernel_defence": _counts(negotiator),
        "limits": limits,
        "notes": [*reporter.notes, *map(_ambiguous, filter(_is_ambiguous, neighbours))],
        "neighbours": neighbours,
    }


def dropped(network: Network, host: Host, link: Link | None) -> Iterator[str]:
    """Yield the limit that strict rp_filter is where several links have link-local addresses."""
    links = host.with_link_local()
    if link is not None and link in links and len(links) > 1 and network.is_strict(link):
        names = ", ".join(each.name for each in links)
        yield (
            f"rp_filter = 1: of {names}, which have link-local addresses, only one gets broadcasts and multicasts of"
            f" link-local hosts that have no route of their own:"
            f" sysctl -w net/ipv4/conf/{shlex.quote(link.name)}/rp_filter=2"
        )


def reason(reporter: Reporter, policy: Policy, negotiator: Negotiator) -> str:
    """Return what brought the state about, in words."""
    by_policy = policy.yields or negotiator.state is State.STANDBY
    return reporter.trouble or (policy.why if by_policy else reporter.why)


def summary(reporter: Reporter, policy: Policy, negotiator: Negotiator) -> str:
    """Return one line for the service manager: name, state, candidate or address, reason."""
    why = reason(reporter, policy, negotiator)
    words = (
        f"{reporter.name}: {negotiator.state.value}",
        _text(negotiator.candidate),
        why and f"({why})",
    )
    return " ".join(word for word in words if word)


def _counts(negotiator: Negotiator) -> dict[str, int] | None:
    counts = None if negotiator.socket is None else negotiator.socket.counts
    return None if counts is None else counts._asdict()


def _step(negotiator: Negotiator, policy: Policy) -> tuple[str | None, float | None]:
    """Return the next step, in words, and its time; None: there is no next step."""
    for part in (negotiator.core, policy):
        if part is not None and part.step and (at := part.next_timer()) is not None:
            return part.step, at
    return None, None


def _is_ambiguous(neighbour: dict[str, Any]) -> bool:
    return neighbour["ambiguous"] is not None


def _ambiguous(neighbour: dict[str, Any]) -> str:
    other = neighbour["ambiguous"]
    return (
        f"{neighbour['address']} is ambiguous: {neighbour['mac']} here is reached,"
        f" {other['mac']} on {other['interface']} is not"
    )


def _prefixed(address: Address) -> str:
    return f"{address.address}/{address.prefixlen}"


def _text(address: IPv4Address | None) -> str | None:
    return None if address is None else str(address)
