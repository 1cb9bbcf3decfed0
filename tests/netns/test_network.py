"""autoip.kernel.network and its parts against the kernel, in network namespaces of the test's own."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import Any, TypeVar

import pytest

from autoip.errors import KernelRefused
from autoip.kernel import netlink, network, rtnetlink
from autoip.kernel.addresses import Addresses
from autoip.kernel.model import (
    IFF_LOWER_UP,
    IFF_RUNNING,
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
from lab import Namespace
from tests.fed_socket import KERNEL, feed, message

from .helpers import NETNS, PATIENCE, configuration

pytestmark = NETNS

T = TypeVar("T")
OURS = IPv4Address("169.254.7.7")
SECOND = IPv4Address("169.254.8.8")
_counter = itertools.count()


@pytest.fixture
def host(stack: ExitStack) -> Namespace:
    return stack.enter_context(Namespace("host"))


def run(host: Namespace, body: Callable[[Network], Awaitable[T]]) -> T:
    """Runs `body` with an open Network; no task may be left."""

    async def main() -> T:
        kernel = Network()
        await kernel.open()
        try:
            return await asyncio.wait_for(body(kernel), 3 * PATIENCE)
        finally:
            kernel.close()
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return host.call(lambda: asyncio.run(main()))


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


def test_if_alias_attributes(host: Namespace) -> None:
    veth(host)
    host.ip("addr add 10.1.1.1/24 dev v0")

    async def body(kernel: Network) -> None:
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

    run(host, body)


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
def test_names_and_labels(host: Namespace, name: bytes, label: str) -> None:
    """Names are bytes, and need not be UTF-8; a label that is too long is left out."""
    veth(host, os.fsdecode(name))

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, os.fsdecode(name))
        await kernel.add_address(link, OURS)
        assert [a.label for a in await kernel.addresses() if a.address == OURS] == [label]
        await kernel.remove_address(link.index, OURS)
        assert OURS not in [a.address for a in await kernel.addresses()]
        host.run("ip", "link", "del", os.fsdecode(name))
        gone = (await until(kernel, lambda event: isinstance(event, LinkRemoved)))[-1]
        assert gone == LinkRemoved(link.index, link.name)

    run(host, body)


def test_if_stop_leaves_everything_as_it_was(host: Namespace) -> None:
    veth(host)
    host.ip("addr add 10.1.1.1/24 dev v0")
    host.ip("addr add 169.254.1.1/24 dev v0")
    host.ip(f"rule add from {OURS} lookup 77 priority 5000")
    host.ip("route add 169.254.0.0/16 dev v0 table 77 metric 3")

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        before = configuration(host)
        await kernel.add_address(link, OURS)
        assert configuration(host) != before
        await kernel.remove_address(link.index, OURS)
        assert configuration(host) == before

    run(host, body)


def test_already_there(host: Namespace) -> None:
    veth(host)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        await kernel.add_address(link, OURS)
        before = configuration(host)
        with pytest.raises(KernelRefused) as refused:
            await kernel.add_address(link, OURS)
        assert refused.value.errno == errno.EEXIST
        assert configuration(host) == before

    run(host, body)


def test_scope_of_a_foreign_address_of_the_prefix(host: Namespace) -> None:
    veth(host)
    host.ip("addr add 169.254.9.9/16 dev v0 scope global")

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        before = configuration(host)
        await kernel.add_address(link, OURS)
        assert addresses(host)[1]["scope"] == "global"
        await kernel.remove_address(link.index, OURS)
        assert configuration(host) == before

    run(host, body)


def test_link_that_is_gone_or_down(host: Namespace) -> None:
    veth(host)
    host.ip("link add d0 type veth peer name d1")

    async def body(kernel: Network) -> None:
        gone, down = await link_of(kernel, "v0"), await link_of(kernel, "d0")
        host.ip("link del v0")
        before = configuration(host)
        for link, number in ((gone, errno.ENODEV), (down, errno.ENETDOWN)):
            with pytest.raises(KernelRefused) as refused:
                await kernel.add_address(link, OURS)
            assert refused.value.errno == number
            assert configuration(host) == before

    run(host, body)


def test_set_up(host: Namespace) -> None:
    host.ip("link add v0 type veth peer name p0")

    async def body(kernel: Network) -> None:
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

    run(host, body)


# Several interfaces


def echo(host: Namespace, peer: Namespace, address: IPv4Address) -> bool:
    """Whether `peer` can open a TCP connection to `address`, which is in `host`, and get an answer."""

    def listen() -> socket.socket:
        server = socket.create_server((str(address), 0))
        server.settimeout(PATIENCE)
        return server

    def ask() -> bool:
        with socket.socket() as client:
            client.settimeout(2)
            try:
                client.connect((str(address), port))
                client.sendall(b"x")
                return client.recv(1) == b"x"
            except OSError:
                return False

    def answer() -> None:
        try:
            with server.accept()[0] as connection:
                connection.sendall(connection.recv(1))
        except OSError:
            pass

    with host.call(listen) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            return peer.call(ask)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("rp_filter", [0, 1])
def test_if_many_each_peer_reaches_its_interface(
    host: Namespace, stack: ExitStack, rp_filter: int
) -> None:
    peers = [stack.enter_context(Namespace("peer")) for _ in range(2)]
    sysctl(host, "all/rp_filter", rp_filter)
    for number, peer in enumerate(peers):
        host.ip(f"link add v{number} type veth peer name p0 netns {peer.path}")
        sysctl(host, f"v{number}/rp_filter", rp_filter)
        host.ip(f"link set v{number} up")
        peer.ip("link set p0 up")
        peer.ip(f"addr add 169.254.100.{number + 1}/16 dev p0")

    def reached(peer: Namespace, address: IPv4Address) -> tuple[bool, bool]:
        ping = peer.run("ping", "-n", "-c", "1", "-W", "2", str(address), check=False)
        return " 0% packet loss" in ping, echo(host, peer, address)

    async def body(kernel: Network) -> None:
        links = [await ready_link(kernel, f"v{number}") for number in range(2)]
        before = host.ip("rule"), addresses(host, "v0"), addresses(host, "v1")
        for link, address in zip(links, (OURS, SECOND), strict=True):
            await kernel.add_address(link, address)
        assert reached(peers[0], OURS) == (True, True)
        assert reached(peers[1], SECOND) == (True, True)
        # The proof that it is the rule that does it.
        host.ip(f"rule del from {SECOND} priority 1690")
        assert reached(peers[0], OURS) == (True, True)
        assert reached(peers[1], SECOND) == (False, False)
        for link, address in zip(links, (OURS, SECOND), strict=True):
            await kernel.remove_address(link.index, address)
        assert (host.ip("rule"), addresses(host, "v0"), addresses(host, "v1")) == before

    run(host, body)


def test_two_hundred_interfaces(host: Namespace) -> None:
    count = 200
    batch(
        host,
        "".join(
            f"link add v{n} type veth peer name p{n}\nlink set v{n} up\nlink set p{n} up\n"
            for n in range(count)
        ),
    )

    async def body(kernel: Network) -> None:
        while True:
            links, _ = await kernel.snapshot()
            ours = [link for link in links if link.name.startswith("v")]
            if all(link.ready for link in ours):
                break
            await asyncio.sleep(0.1)
        before = configuration(host)
        wanted = {link.index: IPv4Address(f"169.254.9.{n}") for n, link in enumerate(ours)}
        await asyncio.gather(*(kernel.add_address(link, wanted[link.index]) for link in ours))
        _, found = await kernel.snapshot()
        assert {a.index: a.address for a in found if a.proto == 169} == wanted
        assert host.ip("rule").count("proto 169") == count
        await asyncio.gather(*(kernel.remove_address(i, a) for i, a in wanted.items()))
        assert configuration(host) == before

    run(host, body)


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


def test_the_kernel_deletes_secondaries_by_itself(host: Namespace) -> None:
    """What the next tests are about: without care the addresses of others are lost."""
    veth(host)
    sysctl(host, "all/promote_secondaries", 0)
    sysctl(host, "v0/promote_secondaries", 0)
    host.ip(f"addr add {OURS}/16 dev v0 scope link")
    foreign(host)
    host.ip(f"addr del {OURS}/16 dev v0")
    assert addresses(host) == []


@pytest.mark.parametrize("promote", [0, 1])
def test_addresses_of_others_survive_the_removal(host: Namespace, promote: int) -> None:
    veth(host)
    sysctl(host, "all/promote_secondaries", 0)
    sysctl(host, "v0/promote_secondaries", promote)

    async def body(kernel: Network) -> None:
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

    run(host, body)


def test_addresses_of_others_are_put_back(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where promote_secondaries cannot be set."""
    veth(host)
    sysctl(host, "all/promote_secondaries", 0)
    sysctl(host, "v0/promote_secondaries", 0)

    async def refuse(self: Addresses, index: int, value: int) -> None:
        raise KernelRefused(errno.EOPNOTSUPP, "set promote_secondaries")

    monkeypatch.setattr(Addresses, "_set_promotes", refuse)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        await kernel.add_address(link, OURS)
        foreign(host)
        before = others(host)
        await kernel.remove_address(link.index, OURS)
        assert others(host) == before

    run(host, body)


