"""autoip.kernel.network and its parts against the kernel, in network namespaces of the test's own."""

from __future__ import annotations

import asyncio
import errno
import inspect
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from typing import Any

import pytest

from autoip.errors import KernelRefused
from autoip.kernel import netlink, network, rtnetlink
from autoip.kernel.addresses import Addresses
from autoip.kernel.model import (
    Address,
    AddressAdded,
    AddressRemoved,
    Event,
    Link,
    LinkChanged,
    LinkRemoved,
    Resync,
    ethernet_like,
)
from autoip.kernel.netlink import Request, Requests
from autoip.kernel.network import Network
from autoip.kernel.source_routing import SourceRules
from lab import Namespace
from tests.fed_socket import KERNEL, feed, message

from .helpers import NETNS, PATIENCE, configuration, wait_until
from .helpers import link as link_state

pytestmark = NETNS

OURS = IPv4Address("169.254.7.7")
SECOND = IPv4Address("169.254.8.8")
_counter = itertools.count()


@pytest.fixture
def host(stack: ExitStack) -> Namespace:
    return stack.enter_context(Namespace("host"))


Test = Callable[..., Coroutine[Any, Any, None]]


def with_network(test: Test) -> Callable[..., None]:
    """Runs the test in its `host`, with an open Network as its first argument; no task may be left."""

    def run(host: Namespace, **fixtures: Any) -> None:
        async def main() -> None:
            kernel = Network()
            await kernel.open()
            try:
                await asyncio.wait_for(test(kernel, host=host, **fixtures), 3 * PATIENCE)
            finally:
                kernel.close()
                await asyncio.sleep(0)
                assert asyncio.all_tasks() == {asyncio.current_task()}

        host.call(lambda: asyncio.run(main()))

    signature = inspect.signature(test)
    parameters = list(signature.parameters.values())[1:]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def batch(host: Namespace, commands: str) -> None:
    host.run("ip", "-batch", "-", stdin=commands)


def sysctl(host: Namespace, name: str, value: int | None = None) -> int:
    """Gets or sets /proc/sys/net/ipv4/conf/NAME."""
    path = f"/proc/sys/net/ipv4/conf/{name}"
    if value is not None:
        host.run("sh", "-c", f"echo {value} > {path}")
    return int(host.run("cat", path))


def veth(host: Namespace, name: str = "v0", peer: str = "p0") -> None:
    """A pair, both ends up, in one namespace."""
    host.run("ip", "link", "add", name, "type", "veth", "peer", "name", peer)
    host.run("ip", "link", "set", name, "up")
    host.run("ip", "link", "set", peer, "up")
    wait_until(lambda: link_state(host, peer)["operstate"] == "UP", f"{peer} operational")


async def link_of(kernel: Network, name: str) -> Link:
    links, _ = await kernel.snapshot()
    return next(link for link in links if link.name == name)


async def ready_link(kernel: Network, name: str) -> Link:
    """The link once its carrier is there."""
    while not (link := await link_of(kernel, name)).ready:
        await asyncio.sleep(0.02)
    return link


async def until(kernel: Network, wanted: Callable[[Event], bool]) -> list[Event]:
    """The events up to and with the first wanted one."""
    events: list[Event] = []
    while not events or not wanted(events[-1]):
        events.append(await asyncio.wait_for(kernel.next_event(), PATIENCE))
    return events


async def settle(kernel: Network, host: Namespace) -> list[Event]:
    """All events so far: a marker address is added, and waited for."""
    marker = f"192.0.2.{1 + next(_counter) % 250}"
    host.ip(f"addr add {marker}/32 dev lo")
    events = await until(
        kernel, lambda e: isinstance(e, AddressAdded) and str(e.address.address) == marker
    )
    return events[:-1]


def addresses(host: Namespace, device: str = "v0") -> list[dict[str, Any]]:
    found = json.loads(host.ip(f"-4 -d -j addr show dev {device}"))
    return [info for entry in found for info in entry.get("addr_info", ())]


# What add_address sets


@with_network
async def test_if_alias_attributes(kernel: Network, host: Namespace) -> None:
    veth(host)
    host.ip("addr add 10.1.1.1/24 dev v0")
    link = await ready_link(kernel, "v0")
    for _ in range(2):  # the second time nothing is looked up
        await kernel.add_address(link, OURS)
        assert Address(link.index, OURS, 16, 253, "v0:autoip", 169) in await kernel.addresses()
        foreign, ours = sorted(addresses(host), key=lambda a: str(a["scope"]))
        assert foreign["local"] == "10.1.1.1"
        assert ours["local"] == str(OURS)
        assert ours["broadcast"] == "169.254.255.255"
        assert ours["metric"] == 1000 + link.index
        assert ours["valid_life_time"] == 2**32 - 1
        table = 169254000 + link.index
        assert f"1690:\tfrom {OURS} lookup {table} proto 169" in host.ip("rule")
        route = host.ip(f"route show table {table}").split()
        assert route == f"169.254.0.0/16 dev v0 proto 169 scope link src {OURS}".split()
        assert kernel.limits == []
        await kernel.remove_address(link.index, OURS)


