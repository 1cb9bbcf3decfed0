"""autoip.kernel.network and its parts against the kernel, in network namespaces of the test's own."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import itertools
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv4Address
from typing import Any, TypeVar

import pytest

from autoip.errors import KernelRefused
from autoip.kernel import network, rtnetlink
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
from autoip.kernel.network import Network
from autoip.kernel.rtnetlink import Request, Requests

T = TypeVar("T")
OURS = IPv4Address("169.254.7.7")
SECOND = IPv4Address("169.254.8.8")
CLONE_NEWNET = 0x40000000
PATIENCE = 20.0
_counter = itertools.count()

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces")
needs_ip = pytest.mark.skipif(
    shutil.which("ip") is None, reason="needs iproute2 (Debian: iproute2)"
)


class Namespace:
    """A network namespace, and a way to run code in it."""

    def __init__(self) -> None:
        self.name = f"autoip-{os.getpid()}-{next(_counter)}-{secrets.token_hex(3)}"
        _run(["ip", "netns", "add", self.name])

    def delete(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)

    def ip(self, *words: str | bytes) -> str:
        return _run(["ip", "-n", self.name, *words])

    def sh(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *words], check=False, capture_output=True, text=True
        )

    def sysctl(self, name: str, value: int | None = None) -> int:
        """Get or set /proc/sys/net/ipv4/conf/NAME."""
        path = f"/proc/sys/net/ipv4/conf/{name}"
        if value is not None:
            assert self.sh("sh", "-c", f"echo {value} > {path}").returncode == 0
        return int(self.sh("cat", path).stdout)

    def do(self, action: Callable[[], T]) -> T:
        """Call `action` in a thread that is in this namespace; return or raise what it does."""
        outcome: list[T] = []
        problems: list[BaseException] = []

        def body() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with open(f"/run/netns/{self.name}", "rb") as file:
                    if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                outcome.append(action())
            except BaseException as problem:  # noqa: BLE001
                problems.append(problem)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if problems:
            raise problems[0]
        return outcome[0]

    def run(self, body: Callable[[Network], Awaitable[T]]) -> T:
        """Run `body` with an open Netlink; no task and no descriptor may be left."""

        async def main() -> T:
            kernel = Network()
            await kernel.open()
            try:
                return await asyncio.wait_for(body(kernel), 3 * PATIENCE)
            finally:
                kernel.close()
                await asyncio.sleep(0)
                assert asyncio.all_tasks() == {asyncio.current_task()}

        return self.do(lambda: asyncio.run(main()))

    def picture(self) -> str:
        """All that must be the same before and after.

        Without the addresses of IPv6, which the kernel makes by itself, and in its own time.
        """
        return "\n".join(
            self.ip(*words.split())
            for words in ("rule", "-4 route show table all", "-4 addr", "-6 rule")
        )


def _run(command: list[Any]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture
def namespaces() -> Iterator[Callable[[], Namespace]]:
    """Makes namespaces, and deletes them whatever happens."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        # IPv6 would add addresses of its own at times of its own.
        made[-1].sh("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        made[-1].ip("link", "set", "lo", "up")
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.delete()


@pytest.fixture
def ns(namespaces: Callable[[], Namespace]) -> Namespace:
    return namespaces()


def veth(ns: Namespace, name: str | bytes = "v0", peer: str = "p0") -> None:
    """A pair, both ends up, in one namespace."""
    ns.ip("link", "add", name, "type", "veth", "peer", "name", peer)
    ns.ip("link", "set", name, "up")
    ns.ip("link", "set", peer, "up")


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


async def settle(kernel: Network, ns: Namespace) -> list[Event]:
    """All events so far: a marker address is added, and waited for."""
    marker = f"192.0.2.{1 + next(_counter) % 250}"
    ns.ip("addr", "add", f"{marker}/32", "dev", "lo")
    events = await until(
        kernel, lambda e: isinstance(e, AddressAdded) and str(e.address.address) == marker
    )
    return events[:-1]


def addresses(ns: Namespace, device: str) -> list[dict[str, Any]]:
    found = json.loads(ns.ip("-4", "-d", "-j", "addr", "show", "dev", device))
    return [info for entry in found for info in entry.get("addr_info", ())]


pytestmark = [needs_root, needs_ip]


# What add_address sets


def test_if_alias_attributes(ns: Namespace) -> None:
    veth(ns)
    ns.ip("addr", "add", "10.1.1.1/24", "dev", "v0")

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        added = await kernel.add_address(link, OURS)
        assert added == Address(link.index, OURS, 16, 253, "v0:autoip", 169)
        second, first = sorted(
            addresses(ns, "v0"), key=lambda entry: str(entry["scope"]) == "global"
        )
        assert first["local"] == "10.1.1.1"
        assert second["local"] == str(OURS)
        assert second["prefixlen"] == 16
        assert second["broadcast"] == "169.254.255.255"
        assert second["scope"] == "link"
        assert second["label"] == "v0:autoip"
        assert second["metric"] == 1000 + link.index
        assert second["valid_life_time"] == 2**32 - 1
        table = 169254000 + link.index
        assert f"1690:\tfrom {OURS} lookup {table} proto 169" in ns.ip("rule")
        route = ns.ip("route", "show", "table", str(table)).split()
        assert route == f"169.254.0.0/16 dev v0 proto 169 scope link src {OURS}".split()
        assert kernel.limits == []
        # The second time nothing is asked back from the kernel; it must be as true.
        assert await kernel.remove_address(link.index, OURS)
        assert await kernel.add_address(link, OURS) == added

    ns.run(body)


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
def test_names_and_labels(ns: Namespace, name: bytes, label: str) -> None:
    veth(ns, name)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, os.fsdecode(name))
        added = await kernel.add_address(link, OURS)
        assert added.label == label
        _, found = await kernel.snapshot()
        assert added in found
        assert await kernel.remove_address(link.index, OURS)

    ns.run(body)