def test_only_that_very_address_is_removed(host: Namespace) -> None:
    veth(host)
    # Same address, other prefix; same prefix, other address; no relation.
    for text in (f"{OURS}/24", "169.254.9.9/16", "10.1.1.1/8"):
        host.ip(f"addr add {text} dev v0 scope link")

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        before = configuration(host)
        await kernel.remove_address(link.index, OURS)
        assert configuration(host) == before
        await kernel.add_address(link, OURS)
        await kernel.remove_address(link.index, OURS)
        assert configuration(host) == before

    run(host, body)


def test_remove_what_others_removed_already(host: Namespace) -> None:
    veth(host)
    veth(host, "w0", "q0")

    async def body(kernel: Network) -> None:
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

    run(host, body)


def test_sweep(host: Namespace) -> None:
    veth(host)
    veth(host, "w0", "q0")
    host.ip(f"rule add from {SECOND} lookup 77 priority 1690")
    host.ip(f"rule add from {SECOND} lookup 169254999 protocol 169 priority 44")

    async def body(kernel: Network) -> None:
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

    run(host, body)


# Events


def test_events_of_a_link(host: Namespace, stack: ExitStack) -> None:
    elsewhere = stack.enter_context(Namespace("elsewhere"))

    async def body(kernel: Network) -> None:
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
        await until(
            kernel, is_link(lambda link: link.name == "w0" and link.index == new.link.index)
        )
        # if-gone
        host.ip(f"link set w0 netns {elsewhere.path}")
        gone = (await until(kernel, lambda event: isinstance(event, LinkRemoved)))[-1]
        assert gone == LinkRemoved(new.link.index, "w0")
        elsewhere.ip("link del w0")
        gone = (await until(kernel, lambda event: isinstance(event, LinkRemoved)))[-1]
        assert isinstance(gone, LinkRemoved)
        assert gone.name == "p0"

    run(host, body)