@with_network
async def test_stranded_routes_without_our_address(kernel: Network, host: Namespace) -> None:
    """If ours has gone meanwhile the kernel has removed what there was: the rest came later."""
    veth(host)
    link = await ready_link(kernel, "v0")
    host.ip("route add 198.18.0.0/24 via 192.0.2.1 dev v0 onlink")
    assert await kernel.remove_stranded(link.index, OURS) == []
    assert host.ip("route show 198.18.0.0/24")
    await kernel.add_address(link, OURS)
    assert await kernel.remove_stranded(link.index, OURS) == ["198.18.0.0/24 via 192.0.2.1"]
    assert not host.ip("route show 198.18.0.0/24")


@with_network
async def test_demoted_address(kernel: Network, host: Namespace) -> None:
    """Its route comes last, also when it is repaired; a missing address is not added again."""
    veth(host)
    link = await ready_link(kernel, "v0")
    await kernel.add_address(link, OURS)

    def route() -> str:
        return host.ip("route show 169.254.0.0/16").strip()

    usual = "169.254.0.0/16 dev v0 proto kernel scope link src {} metric {}"
    await kernel.demote(link, OURS)
    assert route() == usual.format(OURS, 3000 + link.index)
    await kernel.add_address(link, OURS, replace=True)
    assert route() == usual.format(OURS, 3000 + link.index)
    assert host.link_local("v0") == [OURS]
    assert kernel.limits == []
    for _ in range(2):
        await kernel.promote(link.index)
        assert route() == usual.format(OURS, 1000 + link.index)
    await kernel.demote(link, OURS)
    await kernel.remove_address(link.index, OURS)
    await kernel.demote(link, OURS)
    await kernel.promote(link.index)
    assert route() == "" and host.link_local("v0") == []
    await kernel.add_address(link, OURS)
    assert route() == usual.format(OURS, 1000 + link.index)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        (b"v2345678", "v2345678:autoip"),
        (b"v23456789", "v23456789"),
        (b"v23456789012345", "v23456789012345"),
        # The kernel takes no '%' but in "%d", which it replaces.
        (b"a{b}", "a{b}:autoip"),
        (b".x", ".x:autoip"),
        ("é".encode(), "é:autoip"),
        # Eight characters, but nine bytes.
        ("é234567".encode(), "é234567:autoip"),
        ("é2345678".encode(), "é2345678"),
        (b"\xff\xfe", "\udcff\udcfe:autoip"),
        (b"'\"$;", "'\"$;:autoip"),
    ],
)
@with_network
async def test_names_and_labels(kernel: Network, host: Namespace, name: bytes, label: str) -> None:
    """Names are bytes, and need not be UTF-8; a label that is too long is left out."""
    veth(host, os.fsdecode(name))
    link = await ready_link(kernel, os.fsdecode(name))
    await kernel.add_address(link, OURS)
    assert [a.label for a in await kernel.addresses() if a.address == OURS] == [label]
    await kernel.remove_address(link.index, OURS)
    assert OURS not in [a.address for a in await kernel.addresses()]
    host.run("ip", "link", "del", os.fsdecode(name))
    await until(kernel, lambda event: event == LinkRemoved(link.index))


@with_network
async def test_if_stop_leaves_everything_as_it_was(kernel: Network, host: Namespace) -> None:
    veth(host)
    host.ip("addr add 10.1.1.1/24 dev v0")
    host.ip("addr add 169.254.1.1/24 dev v0")
    host.ip(f"rule add from {OURS} lookup 77 priority 5000")
    host.ip("route add 169.254.0.0/16 dev v0 table 77 metric 3")
    link = await ready_link(kernel, "v0")
    before = configuration(host)
    await kernel.add_address(link, OURS)
    assert configuration(host) != before
    await kernel.remove_address(link.index, OURS)
    assert configuration(host) == before


@with_network
async def test_already_there(kernel: Network, host: Namespace) -> None:
    veth(host)
    link = await ready_link(kernel, "v0")
    await kernel.add_address(link, OURS)
    before = configuration(host)
    with pytest.raises(KernelRefused) as refused:
        await kernel.add_address(link, OURS)
    assert refused.value.errno == errno.EEXIST
    assert configuration(host) == before


@with_network
async def test_scope_of_a_foreign_address_of_the_prefix(kernel: Network, host: Namespace) -> None:
    veth(host)
    host.ip("addr add 169.254.9.9/16 dev v0 scope global")
    link = await ready_link(kernel, "v0")
    before = configuration(host)
    await kernel.add_address(link, OURS)
    assert addresses(host)[1]["scope"] == "global"
    await kernel.remove_address(link.index, OURS)
    assert configuration(host) == before


