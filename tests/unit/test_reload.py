"""A reload on a fake kernel: what goes on, what is refused, and what of other versions can be read."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoip.commands import run
from autoip.core.acd import Defence
from autoip.core.arp import announcement
from autoip.core.constants import DEFEND_INTERVAL
from autoip.core.policy import Kind
from autoip.daemon import handover, terminal
from autoip.daemon.served import Selection
from autoip.errors import UsageError
from autoip.kernel.timers import SLEEP_MIN
from tests.unit.fake_kernel import link_of, mac_of
from tests.unit.fake_world import STRANGER, A, B, World, played


def announcements(world: World) -> list[IPv4Address]:
    return [p.spa for p in world.kernel.listener.of(mac_of(2)) if p.spa == p.tpa]


@played
async def test_nothing_happens(tmp_path: Path) -> None:
    """No frame is sent, no request made; all that is shown stays."""
    async with World(tmp_path, first=A, default_route=True) as world:
        await world.until_bound()
        world.claims(A)
        await world.until(lambda: world.report()["defences"] == 1)
        sent, asked = len(world.kernel.listener.sent), len(world.network.asked)
        before = {key: world.report()[key] for key in ("since", "why", "last_conflict")}
        await world.reload()
        assert world.report() | before == world.report()
        assert (world.report()["conflicts"], world.report()["state"]) == (1, "bound")
        assert len(world.kernel.listener.sent) == sent
        # What there is already is put once more, as after the loss of a message.
        assert world.network.asked[asked:] == [("sweep",), ("set_default", 2, A)]
        assert len(world.kernel.listener.sockets) == 1
        # Within DEFEND_INTERVAL of the one before it: given up, as without a reload.
        world.claims(A)
        await world.until(lambda: world.report()["candidate"] != str(A))


def parts(world: World) -> Any:
    """All that is handed over, but for descriptors, as JSON has it."""
    message = json.loads(world.daemon.keep().emit())
    message["descriptors"] = message["handover"]["terminal"] = None
    for interface in message["handover"]["interfaces"]:
        interface["lock"] = interface["server"] = interface["negotiator"]["descriptor"] = None
    return message


@played
async def test_nothing_is_forgotten(tmp_path: Path) -> None:
    """What the next one would hand over is the same: with routes, notes, a lease, and the rate limit."""
    options: dict[str, Any] = {
        "policy": Kind.FALLBACK,
        "default_route": True,
        "first": A,
        "after": 0.0,
    }
    async with World(tmp_path, "eth0", "eth1", **options) as world:
        for _ in range(10):
            await world.until_state("probing", "eth1")
            world.claims(IPv4Address(world.report("eth1")["candidate"]))
            await asyncio.sleep(0.01)
        await world.until_bound("eth0")
        world.network.limit("no such thing")
        world.network.put(2, "192.0.2.7")
        world.network.put(2, "169.254.9.9", 16, label="eth0:avahi")
        await world.until(lambda: world.report()["notes"] and world.network.demoted)
        before = parts(world)
        await world.reload(**options)
        assert parts(world) == before
        assert before["handover"]["interfaces"][0]["routes"][:2] != [None, None]
        assert world.network.demoted == {2: world.address("eth0")}


@pytest.mark.parametrize("since", [5.0, 9.85, 10.05, 20.0])
@played
async def test_conflict_meanwhile(tmp_path: Path, since: float) -> None:
    """It counts when it came: defended if that is late enough after the one before, else given up."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        before = world.now
        world.claims(A)
        came: list[float] = []

        def conflict() -> None:
            came.append(world.now - before)
            world.claims(A)

        await asyncio.sleep(since - 0.25 - 0.15 + 0.01)  # the trial, and half of the pause
        sent = len(announcements(world))
        await world.reload(meanwhile=conflict, pause=0.3)
        assert since <= came[0] < since + 0.1
        assert world.report()["conflicts"] == 2
        if since >= DEFEND_INTERVAL:
            assert world.address() == A
            assert len(announcements(world)) == sent + 1
            assert world.report()["defences"] == 2
        else:
            assert world.now - before > DEFEND_INTERVAL or since == 5.0
            assert world.address() is None
            assert A not in world.network.owned(2)
            assert world.report()["defences"] == 1