def test_if_stop_leaves_everything_as_it_was(ns: Namespace) -> None:
    veth(ns)
    ns.ip("addr", "add", "10.1.1.1/24", "dev", "v0")
    ns.ip("addr", "add", "169.254.1.1/24", "dev", "v0")
    ns.ip("rule", "add", "from", str(OURS), "lookup", "77", "priority", "5000")
    ns.ip("route", "add", "169.254.0.0/16", "dev", "v0", "table", "77", "metric", "3")

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        before = ns.picture()
        await kernel.add_address(link, OURS)
        assert ns.picture() != before
        assert await kernel.remove_address(link.index, OURS)
        assert ns.picture() == before

    ns.run(body)


def test_already_there(ns: Namespace) -> None:
    veth(ns)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        await kernel.add_address(link, OURS)
        before = ns.picture()
        with pytest.raises(KernelRefused) as refused:
            await kernel.add_address(link, OURS)
        assert refused.value.errno == errno.EEXIST
        assert ns.picture() == before

    ns.run(body)


def test_scope_of_a_foreign_address_of_the_prefix(ns: Namespace) -> None:
    veth(ns)
    ns.ip("addr", "add", "169.254.9.9/16", "dev", "v0", "scope", "global")

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        before = ns.picture()
        assert (await kernel.add_address(link, OURS)).scope == 0
        assert addresses(ns, "v0")[1]["scope"] == "global"
        assert await kernel.remove_address(link.index, OURS)
        assert ns.picture() == before

    ns.run(body)


def test_link_that_is_gone_or_down(ns: Namespace) -> None:
    veth(ns)
    ns.ip("link", "add", "d0", "type", "veth", "peer", "name", "d1")

    async def body(kernel: Network) -> None:
        gone, down = await link_of(kernel, "v0"), await link_of(kernel, "d0")
        ns.ip("link", "del", "v0")
        before = ns.picture()
        for link, number in ((gone, errno.ENODEV), (down, errno.ENETDOWN)):
            with pytest.raises(KernelRefused) as refused:
                await kernel.add_address(link, OURS)
            assert refused.value.errno == number
            assert ns.picture() == before

    ns.run(body)


def test_set_up(ns: Namespace) -> None:
    ns.ip("link", "add", "v0", "type", "veth", "peer", "name", "p0")

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

    ns.run(body)


# Several interfaces


def echo(ns: Namespace, peer: Namespace, address: IPv4Address) -> bool:
    """Whether `peer` can open a TCP connection to `address`, which is in `ns`, and get an answer."""

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

    with ns.do(listen) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            return peer.do(ask)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("rp_filter", [0, 1])
def test_if_many_each_peer_reaches_its_interface(
    namespaces: Callable[[], Namespace], rp_filter: int
) -> None:
    ns, *peers = namespaces(), namespaces(), namespaces()
    ns.sysctl("all/rp_filter", rp_filter)
    for number, peer in enumerate(peers):
        ns.ip(
            *f"link add v{number} type veth peer name p0 netns {peer.name}".split(),
        )
        ns.sysctl(f"v{number}/rp_filter", rp_filter)
        ns.ip("link", "set", f"v{number}", "up")
        peer.ip("link", "set", "p0", "up")
        peer.ip("addr", "add", f"169.254.100.{number + 1}/16", "dev", "p0")

    def reached(peer: Namespace, address: IPv4Address) -> tuple[bool, bool]:
        ping = peer.sh("ping", "-n", "-c", "1", "-W", "2", str(address))
        return ping.returncode == 0, echo(ns, peer, address)

    async def body(kernel: Network) -> None:
        links = [await ready_link(kernel, f"v{number}") for number in range(2)]
        before = ns.picture()
        for link, address in zip(links, (OURS, SECOND), strict=True):
            await kernel.add_address(link, address)
        assert reached(peers[0], OURS) == (True, True)
        assert reached(peers[1], SECOND) == (True, True)
        # The proof that it is the rule that does it.
        ns.ip("rule", "del", "from", str(SECOND), "priority", "1690")
        assert reached(peers[0], OURS) == (True, True)
        assert reached(peers[1], SECOND) == (False, False)
        for link, address in zip(links, (OURS, SECOND), strict=True):
            assert await kernel.remove_address(link.index, address)
        assert ns.picture() == before

    ns.run(body)