@with_network
async def test_link_that_is_gone_or_down(kernel: Network, host: Namespace) -> None:
    veth(host)
    host.ip("link add d0 type veth peer name d1")
    gone, down = await link_of(kernel, "v0"), await link_of(kernel, "d0")
    host.ip("link del v0")
    before = configuration(host)
    for link, number in ((gone, errno.ENODEV), (down, errno.ENETDOWN)):
        with pytest.raises(KernelRefused) as refused:
            await kernel.add_address(link, OURS)
        assert refused.value.errno == number
        assert configuration(host) == before


@with_network
async def test_set_up(kernel: Network, host: Namespace) -> None:
    host.ip("link add v0 type veth peer name p0")
    link = await link_of(kernel, "v0")
    assert not link.up
    await kernel.set_up(link.index)
    link = await link_of(kernel, "v0")
    assert link.up
    # Nobody is at the other end.
    assert not link.ready
    with pytest.raises(KernelRefused) as refused:
        await kernel.set_up(99999)
    assert refused.value.errno == errno.ENODEV


# Several interfaces


def reached(
    peer: Namespace, address: IPv4Address, server: socket.socket, within: float = PATIENCE
) -> bool:
    """Whether `peer` can open a TCP connection to the address, so that the answer finds its way back."""
    try:
        peer.call(socket.create_connection, (str(address), server.getsockname()[1]), within).close()
    except OSError:
        return False
    return True


@with_network
async def test_strict_rp_filter_where_the_link_is_gone(kernel: Network, host: Namespace) -> None:
    """What counts for all links counts, and nothing fails."""
    veth(host)
    link = await ready_link(kernel, "v0")
    host.ip("link del v0")
    for value in (0, 1, 2):
        sysctl(host, "all/rp_filter", value)
        assert host.call(kernel.is_strict, link) == (value == 1)


@pytest.mark.parametrize("rp_filter", [0, 1])
@with_network
async def test_if_many_each_peer_reaches_its_interface(
    kernel: Network, host: Namespace, stack: ExitStack, rp_filter: int
) -> None:
    peers = [stack.enter_context(Namespace("peer")) for _ in range(2)]
    sysctl(host, "all/rp_filter", rp_filter)
    for number, peer in enumerate(peers):
        host.ip(f"link add v{number} type veth peer name p0 netns {peer.path}")
        sysctl(host, f"v{number}/rp_filter", rp_filter)
        host.ip(f"link set v{number} up")
        peer.ip("link set p0 up")
        peer.ip(f"addr add 169.254.100.{number + 1}/16 dev p0")
    links = [await ready_link(kernel, f"v{number}") for number in range(2)]
    before = host.ip("rule"), addresses(host, "v0"), addresses(host, "v1")
    for link, address in zip(links, (OURS, SECOND), strict=True):
        await kernel.add_address(link, address)
    server = stack.enter_context(socket.create_server(("0.0.0.0", 0)))
    assert reached(peers[0], OURS, server)
    assert reached(peers[1], SECOND, server)
    # The proof that it is the rule that does it.
    host.ip(f"rule del from {SECOND} priority 1690")
    assert reached(peers[0], OURS, server)
    assert not reached(peers[1], SECOND, server, within=2)
    for link, address in zip(links, (OURS, SECOND), strict=True):
        await kernel.remove_address(link.index, address)
    assert (host.ip("rule"), addresses(host, "v0"), addresses(host, "v1")) == before


# Removal


def foreign(host: Namespace) -> None:
    """Two addresses of others, secondary to ours, with attributes that are easily lost."""
    for words in (
        "addr add 169.254.9.9/16 brd 169.254.255.255 scope link dev v0 label v0:them",
        "addr add 169.254.9.10/16 scope link dev v0 metric 77 noprefixroute",
        "addr change 169.254.9.10/16 dev v0 noprefixroute valid_lft 5050 preferred_lft 4050",
    ):
        host.ip(words)


def others(host: Namespace) -> list[dict[str, Any]]:
    """The addresses of v0 but ours, without what the passing of time or a promotion changes."""
    found = [entry for entry in addresses(host) if entry["local"] != str(OURS)]
    for entry in found:
        entry.pop("secondary", None)
        for key in ("valid_life_time", "preferred_life_time"):
            entry[key] = entry[key] if entry[key] > 10000 else entry[key] // 100
    return sorted(found, key=lambda entry: str(entry["local"]))


@pytest.mark.parametrize("promote", [0, 1])
@with_network
async def test_addresses_of_others_survive_the_removal(
    kernel: Network, host: Namespace, promote: int
) -> None:
    veth(host)
    sysctl(host, "all/promote_secondaries", 0)
    sysctl(host, "v0/promote_secondaries", promote)
    link = await ready_link(kernel, "v0")
    await kernel.add_address(link, OURS)
    foreign(host)
    before = others(host)
    assert len(before) == 2
    await settle(kernel, host)
    await kernel.remove_address(link.index, OURS)
    assert others(host) == before
    assert sysctl(host, "v0/promote_secondaries") == promote
    # Not deleted and added again: nobody lost a connection.
    events = await settle(kernel, host)
    removed = [e.address.address for e in events if isinstance(e, AddressRemoved)]
    assert removed == [OURS]
    assert "169.254.0.0/16 dev v0 proto kernel scope link src 169.254.9.9" in host.ip("route")