def is_link(wanted: Callable[[Link], bool]) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, LinkChanged) and wanted(event.link)


def test_events_of_an_address(host: Namespace) -> None:
    veth(host)

    async def body(kernel: Network) -> None:
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

    run(host, body)


def test_nothing_else_wakes_the_process(host: Namespace) -> None:
    """Neighbours, routes, rules and IPv6 are not even delivered."""
    veth(host)
    host.run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0")

    async def body(kernel: Network) -> None:
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

    run(host, body)


def test_leaving_a_bridge_is_no_removal(host: Namespace) -> None:
    veth(host)
    host.ip("link add br0 type bridge")

    async def body(kernel: Network) -> None:
        await ready_link(kernel, "v0")
        await settle(kernel, host)
        host.ip("link set v0 master br0")
        port = await link_of(kernel, "v0")
        bridge = await link_of(kernel, "br0")
        assert port.port_of_bridge
        assert port.master == bridge.index
        assert port not in ethernet_like([port])
        host.ip("link set v0 nomaster")
        events = await settle(kernel, host)
        assert not any(isinstance(event, LinkRemoved) for event in events)
        free = await link_of(kernel, "v0")
        assert not free.port_of_bridge
        assert free.master is None
        assert kernel._links[free.index] == free

    run(host, body)


def test_dormant_is_not_ready(host: Namespace) -> None:
    """if-wait: 802.1X, or Wi-Fi before association."""
    veth(host)

    async def body(kernel: Network) -> None:
        await ready_link(kernel, "v0")
        host.ip("link set v0 mode dormant")
        host.ip("link set v0 down")
        host.ip("link set v0 up")
        carrier = is_link(lambda link: link.name == "v0" and bool(link.flags & IFF_LOWER_UP))
        await until(kernel, carrier)
        link = await link_of(kernel, "v0")
        assert link.flags & IFF_LOWER_UP
        assert not link.flags & IFF_RUNNING
        assert link.up
        assert not link.ready

    run(host, body)


