"""Interfaces that are served as they appear: which ones, and what happens when they come, go and are renamed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoip import config
from autoip.commands import run
from autoip.core.policy import Kind
from autoip.daemon import lock_file, served
from autoip.daemon.interface import Interface
from autoip.daemon.lock_file import LockFile
from autoip.daemon.served import RETRY, Selection
from autoip.errors import AlreadyRunning
from autoip.kernel.model import IFF_NOARP, IFF_UP, RouteAdded
from tests.unit.fake_kernel import link_of
from tests.unit.fake_world import World, no_network_manager, played

ETH = Selection((("eth*", True),))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path) -> Iterator[None]:
    with no_network_manager(tmp_path):
        yield


# --- which ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "name", "wanted"),
    [
        ("eth*", "eth0", True),
        ("eth*", "usb0", False),
        ("eth* usb?", "usb0", True),
        ("*", "docker0", False),
        ("*", "veth12ab", False),
        ("v*", "veth12ab", False),
        ("veth*", "veth12ab", True),
        ("veth12ab", "veth12ab", True),
        ("br-*", "br-0a1b2c3d4e5f", True),
        ("b*", "br-lan", False),
        ("*", "br0", True),
        ("*", "virbr0", False),
        ("virbr0", "virbr0", True),
        ("* !eth1", "eth1", False),
        ("* !eth1", "eth2", True),
        ("!eth* eth1", "eth1", True),
        ("docker0 !*", "docker0", False),
        ("docker0 *", "docker0", True),
        ("", "eth0", False),
    ],
)
def test_which_names(rules: str, name: str, wanted: bool) -> None:
    pairs = tuple((rule.lstrip("!"), not rule.startswith("!")) for rule in rules.split())
    assert Selection(pairs).wants(link_of(name=name)) is wanted


@pytest.mark.parametrize(
    "changes",
    [{"master": 7, "port_kind": "bridge"}, {"hardware_type": 772}, {"flags": IFF_UP | IFF_NOARP}],
)
def test_a_port_and_an_interface_without_arp_must_be_named(changes: dict[str, object]) -> None:
    link = replace(link_of(name="eth0"), **changes)  # type: ignore[arg-type]
    assert not ETH.wants(link)
    assert Selection((("eth0", True),)).wants(link)
    assert not Selection((("eth0", True), ("eth0", False))).wants(link)


@pytest.mark.parametrize(
    ("line", "text", "rules"),
    [
        ("run", "", None),
        ("run eth0 usb0", "[*]\nserve = yes", None),
        (
            "run",
            "[eth*]\nserve = yes\n[eth1]\nup = yes\nserve = no",
            [("eth*", True), ("eth1", False)],
        ),
        ("run --configured", "", []),
        ("run --configured", "[usb*]\nserve=yes", [("usb*", True)]),
        ("run eth* usb0", "[*]\nserve = no", [("eth*", True), ("usb0", True)]),
    ],
)
def test_what_command_line_and_configuration_select(
    tmp_path: Path, line: str, text: str, rules: list[tuple[str, bool]] | None
) -> None:
    (tmp_path / "some.conf").write_text(text)
    arguments = run.parse(line.split())
    found = run.selection(arguments, config.load(tmp_path / "some.conf"))
    assert found == (None if rules is None else Selection(tuple(rules)))


# --- when ----------------------------------------------------------------------------------------


def names(world: World) -> list[str]:
    return sorted(interface.name for interface in world.daemon._interfaces)


def files(world: World) -> set[str]:
    """The interfaces that have a lock file or a control socket."""
    return {
        path.name.partition("-")[2].rpartition(".")[0]
        for path in (world.directory / "run").iterdir()
    }


@played
async def test_what_is_there_is_served_and_what_comes(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "usb0", selection=ETH) as world:
        first = await world.until_bound()
        world.network.plug(link_of(7, "eth7"))
        second = await world.until_bound("eth7")
        assert names(world) == ["eth0", "eth7"] == sorted(world.daemon._follower._gates)
        assert (await world.asks("status", "eth7"))["status"]["address"] == str(second)
        assert world.network.owned(2) == [first] and world.network.owned(7) == [second]
    assert not files(world)
    assert world.network.owned(2) == world.network.owned(7) == []


@played
async def test_it_is_ready_when_what_is_there_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, selection=ETH)
    reported: list[str] = []
    monkeypatch.setattr(world.daemon._notifier, "status", reported.append)
    async with world:
        await world.until_bound()
    assert reported[0].startswith("eth0: no-link")


@played
async def test_the_addresses_that_an_interface_has_already_count(tmp_path: Path) -> None:
    async with World(tmp_path, selection=ETH, policy=Kind.FALLBACK, after=0.0) as world:
        await world.until_bound()
        world.network.plug(link_of(7, "lan7"))
        world.network.put(7, "10.0.0.7")
        await asyncio.sleep(1)
        world.network.plug(link_of(7, "eth7"))
        await world.until_state("standby", "eth7")
        await asyncio.sleep(60)
        assert not world.logged("eth7: probe ") and world.network.owned(7) == []


@played
async def test_the_routes_of_an_interface_that_comes_are_followed(tmp_path: Path) -> None:
    async with World(tmp_path, "usb0", selection=ETH, default_route=True) as world:
        await world.until(lambda: world.daemon._status == "waits for interfaces")
        world.network.plug(link_of(7, "eth7"))
        address = await world.until_bound("eth7")
        await world.until(lambda: world.network.routes == {("default", 7): address})
        world.network.foreign_default = True
        world.network.happens(RouteAdded())
        await world.until(lambda: not world.network.routes)


@played
async def test_an_interface_that_is_being_added_at_the_end_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(tmp_path, selection=ETH) as world:
        await world.until_bound()
        serve = world.daemon._serve

        async def slowly(interface: Interface) -> None:
            await asyncio.sleep(5)
            await serve(interface)

        monkeypatch.setattr(world.daemon, "_serve", slowly)
        world.network.plug(link_of(7, "eth7"))
        await world.until(lambda: files(world) == {"eth0", "eth7"})
        assert names(world) == ["eth0"]
    assert not files(world)


@played
async def test_with_nothing_to_serve_it_waits(tmp_path: Path) -> None:
    async with World(tmp_path, "usb0", selection=ETH) as world:
        await world.until(lambda: world.daemon._status == "waits for interfaces")
        await asyncio.sleep(100)
        assert not names(world) and not files(world)
        assert world.kernel.timer.at is None
        world.network.plug(link_of(7, "eth7"))
        await world.until_bound("eth7")
        assert world.daemon._status.startswith("eth7: bound")


@played
async def test_an_interface_that_goes_is_released(tmp_path: Path) -> None:
    async with World(tmp_path, selection=ETH) as world:
        first = await world.until_bound()
        world.network.unplug(2)
        await world.until(lambda: not names(world))
        assert not files(world)
        await world.until(lambda: world.daemon._status == "waits for interfaces")
        world.network.plug(link_of(2, "eth0"))
        assert await world.until_bound() == first


@played
async def test_a_name_that_is_renamed_away_and_to(tmp_path: Path) -> None:
    async with World(tmp_path, selection=ETH) as world:
        address = await world.until_bound()
        world.network.plug(link_of(2, "lan0"))
        await world.until(lambda: not names(world))
        assert world.network.owned(2) == [] and not files(world)
        world.network.plug(link_of(2, "eth5"))
        assert await world.until_bound("eth5") == address
        world.network.plug(link_of(2, "eth6"))
        assert await world.until_bound("eth6") == address
        assert names(world) == ["eth6"] and files(world) == {"eth6"}


@played
async def test_an_interface_that_becomes_a_port_is_released(tmp_path: Path) -> None:
    async with World(tmp_path, selection=ETH) as world:
        await world.until_bound()
        world.network.plug(replace(link_of(2, "eth0"), master=9, port_kind="bridge"))
        await world.until(lambda: not names(world))
        assert world.network.owned(2) == []
        world.network.plug(link_of(2, "eth0"))
        await world.until_bound()


@played
async def test_a_reload_goes_on_with_what_is_served_and_follows(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1", "eth2", selection=ETH) as world:
        address = await world.until_bound()
        await world.until_bound("eth1")
        await world.until_bound("eth2")
        await world.asks("stop", "eth1")
        await world.until(lambda: files(world) == {"eth0", "eth2"})
        await asyncio.sleep(1)
        before = len(world.asked("add"))
        await world.reload(meanwhile=lambda: world.network.plug(link_of(7, "eth7")))
        assert world.address() == address
        await world.until_bound("eth7")
        assert names(world) == ["eth0", "eth2", "eth7"]
        assert len(world.asked("add")) == before + 1
        world.network.unplug(4)
        await world.until(lambda: names(world) == ["eth0", "eth7"])
        world.network.plug(link_of(4, "eth2"))
        await world.until_bound("eth2")
    assert not files(world)


@played
async def test_a_reload_drops_what_is_not_wanted_any_more(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1", selection=ETH) as world:
        await world.until_bound()
        address = await world.until_bound("eth1")
        world.settings = replace(world.settings, selection=Selection((("eth1", True),)))
        await world.reload()
        await world.until(lambda: names(world) == ["eth1"])
        assert world.address("eth1") == address and world.network.owned(2) == []


@played
async def test_who_is_stopped_stays_so_until_it_has_been_away(tmp_path: Path) -> None:
    async with World(tmp_path, selection=ETH) as world:
        await world.until_bound()
        await world.asks("stop")
        world.network.plug(link_of(2, "eth0"))
        await asyncio.sleep(60)
        assert not names(world)
        world.network.unplug(2)
        await asyncio.sleep(1)
        world.network.plug(link_of(2, "eth0"))
        await world.until_bound()


@played
async def test_who_cannot_be_served_costs_one_line(tmp_path: Path) -> None:
    named = Selection((("eth0", True), ("eth1", True)))
    async with World(tmp_path, "eth0", selection=named) as world:
        await world.until_bound()
        world.network.plug(replace(link_of(7, "eth1"), hardware_type=772))
        await asyncio.sleep(60)
        assert len(world.logged("eth1: not an interface that speaks ARP")) == 1
        assert names(world) == ["eth0"]


@played
async def test_a_bug_in_one_costs_only_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(tmp_path, selection=ETH) as world:
        await world.until_bound()
        monkeypatch.setattr(LockFile, "acquire", lambda *_: 1 / 0)
        world.network.plug(link_of(7, "eth7"))
        await world.until(lambda: world.logged("eth7: internal error, is not served"))
        monkeypatch.undo()
        world.network.plug(link_of(8, "eth8"))
        await world.until_bound("eth8")
        assert names(world) == ["eth0", "eth8"]


# --- another process -----------------------------------------------------------------------------


@played
async def test_what_another_serves_is_left_to_it(tmp_path: Path) -> None:
    """The other gives the lock up without ending: it is tried again after a while."""
    (tmp_path / "run").mkdir(mode=0o755)
    other = LockFile.acquire(tmp_path / "run", "eth0")
    async with World(tmp_path, "eth0", "eth1", selection=ETH) as world:
        await world.until_bound("eth1")
        assert "eth0: already running (pid " in world.daemon._status
        await asyncio.sleep(3.5 * RETRY)
        assert len(world.logged("serves it when that process ends")) == 1
        other.release()
        await world.until_bound("eth0")
        assert "already running" not in world.daemon._status
        assert len(world.logged("eth0: already running")) == 1


@pytest.mark.parametrize("gone", [True, False])
def test_the_end_of_the_other_is_noticed_at_once(gone: bool) -> None:
    """In real time: by the process itself, not by the next attempt."""

    async def scenario(process: subprocess.Popen[bytes]) -> None:
        ended = asyncio.Event()
        other = served._Other(AlreadyRunning("eth0", process.pid), ended.set)
        await asyncio.sleep(0.1)
        assert not ended.is_set()
        if not gone:
            other.close()
        process.send_signal(signal.SIGKILL)
        if gone:
            await asyncio.wait_for(ended.wait(), RETRY / 2)
            other.close()
        else:
            await asyncio.sleep(0.1)
            assert not ended.is_set()

    with subprocess.Popen(["sleep", "100"]) as process:
        asyncio.run(scenario(process))


def test_the_message_names_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_file, "_unit", lambda pid: f"autoip-{pid is not None}.service")
    with LockFile.acquire(tmp_path, "eth0"), pytest.raises(AlreadyRunning) as refused:
        LockFile.acquire(tmp_path, "eth0")
    assert str(refused.value).startswith("eth0: already running (pid ")
    assert str(refused.value).endswith(", autoip-True.service)")
    assert str(AlreadyRunning("eth0", None)) == "eth0: already running (another process)"


@pytest.mark.parametrize(
    ("content", "unit"),
    [
        ("0::/system.slice/system-autoip.slice/autoip@eth0.service\n", "autoip@eth0.service"),
        ("12:pids:/x\n1:name=systemd:/system.slice/autoip.service\n0::/\n", "autoip.service"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
        (None, ""),
    ],
)
def test_the_unit_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, unit: str
) -> None:
    file = tmp_path / "cgroup"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(lock_file, "Path", lambda _: file)
    assert lock_file._unit(1) == unit