@with_network
async def test_addresses_of_others_are_put_back(
    kernel: Network, host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where promote_secondaries cannot be set."""
    veth(host)
    sysctl(host, "all/promote_secondaries", 0)
    sysctl(host, "v0/promote_secondaries", 0)

    async def refuse(self: Addresses, index: int, value: int) -> None:
        raise KernelRefused(errno.EOPNOTSUPP, "set promote_secondaries")

    monkeypatch.setattr(Addresses, "_set_promotes", refuse)
    link = await ready_link(kernel, "v0")
    await kernel.add_address(link, OURS)
    foreign(host)
    before = others(host)
    await kernel.remove_address(link.index, OURS)
    assert others(host) == before


@with_network
async def test_only_that_very_address_is_removed(kernel: Network, host: Namespace) -> None:
    veth(host)
    # Same address, other prefix; same prefix, other address; no relation.
    for text in (f"{OURS}/24", "169.254.9.9/16", "10.1.1.1/8"):
        host.ip(f"addr add {text} dev v0 scope link")
    link = await ready_link(kernel, "v0")
    before = configuration(host)
    await kernel.remove_address(link.index, OURS)
    assert configuration(host) == before
    await kernel.add_address(link, OURS)
    await kernel.remove_address(link.index, OURS)
    assert configuration(host) == before


@with_network
async def test_remove_what_others_removed_already(kernel: Network, host: Namespace) -> None:
    veth(host)
    veth(host, "w0", "q0")
    link, other = await ready_link(kernel, "v0"), await ready_link(kernel, "w0")
    before = configuration(host)
    await kernel.add_address(link, OURS)
    host.ip("addr flush dev v0")
    await kernel.remove_address(link.index, OURS)
    assert configuration(host) == before
    # With the interface its address and routes go, but not the rule.
    await kernel.add_address(other, SECOND)
    host.ip("link del w0")
    assert str(SECOND) in host.ip("rule")
    await kernel.remove_address(other.index, SECOND)
    assert str(SECOND) not in configuration(host)


@with_network
async def test_sweep(kernel: Network, host: Namespace) -> None:
    veth(host)
    veth(host, "w0", "q0")
    host.ip(f"rule add from {SECOND} lookup 77 priority 1690")
    host.ip(f"rule add from {SECOND} lookup 169254999 protocol 169 priority 44")
    link, other = await ready_link(kernel, "v0"), await ready_link(kernel, "w0")
    before = configuration(host)
    # Left by crashes: a rule and its route, a rule alone, a route alone.
    await kernel.add_address(link, OURS)
    host.ip(f"addr del {OURS}/16 dev v0")
    await kernel.add_address(other, SECOND)
    host.ip(f"addr del {SECOND}/16 dev w0")
    host.ip(f"route flush table {169254000 + other.index}")
    third = IPv4Address("169.254.3.3")
    await kernel.add_address(other, third)
    host.ip(f"rule del from {third} priority 1690")
    # The route has to survive the address for this.
    host.ip(f"addr del {third}/16 dev w0")
    assert configuration(host) != before
    await kernel.sweep()
    assert configuration(host) == before
    # Another instance's.
    await kernel.add_address(link, OURS)
    living = configuration(host)
    await kernel.sweep()
    assert configuration(host) == living


@pytest.mark.parametrize("listing", ["_rules", "_routes"])
@with_network
async def test_sweep_while_another_instance_claims(
    kernel: Network, host: Namespace, monkeypatch: pytest.MonkeyPatch, listing: str
) -> None:
    """What has come during the sweep stays."""
    veth(host)
    link = await ready_link(kernel, "v0")
    found = getattr(SourceRules, listing)

    async def slow(rules: SourceRules) -> Any:
        await kernel.add_address(link, OURS)
        return await found(rules)

    monkeypatch.setattr(SourceRules, listing, slow)
    await kernel.sweep()
    assert f"from {OURS}" in host.ip("rule")
    assert f"table {169254000 + link.index}" in host.ip("route show table all")


# Events


@with_network
async def test_events_of_a_link(kernel: Network, host: Namespace, stack: ExitStack) -> None:
    elsewhere = stack.enter_context(Namespace("elsewhere"))
    await kernel.snapshot()
    host.ip("link add v0 type veth peer name p0")
    new = (await until(kernel, is_link(lambda link: link.name == "v0")))[-1]
    assert isinstance(new, LinkChanged)
    assert not new.link.up
    assert new.link.kind == "veth"
    assert new.link.speaks_arp
    host.ip("link set v0 up")
    await until(kernel, is_link(lambda link: link.name == "v0" and link.up and not link.ready))
    host.ip("link set p0 up")
    ready = (await until(kernel, is_link(lambda link: link.name == "v0" and link.ready)))[-1]
    assert isinstance(ready, LinkChanged)
    # if-carrier
    host.ip("link set p0 down")
    lost = (await until(kernel, is_link(lambda link: link.name == "v0" and not link.ready)))[-1]
    assert isinstance(lost, LinkChanged)
    assert lost.link.up
    assert lost.link.carrier_changes > ready.link.carrier_changes
    # if-mac
    host.ip("link set v0 address 02:00:00:00:00:07")
    mac = bytes.fromhex("020000000007")
    await until(kernel, is_link(lambda link: link.name == "v0" and link.mac == mac))
    host.ip("link property add dev v0 altname a-rather-long-alternative-name")
    host.ip("link property add dev v0 altname b")
    names = ("a-rather-long-alternative-name", "b")
    await until(kernel, is_link(lambda link: link.altnames == names))
    host.ip("link set v0 down")
    await until(kernel, is_link(lambda link: link.name == "v0" and not link.up))
    host.ip("link set v0 name w0")
    await until(kernel, is_link(lambda link: link.name == "w0" and link.index == new.link.index))
    # if-gone
    host.ip(f"link set w0 netns {elsewhere.path}")
    gone = (await until(kernel, lambda event: isinstance(event, LinkRemoved)))[-1]
    assert gone == LinkRemoved(new.link.index)
    links, _ = await kernel.snapshot()
    (peer,) = [link.index for link in links if link.name == "p0"]
    elsewhere.ip("link del w0")
    gone = (await until(kernel, lambda event: isinstance(event, LinkRemoved)))[-1]
    assert gone == LinkRemoved(peer)


def is_link(wanted: Callable[[Link], bool]) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, LinkChanged) and wanted(event.link)


@with_network
async def test_events_of_an_address(kernel: Network, host: Namespace) -> None:
    veth(host)
    link = await ready_link(kernel, "v0")
    await settle(kernel, host)
    await kernel.add_address(link, OURS)
    # if-removed: by somebody else
    host.ip(f"addr del {OURS}/16 dev v0")
    # Of IPv6 nothing is heard.
    host.run("sysctl", "-qw", "net.ipv6.conf.v0.disable_ipv6=0")
    host.ip("addr add 2001:db8::1/64 dev v0 nodad")
    host.ip("addr add 192.0.2.1 peer 192.0.2.2/32 dev v0")
    added = Address(link.index, OURS, 16, 253, "v0:autoip", 169)
    assert await settle(kernel, host) == [
        AddressAdded(added),
        AddressRemoved(added),
        AddressAdded(Address(link.index, IPv4Address("192.0.2.1"), 32, 0, "v0", None)),
    ]


@with_network
async def test_nothing_else_wakes_the_process(kernel: Network, host: Namespace) -> None:
    """Neighbours, routes, rules and IPv6 are not even delivered."""
    veth(host)
    host.run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0")
    await ready_link(kernel, "v0")
    await settle(kernel, host)
    for words in (
        "neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev v0",
        "route add 10.0.0.0/8 dev v0",
        "rule add from 10.0.0.1 lookup 77",
        "-6 addr add 2001:db8::1/64 dev lo",
    ):
        host.ip(words)
    await asyncio.sleep(0.2)
    assert kernel._events is not None
    with pytest.raises(BlockingIOError):
        kernel._events._socket.recvmsg(1)


@with_network
async def test_leaving_a_bridge_is_no_removal(kernel: Network, host: Namespace) -> None:
    veth(host)
    host.ip("link add br0 type bridge")
    await ready_link(kernel, "v0")
    await settle(kernel, host)
    host.ip("link set v0 master br0")
    port = await link_of(kernel, "v0")
    bridge = await link_of(kernel, "br0")
    assert port.is_port and port.port_kind == "bridge"
    assert port.master == bridge.index
    assert port not in ethernet_like([port])
    host.ip("link set v0 nomaster")
    events = await settle(kernel, host)
    assert not any(isinstance(event, LinkRemoved) for event in events)
    free = await link_of(kernel, "v0")
    assert not free.is_port and free.port_kind is None
    assert free.master is None
    assert kernel._links[free.index] == free


@with_network
async def test_no_event_when_nothing_changes(kernel: Network, host: Namespace) -> None:
    """The kernel describes a link anew for changes that do not concern us."""
    veth(host)
    await ready_link(kernel, "v0")
    await settle(kernel, host)
    for words in ("alias x", "txqueuelen 77", "mtu 1400", "group 5"):
        host.ip(f"link set v0 {words}")
    assert await settle(kernel, host) == []


@with_network
async def test_a_link_that_flapped_is_few_events(kernel: Network, host: Namespace) -> None:
    """All that waits is read before the first event is handled."""
    veth(host)
    link = await ready_link(kernel, "v0")
    await settle(kernel, host)
    flap = "link set v0 down\nlink set v0 up\n"
    batch(host, 250 * flap + f"addr add {OURS}/16 dev v0\naddr del {OURS}/16 dev v0\n" + 250 * flap)
    wait_until(lambda: link_state(host, "v0")["operstate"] == "UP", "v0 operational")
    events = [event for event in await settle(kernel, host) if not isinstance(event, Resync)]
    of_link = [e.link for e in events if isinstance(e, LinkChanged) and e.link.index == link.index]
    assert len(of_link) <= 2 * (4000 // network.NEWS_AT_ONCE)
    assert of_link[-1].ready and any(not state.ready for state in of_link)
    assert of_link[-1].carrier_changes >= link.carrier_changes + 1000
    of_address = [type(e) for e in events if isinstance(e, AddressAdded | AddressRemoved)]
    assert of_address == [AddressAdded, AddressRemoved]


@with_network
async def test_next_event_can_be_cancelled(kernel: Network, host: Namespace) -> None:
    await settle(kernel, host)
    wanted = [f"10.0.0.{n}" for n in range(1, 101)]
    adding = host.popen(["ip", "-batch", "-"], stdin=subprocess.PIPE)
    assert adding.stdin is not None
    adding.stdin.write("".join(f"addr add {text}/32 dev lo\n" for text in wanted).encode())
    adding.stdin.close()
    found: list[str] = []
    cancelled = 0
    while len(found) < len(wanted):
        task = asyncio.ensure_future(kernel.next_event())
        # One more pass of the loop each time: cancelled at every point that there is.
        for _ in range(cancelled % 7):
            await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            cancelled += 1
        try:
            event = await task
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)
            continue
        assert isinstance(event, AddressAdded)
        found.append(str(event.address.address))
    assert adding.wait(PATIENCE) == 0
    assert found == wanted
    assert cancelled > 0


# Lost messages and broken sockets


def flood(host: Namespace, count: int = 3000) -> None:
    """That many address events, while nothing is read."""
    batch(host, "addr add 10.9.9.9/32 dev lo\naddr del 10.9.9.9/32 dev lo\n" * (count // 2))


def test_overrun_becomes_a_resync(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is the kernel's, and bounded; what does not fit is made up for."""
    monkeypatch.setattr(netlink, "RECEIVE_BUFFER", 4096)
    monkeypatch.setattr(network, "RESYNC_INTERVAL", 0.1)
    veth(host)

    async def body(kernel: Network, host: Namespace) -> None:
        link = await ready_link(kernel, "v0")
        for _ in range(3):
            flood(host)
            host.ip(f"addr replace {OURS}/16 dev v0")
            events = await until(kernel, lambda event: isinstance(event, Resync))
            assert len(events) < 100
            truth = events[-1]
            assert isinstance(truth, Resync)
            assert {found.name for found in truth.links} == {"lo", "v0", "p0"}
            assert OURS in {found.address for found in truth.addresses}
            # And it goes on.
            host.ip(f"addr del {OURS}/16 dev v0")
            assert [
                event.address.address
                for event in await settle(kernel, host)
                if isinstance(event, AddressRemoved) and event.address.index == link.index
            ] == [OURS]

    with_network(body)(host)


@with_network
async def test_a_large_buffer_holds_a_burst(kernel: Network, host: Namespace) -> None:
    await settle(kernel, host)
    flood(host)
    # Others get the processor between two events.
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    events = [await kernel.next_event() for _ in range(3000)]
    ticking.cancel()
    await asyncio.gather(ticking, return_exceptions=True)
    assert not any(isinstance(event, Resync) for event in events)
    assert await settle(kernel, host) == []
    assert ticks >= 3000


def test_the_buffer_is_enlarged_beyond_the_limit(
    host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/proc/sys/net/core/rmem_max") as file:
        wanted = int(file.read()) + 4096
    monkeypatch.setattr(netlink, "RECEIVE_BUFFER", wanted)

    async def body(kernel: Network, host: Namespace) -> None:
        assert kernel._events is not None
        size = kernel._events._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert size == 2 * wanted

    with_network(body)(host)


BROKEN = {
    "an error": OSError(errno.EIO, "broken"),
    "garbage": message(20, b"\2"),
    "cut off": (message(20, bytes(8)), [], socket.MSG_TRUNC, KERNEL),
}


@pytest.mark.parametrize("how", BROKEN)
@with_network
async def test_what_cannot_be_read_becomes_a_resync(
    kernel: Network, host: Namespace, how: str
) -> None:
    veth(host)
    await ready_link(kernel, "v0")
    await settle(kernel, host)
    before = kernel._events
    feed(before, BROKEN[how])
    first = await asyncio.wait_for(kernel.next_event(), PATIENCE)
    assert isinstance(first, Resync)
    assert kernel._events is not before
    host.ip("link set p0 down")
    await until(kernel, is_link(lambda link: link.name == "v0" and not link.ready))


@contextmanager
def noted_pauses() -> Iterator[list[float]]:
    """Nobody sleeps; gives how long each would have."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.extend([seconds] if seconds else [])
        await sleep(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "sleep", note)
        yield pauses


@with_network
async def test_reopening_is_tried_with_pauses(
    kernel: Network, host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 12
    create = netlink.Socket

    def fail(family: netlink.Family, groups: int = 0) -> netlink.Socket:
        if len(pauses) < failures:
            raise KernelRefused(errno.ENFILE, "open a netlink socket")
        return create(family, groups)

    monkeypatch.setattr(netlink, "Socket", fail)
    feed(kernel._events, OSError(errno.EIO, "broken"))
    with noted_pauses() as pauses:
        event = await kernel.next_event()
    assert isinstance(event, Resync)
    assert len(pauses) == failures
    assert (pauses[0], pauses[-1]) == (0.1, 5.0)
    assert pauses == sorted(pauses)


@with_network
async def test_resyncs_are_limited(
    kernel: Network, host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "RESYNC_INTERVAL", 600.0)  # which is not over yet
    for expected in (0, 1):
        feed(kernel._events, OSError(errno.ENOBUFS, "overrun"))
        with noted_pauses() as pauses:
            assert isinstance(await kernel.next_event(), Resync)
        assert len(pauses) == expected
    assert 0 < pauses[0] <= 600


@with_network
async def test_a_resync_that_is_cancelled_comes_again(kernel: Network, host: Namespace) -> None:
    feed(kernel._events, OSError(errno.ENOBUFS, "overrun"))
    for passes in range(12):
        task = asyncio.ensure_future(kernel.next_event())
        for _ in range(passes):
            await asyncio.sleep(0)
        if task.done():
            break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    else:
        task = asyncio.ensure_future(kernel.next_event())
    assert isinstance(await task, Resync)


@with_network
async def test_only_the_kernel_is_believed(kernel: Network, host: Namespace) -> None:
    """What another process sends to the socket is refused, and what it sends to the group is not heard."""
    veth(host)
    link = await ready_link(kernel, "v0")
    await settle(kernel, host)
    forged = message(17, struct.pack("=BxHiII", 0, 1, link.index, 0, 0))
    assert kernel._events is not None
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as forger:
        forger.bind((0, rtnetlink.RTMGRP_LINK))
        for opened in (kernel._events, kernel._requests._socket):
            assert opened is not None
            with pytest.raises(ConnectionRefusedError):
                forger.sendto(forged, opened._socket.getsockname())
        forger.sendto(forged, (0, rtnetlink.RTMGRP_LINK))
        assert await settle(kernel, host) == []
    # From the kernel it would have been believed.
    feed(kernel._events, (forged, [], 0, (0, 1)))
    assert await settle(kernel, host) == [LinkRemoved(link.index)]


@with_network
async def test_messages_that_describe_no_link_are_ignored(kernel: Network, host: Namespace) -> None:
    """A Wi-Fi driver's: index and name, no more. Our link has not lost its MAC."""
    veth(host)
    link = await ready_link(kernel, "v0")
    await settle(kernel, host)
    body = struct.pack("=BxHiII", 0, 1, link.index, link.flags, 0)
    feed(kernel._events, message(16, body + struct.pack("=HH4s", 7, 3, b"v0\0")))
    assert await settle(kernel, host) == []
    assert kernel._links[link.index] == link


@with_network
async def test_requests_side_by_side_and_cancelled(
    kernel: Network, host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    veth(host)
    # So many that a dump has several parts.
    batch(host, "".join(f"addr add 10.1.{n // 250}.{n % 250}/32 dev lo\n" for n in range(1000)))
    tries = netlink.READ_TRIES
    link = await ready_link(kernel, "v0")
    # One after the other: none finds the kernel busy with another one.
    monkeypatch.setattr(netlink, "READ_TRIES", 1)
    results = await asyncio.gather(*(kernel.snapshot() for _ in range(5)))
    assert all(result == results[0] for result in results)
    monkeypatch.setattr(netlink, "READ_TRIES", tries)
    for passes in range(12):
        task = asyncio.ensure_future(kernel.snapshot())
        for _ in range(passes):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await kernel.snapshot() == results[0]
    # Somebody's dump, just begun, of which nothing was read: the kernel refuses another one.
    opened = kernel._requests._socket
    assert opened is not None
    body = struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)
    opened._socket.send(message(rtnetlink.RTM_GETADDR, body, flags=netlink.DUMP))
    assert await kernel.snapshot() == results[0]
    assert kernel._requests._socket is opened
    wanted = [IPv4Address(f"169.254.20.{n}") for n in range(20)]
    await asyncio.gather(*(kernel.add_address(link, address) for address in wanted))
    _, found = await kernel.snapshot()
    assert [a.address for a in found if a.index == link.index] == wanted


@with_network
async def test_removals_side_by_side(
    kernel: Network, host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other of ours becomes primary; none may take the rest with it."""
    veth(host)
    sysctl(host, "all/promote_secondaries", 0)
    sysctl(host, "v0/promote_secondaries", 0)
    first, second, third = (IPv4Address(f"169.254.20.{n}") for n in range(3))
    remove = Addresses._remove

    async def late(self: Addresses, index: int, address: IPv4Address) -> None:
        # What was seen of the addresses is out of date by now, if the first removal goes on.
        for _ in range(100 if address == second else 0):
            await asyncio.sleep(0)
        await remove(self, index, address)

    monkeypatch.setattr(Addresses, "_remove", late)
    link = await ready_link(kernel, "v0")
    for passes in range(40):
        for address in (first, second, third):
            await kernel.add_address(link, address)
        tasks = [asyncio.ensure_future(kernel.remove_address(link.index, first))]
        # The second one begins at each moment of the first one.
        for _ in range(passes):
            await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(kernel.remove_address(link.index, second)))
        await asyncio.gather(*tasks)
        _, found = await kernel.snapshot()
        assert [a.address for a in found if a.index == link.index] == [third]
        assert sysctl(host, "v0/promote_secondaries") == 0
        await kernel.remove_address(link.index, third)


def test_close(host: Namespace) -> None:
    def descriptors() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    async def main() -> None:
        before = descriptors()
        for _ in range(5):
            kernel = Network()
            await kernel.open()
            waiting = asyncio.ensure_future(kernel.next_event())
            await asyncio.sleep(0.01)
            kernel.close()
            kernel.close()
            with pytest.raises(KernelRefused) as refused:
                await asyncio.wait_for(waiting, PATIENCE)
            assert refused.value.errno == errno.EBADF
            for action in (kernel.next_event(), kernel.snapshot(), kernel.set_up(1)):
                with pytest.raises(KernelRefused) as refused:
                    await action
                assert refused.value.errno == errno.EBADF
            assert asyncio.all_tasks() == {asyncio.current_task()}
            await asyncio.sleep(0)
        assert descriptors() == before

    host.call(lambda: asyncio.run(main()))


def test_open_without_descriptors_left(host: Namespace) -> None:
    code = """
import asyncio, os, resource
from autoip.errors import KernelRefused
from autoip.kernel.network import Network
async def main():
    kernel = Network()
    used = len(os.listdir("/proc/self/fd"))  # and one for the folder: enough for one of the sockets
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, 4096))
    try:
        await kernel.open()
    except KernelRefused as refused:
        print(refused.errno)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    assert len(os.listdir("/proc/self/fd")) == used
    await kernel.open()
    await kernel.snapshot()
    kernel.close()
asyncio.run(main())
"""
    done = host.run(sys.executable, "-W", "error", "-c", code)
    assert done == f"{errno.EMFILE}\n"


# Limits of the kernel


@with_network
async def test_kernel_without_rules(
    kernel: Network, host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    veth(host)

    send = Requests.send

    async def refuse(self: Requests, request: Request, flags: int) -> list[Any]:
        if request.kind in (rtnetlink.RTM_NEWRULE, rtnetlink.RTM_DELRULE):
            raise KernelRefused(errno.EOPNOTSUPP, request.what)
        return await send(self, request, flags)

    monkeypatch.setattr(Requests, "send", refuse)
    link = await ready_link(kernel, "v0")
    before = configuration(host)
    for _ in range(2):
        await kernel.add_address(link, OURS)
        # On such a kernel the route would be in the main table.
        assert "proto 169" not in host.ip("route show table all")
        assert addresses(host)[0]["local"] == str(OURS)
        await kernel.remove_address(link.index, OURS)
    assert len(kernel.limits) == 1
    assert configuration(host) == before


@with_network
async def test_kernel_that_keeps_less(
    kernel: Network, host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    veth(host)
    dump = Addresses._messages
    looked = 0

    async def older(self: Addresses, index: int) -> list[Any]:
        nonlocal looked
        looked += 1
        found = await dump(self, index)
        for address in found:
            address["attrs"] = [
                slot for slot in address["attrs"] if slot[0] not in ("IFA_PROTO", "IFA_RT_PRIORITY")
            ]
        return found

    monkeypatch.setattr(Addresses, "_messages", older)
    link = await ready_link(kernel, "v0")
    await kernel.add_address(link, OURS)
    assert len(kernel.limits) == 2
    once = looked
    await kernel.add_address(link, SECOND)
    assert len(kernel.limits) == 2
    assert looked == once


def test_without_permission(host: Namespace) -> None:
    veth(host)
    code = f"""
import asyncio
from ipaddress import IPv4Address
from autoip.errors import KernelRefused
from autoip.kernel.network import Network
async def main():
    kernel = Network()
    await kernel.open()
    links, _ = await kernel.snapshot()
    link = [link for link in links if link.name == "v0"][0]
    try:
        await kernel.add_address(link, IPv4Address("{OURS}"))
    except KernelRefused as refused:
        print(refused.errno)
    kernel.close()
asyncio.run(main())
"""
    setpriv = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    assert host.run(*setpriv, sys.executable, "-c", code) == f"{errno.EPERM}\n"
