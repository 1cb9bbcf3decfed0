"""The daemon on a fake kernel: what happens in which order, also what a real kernel can hardly be made to do."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from autoip.core.acd import Defence
from autoip.core.arp import announcement
from autoip.core.constants import CONFIGURE_RETRY, DEFEND_INTERVAL
from autoip.core.policy import CONNECTIONS_INTERVAL, Kind
from autoip.daemon.interface import WORK_TIMEOUT
from autoip.daemon.lock_file import LockFile
from autoip.daemon.owned_address import GRACE, REQUEST_TIMEOUT
from autoip.daemon.owned_routes import REPAIR_PAUSE
from autoip.errors import AlreadyRunning, KernelRefused, NoPermission, NotArp, UsageError
from autoip.kernel.arp_socket import Phase, Received
from autoip.kernel.model import (
    IFF_UP,
    PROTOCOL,
    AddressRemoved,
    LinkRemoved,
    Route,
    RouteAdded,
    RouteRemoved,
)
from tests.unit.fake_kernel import FakeSocket, link_of, mac_of
from tests.unit.fake_world import STRANGER, A, B, World, no_network_manager, played


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path) -> Iterator[None]:
    with no_network_manager(tmp_path):
        yield


def refused(number: int) -> Callable[[], Awaitable[None]]:
    async def step() -> None:
        raise KernelRefused(number, "test")

    return step


def armed(sock: FakeSocket) -> bool:
    return sock.armed is not None


async def never() -> None:
    await asyncio.Event().wait()


# --- a claim, and its end ------------------------------------------------------------------------


@played
async def test_claim_and_stop(tmp_path: Path) -> None:
    """if-stop, claim-before-use: what is put on the interface, when, and that it is taken off."""
    async with World(tmp_path, first=A) as world:
        assert await world.until_bound() == A
        assert world.network.owned(2) == [A]
        # Nothing is on the interface before the last probe, and no announcement before it is.
        sent = world.kernel.listener.of(mac_of(2))
        assert [packet.spa == A for packet in sent] == [False] * 3 + [True] * 2
        assert world.asked("add", "remove") == [("add", 2, A)]
        (sock,) = world.kernel.listener.sockets
        assert (sock.phase, sock.address) == (Phase.DEFEND, A) and sock.armed is not None
        assert world.kernel.listener.macs == {mac_of(2)}
        assert world.kernel.timer.at is None  # nothing is due
    assert world.network.owned(2) == []
    assert world.asked("remove", "release") == [("remove", 2, A), ("release", 2)]
    assert not [*(tmp_path / "run").iterdir()]
    assert str(A) in next((tmp_path / "state").iterdir()).read_text()


@played
async def test_the_saved_address_comes_first(tmp_path: Path) -> None:
    """sel-memory, sel-ip: but for one that was asked for, which is remembered from then on."""
    async with World(tmp_path) as world:
        address = await world.until_bound()
    for first, expected in ((None, address), (B, B), (None, B)):
        async with World(tmp_path, first=first) as world:
            assert await world.until_bound() == expected


@played
async def test_damaged_memory_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / f"{mac_of(2).hex()}.json").write_text("no JSON")
    async with World(tmp_path) as world:
        await world.until_bound()
        assert world.logged("is damaged: not JSON")


@played
async def test_a_memory_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    async with World(tmp_path) as world:
        await world.until_bound()
        assert world.logged("cannot write")


@played
async def test_a_conflict_while_probing(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_state("probing")
        await world.until(lambda: world.claims(A))
        assert await world.until_bound() != A
        assert world.report()["conflicts"] == 1
        assert world.asked("add")[0][2] != A


@played
async def test_what_takes_long_is_done_before_the_claim(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_state("probing")
        assert world.network.prepared == []
        await world.until_state("announce-wait")
        await world.until(lambda: world.network.prepared)
        assert not world.asked("add")
        assert await world.until_bound() == A


@played
async def test_a_conflict_that_is_here_comes_before_what_time_brings_about(tmp_path: Path) -> None:
    """The timer wakes the loop first, the frame was there before."""
    async with World(tmp_path, first=A) as world:
        await world.until_state("announce-wait")
        assert world.kernel.listener.deliver(announcement(STRANGER, A), quietly=True) == 1
        await world.until_state("probing")
        assert await world.until_bound() != A
        assert not [asked for asked in world.asked("add") if asked[2] == A]


@played
async def test_a_conflict_that_waits_in_the_socket_comes_before_what_time_brings_about(
    tmp_path: Path,
) -> None:
    """The process was stopped: neither the helper nor the loop has read the frame."""
    async with World(tmp_path, first=A) as world:
        await world.until_state("announce-wait")
        assert world.kernel.listener.deliver(announcement(STRANGER, A), unread=True) == 1
        assert await world.until_bound() != A
        assert not [asked for asked in world.asked("add") if asked[2] == A]
        assert world.report()["conflicts"] == 1


@played
async def test_a_conflict_that_waits_in_the_socket_while_the_address_is_about_to_be_added(
    tmp_path: Path,
) -> None:
    async with World(tmp_path, first=A) as world:

        async def conflict() -> None:
            assert world.kernel.listener.deliver(announcement(STRANGER, A), unread=True) == 1

        await world.until_state("announce-wait")
        world.network.before("addresses", conflict)
        assert await world.until_bound() != A
        assert not [asked for asked in world.asked("add") if asked[2] == A]


@played
async def test_a_conflict_is_defended_and_the_next_one_lost(tmp_path: Path) -> None:
    """def-once, def-yield, def-reset: connections are reset when the address goes, not by a defence."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.kernel.connections.open.add(A)
        before = len(world.kernel.listener.of(mac_of(2)))
        assert world.claims(A) == 1
        await world.until(lambda: world.report()["defences"] == 1)
        assert world.kernel.listener.of(mac_of(2))[before:] == [announcement(mac_of(2), A)]
        (sock,) = world.kernel.listener.sockets
        assert not armed(sock)
        await asyncio.sleep(DEFEND_INTERVAL + 0.1)
        assert armed(sock)  # it would be defended again
        assert world.kernel.connections.destroyed == []
        world.claims(A)
        await asyncio.sleep(1)
        world.claims(A)
        await world.until(lambda: world.address() is None)
        address = await world.until_bound()
        assert address != A and world.network.owned(2) == [address]
        # The connections were reset before the address went.
        assert world.kernel.connections.destroyed == [A]
        assert world.logged(f"reset 1 connections from {A}")


