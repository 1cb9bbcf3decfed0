"""Several links to 169.254/16: `autoip.daemon.cables` in a whole daemon, on a fake kernel and in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from autoip.core import arp
from autoip.core.arp import BROADCAST, NO_HARDWARE, ArpPacket, Operation
from autoip.core.neighbours import ASK_INTERVAL, CHECK_INTERVAL, CHECK_NUM, LINK_MAX, QUESTIONS_MAX
from autoip.core.policy import Kind
from autoip.daemon.cables import FILTER_PAUSE, READ_PAUSE
from autoip.kernel.model import IFF_UP, PROTOCOL, Neighbour
from autoip.kernel.neighbour_socket import READ_MAX
from tests.unit.fake_kernel import link_of, mac_of
from tests.unit.fake_world import World, no_network_manager, played

X, Y = IPv4Address("169.254.7.7"), IPv4Address("169.254.8.8")
ONE, OTHER = mac_of(101), mac_of(102)
SILENCE = CHECK_NUM * CHECK_INTERVAL


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path) -> Iterator[None]:
    with no_network_manager(tmp_path):
        yield


async def two(world: World, *names: str) -> tuple[IPv4Address, IPv4Address]:
    """Wait until both interfaces hold an address."""
    first, second = [await world.until_bound(name) for name in names or ("eth0", "eth1")]
    await asyncio.sleep(1)
    return first, second


def routes(world: World) -> dict[IPv4Address, tuple[int, IPv4Address]]:
    return world.network.neighbours.by


async def learned(world: World, index: int, address: IPv4Address, mac: bytes = ONE) -> None:
    """A neighbour announces itself on a link, and time passes."""
    world.kernel.arp_of(index).comes(arp.announcement(mac, address))
    await asyncio.sleep(0.1)


def asked(world: World, index: int) -> list[IPv4Address]:
    return [packet.tpa for packet in world.kernel.arp_of(index).sent]


@played
async def test_one_link_has_nothing_of_this(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        await world.until_bound()
        await asyncio.sleep(10)
        assert world.kernel.arp == [] and world.kernel.given_up == []
        assert world.report()["neighbours"] == []


@played
async def test_each_neighbour_has_a_route_by_its_link(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        first, second = await two(world)
        await learned(world, 2, X)
        await learned(world, 3, Y, OTHER)
        assert routes(world) == {X: (2, first), Y: (3, second)}
        mac = arp.format_mac(ONE)
        assert world.report("eth0")["neighbours"] == [
            {"address": str(X), "mac": mac, "ambiguous": None}
        ]
        assert [one["address"] for one in world.report("eth1")["neighbours"]] == [str(Y)]
        assert world.report("eth0")["notes"] == []
    assert routes(world) == {}
    assert all(sock.closed for sock in world.kernel.arp)
    assert all(watch.closed for watch in world.kernel.given_up)


@played
async def test_known_neighbours_do_not_wake_the_daemon(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        await two(world)
        await learned(world, 2, X)
        await asyncio.sleep(FILTER_PAUSE)
        await learned(world, 2, X)
        woken = world.kernel.arp_of(2).woken
        for _ in range(5):
            await learned(world, 2, X)
        assert world.kernel.arp_of(2).woken == woken
        await learned(world, 2, X, OTHER)  # somebody else: that is news
        assert world.kernel.arp_of(2).woken == woken + 1


@played
async def test_the_link_that_goes_takes_its_routes_with_it(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1", "eth2") as world:
        await two(world)
        await world.until_bound("eth2")
        await asyncio.sleep(1)
        await learned(world, 2, X)
        await learned(world, 3, Y, OTHER)
        world.network.plug(link_of(2, flags=IFF_UP))
        await asyncio.sleep(1)
        assert [*routes(world)] == [Y]
        cleared = world.network.neighbours.cleared
        world.network.plug(link_of(3, "eth1", flags=IFF_UP))
        await asyncio.sleep(1)
        assert world.network.neighbours.cleared == cleared + 1  # the rule as well
        assert routes(world) == {} and all(sock.closed for sock in world.kernel.arp)
        # It comes again: what the kernel knows of it is not lost.
        world.network.plug(link_of(2))
        world.network.plug(link_of(3, "eth1"))
        world.network.neighbours.seen = [
            *(Neighbour(2, X, ONE), Neighbour(9, Y, OTHER)),
            *(Neighbour(2, Y, b""), Neighbour(2, Y, ONE[:4])),  # not of an Ethernet host
        ]
        first, _ = await two(world)
        assert routes(world) == {X: (2, first)}


@played
async def test_another_source(tmp_path: Path) -> None:
    async with World(
        tmp_path, "eth0", "eth1", policy=Kind.FALLBACK, after=0.0, linger=60.0
    ) as world:
        first, _ = await two(world)
        await learned(world, 2, X)
        assert routes(world) == {X: (2, first)}
        # While the address lingers new connections are from the routable one.
        lease = world.network.put(2, "192.0.2.7").address
        await asyncio.sleep(1)
        assert routes(world) == {X: (2, lease)}
        world.network.take(2, lease)
        await asyncio.sleep(1)
        assert routes(world) == {X: (2, first)}


@played
async def test_route_only(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1", policy=Kind.ROUTE_ONLY) as world:
        lease = world.network.put(2, "192.0.2.7").address
        await asyncio.sleep(1)
        assert world.kernel.arp == []
        other = world.network.put(3, "198.51.100.7").address
        await asyncio.sleep(1)
        await learned(world, 2, X)
        await learned(world, 3, Y, OTHER)
        assert routes(world) == {X: (2, lease), Y: (3, other)}


@played
async def test_an_unknown_destination(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        first, second = await two(world)
        mac = world.network.links[2].mac
        world.kernel.arp_of(2).comes(arp.question(mac, first, X))
        await asyncio.sleep(0.1)
        assert asked(world, 2) == []
        [question] = world.kernel.arp_of(3).sent
        assert (question.operation, question.spa, question.tpa) == (Operation.REQUEST, second, X)
        assert question.destination == BROADCAST
        assert question.sha == world.network.links[3].mac
        answer = ArpPacket(Operation.REPLY, ONE, X, question.sha, second, question.sha)
        world.kernel.arp_of(3).comes(answer)
        await asyncio.sleep(0.1)
        assert routes(world) == {X: (3, second)}
        # What this host has itself is not asked for.
        world.kernel.arp_of(2).comes(arp.question(mac, first, second))
        await asyncio.sleep(2 * ASK_INTERVAL)
        assert asked(world, 3) == [X]


@played
async def test_who_moves_and_who_stays(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        _, second = await two(world)
        await learned(world, 2, X)
        await learned(world, 3, X)
        await asyncio.sleep(SILENCE)
        assert asked(world, 2) == [X] * CHECK_NUM
        assert routes(world) == {X: (3, second)}
        await learned(world, 2, X, OTHER)
        world.kernel.arp_of(3).comes(arp.announcement(ONE, X))
        await asyncio.sleep(SILENCE)
        assert routes(world) == {X: (3, second)}
        [note] = world.report("eth1")["notes"]
        for word in ("ambiguous", arp.format_mac(ONE), arp.format_mac(OTHER), "eth0"):
            assert word in note
        assert len(world.logged("is on two links")) == 1
        assert world.report("eth1")["neighbours"][0]["ambiguous"] == {
            "interface": "eth0",
            "mac": arp.format_mac(OTHER),
        }
        world.kernel.given_up[-1].gives_up(3, X)
        await asyncio.sleep(0.1)
        assert asked(world, 2)[CHECK_NUM:] == [X] and routes(world) == {}


@played
async def test_an_answer_is_let_through_and_read_before_silence_counts(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        first, _ = await two(world)
        await learned(world, 2, X)
        await asyncio.sleep(FILTER_PAUSE)
        await learned(world, 2, X)  # from now on the filter drops it
        await learned(world, 3, X, OTHER)
        world.kernel.arp_of(2).comes(arp.announcement(ONE, X), quietly=True)
        await asyncio.sleep(2 * SILENCE)
        assert routes(world) == {X: (2, first)}


@played
async def test_silence_counts_only_where_nothing_was_lost(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        first, second = await two(world)
        sock = world.kernel.arp_of(2)
        await learned(world, 2, X)
        await learned(world, 3, X, OTHER)  # X's link is asked...
        sock.lost = 1  # ...and not all that comes is read
        await learned(world, 2, Y)
        await asyncio.sleep(SILENCE)
        assert routes(world)[X] == (2, first)
        await asyncio.sleep(ASK_INTERVAL)
        sock.refuses = True  # nobody was asked
        await learned(world, 3, X, OTHER)
        await asyncio.sleep(SILENCE)
        assert routes(world)[X] == (2, first)
        await asyncio.sleep(ASK_INTERVAL)
        sock.refuses = False
        await learned(world, 3, X, OTHER)
        await asyncio.sleep(SILENCE)
        assert routes(world)[X] == (3, second)


@played
async def test_a_filter_stays_for_a_while(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        await two(world)
        sock, begun = world.kernel.arp_of(2), world.now
        for number in range(50):
            await learned(world, 2, X + number, mac_of(200 + number))
        assert 2 <= sock.filters <= (world.now - begun) / FILTER_PAUSE + 1


@played
async def test_a_link_that_cannot_be_listened_to(tmp_path: Path) -> None:
    """It is reported once, though it is tried again, and all else goes on."""
    async with World(tmp_path, "eth0", "eth1") as world:
        world.kernel.refuse_arp = True
        await two(world)
        for flags in (IFF_UP, link_of(2).flags):
            world.network.plug(link_of(2, flags=flags))
            await asyncio.sleep(1)
        await two(world)
        (line, other) = world.logged("its neighbours get no routes: ")
        assert {line.split(":")[0], other.split(":")[0]} == {"eth0", "eth1"}
        world.kernel.refuse_arp = False
        for flags in (IFF_UP, link_of(2).flags):
            world.network.plug(link_of(2, flags=flags))
            await asyncio.sleep(1)
        first, _ = await two(world)
        await learned(world, 2, X)
        assert routes(world) == {X: (2, first)}


@played
async def test_whom_the_kernel_gives_up(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        await two(world)
        await learned(world, 2, X)
        for address in (X, Y):
            world.kernel.given_up[-1].gives_up(9, address)
        await asyncio.sleep(0.1)
        assert [*routes(world)] == [X] and asked(world, 3) == []
        world.kernel.given_up[-1].gives_up(2, X)
        await asyncio.sleep(0.1)
        assert routes(world) == {} and asked(world, 3) == [X]


@played
async def test_a_flood_of_strangers(tmp_path: Path) -> None:
    """It is read in bounds, fills no more than the table of its link, and moves nobody."""
    async with World(tmp_path, "eth0", "eth1") as world:
        await two(world)
        await learned(world, 2, X)
        await learned(world, 3, Y, OTHER)
        flood = [
            arp.announcement(mac_of(1000 + n), IPv4Address("169.254.64.0") + n) for n in range(5000)
        ]
        sock = world.kernel.arp_of(3)
        woken, begun = sock.woken, world.now
        sock.comes(*flood, arp.announcement(mac_of(9), X))
        await asyncio.sleep(10)
        assert sock.woken - woken <= (world.now - begun) / READ_PAUSE + 1
        assert sock.woken - woken >= 5000 // READ_MAX
        assert len(world.report("eth1")["neighbours"]) == LINK_MAX
        assert Y in routes(world) and routes(world)[X][0] == 2
        assert len(world.kernel.arp_of(2).sent) <= CHECK_NUM
        assert len(sock.sent) <= CHECK_NUM * QUESTIONS_MAX * 12


@played
async def test_what_is_learned_is_checked(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        _, second = await two(world)
        sock = world.kernel.arp_of(2)
        sock.comes(
            arp.announcement(b"\x01" + ONE[1:], X),  # a multicast address has no host
            arp.announcement(ONE, second),  # ours
            arp.announcement(world.network.links[3].mac, X),  # from us
            arp.announcement(ONE, IPv4Address("192.0.2.1")),
            ArpPacket(Operation.REQUEST, ONE, IPv4Address(0), NO_HARDWARE, X),
        )
        await asyncio.sleep(0.1)
        assert routes(world) == {}


@played
async def test_a_link_of_another_process(tmp_path: Path) -> None:
    """It is listened to, and left alone."""
    async with World(tmp_path, "eth0") as world:
        first = await world.until_bound()
        world.network.plug(link_of(7, "usb0"))
        world.network.put(7, "169.254.99.1", 16, proto=PROTOCOL)
        await asyncio.sleep(1)
        await learned(world, 2, X)
        await learned(world, 7, Y, OTHER)
        assert routes(world) == {X: (2, first)}
        world.kernel.arp_of(7).comes(arp.question(mac_of(7), IPv4Address("169.254.99.1"), Y + 1))
        world.kernel.arp_of(2).comes(arp.question(mac_of(2), first, Y + 2))
        await asyncio.sleep(0.1)
        assert asked(world, 2) == [Y + 1] and asked(world, 7) == []
        # Y moves here, and X there, which is the other process's route.
        await learned(world, 2, Y, OTHER)
        await learned(world, 7, X)
        await asyncio.sleep(SILENCE)
        assert routes(world) == {Y: (2, first)}
        world.network.take(7, IPv4Address("169.254.99.1"))
        await asyncio.sleep(1)
        assert routes(world) == {} and all(sock.closed for sock in world.kernel.arp)


@played
async def test_somebody_elses_link_local_address_is_not_a_link_of_autoip(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0") as world:
        await world.until_bound()
        world.network.plug(link_of(7, "usb0"))
        world.network.put(7, "169.254.99.1", 16)
        world.network.put(7, "192.0.2.9", 24, proto=PROTOCOL)
        await asyncio.sleep(1)
        assert world.kernel.arp == []


@played
async def test_a_reload_keeps_the_routes(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        first, _ = await two(world)
        await learned(world, 2, X)
        cleared = world.network.neighbours.cleared
        await world.reload()
        assert routes(world) == {X: (2, first)}
        await asyncio.sleep(1)
        assert world.network.neighbours.cleared == cleared
        assert [one["mac"] for one in world.report("eth0")["neighbours"]] == [None]
        await learned(world, 2, X)
        assert [one["mac"] for one in world.report("eth0")["neighbours"]] == [arp.format_mac(ONE)]


@played
async def test_what_a_crash_left_is_removed_at_the_start(tmp_path: Path) -> None:
    world = World(tmp_path, "eth0", "eth1")
    routes(world)[X] = 2, IPv4Address("192.0.2.7")
    async with world:
        await world.until(lambda: routes(world) == {})
        await two(world)
        assert routes(world) == {}
