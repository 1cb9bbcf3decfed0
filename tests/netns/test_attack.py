"""The oracle of the attacks sees what is left over, missing or twice; and a kill leaves nothing of that."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from attack import chaos
from attack.ground import Ground, Wrong
from lab import tcx
from tests.require import requires_program

from .helpers import NETNS, NO_TCX, RIVAL

pytestmark = NETNS


@pytest.fixture
def ground() -> Iterator[Ground]:
    with Ground("ground", 1) as ground:
        yield ground


def test_a_life_in_order(ground: Ground) -> None:
    ground.clean()
    address = ground.start_and_claim()
    ground.whole(address)
    with pytest.raises(Wrong, match="left over"):
        ground.clean()
    ground.stop()
    ground.clean()
    with pytest.raises(Wrong, match="not once what"):
        ground.whole(address)


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("ip addr add 169.254.9.9/16 dev eth0 scope link", "addresses"),
        ("ip rule add from 169.254.9.9 lookup 77", "rules"),
        ("ip route add 198.51.100.0/24 dev eth0", "routes"),
        ("ip route del default dev eth0", "routes"),
        ("ip addr flush dev eth0 scope link", "addresses"),
        ("tc filter del dev eth0 egress", "filters"),
        ("tc qdisc del dev eth0 clsact", "programs"),
        ("tc qdisc add dev eth0 clsact", "filters"),
    ],
)
def test_what_is_wrong_is_seen(ground: Ground, command: str, wrong: str) -> None:
    if command.startswith("tc ") and " del " in command:
        ground.daemon.command[:0] = tcx.WITHOUT
    address = ground.start_and_claim("--delay", "1", "--default-route")
    ground.whole(address, more_routes=2)
    ground.daemon.signal(19)  # SIGSTOP: autoip would put it right
    ground.host.run(*command.split())
    with pytest.raises(Wrong, match=f"^{wrong}: "):
        ground.whole(address, more_routes=2)


def test_a_program_that_is_gone_or_left_is_seen(ground: Ground) -> None:
    index = ground.host.index("eth0")
    address = ground.start_and_claim("--delay", "1")
    ground.whole(address)
    if not tcx.links(ground.daemon.pid, index):
        pytest.skip(NO_TCX)
    tcx.detach(ground.daemon.pid, index)
    with pytest.raises(Wrong, match=r"^programs: "):
        ground.whole(address)
    ground.stop()
    ground.clean()
    link = ground.host.call(tcx.attach, index)
    with pytest.raises(Wrong, match=r"^programs: left over"):
        ground.clean()
    os.close(link)
    ground.clean()


def test_files_that_are_left_are_seen(ground: Ground) -> None:
    for folder, name in (
        (ground.daemon.runtime, "1-eth0.lock"),
        (ground.daemon.state, f".{RIVAL}.7"),
    ):
        (folder / name).touch()
        with pytest.raises(Wrong, match="directory"):
            ground.clean()
        (folder / name).unlink()
    ground.clean()


@pytest.mark.parametrize("name", ["kill while moving", "stop over a deadline", "storm"])
def test_trial(ground: Ground, name: str) -> None:
    chaos.TRIALS[name][0](ground)


@requires_program("strace", "strace")
def test_every_system_call_from_the_lock_file_on(ground: Ground) -> None:
    places = chaos.SystemCalls()._record(ground)
    assert len(places) == len(set(places)) > 50
    assert {"pwrite64", "sendto", "unlink"} <= {call for call, _ in places}