def test_two_hundred_interfaces(ns: Namespace) -> None:
    count = 200
    batch = "".join(
        f"link add v{n} type veth peer name p{n}\nlink set v{n} up\nlink set p{n} up\n"
        for n in range(count)
    )
    subprocess.run(["ip", "-n", ns.name, "-batch", "-"], input=batch, text=True, check=True)

    async def body(kernel: Network) -> None:
        while True:
            links, _ = await kernel.snapshot()
            ours = [link for link in links if link.name.startswith("v")]
            if all(link.ready for link in ours):
                break
            await asyncio.sleep(0.1)
        before = ns.picture()
        wanted = {link.index: IPv4Address(f"169.254.9.{n}") for n, link in enumerate(ours)}
        await asyncio.gather(*(kernel.add_address(link, wanted[link.index]) for link in ours))
        _, found = await kernel.snapshot()
        assert {a.index: a.address for a in found if a.proto == 169} == wanted
        assert ns.ip("rule").count("proto 169") == count
        await asyncio.gather(*(kernel.remove_address(i, a) for i, a in wanted.items()))
        assert ns.picture() == before

    ns.run(body)


# Removal


def foreign(ns: Namespace) -> None:
    """Two addresses of others, secondary to ours, with attributes that are easily lost."""
    for words in (
        "addr add 169.254.9.9/16 brd 169.254.255.255 scope link dev v0 label v0:them",
        "addr add 169.254.9.10/16 scope link dev v0 metric 77 noprefixroute",
        "addr change 169.254.9.10/16 dev v0 noprefixroute valid_lft 5050 preferred_lft 4050",
    ):
        ns.ip(*words.split())


def others(ns: Namespace) -> list[dict[str, Any]]:
    """The addresses of v0 but ours, without what the passing of time or a promotion changes."""
    found = [entry for entry in addresses(ns, "v0") if entry["local"] != str(OURS)]
    for entry in found:
        entry.pop("secondary", None)
        for key in ("valid_life_time", "preferred_life_time"):
            entry[key] = entry[key] if entry[key] > 10000 else entry[key] // 100
    return sorted(found, key=lambda entry: str(entry["local"]))


def test_the_kernel_deletes_secondaries_by_itself(ns: Namespace) -> None:
    """What the next tests are about: without care the addresses of others are lost."""
    veth(ns)
    ns.sysctl("all/promote_secondaries", 0)
    ns.sysctl("v0/promote_secondaries", 0)
    ns.ip("addr", "add", f"{OURS}/16", "dev", "v0", "scope", "link")
    foreign(ns)
    ns.ip("addr", "del", f"{OURS}/16", "dev", "v0")
    assert addresses(ns, "v0") == []


@pytest.mark.parametrize("promote", [0, 1])
def test_addresses_of_others_survive_the_removal(ns: Namespace, promote: int) -> None:
    veth(ns)
    ns.sysctl("all/promote_secondaries", 0)
    ns.sysctl("v0/promote_secondaries", promote)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        await kernel.add_address(link, OURS)
        foreign(ns)
        before = others(ns)
        assert len(before) == 2
        await settle(kernel, ns)
        assert await kernel.remove_address(link.index, OURS)
        assert others(ns) == before
        assert ns.sysctl("v0/promote_secondaries") == promote
        # Not deleted and added again: nobody lost a connection.
        events = await settle(kernel, ns)
        removed = [e.address.address for e in events if isinstance(e, AddressRemoved)]
        assert removed == [OURS]
        assert "169.254.0.0/16 dev v0 proto kernel scope link src 169.254.9.9" in ns.ip("route")

    ns.run(body)