@played
async def test_conflict_at_the_last_moment(tmp_path: Path) -> None:
    """The thread has answered and queued it, and the loop has not been woken: it counts, and is not answered again."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        sent = len(announcements(world))
        listener = world.kernel.listener
        world.executable.at_last = partial(
            listener.deliver, announcement(STRANGER, A), quietly=True
        )
        await world.reload()
        assert (world.report()["conflicts"], world.report()["defences"]) == (1, 1)
        assert announcements(world)[sent:] == [A]


@played
async def test_the_address_is_lost_at_the_last_moment(tmp_path: Path) -> None:
    """It is off the interface before the exec."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.claims(A)
        await asyncio.sleep(1)
        world.executable.at_last = partial(
            world.kernel.listener.deliver, announcement(STRANGER, A), quietly=True
        )
        there: list[list[IPv4Address]] = []
        await world.reload(meanwhile=lambda: there.append(world.network.owned(2)))
        assert there == [[]] and world.asked("remove") == [("remove", 2, A)]
        assert await world.until_bound() != A


@played
async def test_two_conflicts_meanwhile(tmp_path: Path) -> None:
    """The first is answered, once; the second ends it."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        sent = len(announcements(world))
        await world.reload(meanwhile=lambda: (world.claims(A), world.claims(A)))
        assert announcements(world)[sent:] == [A]
        assert (world.report()["conflicts"], world.report()["defences"]) == (2, 1)
        assert world.address() is None
        assert (await world.until_bound()) != A


@pytest.mark.parametrize("state", ["probing", "announce-wait", "announcing", "rate-limited"])
@played
async def test_in_each_state(tmp_path: Path, state: str) -> None:
    """The claim goes on: as many probes, as many announcements, as without a reload."""
    async with World(tmp_path, first=A) as world:
        if state == "rate-limited":
            for _ in range(10):
                await world.until_state("probing")
                world.claims(IPv4Address(world.report()["candidate"]))
                await asyncio.sleep(0.01)
        await world.until_state(state)
        before = world.report()
        await world.reload()
        after = world.report()
        assert after["candidate"] == before["candidate"]
        if after["state"] == before["state"]:
            assert after["why"] == before["why"]
        if state == "rate-limited":
            assert 0 < after["step_in"] < before["step_in"]
            return
        assert await world.until_bound() == A
        probes = [p for p in world.kernel.listener.of(mac_of(2)) if p.is_probe]
        assert len(probes) == 3
        assert announcements(world) == [A, A]


@played
async def test_refused(tmp_path: Path) -> None:
    """With the reason, and all goes on; the next one is done."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        notified: list[str] = []
        world.daemon._reload._notifier = SimpleNamespace(  # type: ignore[assignment]
            reloading=partial(notified.append, "reloading"),
            reloaded=partial(notified.append, "reloaded"),
        )
        world.executable.refused = "/etc/autoip.conf:3: no such thing"
        answer = await world.asks("reload")
        assert answer["error"] == world.executable.refused
        assert world.logged("reload refused, all goes on as before: /etc/autoip.conf:3")
        world.executable.refused = None
        world.executable.failure = OSError(8, "Exec format error")
        assert (await world.asks("reload"))["error"] == "Exec format error"
        world.executable.at_last = partial(int, "a bug")
        assert (await world.asks("reload"))["error"].startswith("ValueError(")
        world.executable.at_last = lambda: None
        assert notified == ["reloading", "reloaded"] * 3
        world.claims(A)
        await world.until(lambda: world.report()["defences"] == 1)
        world.executable.failure = None
        await world.reload()
        assert world.address() == A


@played
async def test_what_is_under_way_ends_before(tmp_path: Path) -> None:
    """An address that is being put on the interface is there, once, before the exec."""
    async with World(tmp_path, first=A) as world:

        async def slowly() -> None:
            await asyncio.sleep(2)

        world.network.before("add", slowly)
        await world.until_state("configuring")
        await world.reload()
        assert world.asked("add") == [("add", 2, A)]
        assert await world.until_bound() == A


