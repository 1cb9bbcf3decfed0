"""autoip.daemon.daemon.script: order, bounds and end of the calls, without an interface."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from autoip.daemon.script import QUEUE_MAX, STYLES, ScriptRunner
from autoip.errors import AutoipError
from tests.unit import virtual_time

A = IPv4Address("169.254.7.7")
ADDRESSES = [IPv4Address("169.254.8.0") + n for n in range(100)]


class Bench:
    """A runner, its script that waits for permission, and all that it says."""

    def __init__(
        self, folder: Path, text: str = "", *, style: str = "avahi", timeout: float = 60
    ) -> None:
        self.calls_file = folder / "calls"
        self.gate = folder / "gate"
        self.binds = 0
        self.said: list[tuple[int, str]] = []
        script = folder / "script"
        script.write_text(
            f'#!/bin/sh\necho "$*" >>{self.calls_file}\n'
            f"{text or f'until [ -e {self.gate} ]; do sleep 0.01; done'}\n"
        )
        script.chmod(0o755)
        self.runner = ScriptRunner(
            str(script),
            STYLES[style],
            "eth0",
            lambda level, text: self.said.append((level, text)),
            self._bound,
            timeout,
        )

    def _bound(self) -> None:
        self.binds += 1

    def open(self) -> None:
        self.gate.touch()

    @property
    def calls(self) -> list[str]:
        try:
            return self.calls_file.read_text().splitlines()
        except FileNotFoundError:
            return []

    async def first(self) -> None:
        """Until the first call runs."""
        while not self.calls:
            await asyncio.sleep(0.01)

    def warnings(self) -> list[str]:
        return [text for level, text in self.said if level >= logging.WARNING]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scenario(), 120)

    asyncio.run(limited())


bounded = virtual_time.played_by(run)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # who reaps an orphan, and when, is not our business


@bounded
async def test_order_and_no_repetition(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    runner = bench.runner
    runner.lost()  # nothing to lose
    runner.bound(A)
    runner.bound(A)
    await bench.first()
    runner.lost(conflict=True)
    runner.lost()
    runner.bound(ADDRESSES[0])
    bench.open()
    await runner.stop()
    assert bench.calls == [f"BIND eth0 {A}", f"CONFLICT eth0 {A}"]  # the second came too late


@bounded
async def test_what_waits_is_bounded_and_ends_as_things_are(tmp_path: Path) -> None:
    """Of many addresses that came and went meanwhile the script hears only the last ones, in pairs."""
    bench = Bench(tmp_path)
    runner = bench.runner
    runner.bound(A)
    await bench.first()
    for address in ADDRESSES:
        runner.bound(address)
    bench.open()
    while len(bench.calls) < 1 + QUEUE_MAX or bench.binds == 0:
        await asyncio.sleep(0.01)
    last = ADDRESSES[-1]
    *_, second_last, final = bench.calls
    assert final == f"BIND eth0 {last}"
    assert second_last == f"UNBIND eth0 {ADDRESSES[-2]}"
    held: str | None = None
    for call in bench.calls:
        word, _, about = call.split()
        assert (word == "BIND") == (held is None), bench.calls
        assert held in (None, about)
        held = about if word == "BIND" else None
    assert len(bench.calls) <= 1 + QUEUE_MAX
    assert "too slow" in bench.warnings()[0]
    assert bench.binds == 1  # only what is still so when the script knows it
    await runner.stop()
    assert bench.calls[-1] == f"STOP eth0 {last}"


@bounded
async def test_end_while_a_call_waits(tmp_path: Path) -> None:
    """What the script was never told of is not taken back either."""
    bench = Bench(tmp_path)
    runner = bench.runner
    runner.bound(A)
    await bench.first()
    runner.lost()
    runner.bound(ADDRESSES[0])
    runner.lost()
    runner.bound(ADDRESSES[1])
    ending = asyncio.ensure_future(runner.stop())
    await asyncio.sleep(0)
    bench.open()
    await ending
    assert bench.calls == [f"BIND eth0 {A}", f"UNBIND eth0 {A}"]
    runner.bound(A)  # too late
    await runner.stop()
    assert len(bench.calls) == 2


@bounded
async def test_end_of_an_address_that_the_script_has(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.runner.bound(A)
    await bench.first()
    ending = asyncio.ensure_future(bench.runner.stop())
    await asyncio.sleep(0)
    assert not ending.done()
    bench.open()
    await ending
    assert bench.calls == [f"BIND eth0 {A}", f"STOP eth0 {A}"]


@bounded
async def test_time_out_kills_the_whole_group(tmp_path: Path) -> None:
    child = tmp_path / "child"
    bench = Bench(tmp_path, f"trap '' TERM; sleep 600 & echo $! >{child}; wait", timeout=0.5)
    bench.runner.bound(A)
    await asyncio.sleep(0)  # else the end comes before the script was told
    await bench.runner.stop()
    assert bench.warnings() == [
        f"script {word} {A}: did not end within 0.5 s, and was killed" for word in ("BIND", "STOP")
    ]
    pid = int(child.read_text())
    while _lives(pid):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("exit 3", "exit status 3"),
        ("kill -KILL $$", "ended by signal 9 (Killed)"),
    ],
)
@bounded
async def test_failures(text: str, says: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, text)
    bench.runner.bound(A)
    await asyncio.sleep(0)  # else the end comes before the script was told
    await bench.runner.stop()
    assert bench.warnings() == [f"script {word} {A}: {says}" for word in ("BIND", "STOP")]


@bounded
async def test_a_script_that_went_away(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "script").unlink()
    bench.runner.bound(A)
    await asyncio.sleep(0)  # else the end comes before the script was told
    await bench.runner.stop()
    assert bench.warnings() == [
        f"script {word} {A}: cannot be run: No such file or directory" for word in ("BIND", "STOP")
    ]


@bounded
async def test_zcip(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f'echo "$ip $interface" >>{tmp_path}/calls', style="zcip")
    await bench.runner.init()
    bench.runner.bound(A)
    while not bench.binds:
        await asyncio.sleep(0.01)
    bench.runner.lost(conflict=True)
    await bench.runner.stop()
    assert bench.calls == [
        *("init eth0", " eth0"),
        *("config eth0", f"{A} eth0"),
        *("deconfig eth0", f"{A} eth0"),
    ]
    assert bench.warnings() == []


@bounded
async def test_zcip_init_that_fails(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "exit 4", style="zcip")
    with pytest.raises(AutoipError, match=r"^eth0: script init: exit status 4$"):
        await bench.runner.init()


@bounded
async def test_avahi_has_no_init(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "exit 4")
    await bench.runner.init()
    assert bench.calls == []