def test_addresses_of_others_are_put_back(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where promote_secondaries cannot be set."""
    veth(ns)
    ns.sysctl("all/promote_secondaries", 0)
    ns.sysctl("v0/promote_secondaries", 0)

    async def refuse(self: Network, index: int, value: int) -> None:
        raise KernelRefused(errno.EOPNOTSUPP, "set promote_secondaries")

    monkeypatch.setattr(Network, "_set_promotes", refuse)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        await kernel.add_address(link, OURS)
        foreign(ns)
        before = others(ns)
        assert await kernel.remove_address(link.index, OURS)
        assert others(ns) == before

    ns.run(body)


def test_only_that_very_address_is_removed(ns: Namespace) -> None:
    veth(ns)
    # Same address, other prefix; same prefix, other address; no relation.
    for text in (f"{OURS}/24", "169.254.9.9/16", "10.1.1.1/8"):
        ns.ip("addr", "add", text, "dev", "v0", "scope", "link")

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        before = ns.picture()
        assert not await kernel.remove_address(link.index, OURS)
        assert ns.picture() == before
        await kernel.add_address(link, OURS)
        assert await kernel.remove_address(link.index, OURS)
        assert ns.picture() == before

    ns.run(body)


def test_remove_what_others_removed_already(ns: Namespace) -> None:
    veth(ns)
    veth(ns, "w0", "q0")

    async def body(kernel: Network) -> None:
        link, other = await ready_link(kernel, "v0"), await ready_link(kernel, "w0")
        before = ns.picture()
        await kernel.add_address(link, OURS)
        ns.ip("addr", "flush", "dev", "v0")
        assert not await kernel.remove_address(link.index, OURS)
        assert ns.picture() == before
        # With the interface its address and routes go, but not the rule.
        await kernel.add_address(other, SECOND)
        ns.ip("link", "del", "w0")
        assert str(SECOND) in ns.ip("rule")
        assert not await kernel.remove_address(other.index, SECOND)
        assert str(SECOND) not in ns.picture()

    ns.run(body)


def test_sweep(ns: Namespace) -> None:
    veth(ns)
    veth(ns, "w0", "q0")
    ns.ip(*f"rule add from {SECOND} lookup 77 priority 1690".split())
    ns.ip(*f"rule add from {SECOND} lookup 169254999 protocol 169 priority 44".split())

    async def body(kernel: Network) -> None:
        link, other = await ready_link(kernel, "v0"), await ready_link(kernel, "w0")
        before = ns.picture()
        # Left by crashes: a rule and its route, a rule alone, a route alone.
        await kernel.add_address(link, OURS)
        ns.ip("addr", "del", f"{OURS}/16", "dev", "v0")
        await kernel.add_address(other, SECOND)
        ns.ip("addr", "del", f"{SECOND}/16", "dev", "w0")
        ns.ip("route", "flush", "table", str(169254000 + other.index))
        third = IPv4Address("169.254.3.3")
        await kernel.add_address(other, third)
        ns.ip("rule", "del", "from", str(third), "priority", "1690")
        # The route has to survive the address for this.
        ns.ip("addr", "del", f"{third}/16", "dev", "w0")
        assert await kernel.sweep() >= 2
        assert ns.picture() == before
        assert await kernel.sweep() == 0
        # Another instance's.
        await kernel.add_address(link, OURS)
        living = ns.picture()
        assert await kernel.sweep() == 0
        assert ns.picture() == living

    ns.run(body)


# Events


def test_events_of_a_link(ns: Namespace, namespaces: Callable[[], Namespace]) -> None:
    elsewhere = namespaces()

    async def body(kernel: Network) -> None:
        await kernel.snapshot()
        ns.ip("link", "add", "v0", "type", "veth", "peer", "name", "p0")
        new = (await until(kernel, is_link(lambda link: link.name == "v0")))[-1]
        assert isinstance(new, LinkChanged)
        assert not new.link.up
        assert new.link.kind == "veth"
        assert new.link.speaks_arp
        ns.ip("link", "set", "v0", "up")
        await until(kernel, is_link(lambda link: link.name == "v0" and link.up and not link.ready))
        ns.ip("link", "set", "p0", "up")
        ready = (await until(kernel, is_link(lambda link: link.name == "v0" and link.ready)))[-1]
        assert isinstance(ready, LinkChanged)
        assert ready.link.operstate == "up"
        # if-carrier
        ns.ip("link", "set", "p0", "down")
        lost = (await until(kernel, is_link(lambda link: link.name == "v0" and not link.ready)))[-1]
        assert isinstance(lost, LinkChanged)
        assert lost.link.up
        assert lost.link.carrier_changes > ready.link.carrier_changes
        # if-mac
        ns.ip("link", "set", "v0", "address", "02:00:00:00:00:07")
        mac = bytes.fromhex("020000000007")
        await until(kernel, is_link(lambda link: link.name == "v0" and link.mac == mac))
        ns.ip("link", "property", "add", "dev", "v0", "altname", "a-rather-long-alternative-name")
        ns.ip("link", "property", "add", "dev", "v0", "altname", "b")
        names = ("a-rather-long-alternative-name", "b")
        await until(kernel, is_link(lambda link: link.altnames == names))
        ns.ip("link", "set", "v0", "down")
        await until(kernel, is_link(lambda link: link.name == "v0" and not link.up))
        ns.ip("link", "set", "v0", "name", "w0")
        await until(
            kernel, is_link(lambda link: link.name == "w0" and link.index == new.link.index)
        )
        # if-gone
        ns.ip("link", "set", "w0", "netns", elsewhere.name)
        gone = (await until(kernel, lambda event: isinstance(event, LinkRemoved)))[-1]
        assert gone == LinkRemoved(new.link.index, "w0")
        elsewhere.ip("link", "del", "w0")
        gone = (await until(kernel, lambda event: isinstance(event, LinkRemoved)))[-1]
        assert isinstance(gone, LinkRemoved)
        assert gone.name == "p0"

    ns.run(body)


def is_link(wanted: Callable[[Link], bool]) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, LinkChanged) and wanted(event.link)


def test_events_of_an_address(ns: Namespace) -> None:
    veth(ns)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        await settle(kernel, ns)
        added = await kernel.add_address(link, OURS)
        # if-removed: by somebody else
        ns.ip("addr", "del", f"{OURS}/16", "dev", "v0")
        # Of IPv6 nothing is heard.
        ns.sh("sysctl", "-qw", "net.ipv6.conf.v0.disable_ipv6=0")
        ns.ip("addr", "add", "2001:db8::1/64", "dev", "v0", "nodad")
        ns.ip("addr", "add", "192.0.2.1", "peer", "192.0.2.2/32", "dev", "v0")
        assert await settle(kernel, ns) == [
            AddressAdded(added),
            AddressRemoved(added),
            AddressAdded(Address(link.index, IPv4Address("192.0.2.1"), 32, 0, "v0", None)),
        ]

    ns.run(body)


def test_nothing_else_wakes_the_process(ns: Namespace) -> None:
    """Neighbours, routes, rules and IPv6 are not even delivered."""
    veth(ns)

    async def body(kernel: Network) -> None:
        await ready_link(kernel, "v0")
        await settle(kernel, ns)
        for words in (
            "neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev v0",
            "route add 10.0.0.0/8 dev v0",
            "rule add from 10.0.0.1 lookup 77",
            "-6 addr add 2001:db8::1/64 dev lo",
        ):
            ns.ip(*words.split())
        await asyncio.sleep(0.2)
        assert kernel._events.msg_queue.root.qsize() == 0

    ns.run(body)


def test_leaving_a_bridge_is_no_removal(ns: Namespace) -> None:
    veth(ns)
    ns.ip("link", "add", "br0", "type", "bridge")

    async def body(kernel: Network) -> None:
        await ready_link(kernel, "v0")
        await settle(kernel, ns)
        ns.ip("link", "set", "v0", "master", "br0")
        port = await link_of(kernel, "v0")
        bridge = await link_of(kernel, "br0")
        assert port.port_of_bridge
        assert port.master == bridge.index
        assert port not in ethernet_like([port])
        ns.ip("link", "set", "v0", "nomaster")
        events = await settle(kernel, ns)
        assert not any(isinstance(event, LinkRemoved) for event in events)
        free = await link_of(kernel, "v0")
        assert not free.port_of_bridge
        assert free.master is None
        assert kernel._links[free.index] == free

    ns.run(body)


def test_dormant_is_not_ready(ns: Namespace) -> None:
    """if-wait: 802.1X, or Wi-Fi before association."""
    veth(ns)

    async def body(kernel: Network) -> None:
        await ready_link(kernel, "v0")
        ns.ip("link", "set", "v0", "mode", "dormant")
        ns.ip("link", "set", "v0", "down")
        ns.ip("link", "set", "v0", "up")
        await until(kernel, is_link(lambda link: link.name == "v0" and link.operstate == "dormant"))
        link = await link_of(kernel, "v0")
        assert link.flags & IFF_LOWER_UP
        assert not link.flags & IFF_RUNNING
        assert link.up
        assert not link.ready

    ns.run(body)


def test_no_event_when_nothing_changes(ns: Namespace) -> None:
    """The kernel describes a link anew for changes that do not concern us."""
    veth(ns)

    async def body(kernel: Network) -> None:
        await ready_link(kernel, "v0")
        await settle(kernel, ns)
        for words in ("alias x", "txqueuelen 77", "mtu 1400", "group 5"):
            ns.ip("link", "set", "v0", *words.split())
        assert await settle(kernel, ns) == []

    ns.run(body)


def test_next_event_can_be_cancelled(ns: Namespace) -> None:
    async def body(kernel: Network) -> None:
        await settle(kernel, ns)
        wanted = [f"10.0.0.{n}" for n in range(1, 101)]

        def add() -> None:
            batch = "".join(f"addr add {text}/32 dev lo\n" for text in wanted)
            subprocess.run(["ip", "-n", ns.name, "-batch", "-"], input=batch, text=True, check=True)

        thread = threading.Thread(target=add)
        thread.start()
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
        thread.join()
        assert found == wanted
        assert cancelled > 0

    ns.run(body)


# Lost messages and broken sockets


def flood(ns: Namespace, count: int = 3000) -> None:
    """That many address events, while nothing is read."""
    batch = "addr add 10.9.9.9/32 dev lo\naddr del 10.9.9.9/32 dev lo\n" * (count // 2)
    subprocess.run(["ip", "-n", ns.name, "-batch", "-"], input=batch, text=True, check=True)


def test_overrun_becomes_a_resync(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtnetlink, "RECEIVE_BUFFER", 4096)
    monkeypatch.setattr(network, "RESYNC_INTERVAL", 0.1)
    veth(ns)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        for _ in range(3):
            flood(ns)
            ns.ip("addr", "replace", f"{OURS}/16", "dev", "v0")
            events = await until(kernel, lambda event: isinstance(event, Resync))
            assert len(events) < 3000
            truth = events[-1]
            assert isinstance(truth, Resync)
            assert truth.reason == "messages were lost"
            assert {found.name for found in truth.links} == {"lo", "v0", "p0"}
            assert OURS in {found.address for found in truth.addresses}
            # And it goes on.
            ns.ip("addr", "del", f"{OURS}/16", "dev", "v0")
            assert [
                event.address.address
                for event in await settle(kernel, ns)
                if isinstance(event, AddressRemoved) and event.address.index == link.index
            ] == [OURS]

    ns.run(body)


def test_a_large_buffer_holds_a_burst(ns: Namespace) -> None:
    async def body(kernel: Network) -> None:
        await settle(kernel, ns)
        flood(ns)
        events = await settle(kernel, ns)
        assert not any(isinstance(event, Resync) for event in events)
        assert len(events) == 3000

    assert rtnetlink.RECEIVE_BUFFER >= 4 * 1024 * 1024
    ns.run(body)


def test_the_buffer_is_enlarged_beyond_the_limit(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/proc/sys/net/core/rmem_max") as file:
        wanted = int(file.read()) + 4096
    monkeypatch.setattr(rtnetlink, "RECEIVE_BUFFER", wanted)

    async def body(kernel: Network) -> None:
        size = kernel._events.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert size == 2 * wanted

    ns.run(body)


def test_the_queue_is_bounded(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtnetlink, "EVENT_QUEUE", 50)

    async def body(kernel: Network) -> None:
        await settle(kernel, ns)
        flood(ns)
        # The loop runs, but nobody asks for events.
        longest = 0
        for _ in range(200):
            await asyncio.sleep(0.002)
            longest = max(longest, kernel._events.msg_queue.root.qsize())
        assert longest <= 51
        assert isinstance((await until(kernel, lambda e: isinstance(e, Resync)))[0], Resync)

    ns.run(body)


@pytest.mark.parametrize("how", ["error", "abort", "garbage", "short"])
def test_a_broken_socket_becomes_a_resync(ns: Namespace, how: str) -> None:
    veth(ns)

    async def body(kernel: Network) -> None:
        await ready_link(kernel, "v0")
        await settle(kernel, ns)
        if how == "error":
            kernel._events.protocol.error_received(OSError(errno.EIO, "broken"))
        elif how == "abort":
            kernel._events.transport.abort()
        elif how == "garbage":
            # A valid header, a body that ends in the middle of the fields.
            kernel._events.enqueue(struct.pack("=IHHII", 18, 16, 0, 0, 0) + b"xx", (0, 0))
        else:
            kernel._events.enqueue(struct.pack("=IHHIIB", 17, 20, 0, 0, 0, 2), (0, 0))
        first = await asyncio.wait_for(kernel.next_event(), PATIENCE)
        assert isinstance(first, Resync)
        ns.ip("link", "set", "p0", "down")
        await until(kernel, is_link(lambda link: link.name == "v0" and not link.ready))

    ns.run(body)


def test_reopening_is_tried_with_pauses(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    failures = 12
    sleep = asyncio.sleep
    create = rtnetlink.open_socket

    async def fail(groups: int) -> Any:
        if len(pauses) < failures:
            raise KernelRefused(errno.ENFILE, "open a netlink socket")
        return await create(groups)

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def body(kernel: Network) -> None:
        monkeypatch.setattr(rtnetlink, "open_socket", fail)
        kernel._events.protocol.error_received(OSError(errno.EIO, "broken"))
        monkeypatch.setattr(asyncio, "sleep", note)
        event = await kernel.next_event()
        monkeypatch.setattr(asyncio, "sleep", sleep)
        assert isinstance(event, Resync)
        assert len(pauses) == failures
        assert pauses[0] == 0.1
        assert pauses[-1] == 5.0
        assert pauses == sorted(pauses)

    ns.run(body)


def test_resyncs_are_limited(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def body(kernel: Network) -> None:
        for _ in range(2):
            kernel._events.protocol.error_received(OSError(errno.ENOBUFS, "overrun"))
            assert isinstance(await kernel.next_event(), Resync)
            monkeypatch.setattr(asyncio, "sleep", note)
        monkeypatch.setattr(asyncio, "sleep", sleep)
        assert len(pauses) == 1
        assert 0 < pauses[0] <= 1.0

    ns.run(body)


def test_a_resync_that_is_cancelled_comes_again(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(kernel: Network) -> None:
        kernel._events.protocol.error_received(OSError(errno.ENOBUFS, "overrun"))
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

    ns.run(body)


def test_the_request_socket_is_renewed(ns: Namespace) -> None:
    veth(ns)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        kernel._requests._socket.protocol.error_received(OSError(errno.ENOBUFS, "overrun"))
        # A question is asked again; a change is refused once, since it may have been made.
        assert (await link_of(kernel, "v0")).index == link.index
        kernel._requests._socket.protocol.error_received(OSError(errno.ENOBUFS, "overrun"))
        with pytest.raises(KernelRefused):
            await kernel.set_up(link.index)
        await kernel.set_up(link.index)

    ns.run(body)


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EIO])
def test_an_answer_that_is_lost_does_not_wait_for_ever(ns: Namespace, number: int) -> None:
    async def body(kernel: Network) -> None:
        # The kernel's answer is withheld, then the socket reports an overrun.
        kernel._requests._socket.protocol.enqueue = lambda data, addr: None
        task = asyncio.ensure_future(kernel.set_up(1))
        await asyncio.sleep(0.1)
        assert not task.done()
        kernel._requests._socket.protocol.enqueue = kernel._requests._socket.enqueue
        kernel._requests._socket.protocol.error_received(OSError(number, "broken"))
        with pytest.raises(KernelRefused) as refused:
            await asyncio.wait_for(task, PATIENCE)
        assert refused.value.errno == number
        await kernel.set_up(1)

    ns.run(body)


def test_only_the_kernel_is_believed(ns: Namespace) -> None:
    veth(ns)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        await settle(kernel, ns)
        message = struct.pack("=IHHII", 32, 17, 0, 0, 0) + struct.pack(
            "=BxHiII", 0, 1, link.index, 0, 0
        )
        kernel._events.enqueue(message, (4711, 0))
        assert await settle(kernel, ns) == []
        kernel._events.enqueue(message, (0, 1))
        assert await settle(kernel, ns) == [LinkRemoved(link.index, "")]

    ns.run(body)


def test_messages_that_describe_no_link_are_ignored(ns: Namespace) -> None:
    """A Wi-Fi driver's: index and name, no more. Our link has not lost its MAC."""
    veth(ns)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        await settle(kernel, ns)
        body = struct.pack("=BxHiII", 0, 1, link.index, link.flags, 0) + struct.pack(
            "=HH4s", 7, 3, b"v0\0"
        )
        kernel._events.enqueue(struct.pack("=IHHII", 16 + len(body), 16, 0, 0, 0) + body, (0, 1))
        assert await settle(kernel, ns) == []
        assert kernel._links[link.index] == link

    ns.run(body)


def test_requests_side_by_side_and_cancelled(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    veth(ns)
    # So many that a dump has several parts.
    batch = "".join(f"addr add 10.1.{n // 250}.{n % 250}/32 dev lo\n" for n in range(1000))
    subprocess.run(["ip", "-n", ns.name, "-batch", "-"], input=batch, text=True, check=True)
    tries = rtnetlink.READ_TRIES

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        # One after the other: none finds the kernel busy with another one.
        monkeypatch.setattr(rtnetlink, "READ_TRIES", 1)
        results = await asyncio.gather(*(kernel.snapshot() for _ in range(5)))
        assert all(result == results[0] for result in results)
        monkeypatch.setattr(rtnetlink, "READ_TRIES", tries)
        for passes in range(12):
            task = asyncio.ensure_future(kernel.snapshot())
            for _ in range(passes):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await kernel.snapshot() == results[0]
        # Somebody's dump, just begun, of which nothing was read: the kernel refuses another one.
        request = struct.pack("=IHHII", 24, rtnetlink.RTM_GETADDR, rtnetlink.DUMP, 7, 0)
        kernel._requests._socket.send(request + struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0))
        assert await kernel.snapshot() == results[0]
        # The rest of the answers was not kept.
        assert kernel._requests._socket.msg_queue.root.qsize() == 0
        assert list(kernel._requests._socket.msg_queue.queues) == [0]
        wanted = [IPv4Address(f"169.254.20.{n}") for n in range(20)]
        await asyncio.gather(*(kernel.add_address(link, address) for address in wanted))
        _, found = await kernel.snapshot()
        assert [a.address for a in found if a.index == link.index] == wanted

    ns.run(body)


def test_removals_side_by_side(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other of ours becomes primary; none may take the rest with it."""
    veth(ns)
    ns.sysctl("all/promote_secondaries", 0)
    ns.sysctl("v0/promote_secondaries", 0)
    first, second, third = (IPv4Address(f"169.254.20.{n}") for n in range(3))
    remove = Network._remove

    async def late(self: Network, index: int, address: IPv4Address, what: str) -> bool:
        # What was seen of the addresses is out of date by now, if the first removal goes on.
        for _ in range(100 if address == second else 0):
            await asyncio.sleep(0)
        return await remove(self, index, address, what)

    monkeypatch.setattr(Network, "_remove", late)

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
            assert await asyncio.gather(*tasks) == [True, True]
            _, found = await kernel.snapshot()
            assert [a.address for a in found if a.index == link.index] == [third]
            assert ns.sysctl("v0/promote_secondaries") == 0
            assert await kernel.remove_address(link.index, third)

    ns.run(body)


def test_close(ns: Namespace) -> None:
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

    ns.do(lambda: asyncio.run(main()))


def test_open_without_descriptors_left(ns: Namespace) -> None:
    code = """
import asyncio, os, resource
from autoip.errors import KernelRefused
from autoip.kernel.network import Netlink
async def main():
    kernel = Netlink()
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, 4096))
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
    done = ns.sh(sys.executable, "-W", "error", "-c", code)
    assert (done.stdout, done.stderr) == (f"{errno.EMFILE}\n", "")