@pytest.mark.parametrize(
    ("number", "hangs", "line"),
    [
        (errno.EOPNOTSUPP, False, "the kernel lacks CONFIG_INET_DIAG_DESTROY"),
        (errno.EPERM, False, "EPERM"),
        (None, True, "it would take too long"),
    ],
)
@played
async def test_connections_that_cannot_be_reset(
    tmp_path: Path, number: int | None, hangs: bool, line: str
) -> None:
    async with World(tmp_path, first=A, defence=Defence.ABANDON) as world:
        await world.until_bound()
        world.kernel.connections.refuse = number
        world.kernel.connections.hangs = hangs
        world.claims(A)
        await world.until(lambda: world.address() is None)
        assert await world.until_bound() != A
        (found,) = world.logged("are not reset")
        assert line in found
        assert any("are not reset" in limit for limit in world.report()["limits"]) is not hangs


@played
async def test_an_answer_to_who_asks_where_the_kernel_sends_by_unicast(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        world.network.unicast = "no program"
        await world.until_bound()
        (sock,) = world.kernel.listener.sockets
        assert sock.phase is Phase.ANSWER
        assert len(world.logged("by unicast")) == 1
        assert any("no program" in limit for limit in world.report()["limits"])


@played
async def test_strict_rp_filter_is_a_limit_where_two_links_have_an_address(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        world.network.strict = {"eth0"}
        for index, other in ((3, B), (4, B + 1)):  # before eth0 has an address
            world.network.plug(link_of(index, f"eth{index - 2}"))
            world.network.put(index, str(other), 16)
        await asyncio.sleep(0.1)
        assert world.address() is None and world.report()["limits"] == []
        for index, other in ((3, B), (4, B + 1)):
            world.network.take(index, other)
        await world.until_bound()
        assert world.report()["limits"] == []
        world.network.put(3, "192.0.2.7")
        await asyncio.sleep(0.1)
        assert world.report()["limits"] == []
        world.network.put(3, str(B), 16)  # whoever set it
        await asyncio.sleep(0.1)
        (limit,) = world.report()["limits"]
        assert limit.startswith("rp_filter = 1: of eth0, eth1, ")
        assert limit.endswith(": sysctl -w net/ipv4/conf/eth0/rp_filter=2")
        world.network.strict = {"eth1"}
        assert world.report()["limits"] == []


@played
async def test_the_cure_of_strict_rp_filter_is_safe_in_a_shell(tmp_path: Path) -> None:
    async with World(tmp_path, "$(halt)", first=A) as world:
        await world.until_bound("$(halt)")
        world.network.strict = {"$(halt)"}
        world.network.plug(link_of(3, "eth1"))
        world.network.put(3, str(B), 16)
        await asyncio.sleep(0.1)
        (limit,) = world.report("$(halt)")["limits"]
        assert limit.endswith(": sysctl -w net/ipv4/conf/'$(halt)'/rp_filter=2")


@played
async def test_frames_that_the_kernel_does_not_take_do_not_count(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        world.kernel.listener.refuse_send = 4
        await world.until_bound()
        assert len(world.kernel.listener.of(mac_of(2))) == 5
        assert len(world.logged("the kernel did not take a frame")) == 4
        assert world.report()["notes"] == [] and not world.logged("again")


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENETDOWN, errno.EPERM])
@played
async def test_a_kernel_that_takes_no_frame_is_noted_and_not_asked_all_the_time(
    tmp_path: Path, number: int
) -> None:
    """A filter at the egress drops them, for instance: one line, a note while it lasts, and few attempts."""
    async with World(tmp_path) as world:
        listener = world.kernel.listener
        listener.refusal, listener.refuse_send = number, 10**6
        await asyncio.sleep(3600)
        assert world.report()["state"] == "probing"
        attempts = 10**6 - listener.refuse_send
        assert 300 < attempts < 380  # ten a second would be 36000
        (note,) = world.report()["notes"]
        assert os.strerror(number) in note and f"({errno.errorcode[number]})" in note
        assert len(world.logged(note)) == 1
        listener.refuse_send = 0
        await world.until_bound()
        assert world.report()["notes"] == []
        assert len(world.logged("takes our frames again")) == 1


@played
async def test_a_late_frame_of_another_candidate_is_no_conflict(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        interface = world.interface()
        (sock,) = world.kernel.listener.sockets
        received = sock.catch(announcement(STRANGER, A))
        assert received is not None
        interface.received(received._replace(generation=received.generation - 1))
        assert world.report()["conflicts"] == 0
        interface.received(received)
        assert world.report()["conflicts"] == 1


# --- the address and the kernel ------------------------------------------------------------------


@played
async def test_a_conflict_between_configure_and_configured(tmp_path: Path) -> None:
    """The address is on the interface for a moment, and is never announced."""
    async with World(tmp_path, first=A) as world:

        async def conflict() -> None:
            assert world.report()["state"] == "configuring"
            assert world.claims(A) == 1
            await asyncio.sleep(1)

        world.network.after("add", conflict)
        address = await world.until_bound()
        assert address != A and world.network.owned(2) == [address]
        assert world.asked("add", "remove") == [
            ("add", 2, A),
            ("remove", 2, A),
            ("add", 2, address),
        ]
        assert not any(p.spa == A for p in world.kernel.listener.of(mac_of(2)))


@played
async def test_a_conflict_before_the_address_is_put_there(tmp_path: Path) -> None:
    """The kernel is not asked for an address that is lost already."""
    async with World(tmp_path, first=A) as world:
        await world.until_state("announce-wait")

        async def conflict() -> None:
            assert world.claims(A) == 1
            await asyncio.sleep(1)

        world.network.before("addresses", conflict)
        address = await world.until_bound()
        assert world.asked("add", "remove") == [("add", 2, address)]


@played
async def test_an_address_that_vanishes_while_it_is_being_configured(tmp_path: Path) -> None:
    """It is claimed all the same, missed after the grace, and put there again."""
    async with World(tmp_path, first=A) as world:

        async def vanishes() -> None:
            world.network.take(2, A)
            await asyncio.sleep(0.1)  # the daemon hears of it before the answer

        world.network.after("add", vanishes)
        await world.until(lambda: len(world.asked("add")) == 2)
        begin = world.now
        assert await world.until_bound() == A
        assert world.network.owned(2) == [A]
        assert world.now - begin < 5  # it was not probed again
        assert len([p for p in world.kernel.listener.of(mac_of(2)) if p.is_probe]) == 3


@played
async def test_a_link_that_vanishes_while_the_address_is_being_configured(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:

        async def vanishes() -> None:
            world.network.unplug(2)
            await asyncio.sleep(0.1)

        world.network.before("add", vanishes)
        await world.until_state("no-link")
        await asyncio.sleep(20)
        assert world.report()["why"] == "waits: there is no such interface yet"
        world.network.plug(link_of(7))
        assert await world.until_bound() == A
        assert world.network.owned(7) == [A]


@played
async def test_a_link_that_is_back_under_another_index_while_a_removal_is_under_way(
    tmp_path: Path,
) -> None:
    """if-gone: nothing is sent on the new link before the removal is done, and the address is tried first there."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        done = asyncio.Event()
        world.network.before("remove", done.wait)
        mac = world.network.links[2].mac
        world.network.unplug(2)
        world.network.plug(link_of(7, mac=mac))
        await world.until(lambda: world.interface().link == world.network.links[7])
        count = len(world.kernel.listener.sent)
        await asyncio.sleep(4)
        assert len(world.kernel.listener.sent) == count
        assert world.report()["state"] == "no-link"
        done.set()
        assert await world.until_bound() == A
        assert world.network.owned(7) == [A]
        assert world.asked("remove") == [("remove", 2, A)]
        # What stays on a link went off the old one only.
        assert world.asked("release") == [("release", 2)]


@played
async def test_no_probe_before_the_lost_address_is_off(tmp_path: Path) -> None:
    """Whatever else happens while the kernel takes its time."""
    async with World(tmp_path, first=A, defence=Defence.ABANDON) as world:
        await world.until_bound()
        done = asyncio.Event()
        world.network.before("remove", done.wait)
        count = len(world.kernel.listener.sent)
        world.claims(A)
        await world.until_state("probing")
        for number in range(1, 6):
            await asyncio.sleep(1)
            world.network.put(2, f"192.0.2.{number}")
        assert len(world.kernel.listener.sent) == count
        done.set()
        assert await world.until_bound() != A


@played
async def test_another_hardware_address(tmp_path: Path) -> None:
    """if-mac: probed again with the new one, which the filter and the listener know."""
    async with World(tmp_path) as world:
        first = await world.until_bound()
        world.network.plug(link_of(2, mac=mac_of(77)))
        await world.until_state("probing")
        assert world.logged("hardware address changed")
        assert await world.until_bound() == first  # what the interface had comes first
        assert world.asked("remove") == [("remove", 2, first)]
        assert world.kernel.listener.macs == {mac_of(77)}


@played
async def test_a_carrier_that_flaps_unseen(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.plug(link_of(2, carrier_changes=2))
        await world.until_state("probing")
        assert world.logged("carrier was lost for a moment")
        assert await world.until_bound() == A
        assert len(world.kernel.listener.opened) == 2  # that of the start, and one


@played
async def test_a_request_that_never_answers(tmp_path: Path) -> None:
    """It is given up after a time; the address may be there, so it is taken off."""
    async with World(tmp_path, first=A) as world:
        world.network.after("add", never)
        await world.until(lambda: world.asked("add"))
        begin = world.now
        await world.until_state("paused")
        assert world.now - begin == pytest.approx(REQUEST_TIMEOUT, abs=0.1)
        assert world.report()["why"] == "the kernel did not answer"
        await world.until(lambda: not world.network.owned(2))
        assert await world.until_bound() == A
        assert world.asked("add", "remove") == [
            ("add", 2, A),
            ("remove", 2, A),
            ("add", 2, A),
        ]


@played
async def test_a_removal_that_never_answers_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.before("remove", never)
        world.interface().restart("test")
        begin = world.now
        await world.until(lambda: world.logged("the kernel did not answer a request"))
        assert world.now - begin == pytest.approx(WORK_TIMEOUT, abs=0.1)
        await world.until_state("probing")


@played
async def test_an_address_that_the_kernel_refuses(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        world.network.before("add", refused(errno.ENOBUFS))
        await world.until_state("paused")
        begin = world.now
        assert world.report()["step"] == "next candidate"
        assert 9 < world.report()["step_in"] <= CONFIGURE_RETRY
        await world.until_state("probing")
        assert world.now - begin == pytest.approx(CONFIGURE_RETRY, abs=0.1)
        assert await world.until_bound() == A


@played
async def test_a_removal_that_the_kernel_refuses_is_logged(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.before("remove", refused(errno.EPERM))
        world.interface().restart("test")
        await world.until(lambda: world.logged("test: EPERM"))


@played
async def test_an_address_that_somebody_removes(tmp_path: Path) -> None:
    """It is given a moment, put back once, and probed first if that happens again soon."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        begin = world.now
        world.network.take(2, A)
        await world.until(lambda: world.network.owned(2))
        assert world.now - begin == pytest.approx(GRACE, abs=0.1)
        # What belongs to the address was still there, and went first.
        assert world.asked("add", "remove") == [("add", 2, A), ("remove", 2, A), ("add", 2, A)]
        await world.until_bound()
        world.network.take(2, A)
        await world.until_state("probing")
        assert await world.until_bound() == A


@played
async def test_an_address_that_is_back_within_the_grace(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.take(2, A)
        await asyncio.sleep(GRACE / 2)
        world.network.put(2, str(A), 16)
        await asyncio.sleep(3 * GRACE)
        assert world.asked("add", "remove") == [("add", 2, A)]
        assert world.report()["state"] == "bound"


@played
async def test_what_belongs_to_the_address_is_put_back(tmp_path: Path) -> None:
    """One attempt for a burst of removals, within a second; a note for each thing, once."""
    async with World(tmp_path, "eth0", "eth1") as world:
        await world.until_bound("eth0")
        await world.until_bound("eth1")
        assert not world.asked("restore")
        began = world.now
        for name in ("rule", "filter", "rule"):
            world.network.lose(2, name)
        await world.until(lambda: world.asked("restore"))
        assert world.now - began < 1
        await asyncio.sleep(10)
        assert [asked[1] for asked in world.asked("restore")] == [2]
        notes = [f"somebody removed our {name}; it was put back" for name in ("rule", "filter")]
        assert world.report()["notes"] == notes
        assert world.report("eth1")["notes"] == []
        world.network.lose(None)  # messages were lost: whose, nobody knows
        await asyncio.sleep(10)
        assert [asked[1] for asked in world.asked("restore")] == [2, 2, 3]


@played
async def test_a_filter_that_somebody_detached(tmp_path: Path) -> None:
    """The kernel does not report it, and nothing wakes the process to look: the next status finds it."""
    async with World(tmp_path) as world:
        await world.until_bound()
        world.report()
        world.network.without_filter = {2}
        await asyncio.sleep(3600)
        assert not world.asked("restore")
        assert world.report()["notes"] == []
        await asyncio.sleep(10)
        assert world.report()["notes"] == ["somebody removed our filter; it was put back"]
        await asyncio.sleep(10)
        assert len(world.asked("restore")) == 1


@played
async def test_a_defence_that_somebody_detached(tmp_path: Path) -> None:
    """The next status has it put back, with one note; a claim does so at once."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        (sock,) = world.kernel.listener.sockets
        sock.detached = True
        await asyncio.sleep(3600)
        assert [one.detached for one in world.kernel.listener.sockets] == [True]
        assert world.report()["notes"] == []
        await world.until(lambda: not sock.detached)
        note = "somebody removed our defence; it was put back"
        assert world.report()["notes"] == [note]
        sock.detached = True
        world.network.take(2, A)
        await world.until(lambda: not sock.detached)
        await world.until_bound()
        assert len(world.logged(note)) == 1


@played
async def test_what_the_kernel_refused_is_in_the_status_of_that_interface(tmp_path: Path) -> None:
    """Logged once; the other interface has none of it."""
    async with World(tmp_path, "eth0", "eth1") as world:
        world.network.filters[3] = "by a filter"
        await world.until_bound("eth0")
        await world.until_bound("eth1")
        for sock in world.kernel.listener.sockets:
            sock.undefended = "not here" if sock.mac == mac_of(3) else None
        for _ in range(2):
            world.interface("eth1").restart("asked")
            await world.until_bound("eth1")
        assert world.report("eth1")["limits"] == ["by a filter", "not here"]
        assert world.report("eth0")["limits"] == []
        assert world.logged("by a filter") == ["eth1: by a filter"]
        assert world.logged("not here") == ["eth1: not here"]


@played
async def test_what_belongs_to_an_address_that_is_not_held_is_not_put_back(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_state("announce-wait")
        world.network.lose(2, "rule")
        await world.until_bound()
        assert not world.asked("restore")
        world.network.lose(2, "connected route")
        world.network.take(2, A)  # with its route; the address itself is put back, as ever
        await world.until(lambda: len(world.asked("add")) == 2)
        assert not world.asked("restore")


@played
async def test_what_cannot_be_put_back_is_noted(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        await world.until_bound()
        world.network.before("restore", refused(errno.EPERM))
        world.network.lose(2, "rule")
        await world.until(lambda: world.report()["notes"])
        assert "EPERM" in world.report()["notes"][0]


@played
async def test_lost_messages(tmp_path: Path) -> None:
    """What went unseen is found at once in the whole truth: no grace."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.take(2, A)
        world.network.put(2, "192.0.2.7")
        begin = world.now
        world.network.lose_messages()
        await world.until(lambda: len(world.asked("add")) == 2)
        assert world.now - begin < GRACE / 2
        assert world.report()["others"] == ["192.0.2.7/24"]
        assert await world.until_bound() == A


@played
async def test_lost_messages_of_a_link_that_went(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.unplug(2)
        world.network.plug(link_of(7))
        world.network.lose_messages()
        await world.until(lambda: world.report()["index"] == 7)
        assert await world.until_bound() == A
        assert world.asked("release") == [("release", 2)]


@played
async def test_lost_messages_end_the_wait_for_the_echo_of_a_removal(tmp_path: Path) -> None:
    """Afterwards the address on the interface is somebody else's, not the echo of ours."""
    async with World(tmp_path, first=A, defence=Defence.ABANDON) as world:
        await world.until_bound()
        world.claims(A)
        await world.until(lambda: world.address() not in (None, A))
        world.network.put(2, str(A), 16)
        world.network.lose_messages()
        await world.until(lambda: world.report()["others"] == [f"{A}/16"])


@played
async def test_the_echo_of_a_removal_comes_late(tmp_path: Path) -> None:
    """It is not taken for somebody else's address, nor for the end of the one that is held now."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        published: list[dict[str, Any]] = []
        world.interface().reporter._publish = published.append
        world.network.mute = True
        world.interface().restart("test")
        await world.until(lambda: world.asked("remove"))
        await asyncio.sleep(1)
        assert world.report()["others"] == []
        assert await world.until_bound() == A  # on again, before the echo of its removal
        world.network.speak()
        await asyncio.sleep(3 * GRACE)
        assert world.report()["state"] == "bound"
        assert world.asked("add", "remove") == [("add", 2, A), ("remove", 2, A), ("add", 2, A)]
        assert not [e for e in published if e["event"].startswith("address-")]


@played
async def test_the_echo_of_a_removal_comes_late_and_another_address_is_held(tmp_path: Path) -> None:
    async with World(tmp_path, first=A, defence=Defence.ABANDON) as world:
        await world.until_bound()
        published: list[dict[str, Any]] = []
        world.interface().reporter._publish = published.append
        world.network.mute = True
        world.claims(A)
        await world.until(lambda: world.address() not in (None, A))
        world.network.speak()
        await asyncio.sleep(1)
        assert not [e for e in published if e["event"].startswith("address-")]
        # From now on the address is somebody else's.
        world.network.put(2, str(A), 16)
        await world.until(lambda: world.report()["others"] == [f"{A}/16"])
        assert [e["event"] for e in published if "address-" in e["event"]] == ["address-added"]


# --- several interfaces --------------------------------------------------------------------------


@played
async def test_siblings_do_not_take_one_address(tmp_path: Path) -> None:
    """if-many, claim-echo: two on one link, told the same candidate."""
    async with World(tmp_path, "eth0", "eth1", first=A) as world:
        one, other = await world.until_bound("eth0"), await world.until_bound("eth1")
        assert one != other and A in (one, other)
        # Section 2.2.1: what a sibling sends is no conflict.
        holder = mac_of(3) if one == A else mac_of(2)
        world.claims(A, holder)
        await asyncio.sleep(1)
        reports = [world.report(name) for name in ("eth0", "eth1")]
        assert [report["conflicts"] for report in reports] == [0, 0]


@played
async def test_an_address_that_another_interface_has_already(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_state("announce-wait")
        world.network.plug(link_of(9, "dummy0"))
        world.network.put(9, str(A), 16)
        assert await world.until_bound() != A
        assert world.logged("address is on another interface of this host")
        assert ("add", 2, A) not in world.network.asked


@played
async def test_an_address_that_an_interface_before_gets_as_well(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.plug(link_of(9, "dummy0"))
        world.network.put(9, str(A), 16)  # a later one: ours has the better right
        await asyncio.sleep(2)
        assert world.address() == A
        world.network.plug(link_of(1, "dummy1"))
        world.network.put(1, str(A), 16)
        await world.until(lambda: world.address() is None)
        assert await world.until_bound() != A


@played
async def test_a_bug_in_one_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others live on; this one gives up what it has, and starts over."""
    async with World(tmp_path, "eth0", "eth1") as world:
        address, other = await world.until_bound("eth0"), await world.until_bound("eth1")

        def bug(*_: Any) -> None:
            raise ZeroDivisionError("bug")

        core = world.interface("eth0")._negotiator.core
        monkeypatch.setattr(core, "receive", bug)
        begin = world.now
        world.claims(address)
        await world.until_state("no-link")
        assert world.logged("eth0: internal error (frame): ZeroDivisionError('bug')")
        await world.until(lambda: not world.network.owned(2))
        assert world.address("eth1") == other
        await world.until_state("probing")
        assert world.now - begin == pytest.approx(CONFIGURE_RETRY, abs=0.1)
        assert await world.until_bound() == address
        assert world.claims(other) == 1
        await world.until(lambda: world.report("eth1")["defences"] == 1)
        assert not world.logged("eth1: internal error")


@played
async def test_a_bug_between_configure_and_configured(tmp_path: Path) -> None:
    """No address stays behind that nobody defends."""
    async with World(tmp_path, first=A) as world:
        await world.until_state("announce-wait")

        async def bug() -> None:
            raise ZeroDivisionError("bug")

        world.network.after("add", bug)
        await world.until(lambda: world.logged("internal error (request)"))
        await world.until(lambda: world.asked("remove"))
        assert world.network.owned(2) == []
        assert await world.until_bound() == A


@played
async def test_a_bug_while_a_configure_waits(tmp_path: Path) -> None:
    """A request of a negotiation that was given up puts nothing on the interface."""
    async with World(tmp_path, first=A) as world:
        await world.until_state("announce-wait")

        async def bug() -> None:
            with world.interface()._recovery.guarded("test"):
                raise ZeroDivisionError("bug")

        world.network.before("addresses", bug)
        await world.until(lambda: world.logged("internal error (test)"))
        await asyncio.sleep(CONFIGURE_RETRY / 2)
        assert world.asked("add") == []
        assert await world.until_bound() == A


@played
async def test_a_bug_in_the_handling_of_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(tmp_path) as world:
        await world.until_bound()

        def bug(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(world.interface(), "address_added", bug)
            world.network.put(2, "192.0.2.7")
            await world.until(lambda: world.logged("internal error in AddressAdded"))
        world.network.unplug(2)
        await world.until_state("no-link")


@played
async def test_no_socket_can_be_opened(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        await world.until(lambda: world.daemon._interfaces)
        world.network.unplug(2)
        await world.until(lambda: world.interface().link is None)
        world.kernel.listener.refuse_open = errno.ENETDOWN  # gone again: netlink will report
        world.network.plug(link_of(7))
        await asyncio.sleep(1)
        assert world.report()["state"] == "no-link" and not world.logged("internal error")
        world.kernel.listener.refuse_open = errno.EMFILE
        world.network.plug(link_of(7, carrier_changes=1))
        await world.until(lambda: world.logged("Too many open files"))
        await world.until_bound()


# --- the link ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"flags": IFF_UP}, "waits: no carrier"),
        ({"flags": 0}, "waits: it is down; 'ip link set eth0 up' brings it up"),
        ({"hardware_type": 512}, "waits: it is not an Ethernet-like interface that speaks ARP"),
    ],
)
@played
async def test_what_is_in_the_way(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    """if-wait, if-carrier: the reason is in the status, and once in the log; the former address comes first."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.plug(link_of(2, **changes))
        await world.until_state("no-link")
        await world.until(lambda: world.report()["why"] == why)
        await world.until(lambda: not world.network.owned(2))
        world.network.plug(link_of(2, **changes, altnames=("other",)))
        await asyncio.sleep(1)
        assert len(world.logged(why)) == 1  # in the transition
        world.network.plug(link_of(2))
        assert await world.until_bound() == A
        assert world.logged("link is ready")


@played
async def test_up(tmp_path: Path) -> None:
    world = World(tmp_path, bring_up=True)
    world.network.links[2] = link_of(2, flags=0)
    async with world:
        await world.until_bound()
        assert world.asked("set_up") == [("set_up", 2)]
        # Whoever sets it down again is not fought.
        world.network.plug(link_of(2, flags=0))
        await world.until_state("no-link")
        await asyncio.sleep(10)
        assert world.asked("set_up") == [("set_up", 2)]


PORT: dict[str, Any] = {"master": 5, "port_kind": "bridge"}


@played
async def test_a_port_has_no_address_as_long_as_it_is_one(tmp_path: Path) -> None:
    """if-master: from the start, when the interface gets a master, and until the master goes."""
    world = World(tmp_path, first=A)
    world.network.links[2] = link_of(2, **PORT)
    world.network.links[5] = link_of(5, "br0", kind="bridge")
    async with world:
        await world.until_state("standby")
        assert world.report()["why"] == "belongs to br0"
        assert world.interface().summary == "eth0: standby (belongs to br0)"
        await asyncio.sleep(100)
        assert world.asked("add") == [] and world.kernel.listener.sent == []
        for _ in range(2):
            world.network.plug(link_of(2))
            assert await world.until_bound() == A
            world.network.asked.clear()
            world.network.plug(link_of(2, **PORT))
            await world.until(lambda: not world.network.owned(2), 1)
            # At once, and with it the filter; no request of ours comes after these.
            assert world.asked("add", "remove", "release") == [("remove", 2, A), ("release", 2)]
            assert world.report()["state"] == "standby"
            assert world.report()["why"] == "belongs to br0"
        assert len(world.logged("-> standby: belongs to br0")) == 3
        assert len(world.logged("belongs to br0")) == 3
        world.network.plug(link_of(5, "lan", kind="bridge"))
        await world.until(lambda: world.report()["why"] == "belongs to lan")
        assert len(world.logged("belongs to lan")) == 1


@played
async def test_a_port_that_stands_by_already(tmp_path: Path) -> None:
    """One line, although there is no transition; a network manager's word changes nothing."""
    async with World(tmp_path, first=A, policy=Kind.FALLBACK) as world:
        world.network.put(2, "192.0.2.5")
        await world.until_state("standby")
        world.network.plug(link_of(2, **PORT))
        await world.until(lambda: world.report()["why"] == "belongs to interface 5")
        world.network.take(2, IPv4Address("192.0.2.5"))
        world.daemon._permit("eth0", False, "not now")
        world.daemon._permit("eth0", True, "")
        await asyncio.sleep(100)
        assert world.report()["why"] == "belongs to interface 5"
        assert len(world.logged("belongs to")) == 1
        assert world.asked("add") == []
        world.network.plug(link_of(2))
        assert await world.until_bound() == A


@played
async def test_a_bond_takes_its_port(tmp_path: Path) -> None:
    """It demands that the port is down, and gives it another hardware address while it is its own."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        port: dict[str, Any] = {"master": 5, "port_kind": "bond"}
        world.network.plug(link_of(5, "bond0", kind="bond"))
        world.network.plug(link_of(2, flags=0))
        world.network.plug(link_of(2, flags=0, **port))
        world.network.plug(link_of(2, mac=mac_of(77), **port))
        await world.until_state("standby")
        assert world.report()["why"] == "belongs to bond0"
        assert world.network.owned(2) == []
        await asyncio.sleep(100)
        assert world.kernel.listener.of(mac_of(77)) == []
        world.network.plug(link_of(2))
        assert await world.until_bound() == A


@played
async def test_an_interface_of_a_vrf_has_an_address(tmp_path: Path) -> None:
    """A VRF is a routing table: its interfaces keep their addresses."""
    world = World(tmp_path)
    world.network.links[2] = link_of(2, master=5, port_kind="vrf")
    async with world:
        await world.until_bound()
        assert world.logged("belongs to") == []


@played
async def test_sleep_and_end(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.kernel.clock_watch.sleep()
        await world.until_state("probing")
        assert world.logged("the machine slept")
        assert await world.until_bound() == A
        signal.raise_signal(signal.SIGTERM)
        assert world._task is not None
        await world._task
        assert world.network.owned(2) == []


# --- what a crash left ---------------------------------------------------------------------------


@played
async def test_a_recorded_leftover_is_taken_over(tmp_path: Path) -> None:
    world = World(tmp_path)
    (tmp_path / "run").mkdir(mode=0o755)
    crashed = LockFile.acquire(tmp_path / "run", "eth0")
    crashed.hold(2, B)
    assert crashed._file is not None
    os.close(crashed._file)  # as if the process had died
    world.network.put(2, str(B), 16)
    async with world:
        assert await world.until_bound() == B
        assert world.logged(f"takes over {B} from an instance that died")
        # Off before the first probe, and on again after the last one.
        assert world.asked("add", "remove") == [("remove", 2, B), ("add", 2, B)]
        assert world.asked("remove_onlink", "remove_default")[:2] == [
            ("remove_onlink", 2),
            ("remove_default", 2),
        ]


@played
async def test_a_marked_leftover_is_taken_over_if_it_is_the_saved_address(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
    world = World(tmp_path)
    world.network.put(2, str(A), 16, proto=PROTOCOL)
    world.network.put(2, str(B), 16, proto=PROTOCOL)  # not the saved one: somebody else's
    async with world:
        assert await world.until_bound() == A
        assert world.asked("remove") == [("remove", 2, A)]
        assert world.report()["others"] == [f"{B}/16"]


@played
async def test_what_has_no_mark_is_not_taken_over(tmp_path: Path) -> None:
    """Somebody else put the saved address there."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
    world = World(tmp_path)
    world.network.put(2, str(A), 16)
    async with world:
        assert await world.until_bound() != A
        assert world.asked("remove") == []
        assert world.report()["others"] == [f"{A}/16"]


@played
async def test_an_address_that_cannot_be_removed_is_left_to_the_next_instance(
    tmp_path: Path,
) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.before("remove", refused(errno.EPERM))
    assert world.network.owned(2) == [A]
    (lock,) = (tmp_path / "run").glob("*.lock")
    assert f"index=2 address={A}" in lock.read_text()


@played
async def test_leftovers_that_cannot_be_swept(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.network.before("sweep", refused(errno.EPERM))
    async with world:
        await world.until_bound()
        assert world.logged("leftovers of a crash stay: test: EPERM")


# --- the last other address goes -----------------------------------------------------------------


@played
async def test_routes_that_the_kernel_would_have_removed(tmp_path: Path) -> None:
    """co-route: they are asked for once, when the last address that is not ours goes, and at no other time."""
    async with World(tmp_path, first=A) as world:
        lease, other = IPv4Address("192.0.2.7"), IPv4Address("198.51.100.7")
        # The kernel does it, as long as there is no address of ours.
        world.network.put(2, str(lease))
        await world.until_state("probing")
        world.network.take(2, lease)
        await world.until_bound()
        assert world.asked("remove_stranded") == []
        for address in (lease, other):
            world.network.put(2, str(address))
        world.network.take(2, lease)
        await asyncio.sleep(1)
        assert world.asked("remove_stranded") == []
        world.network.stranded = ["default via 192.0.2.1", "10.0.0.0/8 via 192.0.2.2"]
        world.network.take(2, other)
        await world.until(lambda: world.asked("remove_stranded"), 1)
        (line,) = world.logged("removed with the last other address")
        assert line.endswith(": default via 192.0.2.1, 10.0.0.0/8 via 192.0.2.2")
        # An address of another interface, and ours when it is taken off and comes back, are none.
        world.network.put(9, "192.0.2.9")
        world.network.take(9, IPv4Address("192.0.2.9"))
        world.network.take(2, A)
        await asyncio.sleep(10)
        assert await world.until_bound() == A
        assert world.asked("remove_stranded") == [("remove_stranded", 2, A)]


@played
async def test_the_last_other_address_goes_in_a_message_that_is_lost(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.put(2, "192.0.2.7")
        await world.until(lambda: world.report()["others"])
        world.network.take(2, IPv4Address("192.0.2.7"))
        world.network.lose_messages()
        await world.until(lambda: world.asked("remove_stranded"), 2)


@played
async def test_the_interface_goes_with_all_its_addresses(tmp_path: Path) -> None:
    """The kernel removes everything; its successor of the same name has nothing to lose."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.put(2, "192.0.2.7")
        await world.until(lambda: world.report()["others"])
        world.network.mute = True
        world.network.take(2, A)
        world.network.unplug(2)
        world.network.plug(link_of(7))
        world.network.speak()
        await world.until(lambda: world.report()["index"] == 7)
        assert await world.until_bound() == A
        # At most for the old one, where nothing is left.
        assert ("remove_stranded", 7, A) not in world.network.asked


# --- the policy ----------------------------------------------------------------------------------


@played
async def test_fallback(tmp_path: Path) -> None:
    """co-lease, co-lost, co-session, fwd-source, fwd-several: a life beside a routable address."""
    options: dict[str, Any] = {"policy": Kind.FALLBACK, "after": 10.0, "linger": 100.0}
    async with World(tmp_path, first=A, **options) as world:
        begin = world.now
        await world.until_state("probing")
        assert world.now - begin >= 10
        await world.until_bound()
        world.kernel.connections.open.add(A)
        world.network.put(2, "192.0.2.7")
        await world.until(lambda: world.network.routes)
        assert world.network.routes == {("onlink", 2): IPv4Address("192.0.2.7")}
        # The route of the address comes last as long as another one replaces it.
        await world.until(lambda: world.network.demoted == {2: A}, 1)
        assert world.report()["step"] == "release"
        # A connection keeps the address beyond the linger...
        await asyncio.sleep(100 + 3 * CONNECTIONS_INTERVAL)
        assert world.address() == A
        # ...and the address goes when the connection has ended.
        world.kernel.connections.open.clear()
        await world.until_state("standby")
        await world.until(lambda: not world.network.routes)
        assert world.network.owned(2) == []
        # At the start, when no address was wanted yet, and now.
        assert world.asked("release") == [("release", 2)] * 2
        assert world.report()["why"] == "the interface has 192.0.2.7"
        world.network.take(2, IPv4Address("192.0.2.7"))
        assert await world.until_bound() == A
        assert world.network.demoted == {}
        asked = ("set_onlink", "demote", "promote", "remove_onlink")
        world.network.asked.clear()
        world.network.put(2, "192.0.2.8")
        await world.until(lambda: world.network.demoted)
        world.network.take(2, IPv4Address("192.0.2.8"))
        await world.until(lambda: not world.network.routes)
        assert world.network.demoted == {}
        assert sorted(request for request, *_ in world.asked(*asked)) == sorted(asked)
        assert world.network.owned(2) == [A]


@pytest.mark.parametrize("what", ["sleep", "refresh", "link", "removed"])
@played
async def test_a_session_beside_the_lease_outlives_a_probe(tmp_path: Path, what: str) -> None:
    """co-session: during the linger and after it, while a connection uses the address."""
    options: dict[str, Any] = {"policy": Kind.FALLBACK, "after": 0.0, "linger": 50.0}
    async with World(tmp_path, first=A, **options) as world:
        await world.until_bound()
        world.kernel.connections.open.add(A)
        world.network.put(2, "192.0.2.7")
        await world.until(lambda: world.network.demoted == {2: A})
        for pause in (0, 100):
            await asyncio.sleep(pause)
            if what == "sleep":
                world.kernel.clock_watch.sleep()
            elif what == "refresh":
                world.interface().restart("refreshed")
            elif what == "link":
                world.network.plug(link_of(2, flags=IFF_UP))
                await world.until_state("no-link")
                world.network.plug(link_of(2))
            else:
                for _ in range(2):  # the second time soon after the first: it is probed
                    world.network.take(2, A)
                    await world.until(lambda: world.network.owned(2) == [])
                    await world.until(lambda: world.network.owned(2) == [A])
            if what != "removed":
                await world.until_state("probing")
            assert await world.until_bound() == A
            assert "192.0.2.7" in world.report()["why"]
        await asyncio.sleep(3 * CONNECTIONS_INTERVAL)
        assert world.address() == A
        world.kernel.connections.open.clear()
        await world.until_state("standby")


@played
async def test_fallback_where_connections_cannot_be_asked_for(tmp_path: Path) -> None:
    options: dict[str, Any] = {"policy": Kind.FALLBACK, "after": 0.0, "linger": 1.0}
    async with World(tmp_path, first=A, **options) as world:
        await world.until_bound()
        world.kernel.connections.refuse = errno.ENOENT
        world.network.put(2, "192.0.2.7")
        await world.until_state("standby")
        assert any("no connections can be waited for" in x for x in world.network.limits)
        await world.until(lambda: world.logged("no connections can be waited for"))


@played
async def test_route_only(tmp_path: Path) -> None:
    async with World(tmp_path, policy=Kind.ROUTE_ONLY) as world:
        await world.until_state("standby")
        assert world.network.follows_routes
        world.network.put(2, "192.0.2.7")
        await world.until(lambda: world.network.routes)
        # Somebody removes the route: it is put back, after a pause.
        world.network.routes.clear()
        begin = world.now
        world.network.happens(RouteRemoved(Route(2, 16, 254, PROTOCOL)))
        world.network.happens(RouteRemoved(Route(2, 16, 254, PROTOCOL)))
        await world.until(lambda: world.network.routes)
        assert world.now - begin == pytest.approx(REPAIR_PAUSE, abs=0.1)
        assert len(world.asked("set_onlink")) == 2
        world.network.plug(link_of(2, flags=IFF_UP))
        await world.until(lambda: not world.network.routes)
        assert world.asked("add") == []


@played
async def test_no_default_route_from_an_address_that_only_lingers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"policy": Kind.FALLBACK, "after": 0.0, "linger": 100.0}
    async with World(tmp_path, first=A, default_route=True, **options) as world:
        await world.until_bound()
        await world.until(lambda: world.network.routes)
        world.network.put(2, "192.0.2.7")
        await world.until(lambda: ("default", 2) not in world.network.routes)
        assert world.address() == A
        assert world.network.routes == {("onlink", 2): IPv4Address("192.0.2.7")}


@played
async def test_default_route(tmp_path: Path) -> None:
    """fwd-any: it is there while no other one is."""
    async with World(tmp_path, first=A, default_route=True) as world:
        await world.until_bound()
        await world.until(lambda: world.network.routes)
        assert world.network.routes == {("default", 2): A}
        world.network.foreign_default = True
        world.network.happens(RouteAdded())
        await world.until(lambda: not world.network.routes)
        # While another one is there, the loss of a route changes nothing.
        world.network.happens(RouteRemoved(Route(5, 0, 254, 4)))
        await asyncio.sleep(2)
        assert not world.network.routes
        world.network.foreign_default = False
        world.network.before("other_default", refused(errno.EINTR))  # and is asked again
        world.network.happens(RouteRemoved(Route(5, 0, 254, 4)))
        await world.until(lambda: world.network.routes)
    assert world.network.routes == {}


# --- others --------------------------------------------------------------------------------------


@played
async def test_addresses_of_others_are_published_once(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        published: list[dict[str, Any]] = []
        world.interface().reporter._publish = published.append
        world.network.put(2, "192.0.2.7")
        world.network.put(2, "192.0.2.7", label="eth0:x")
        world.network.take(2, IPv4Address("192.0.2.7"))
        world.network.put(5, "192.0.2.8")
        await asyncio.sleep(1)
        found = [(e["event"], e["address"], e["prefixlen"]) for e in published]
        assert found == [
            ("address-added", "192.0.2.7", 24),
            ("address-removed", "192.0.2.7", 24),
        ]


@played
async def test_a_rival_is_noted(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.put(2, str(B), 16, label="eth0:avahi")
        await world.until(lambda: world.report()["notes"])
        (note,) = world.report()["notes"]
        assert "avahi-autoipd" in note and str(B) in note


@played
async def test_a_host_that_takes_every_candidate_is_noted(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        for count in range(1, 4):
            await world.until_state("probing")
            candidate = IPv4Address(world.report()["candidate"])
            await world.until(lambda c=candidate: world.claims(c))  # type: ignore[misc]
            await world.until(lambda n=count: world.report()["conflicts"] == n)  # type: ignore[misc]
        (note,) = world.report()["notes"]
        assert "claims every address that is probed for" in note


@played
async def test_network_manager_closes_the_gate(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.daemon._permit("eth0", False, "not now")
        await world.until_state("standby")
        assert world.report()["why"] == "not now"
        await world.until(lambda: not world.network.owned(2))
        world.interface().restart("asked to")  # changes nothing while none is wanted
        await asyncio.sleep(1)
        assert world.report()["state"] == "standby"
        world.daemon._permit("eth0", True, "")
        assert await world.until_bound() == A


# --- the control socket, the service manager, the script -----------------------------------------


@played
async def test_control(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1", first=A) as world:
        await world.until_bound()
        answer = (await world.asks("status"))["status"]
        assert answer["interface"] == "eth0" and answer["address"] == str(A)
        assert answer == {**world.report(), "step_in": answer["step_in"]}
        await world.asks("refresh")
        await world.until_state("probing")
        assert world.logged("asked to")
        await world.asks("stop")
        assert [i.name for i in world.daemon._interfaces] == ["eth1"]
        await world.asks("stop", "eth1")
        assert world._task is not None
        await world._task  # nothing is left to serve


@played
async def test_dhcp_has_failed_meanwhile(tmp_path: Path) -> None:
    """A claim that waits for DHCP begins at once; an address that is held is not probed again."""
    waits: dict[str, Any] = {"policy": Kind.FALLBACK, "after": 600.0}
    async with World(tmp_path, first=A, **waits) as world:
        await world.until_state("standby")
        await asyncio.sleep(5)
        assert world.report()["step"] == "claim"
        before = world.kernel.clock()
        await world.asks("dhcp-failed")
        assert await world.until_bound() == A
        assert world.kernel.clock() - before < 60
        probes = len([line for line in world.lines if "probing" in line])
        await world.asks("dhcp-failed")
        await asyncio.sleep(5)
        assert world.report()["state"] == "bound"
        assert len([line for line in world.lines if "probing" in line]) == probes


@played
async def test_a_control_socket_that_cannot_be_had(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    async with World(deep) as world:
        await world.until_bound()
        assert world.logged("no control socket")


class Notified:
    """What the service manager hears."""

    watchdog_interval = 7.0

    def __init__(self) -> None:
        self.heard: list[str] = []

    def ready(self) -> None:
        """Only the first time, as the real one."""
        if "ready" not in self.heard:
            self.heard.append("ready")

    def status(self, text: str) -> None:
        self.heard.append(text)

    def stopping(self) -> None:
        self.heard.append("stopping")

    def watchdog(self) -> None:
        self.heard.append("watchdog")


@played
async def test_what_the_service_manager_hears(tmp_path: Path) -> None:
    world = World(tmp_path, first=A)
    notified = Notified()
    world.daemon._notifier = notified  # type: ignore[assignment]
    async with world:
        await world.until_bound()
        await asyncio.sleep(20)
    assert 3 <= notified.heard.count("watchdog") <= 5
    heard = [text for text in notified.heard if text != "watchdog"]
    assert heard[0].startswith("eth0: no-link") and f"eth0: probing {A} (link is ready)" in heard
    assert (
        heard.index("ready")
        < heard.index(f"eth0: bound {A} (2 announcements sent)")
        < heard.index("stopping")
    )


def script(directory: Path, text: str) -> str:
    path = directory / "script"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_script_whose_first_call_fails_costs_its_interface(tmp_path: Path) -> None:
    """In real time: the script is a process."""

    async def scenario() -> None:
        text = 'case $1 in init) [ "$interface" = eth1 ];; esac'
        async with World(tmp_path, "eth0", "eth1", script=script(tmp_path, text)) as world:
            await world.until(lambda: world.logged("script init: exit"), seconds=60)
            await world.until(lambda: len(world.daemon._interfaces) == 1, seconds=60)
            world.interface("eth1")
            assert world.logged("eth0: script init: exit status 1")
            assert not [*(tmp_path / "run").glob("*-eth0.*")]

    asyncio.run(scenario())


class Script:
    """Instead of a ScriptRunner: notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def bound(self, address: IPv4Address) -> None:
        self.told.append(address)

    def lost(self, *, conflict: bool = False) -> None:
        if self.told and self.told[-1] not in ("lost", "conflict", "stop"):
            self.told.append("conflict" if conflict else "lost")

    async def stop(self) -> None:
        self.told.append("stop")


@played
async def test_what_a_script_hears(tmp_path: Path) -> None:
    async with World(tmp_path, first=A, defence=Defence.ABANDON) as world:
        await world.until(lambda: world.daemon._interfaces)
        interface = world.interface()
        interface._script = heard = Script()  # type: ignore[assignment]
        await world.until_bound()
        # The script has put the address there anew: it gets what ours have.
        interface._owned.repair()
        await world.until(lambda: world.asked("replace"))
        world.claims(A)
        await world.until(lambda: world.address() is None)
        address = await world.until_bound()
        world.network.take(2, address)
        await world.until(lambda: len(heard.told) == 5)
        world.network.unplug(2)
        await world.until_state("no-link")
    assert heard.told == [A, "conflict", address, "lost", address, "lost", "stop"]


# --- what cannot be served -----------------------------------------------------------------------


@played
async def test_an_interface_that_is_served_already(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        other = World(tmp_path)
        with pytest.raises(AlreadyRunning):
            await other.daemon.run()
        other = World(tmp_path, "eth0", "eth1")
        task = asyncio.get_running_loop().create_task(other.daemon.run())
        await world.until(lambda: other.logged("eth0: already running (pid "))
        await world.until(lambda: other.daemon._interfaces)
        other.daemon._stop.set()
        await task


@pytest.mark.parametrize(
    ("links", "names", "error"),
    [
        ([], [], "no Ethernet-like interface to choose; name one (there are: none)"),
        (["eth0", "eth1"], [], "several interfaces: name one or more of eth0, eth1"),
        (["eth0"], [], None),
        (["eth0", "eth1"], ["alias1"], None),
    ],
)
@played
async def test_which_interface(
    tmp_path: Path, links: list[str], names: list[str], error: str | None
) -> None:
    world = World(tmp_path)
    world.network.links = {
        index: link_of(index, name, altnames=(f"alias{index - 2}",))
        for index, name in enumerate(links, 2)
    }
    world.daemon._settings = replace(world.daemon._settings, interfaces=names)
    if error is not None:
        with pytest.raises(UsageError) as found:
            await world.daemon.run()
        assert str(found.value) == error
        return
    async with world:
        await world.until_bound(links[-1])


@played
async def test_not_arp(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.network.links[2] = link_of(2, hardware_type=512)
    with pytest.raises(NotArp, match="hardware type 512"):
        await world.daemon.run()


@played
async def test_no_permission(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.kernel.listener.refuse_open = errno.EPERM
    with pytest.raises(NoPermission, match="CAP_NET_RAW does not hold"):
        await world.daemon.run()


@played
async def test_the_permission_is_tried_without_the_kernel_s_defence(tmp_path: Path) -> None:
    """The kernel attaches and detaches it with the lock of the network configuration, 10 ms each."""
    async with World(tmp_path) as world:
        await world.until_bound()
        assert world.kernel.listener.defended == [False, True]


@played
async def test_a_link_that_has_another_index_is_not_confused_with_its_namesake(
    tmp_path: Path,
) -> None:
    """LinkRemoved of the old one comes after LinkChanged of the new one: the new one stays."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.links[7] = link_of(7)
        world.network.plug(world.network.links[7])
        del world.network.links[2]
        world.network.happens(AddressRemoved(world.network.present.pop((2, A))))
        world.network.happens(LinkRemoved(2))
        await world.until(lambda: world.report()["index"] == 7)
        assert await world.until_bound() == A


@played
async def test_each_loss_of_conflicts_is_one_debug_line(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        listener, daemon = world.kernel.listener, world.daemon
        lost = iter((0, 3, 0, 2))
        drain = listener.drain

        def lose() -> list[Received]:
            listener.lost += next(lost, 0)
            return drain()

        listener.drain = lose  # type: ignore[method-assign]
        for _ in range(4):
            daemon.handle_frames()
        lines = [line.split(":")[0] for line in world.logged("conflicts dropped")]
        assert lines == ["3 conflicts dropped", "2 conflicts dropped"]