def test_no_event_when_nothing_changes(host: Namespace) -> None:
    """The kernel describes a link anew for changes that do not concern us."""
    veth(host)

    async def body(kernel: Network) -> None:
        await ready_link(kernel, "v0")
        await settle(kernel, host)
        for words in ("alias x", "txqueuelen 77", "mtu 1400", "group 5"):
            host.ip(f"link set v0 {words}")
        assert await settle(kernel, host) == []

    run(host, body)


def test_next_event_can_be_cancelled(host: Namespace) -> None:
    async def body(kernel: Network) -> None:
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
        assert found == wanted
        assert cancelled > 0

    run(host, body)


# Lost messages and broken sockets


def flood(host: Namespace, count: int = 3000) -> None:
    """That many address events, while nothing is read."""
    batch(host, "addr add 10.9.9.9/32 dev lo\naddr del 10.9.9.9/32 dev lo\n" * (count // 2))


def test_overrun_becomes_a_resync(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is the kernel's, and bounded; what does not fit is made up for."""
    monkeypatch.setattr(netlink, "RECEIVE_BUFFER", 4096)
    monkeypatch.setattr(network, "RESYNC_INTERVAL", 0.1)
    veth(host)

    async def body(kernel: Network) -> None:
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

    run(host, body)


def test_a_large_buffer_holds_a_burst(host: Namespace) -> None:
    async def body(kernel: Network) -> None:
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

    assert netlink.RECEIVE_BUFFER >= 4 * 1024 * 1024
    run(host, body)


def test_the_buffer_is_enlarged_beyond_the_limit(
    host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/proc/sys/net/core/rmem_max") as file:
        wanted = int(file.read()) + 4096
    monkeypatch.setattr(netlink, "RECEIVE_BUFFER", wanted)

    async def body(kernel: Network) -> None:
        assert kernel._events is not None
        size = kernel._events._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert size == 2 * wanted

    run(host, body)


BROKEN = {
    "an error": OSError(errno.EIO, "broken"),
    "garbage": b"\0" * 15,
    "a link that ends in its fields": message(16, b"xx"),
    "an address that ends in its fields": message(20, b"\2"),
    "a length beyond the end": message(20, bytes(8), length=25),
    "a length of nothing": message(20, bytes(8), length=0),
    "cut off": (message(20, bytes(8)), [], socket.MSG_TRUNC, KERNEL),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_cannot_be_read_becomes_a_resync(host: Namespace, how: str) -> None:
    veth(host)

    async def body(kernel: Network) -> None:
        await ready_link(kernel, "v0")
        await settle(kernel, host)
        before = kernel._events
        feed(before, BROKEN[how])
        first = await asyncio.wait_for(kernel.next_event(), PATIENCE)
        assert isinstance(first, Resync)
        assert kernel._events is not before
        host.ip("link set p0 down")
        await until(kernel, is_link(lambda link: link.name == "v0" and not link.ready))

    run(host, body)


def test_reopening_is_tried_with_pauses(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    failures = 12
    sleep = asyncio.sleep
    create = netlink.Socket

    def fail(family: netlink.Family, groups: int = 0) -> netlink.Socket:
        if len(pauses) < failures:
            raise KernelRefused(errno.ENFILE, "open a netlink socket")
        return create(family, groups)

    async def note(seconds: float) -> None:
        pauses.extend([seconds] if seconds else [])
        await sleep(0)

    async def body(kernel: Network) -> None:
        monkeypatch.setattr(netlink, "Socket", fail)
        feed(kernel._events, OSError(errno.EIO, "broken"))
        monkeypatch.setattr(asyncio, "sleep", note)
        event = await kernel.next_event()
        monkeypatch.setattr(asyncio, "sleep", sleep)
        assert isinstance(event, Resync)
        assert len(pauses) == failures
        assert pauses[0] == 0.1
        assert pauses[-1] == 5.0
        assert pauses == sorted(pauses)

    run(host, body)


def test_resyncs_are_limited(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.extend([seconds] if seconds else [])
        await sleep(0)

    async def body(kernel: Network) -> None:
        for _ in range(2):
            feed(kernel._events, OSError(errno.ENOBUFS, "overrun"))
            assert isinstance(await kernel.next_event(), Resync)
            monkeypatch.setattr(asyncio, "sleep", note)
        monkeypatch.setattr(asyncio, "sleep", sleep)
        assert len(pauses) == 1
        assert 0 < pauses[0] <= 1.0

    run(host, body)


def test_a_resync_that_is_cancelled_comes_again(host: Namespace) -> None:
    async def body(kernel: Network) -> None:
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

    run(host, body)


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EIO])
def test_an_answer_is_lost(host: Namespace, number: int) -> None:
    """A change is refused, since it may have been made; a question is asked again on a new socket."""

    async def body(kernel: Network) -> None:
        before = kernel._requests._socket
        # The kernel's answer is withheld: the request waits until the socket reports the loss.
        feed(before, BlockingIOError(), OSError(number, "broken"))
        with pytest.raises(KernelRefused) as refused:
            await asyncio.wait_for(kernel.set_up(1), PATIENCE)
        assert refused.value.errno == number
        await kernel.set_up(1)
        assert kernel._requests._socket is not before
        if number == errno.ENOBUFS:
            feed(kernel._requests._socket, OSError(number, "overrun"))
            assert (await link_of(kernel, "lo")).index == 1

    run(host, body)


def test_a_request_that_times_out(host: Namespace) -> None:
    """Nobody waits for its answer any more, and the next request does not take it for its own."""

    async def body(kernel: Network) -> None:
        request = Request("list links", rtnetlink.RTM_GETLINK, {})
        for fed in ([BlockingIOError()], []):
            socket_ = kernel._requests._socket
            assert socket_ is not None
            feed(socket_, *fed)
            task = asyncio.ensure_future(kernel._requests.dump(request))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await kernel.set_up(1)
            assert kernel._requests._socket is socket_
            assert [link.name for link in (await kernel.snapshot())[0]] == ["lo"]

    run(host, body)


def test_only_the_kernel_is_believed(host: Namespace) -> None:
    """What another process sends to the socket is refused, and what it sends to the group is not heard."""
    veth(host)

    async def body(kernel: Network) -> None:
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
        assert await settle(kernel, host) == [LinkRemoved(link.index, "")]

    run(host, body)


def test_messages_that_describe_no_link_are_ignored(host: Namespace) -> None:
    """A Wi-Fi driver's: index and name, no more. Our link has not lost its MAC."""
    veth(host)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        await settle(kernel, host)
        body = struct.pack("=BxHiII", 0, 1, link.index, link.flags, 0)
        feed(kernel._events, message(16, body + struct.pack("=HH4s", 7, 3, b"v0\0")))
        assert await settle(kernel, host) == []
        assert kernel._links[link.index] == link

    run(host, body)


def test_requests_side_by_side_and_cancelled(
    host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    veth(host)
    # So many that a dump has several parts.
    batch(host, "".join(f"addr add 10.1.{n // 250}.{n % 250}/32 dev lo\n" for n in range(1000)))
    tries = netlink.READ_TRIES

    async def body(kernel: Network) -> None:
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

    run(host, body)


def test_removals_side_by_side(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
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

    async def body(kernel: Network) -> None:
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

    run(host, body)


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


def test_kernel_without_rules(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    veth(host)

    send = Requests.send

    async def refuse(self: Requests, request: Request, flags: int) -> list[Any]:
        if request.kind in (rtnetlink.RTM_NEWRULE, rtnetlink.RTM_DELRULE):
            raise KernelRefused(errno.EOPNOTSUPP, request.what)
        return await send(self, request, flags)

    monkeypatch.setattr(Requests, "send", refuse)

    async def body(kernel: Network) -> None:
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

    run(host, body)


def test_kernel_that_keeps_less(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    veth(host)
    dump = Addresses._messages

    async def older(self: Addresses, index: int) -> list[Any]:
        found = await dump(self, index)
        for address in found:
            address["attrs"] = [
                slot for slot in address["attrs"] if slot[0] not in ("IFA_PROTO", "IFA_RT_PRIORITY")
            ]
        return found

    monkeypatch.setattr(Addresses, "_messages", older)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        await kernel.add_address(link, OURS)
        assert len(kernel.limits) == 2
        await kernel.add_address(link, SECOND)
        assert len(kernel.limits) == 2

    run(host, body)


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