Begin = Callable[[World], object]


@pytest.mark.parametrize(
    "begin",
    [
        lambda world: world.daemon._interfaces[0]._requests.request(lambda: asyncio.sleep(2)),
        lambda world: world.daemon._cables._requests.request(lambda: asyncio.sleep(2)),
        lambda world: setattr(
            world.daemon._served, "_task", asyncio.ensure_future(asyncio.sleep(2))
        ),
        lambda world: world.daemon._servers["eth0"].start(
            asyncio.sleep(2), world.daemon._servers["eth0"].tasks
        ),
    ],
    ids=["interface", "neighbours", "served", "answer"],
)
@played
async def test_nothing_is_cut_off(tmp_path: Path, begin: Begin) -> None:
    async with World(tmp_path, selection=Selection((("eth*", True),))) as world:
        await world.until(lambda: "eth0" in world.daemon._servers)
        await world.until_bound()
        assert world.daemon.quiet
        begin(world)
        await world.until(lambda: not world.daemon.quiet)
        await world.until(lambda: world.daemon.quiet)
        world.daemon._stop.set()
        assert not world.daemon.quiet


@played
async def test_what_does_not_end_refuses_it(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.daemon._interfaces[0]._requests.request(lambda: asyncio.sleep(14.9))
        task = world.daemon._reload.request()
        await asyncio.sleep(14.5)
        world.daemon._interfaces[0]._requests.request(lambda: asyncio.sleep(5))
        assert "did not end" in await task
        assert world.address() == A


@played
async def test_changed_options(tmp_path: Path) -> None:
    """The defence counts at once; the first candidate from the next claim on."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        await world.reload(first=B, defence=Defence.ABANDON, delay=200)
        assert (world.address(), world.report()["defence"]) == (A, "abandon")
        assert world.report()["delay"] == 200
        world.claims(A)
        await world.until(lambda: world.address() is None)
        assert world.report()["defences"] == 0
        assert await world.until_bound() == B


@pytest.mark.parametrize("kind", [Kind.FALLBACK, Kind.ROUTE_ONLY])
@played
async def test_changed_policy(tmp_path: Path, kind: Kind) -> None:
    """An address that is held stays until it is lost; then the new policy counts."""
    async with World(tmp_path, first=A) as world:
        world.network.put(2, "192.0.2.7")
        await world.until_bound()
        await world.reload(policy=kind)
        await asyncio.sleep(300)
        assert world.address() == A
        await world.asks("refresh")
        await world.until_state("standby")
        await asyncio.sleep(300)
        assert world.address() is None
        await world.reload(policy=Kind.ALONGSIDE)
        assert await world.until_bound() == A


@played
async def test_added_and_dropped_interface(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        one, two = await world.until_bound("eth0"), await world.until_bound("eth1")
        world.network.plug(link_of(4, "eth2"))
        await world.reload(names=("eth1", "eth2"))
        assert [i.name for i in world.daemon._interfaces] == ["eth1", "eth2"]
        assert world.network.owned(2) == [] != [one]
        assert world.address("eth1") == two
        await world.until_bound("eth2")
        names = {path.name.partition("-")[2] for path in (tmp_path / "run").iterdir()}
        assert names == {"eth1.lock", "eth1.sock", "eth2.lock", "eth2.sock"}


@played
async def test_dropped_and_added_after_the_reload(tmp_path: Path) -> None:
    """What was handed over is over: the interface is begun anew."""
    async with World(tmp_path, "eth0", "eth1", first=A) as world:
        await world.until_bound("eth0")
        await world.until_bound("eth1")
        await world.reload()
        await world.daemon.drop("eth0")
        since = len(world.kernel.listener.of(mac_of(2)))
        await world.daemon.add("eth0")
        await world.until_bound("eth0")
        sent = world.kernel.listener.of(mac_of(2))[since:]
        assert [packet.is_probe for packet in sent] == [True] * 3 + [False] * 2
        assert (await world.asks("status", "eth0"))["ok"] is True


@played
async def test_stopped_interface_stays_stopped(tmp_path: Path) -> None:
    async with World(tmp_path, "eth0", "eth1") as world:
        await world.until_bound("eth0")
        await world.asks("stop", "eth1")
        await world.reload()
        assert [i.name for i in world.daemon._interfaces] == ["eth0"]


@played
async def test_what_changed_meanwhile(tmp_path: Path) -> None:
    """The kernel is asked anew: an address that somebody took off, a carrier that went and came."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        await world.reload(meanwhile=lambda: world.network.take(2, A))
        await world.until(lambda: world.network.owned(2) == [A])
        await world.until_state("bound")
        changed = link_of(2, "eth0", carrier_changes=2)
        await world.reload(meanwhile=lambda: world.network.plug(changed))
        await world.until_state("probing")
        assert await world.until_bound() == A
        await world.reload(meanwhile=lambda: world.network.unplug(2))
        await world.until_state("no-link")


@played
async def test_a_sleep_meanwhile(tmp_path: Path) -> None:
    """After it all is probed again; a sleep before the reload is known already."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        watch = world.kernel.clock_watch
        watch.slept = 1000.0
        since = len(world.kernel.listener.sent)

        def sleep() -> None:
            watch.slept += SLEEP_MIN

        await world.reload()
        await asyncio.sleep(1)
        assert world.report()["state"] == "bound" and world.kernel.listener.sent[since:] == []
        await world.reload(meanwhile=sleep)
        await world.until_state("probing")
        assert await world.until_bound() == A


@played
async def test_a_limit_is_logged_once(tmp_path: Path) -> None:
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        world.network.limits.append("something cannot be done")
        world.claims(A)
        await world.until(lambda: world.logged("something cannot be done"))
        await world.reload()
        world.claims(A)
        await asyncio.sleep(1)
        assert world.logged("something cannot be done") == []
        assert "something cannot be done" in world.report()["limits"]


@played
async def test_the_terminal_goes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal was for that, and the program ends."""
    answers = [0]
    monkeypatch.setattr(terminal, "_open_terminal", lambda: answers[-1])
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        await world.reload()
        await asyncio.sleep(2 * terminal.HANGUP_TIME)
        assert await world.until_bound() == A  # it is still there
        await world.reload(meanwhile=lambda: answers.append(errno.ENXIO))
        assert world._task is not None
        await asyncio.wait_for(world._task, 2 * terminal.HANGUP_TIME)
        assert world.network.owned(2) == []


@played
async def test_clients_go_on(tmp_path: Path) -> None:
    """Who watches, who has not yet asked, and who waits for the reload."""
    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        (path,) = (tmp_path / "run").glob("*.sock")
        watcher = await asyncio.open_unix_connection(str(path))
        watcher[1].write(b'{"request":"watch"}\n')
        assert json.loads(await watcher[0].readline())["status"]["address"] == str(A)
        slow = await asyncio.open_unix_connection(str(path))
        slow[1].write(b'{"request":')
        asked = asyncio.ensure_future(world.asks("reload"))
        await asyncio.sleep(0.1)
        await world.reload()
        assert (await asked)["ok"] is True
        slow[1].write(b'"status"}\n')
        assert json.loads(await slow[0].readline())["status"]["address"] == str(A)
        world.claims(A)
        assert json.loads(await watcher[0].readline())["event"] == "defence"
        watcher[1].close()
        slow[1].close()


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format=99),
        lambda m: m["handover"]["interfaces"][0].pop("link"),
        lambda m: m["handover"]["interfaces"][0]["negotiator"]["core"].update(conflicts="many"),
        lambda m: m["handover"]["interfaces"][0]["policy"].update(kind="SOMETIMES"),
        lambda m: m["handover"].pop("interfaces"),
        lambda m: m["handover"].update(interfaces=7),
    ],
)
@played
async def test_what_cannot_be_read_is_probed_again(tmp_path: Path, change: Change) -> None:
    """The lock is taken anew, and its record says which address was there."""

    def damage(data: bytes) -> bytes:
        message = json.loads(data)
        change(message)
        return json.dumps(message).encode()

    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        since = len(world.kernel.listener.sent)
        await world.reload(change=damage)
        assert any("cannot be read" in line for line in world.reloading)
        assert await world.until_bound() == A
        assert sum(p.is_probe for _, _, p in world.kernel.listener.sent[since:]) == 3


