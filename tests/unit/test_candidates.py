"""Which addresses may be candidates, in which order they are tried, and what the user may choose of both."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random

import pytest

from autoip.commands import run
from autoip.config import load
from autoip.core.candidates import Candidates, Pool
from autoip.core.constants import EXCLUDED
from autoip.errors import UsageError
from autoip.options import Options
from tests.unit.fake_kernel import link_of, mac_of
from tests.unit.fake_world import A, B, World, no_network_manager, played

C = IPv4Address("169.254.20.20")
D = IPv4Address("169.254.20.21")


def pool(network: str = "169.254.0.0/16", *excluded: str) -> Pool:
    return Pool(IPv4Network(network), tuple(map(IPv4Network, excluded)))


@pytest.mark.parametrize(
    ("network", "least", "most"),
    [
        ("169.254.0.0/16", "169.254.1.0", "169.254.254.255"),
        ("169.254.10.0/24", "169.254.10.0", "169.254.10.255"),
        ("169.254.10.64/30", "169.254.10.64", "169.254.10.67"),
        ("169.254.10.7/32", "169.254.10.7", "169.254.10.7"),
    ],
)
def test_both_ends_of_a_range(network: str, least: str, most: str) -> None:
    chosen = pool(network)
    first, last = IPv4Address(least), IPv4Address(most)
    assert chosen.allows(first) and chosen.allows(last)
    assert not chosen.allows(first - 1) and not chosen.allows(last + 1)
    drawn = {chosen.draw(source) for source in [Random(1)] for _ in range(400)}
    assert first <= min(drawn) and max(drawn) <= last
    if int(last) - int(first) < 16:
        assert {first, last} <= drawn


def test_no_excluded_address_is_drawn() -> None:
    chosen = pool("169.254.10.0/29", "169.254.10.0/30", "169.254.10.6")
    source = Random(2)
    drawn = {str(chosen.draw(source)) for _ in range(200)}
    assert drawn == {"169.254.10.4", "169.254.10.5", "169.254.10.7"}


@pytest.mark.parametrize(
    ("network", "excluded", "empty"),
    [
        ("169.254.0.0/16", (), False),
        ("169.254.0.0/16", ("169.254.0.0/16",), True),
        ("169.254.0.0/16", ("169.254.0.0/17", "169.254.128.0/17"), True),
        ("169.254.10.0/24", ("169.254.10.128/25", "169.254.10.0/25"), True),
        ("169.254.10.0/24", ("169.254.10.0/25", "169.254.10.128/26"), False),
        ("169.254.10.0/31", ("169.254.10.0", "169.254.10.1"), True),
        ("169.254.10.0/31", ("169.254.10.0",), False),
        ("169.254.254.0/24", ("169.254.254.0/24",), True),
    ],
)
def test_an_empty_pool(network: str, excluded: tuple[str, ...], empty: bool) -> None:
    assert pool(network, *excluded).empty is empty


@pytest.mark.parametrize(
    ("mac", "network", "address"),
    [
        ("02:00:00:00:14:15", "169.254.0.0/16", "169.254.20.21"),
        ("02:00:00:00:00:07", "169.254.0.0/16", "169.254.1.7"),
        ("02:00:00:00:ff:ff", "169.254.0.0/16", "169.254.254.255"),
        ("02:00:00:00:ff:00", "169.254.0.0/16", "169.254.254.0"),
        ("02:00:00:00:14:15", "169.254.10.0/24", "169.254.10.21"),
        ("02:00:00:00:14:15", "169.254.16.0/20", "169.254.20.21"),
        ("02:00:00:00:14:15", "169.254.10.64/26", "169.254.10.64"),
        ("02:00:00:00:14:ff", "169.254.10.64/26", "169.254.10.127"),
    ],
)
def test_the_address_of_a_mac(mac: str, network: str, address: str) -> None:
    assert pool(network).of_mac(bytes.fromhex(mac.replace(":", ""))) == IPv4Address(address)


def test_a_list_is_tried_in_order_then_random_ones() -> None:
    found = Candidates(
        Random(1), lambda address: address == B, [A, B, IPv4Address("169.254.170.2"), C, D], Pool()
    )
    assert [found.take() for _ in range(3)] == [A, C, D]
    assert found.take() not in (A, B, C, D)


def test_the_preferred_one_comes_before_the_rest_of_the_list() -> None:
    found = Candidates(Random(1), lambda _: False, [A, B], Pool())
    assert found.take() == A
    found.preferred = A
    assert [found.take(), found.take()] == [A, B]


def options(folder: Path, text: str, line: str = "eth0") -> Options:
    file = folder / "autoip.conf"
    file.write_text(text)
    return run.options_of("eth0", run.parse(line.split()), load(file))


def test_lists_of_the_configuration(tmp_path: Path) -> None:
    text = "[eth*]\nip = 169.254.20.20, mac\nrange=169.254.20.0/24\nexclude = 169.254.20.1, 169.254.20.128/25\n"
    found = options(tmp_path, text)
    assert found.ip == (C, "mac")
    assert found.pool == pool("169.254.20.0/24", "169.254.20.1", "169.254.20.128/25")
    assert options(tmp_path, text, "eth0 --exclude none --range 169.254.0.0/16").pool == pool()
    assert options(tmp_path, "").pool == Pool() and options(tmp_path, "").excluded == EXCLUDED


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", "eth0 --ip 169.254.169.254", "ip 169.254.169.254: exclude has 169.254.169.0/24"),
        (
            "",
            "eth0 --ip 169.254.170.2",
            "exclude has 169.254.170.0/24; give another exclude, or none",
        ),
        (
            "[*]\nrange = 169.254.10.0/24",
            "eth0 --ip 169.254.20.20",
            "not in the range 169.254.10.0/24",
        ),
        (
            "[*]\nip = 169.254.20.20",
            "eth0 --exclude 169.254.20.0/24",
            "exclude has 169.254.20.0/24",
        ),
        (
            "",
            "eth0 --range 169.254.169.0/25",
            "range 169.254.169.0/25: exclude leaves no address of it",
        ),
        (
            "",
            "eth0 --exclude 169.254.0.0/16",
            "range 169.254.0.0/16: exclude leaves no address of it",
        ),
    ],
)
def test_options_that_leave_no_candidate_are_refused(
    tmp_path: Path, text: str, line: str, says: str
) -> None:
    with pytest.raises(UsageError) as refused:
        options(tmp_path, text, line)
    assert str(refused.value).startswith("eth0: ") and says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_excluded_address_may_be_claimed_where_nothing_is_excluded(tmp_path: Path) -> None:
    assert options(tmp_path, "", "eth0 --exclude none --ip 169.254.169.254").ip == (
        IPv4Address("169.254.169.254"),
    )


# --- the interface -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path) -> Iterator[None]:
    with no_network_manager(tmp_path):
        yield


@played
async def test_an_interface_claims_the_address_of_its_mac(tmp_path: Path) -> None:
    async with World(tmp_path, first=(A, "mac"), network=IPv4Network("169.254.4.0/22")) as world:
        await world.until_state("probing")
        await world.until(lambda: world.claims(A))
        assert await world.until_bound() == IPv4Address("169.254.4.2") != A
        assert len(world.logged("only from 169.254.4.0/22, a departure from RFC 3927")) == 1


@played
async def test_a_reload_goes_on_with_the_list_and_obeys_another(tmp_path: Path) -> None:
    async with World(tmp_path, first=(A, B)) as world:
        assert await world.until_bound() == A
        await world.reload(first=(A, B))
        assert world.address() == A and world.daemon._settings.handed is not None
        world.claims(A)
        world.claims(A)
        await world.until(lambda: world.address() == B)
        await world.reload(first=("mac", C), excluded=(IPv4Network("169.254.8.0/24"),))
        assert world.address() == B  # until the next claim
        world.claims(B)
        world.claims(B)
        await world.until(lambda: world.address() == IPv4Address("169.254.1.2"))


@played
async def test_the_address_of_a_mac_follows_the_mac(tmp_path: Path) -> None:
    async with World(tmp_path, first=("mac",)) as world:
        assert await world.until_bound() == IPv4Address("169.254.1.2")
        world.network.plug(link_of(mac=mac_of(0x1415)))
        await world.until(lambda: world.address() == IPv4Address("169.254.20.21"))


@played
async def test_a_remembered_address_that_is_excluded_is_not_tried(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        assert await world.until_bound() == A
    async with World(tmp_path, excluded=(IPv4Network("169.254.7.7"),)) as world:
        assert await world.until_bound() != A
        assert world.logged(f"does not try {A} again")


@played
async def test_a_remembered_address_outside_of_the_range_is_not_tried(tmp_path: Path) -> None:
    network = IPv4Network("169.254.8.0/30")
    async with World(tmp_path, first=A) as world:
        assert await world.until_bound() == A
        assert not world.logged("a departure from RFC 3927")
    async with World(tmp_path, network=network) as world:
        address = await world.until_bound()
        assert address in network
        assert world.logged(f"does not try {A} again")
    async with World(tmp_path, network=network) as world:
        assert await world.until_bound() == address
        assert not world.logged("again, which")


def test_what_candidates_hand_over() -> None:
    """The next ones are those that would have come without."""
    one = Candidates(Random(5), lambda _: False, [A, B, C], Pool())
    one.take()
    one.lose(A)
    other = Candidates(Random(5), lambda _: False, (), Pool())
    other.resume(one.keep())
    assert other.keep() == one.keep()
    assert [other.take() for _ in range(2)] == [B, C]
    assert [one.take() for _ in range(2)] == [B, C]
    drawn = one.take()
    one.lose(drawn)
    one.preferred = D
    third = Candidates(Random(5), lambda _: False, [A], Pool())
    third.resume(one.keep())
    assert third.keep() == one.keep() and third.keep().lost == (A, drawn)
    assert [third.take() for _ in range(3)] == [one.take() for _ in range(3)]
    assert third.keep().drawn == 3


def test_the_mac_gives_both_octets() -> None:
    chosen = pool("169.254.10.0/23")
    assert chosen.of_mac(bytes.fromhex("0200000000ff")) == IPv4Address("169.254.10.255")
    assert chosen.of_mac(bytes.fromhex("020000000a07")) == IPv4Address("169.254.10.7")
    assert chosen.of_mac(bytes.fromhex("02000000fe07")) == IPv4Address("169.254.11.7")
    narrow = pool("169.254.10.64/30")
    assert narrow.of_mac(bytes.fromhex("020000000a00")) == IPv4Address("169.254.10.64")
    assert narrow.of_mac(bytes.fromhex("020000000aff")) == IPv4Address("169.254.10.67")
