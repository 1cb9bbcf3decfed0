"""Many veth pairs at once between two namespaces, one `ip` for all of them."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from ipaddress import IPv4Address

from lab import LabError, Namespace
from lab.frames import mac_bytes

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Cable:
    """One veth pair: `name` in `host`, `far` in the neighbour's namespace `yonder`."""

    host: Namespace
    name: str
    mac: str
    yonder: Namespace
    far: str
    far_mac: str

    @property
    def raw_mac(self) -> bytes:
        return mac_bytes(self.mac)


def lay(yonder: Namespace, host: Namespace, count: int = 1, *, first: int = 0) -> list[Cable]:
    """Make cables whose ends in `host` are eth0, eth1, ..., or from another number on; they carry frames.

    Raises LabError.
    """
    cables = []
    for index in range(first, first + count):
        number = next(_numbers)
        low = f"{number >> 8:02x}:{number & 0xFF:02x}"
        mac, far_mac = f"02:00:00:01:{low}", f"02:00:00:02:{low}"
        cables.append(Cable(host, f"eth{index}", mac, yonder, f"p{number}", far_mac))
    # Far indexes of their own: where both ends have the same index the kernel takes a veth for a
    # plain device and reports its change of carrier only once a second.
    make = [
        f"link add name {c.far} index {100_000 + int(c.far[1:])} address {c.far_mac} type veth"
        f" peer name {c.name} address {c.mac} netns {host.path}\nlink set {c.far} up"
        for c in cables
    ]
    _batch(yonder, make)
    _batch(host, [f"link set {c.name} up" for c in cables])
    for namespace, names in (
        (host, {c.name for c in cables}),
        (yonder, {c.far for c in cables}),
    ):
        _wait_up(namespace, names)
    return cables


def cable(yonder: Namespace, host: Namespace) -> Cable:
    """Make one cable."""
    return lay(yonder, host)[0]


def held(host: Namespace) -> dict[str, list[IPv4Address]]:
    """Return the link-local addresses of each interface."""
    addresses: dict[int, list[IPv4Address]] = {}
    for entry in host.addresses():
        if entry.link_local:
            addresses.setdefault(entry.index, []).append(entry.address)
    return {
        link["ifname"]: addresses.get(link["ifindex"], [])
        for link in json.loads(host.run("ip", "-j", "link"))
    }


def wait_held(cables: list[Cable], timeout: float) -> dict[str, IPv4Address]:
    """Wait for the one link-local address of each cable's interface. Raises LabError after `timeout` s."""
    host = cables[0].host
    until = time.monotonic() + timeout
    while True:
        found = held(host)
        have = {c.name: found[c.name][0] for c in cables if len(found[c.name]) == 1}
        if len(have) == len(cables):
            return have
        if time.monotonic() > until:
            raise LabError(f"{host.name}: {len(have)} of {len(cables)} have an address")
        time.sleep(0.1)


def _batch(namespace: Namespace, lines: list[str]) -> None:
    namespace.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n", timeout=60)


def _wait_up(namespace: Namespace, names: set[str]) -> None:
    until = time.monotonic() + 30
    while True:
        links = json.loads(namespace.run("ip", "-j", "link"))
        if names <= {link["ifname"] for link in links if link["operstate"] == "UP"}:
            return
        if time.monotonic() > until:
            raise LabError(f"{namespace.name}: the cables carry nothing")
        time.sleep(0.05)