# Limits of the kernel


def test_kernel_without_rules(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    veth(ns)

    send = Requests.send

    async def refuse(self: Requests, request: Request, flags: int) -> list[Any]:
        if request.kind in (rtnetlink.RTM_NEWRULE, rtnetlink.RTM_DELRULE):
            raise KernelRefused(errno.EOPNOTSUPP, request.what)
        return await send(self, request, flags)

    monkeypatch.setattr(Requests, "send", refuse)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        before = ns.picture()
        for _ in range(2):
            await kernel.add_address(link, OURS)
            # On such a kernel the route would be in the main table.
            assert "proto 169" not in ns.ip("route", "show", "table", "all")
            assert addresses(ns, "v0")[0]["local"] == str(OURS)
            assert await kernel.remove_address(link.index, OURS)
        assert len(kernel.limits) == 1
        assert ns.picture() == before

    ns.run(body)


def test_kernel_that_keeps_less(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    veth(ns)
    dump = Network._addresses

    async def older(self: Network, index: int) -> list[Any]:
        found = await dump(self, index)
        for message in found:
            message["attrs"] = [
                slot for slot in message["attrs"] if slot[0] not in ("IFA_PROTO", "IFA_RT_PRIORITY")
            ]
        return found

    monkeypatch.setattr(Network, "_addresses", older)

    async def body(kernel: Network) -> None:
        link = await ready_link(kernel, "v0")
        assert (await kernel.add_address(link, OURS)).proto is None
        assert len(kernel.limits) == 2
        await kernel.add_address(link, SECOND)
        assert len(kernel.limits) == 2

    ns.run(body)


def test_without_permission(ns: Namespace) -> None:
    veth(ns)
    code = f"""
import asyncio
from ipaddress import IPv4Address
from autoip.errors import KernelRefused
from autoip.kernel.network import Netlink
async def main():
    kernel = Netlink()
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
    done = ns.sh("setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code)
    assert (done.stdout, done.stderr) == (f"{errno.EPERM}\n", "")


@pytest.mark.parametrize("first", ["autoip.kernel.rtnetlink", "pyroute2"])
def test_pyroute2_is_whole_for_others(first: str) -> None:
    code = f"""
import sys
import {first}
import autoip.kernel.rtnetlink
if {first!r} != "pyroute2":
    assert "pyroute2.ndb" not in sys.modules
import pyroute2
assert pyroute2.AsyncIPRoute is autoip.kernel.rtnetlink.AsyncIPRoute
assert pyroute2.netlink.nlmsg is autoip.kernel.rtnetlink.nlmsg
pyroute2.NDB
"""
    subprocess.run([sys.executable, "-c", code], check=True)