@played
async def test_a_socket_that_cannot_be_taken_over(tmp_path: Path) -> None:
    """Then the interface, and no other, is served as after a crash, with the address that it had."""
    async with World(tmp_path, "eth0", "eth1") as world:
        one, two = await world.until_bound("eth0"), await world.until_bound("eth1")
        refuse = partial(setattr, world.kernel.listener, "refuse_take_over", True)
        await world.reload(meanwhile=refuse)
        assert (world.report("eth1")["state"], world.address("eth1")) == ("bound", two)
        await world.until_state("probing", "eth0")
        assert await world.until_bound("eth0") == one


@played
async def test_what_is_new_in_another_version_is_passed_over(tmp_path: Path) -> None:
    def add(data: bytes) -> bytes:
        message = json.loads(data)
        message["handover"]["colour"] = "blue"
        message["handover"]["interfaces"][0]["colour"] = "blue"
        message["handover"]["interfaces"][0]["negotiator"]["core"]["colour"] = ["blue"]
        del message["handover"]["interfaces"][0]["rivals"]
        return json.dumps(message).encode()

    async with World(tmp_path, first=A) as world:
        await world.until_bound()
        sent = len(world.kernel.listener.sent)
        await world.reload(change=add)
        assert world.address() == A
        assert len(world.kernel.listener.sent) == sent


RECORDED = Path(__file__).with_name("handover-0.1.json")
"""What version 0.1 handed over: two interfaces, one of them rate-limited. Never changed; a version adds its own."""


def test_what_sends_by_broadcast_is_handed_over() -> None:
    """Each attachment is a descriptor, which an older program closes, so that it has none twice."""
    handed = handover.Handover(program=5, attached=((2, 7), (3, 9)))
    assert handed.descriptors == [5, 7, 9]
    assert handover.parse(handed.emit()) == (handed, [])
    older = handed.emit().replace(b'"attached"', b'"unknown"')
    assert handover.parse(older) == (handover.Handover(program=5), [7, 9])


@played
async def test_what_sends_by_broadcast_is_kept(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        world.network.attached = ((2, 77),)
        assert world.daemon.keep().attached == ((2, 77),)


def test_what_the_release_before_wrote() -> None:
    found, rest = handover.parse(RECORDED.read_bytes())
    assert (found.unread, rest, found.by) == ((), [], "0.1.0")
    held, limited = found.interfaces
    assert held.negotiator.core is not None and limited.negotiator.core is not None
    assert held.negotiator.core.candidate == A
    assert limited.negotiator.core.conflicts == 10
    assert found.names == ("eth0", "eth1")
    assert handover.parse(found.emit()) == (found, [])


def test_garbage() -> None:
    for data in (b"", b"\0", b"[]", b"{}", b'{"descriptors": ["a"]}', b"[" * 100_000):
        found, _ = handover.parse(data)
        assert found.interfaces == () and len(found.unread) == 1


def test_a_configuration_that_became_wrong_after_the_trial(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was in force stays so; the command line goes before, as ever."""
    file = tmp_path / "autoip.conf"
    file.write_text("[*]\npolicy = sometimes\n")
    handed, _ = handover.parse(RECORDED.read_bytes())
    log = logging.getLogger("test")
    arguments = run.parse(["run", "eth0", "--config", str(file), "--abandon"])
    found = run._configuration(arguments, handed, log)
    assert f"{file}:2: policy" in caplog.text
    options = run.options_of("eth0", arguments, found)
    assert (options.delay, options.defence) == (200, Defence.ABANDON)
    with pytest.raises(UsageError):
        run._configuration(arguments, None, log)
