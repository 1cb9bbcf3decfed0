"""`--trace FILE` and `python -m tools.replay FILE`: what happened is recorded, and happens again."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from autoip.core import acd, candidates, constants, ipv4ll
from autoip.core.acd import Defence
from autoip.core.arp import parse
from autoip.core.constants import DEFEND_INTERVAL, PROBE_NUM
from autoip.core.ipv4ll import Ipv4ll
from autoip.daemon import trace
from autoip.daemon.trace import Trace
from autoip.errors import UsageError
from autoip.kernel.model import PROTOCOL, Route, RouteRemoved
from autoip.options import RUN
from tests.unit.fake_kernel import link_of, mac_of
from tests.unit.fake_world import STRANGER, A, World, no_network_manager, play
from tests.unit.test_daemon import refused
from tools import replay

LOG = logging.getLogger("trace")
Lines = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path) -> Iterator[None]:
    with no_network_manager(tmp_path):
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def read(file: Path) -> Lines:
    return [json.loads(line) for line in file.read_text().splitlines()]


def written(lines: Lines) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def calls(lines: Lines, name: str) -> Lines:
    return [line for line in lines if line.get("call") == name]


def events(lines: Lines, kind: str) -> Lines:
    return [event for line in lines for event in line.get("events", ()) if event["is"] == kind]


def record(tmp_path: Path, file: Path) -> Lines:
    """A claim, a frame that is refused, a defence, an address that is given up for another one."""

    async def scenario() -> None:
        async with World(tmp_path, first=A, trace=file) as world:
            world.kernel.listener.refuse_send = 1
            await world.until_bound()
            world.claims(A)
            await world.until(lambda: world.report()["defences"] == 1)
            world.claims(A)
            await world.until(lambda: world.address() is None)
            assert await world.until_bound() != A

    play(scenario)
    return read(file)


# --- what is recorded ----------------------------------------------------------------------------


def test_what_happened_is_there_and_happens_again(tmp_path: Path, file: Path) -> None:
    lines = record(tmp_path, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {line["interface"] for line in lines[1:]} == {"eth0"}
    times = [line["at"] for line in lines[1:]]
    assert times == sorted(times) and times[0] >= 1000
    (start,) = [line["start"] for line in lines if "start" in line]
    assert start == {"mac": mac_of(2).hex(), "delay": 2000, "defence": "ONCE", "first": str(A)}

    assert len(calls(lines, "refused")) == 1
    assert len(calls(lines, "sent")) == 2 * (PROBE_NUM + 2)
    assert len(calls(lines, "to_send")) == 2 * (PROBE_NUM + 2) + 1  # each with its frame
    packets = [parse(bytes.fromhex(line["result"])) for line in calls(lines, "to_send")]
    assert all(packet is not None and packet.sha == mac_of(2) for packet in packets)
    received = [parse(bytes.fromhex(line["with"]["packet"])) for line in calls(lines, "receive")]
    assert [packet.sha for packet in received if packet] == [STRANGER] * 2
    assert [line["with"]["defended_at"] is None for line in calls(lines, "receive")] == [
        False,
        True,
    ]
    assert len(events(lines, "Defended")) == len(events(lines, "Conflict")) == 1
    assert len(events(lines, "Claimed")) == 2

    # An address of its own needs one draw for the candidate, and one for each pause.
    asked = [question[0] for line in lines for question in line.get("asked", ())]
    assert asked.count("addresses") == 1 and asked.count("jitter") == 2 * PROBE_NUM
    assert asked.count("avoid") == 2 and asked.count("sibling") == 2
    assert [line["news"] for line in lines if "news" in line][:3] == [
        "permit",
        "link",
        "resynchronised",
    ]

    assert replay.replay(file.read_bytes()) == (sum("call" in line for line in lines), None)


def test_all_that_a_core_can_be_told_happens_again(tmp_path: Path, file: Path) -> None:
    """Also what begins anew, on two interfaces, by several cores."""

    async def scenario() -> None:
        async with World(tmp_path, "eth0", "eth1", trace=file, defence=Defence.ABANDON) as world:
            world.network.before("add", refused(errno.ENOMEM))
            await world.until_bound("eth1")
            address = await world.until_bound()
            world.network.take(2, address)
            await world.until(lambda: world.logged("removed by somebody else"))
            await world.until_bound()
            await world.reload(defence=Defence.ABANDON)
            world.network.put(2, str(world.address("eth1")))
            await world.until_state("probing", "eth1")
            world.interface().permit(False, "closed by the test")
            world.interface().permit(True)
            await world.until_bound()
            world.kernel.clock_watch.sleep()
            world.network.happens(RouteRemoved(Route(2, 16, 254, PROTOCOL)))
            world.network.plug(link_of(2, "eth0", mac_of(7)))
            await world.until_bound()
            world.network.unplug(2)
            await world.until_state("no-link")

    play(scenario)
    lines = read(file)
    assert len({line["core"] for line in lines if "core" in line}) == 5
    told = {line["call"] for line in lines if "call" in line}
    assert told == replay._CALLS - {"receive", "refused"}
    news = {line["news"] for line in lines if "news" in line}
    assert news == {
        "link",
        "address-added",
        "address-removed",
        "resynchronised",
        "permit",
        "restart",
        "route-removed",
    }
    assert replay.replay(file.read_bytes())[1] is None


def test_a_bug_of_the_core_is_recorded(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    async def scenario() -> None:
        async with World(tmp_path, first=A, trace=file) as world:
            with monkeypatch.context() as patch:
                patch.setattr(acd.Acd, "announce", broken)
                await world.until(lambda: world.logged("planted"))
            await world.until_bound()

    play(scenario)
    (line,) = calls(read(file), "configured")[:1]
    assert line["raised"] == "RuntimeError: planted"
    calls_until, difference = replay.replay(file.read_bytes())
    assert difference is not None and difference.then == line and calls_until > PROBE_NUM
    assert difference.now is not None and difference.now["state"] == "ANNOUNCING"


def test_without_a_trace_the_core_is_the_plain_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            await world.until_bound()
            assert type(world.interface()._negotiator.core) is Ipv4ll

    play(scenario)


def test_without_a_trace_nothing_imports_it() -> None:
    program = "import sys, autoip.daemon.daemon; sys.exit('autoip.daemon.trace' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- what a trace is good for --------------------------------------------------------------------


TRACES: dict[str, tuple[int, str, Any] | None] = {
    "claim-defence-yield.jsonl": None,
}
"""The recorded traces. One of a bug has the first difference that the correction made: line, key, what is there now."""


def test_each_trace_is_in_the_table() -> None:
    assert {path.name for path in (Path(__file__).parent / "traces").iterdir()} == {*TRACES}


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_happens_again(name: str) -> None:
    count, difference = replay.replay((Path(__file__).parent / "traces" / name).read_bytes())
    expected = TRACES[name]
    assert count > 0
    if expected is None:
        assert difference is None, str(difference)
    else:
        assert difference is not None and difference.now is not None
        assert (difference.number, difference.now[expected[1]]) == (expected[0], expected[2])


@pytest.mark.parametrize(
    ("module", "name", "value", "call"),
    [
        (acd, "PROBE_NUM", 4, "sent"),
        (acd, "ANNOUNCE_NUM", 3, "sent"),
        (acd, "ANNOUNCE_INTERVAL", 2.5, "sent"),
        (acd, "DEFEND_INTERVAL", DEFEND_INTERVAL / 2, "receive"),
        (acd, "SEND_RETRY", 0.2, "refused"),
        (constants, "PROBE_MIN", 0.9, "sent"),
        (constants, "ANNOUNCE_WAIT", 1.9, "sent"),
        (ipv4ll, "MAX_CONFLICTS", 1, "receive"),
        (candidates, "LAST_CANDIDATE", IPv4Address("169.254.3.255"), "receive"),
    ],
)
def test_a_changed_constant_is_found(
    tmp_path: Path,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    value: object,
    call: str,
) -> None:
    record(tmp_path, file)
    monkeypatch.setattr(module, name, value)
    difference = replay.replay(file.read_bytes())[1]
    assert difference is not None and difference.then["call"] == call


def conflicts(lines: Lines) -> dict[str, Any]:
    return calls(lines, "receive")[-1]


PLANTED: dict[str, Callable[[Lines], object]] = {
    "another draw": lambda lines: conflicts(lines)["asked"][1].__setitem__(1, 0.123),
    "another answer": lambda lines: conflicts(lines)["asked"][0].__setitem__(2, True),
    "another question": lambda lines: conflicts(lines)["asked"][0].__setitem__(1, "020000000001"),
    "fewer questions": lambda lines: conflicts(lines)["asked"].pop(),
    "more questions": lambda lines: conflicts(lines)["asked"].append(["jitter", 0.5]),
    "another event": lambda lines: conflicts(lines)["events"].pop(),
    "another time": lambda lines: conflicts(lines).__setitem__("next", 1.5),
    "another state": lambda lines: conflicts(lines).__setitem__("state", "BOUND"),
    "another frame": lambda lines: conflicts(lines)["with"].__setitem__("at", 5000.0),
    "another failure": lambda lines: conflicts(lines).__setitem__("raised", "KeyError: 1"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_difference_is_found_where_it_is(
    tmp_path: Path, file: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = record(tmp_path, file)
    number = lines.index(conflicts(lines)) + 1
    PLANTED[kind](lines)
    file.write_bytes(written(lines))
    assert replay.main([str(file)]) == 1
    found = capsys.readouterr().out
    assert f"a difference:\nline {number}, eth0, at " in found and "receive(packet=" in found
    if kind in ("another draw", "another question", "fewer questions"):
        assert "OtherQuestion: asks " in found
    assert "\n    then " in found and "\n    now  " in found


def test_a_core_that_does_nothing_where_it_did_something(tmp_path: Path, file: Path) -> None:
    lines = record(tmp_path, file)
    (line, *_) = calls(lines, "handle_timer")
    lines.insert(lines.index(line) + 1, line)
    count, difference = replay.replay(written(lines))
    assert difference is not None and difference.now is None and count > 1
    assert "    now  nothing" in str(difference)


def test_no_difference(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, file)
    assert replay.main([str(file)]) == 0
    assert capsys.readouterr().out.endswith(" calls, no difference\n")


HEADER = {"autoip-trace": 1}
START = {
    "core": 1,
    "start": {"mac": "020000000001", "delay": 2000, "defence": "ONCE", "first": None},
}
UNREADABLE: dict[str, bytes] = {
    "empty": b"",
    "foreign text": b"hello\nworld\n",
    "foreign JSON": b'{"version": 1}\n',
    "a list": b"[1]\n",
    "binary": bytes(range(256)) + b"\n",
    "deep": b"[" * 100_000 + b"\n",
    "another format": b'{"autoip-trace": 2}\n',
    "only a beginning": b'{"autoip-trace": 1',
    "a bad line": written([HEADER]) + b"{\n" + written([HEADER]),
    "a call without a core": written(
        [HEADER, {"core": 1, "call": "link_down", "with": {}, "asked": []}]
    ),
    "a bad delay": written([HEADER, {"core": 1, "start": {**START["start"], "delay": 0}}]),  # type: ignore[dict-item]
    "a bad address": written([HEADER, {"core": 1, "start": {**START["start"], "first": "x"}}]),  # type: ignore[dict-item]
    "no call": written([HEADER, START, {"core": 1, "call": "__init__", "with": {}, "asked": []}]),
    "no packet": written(
        [
            HEADER,
            START,
            {"core": 1, "call": "receive", "with": {"packet": "00", "at": 1}, "asked": []},
        ]
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_trace(file: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(UNREADABLE[kind])
    assert replay.main([str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"{file}: not a trace: ")
    assert said.err.count("\n") == 1


def test_a_file_that_cannot_be_read(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(file)]) == 2
    assert capsys.readouterr().err == f"{file}: No such file or directory\n"
    assert replay.main([]) == 2


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path, file: Path) -> None:
    lines = record(tmp_path, file)
    assert replay.replay(file.read_bytes()[:-10])[1] is None
    assert "call" in lines[-1] or "news" in lines[-1]


# --- the file ------------------------------------------------------------------------------------


def test_a_trace_goes_on_in_its_file(tmp_path: Path, file: Path) -> None:
    first = record(tmp_path, file)
    both = record(tmp_path, file)
    assert len(both) > len(first) + 1 and sum("autoip-trace" in line for line in both) == 2
    assert replay.replay(file.read_bytes()) == (sum("call" in line for line in both), None)


def make_foreign(file: Path) -> None:
    file.write_text("precious\n")


def make_link(file: Path) -> None:
    Trace.open(f"{file}.other", LOG).close()
    file.symlink_to(f"{file}.other")


def make_others(file: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of somebody else's")
    Trace.open(str(file), LOG).close()
    os.chown(file, 65534, 65534)


@pytest.mark.parametrize(
    "make",
    [make_foreign, make_link, make_others, os.mkfifo, Path.mkdir, lambda file: file.parent.rmdir()],
    ids=["foreign", "link", "somebody else's", "fifo", "folder", "no folder"],
)
def test_a_file_that_cannot_be_had(tmp_path: Path, make: Callable[[Path], object]) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "trace"
    make(file)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(UsageError, match=f"^--trace {file}: "):
        Trace.open(str(file), LOG)
    assert (file.read_bytes() if file.is_file() else None) == before


def test_the_command_refuses_a_file_that_is_no_trace(tmp_path: Path, file: Path) -> None:
    make_foreign(file)
    environ = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path), "STATE_DIRECTORY": str(tmp_path)}
    command = [sys.executable, "-m", "autoip", "run", "none0", "--trace", str(file)]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.endswith("is there already, and not as a trace of this user's; name a new file")
    assert file.read_text() == "precious\n"


def test_the_manual_names_the_bound() -> None:
    (option,) = (option for option in RUN if option.name == "trace")
    assert f"ends at {trace.SIZE_MAX >> 20} MiB" in option.more


def entries(file: Trace, number: int) -> None:
    one = file.of("eth0", lambda: 1.0)
    for count in range(number):
        one.news("number", count=count)


def test_a_full_file_system_ends_the_trace_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    entries(Trace(os.open("/dev/full", os.O_RDWR), LOG), 5)
    (line,) = caplog.messages
    assert line == "no more is traced: No space left on device"


def test_a_file_system_that_takes_half_a_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = Trace.open(str(file), LOG)
    entries(made, 2)
    before, real = file.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:10]))
    entries(made, 3)
    assert file.read_bytes() == before  # whole lines only
    assert caplog.messages == ["no more is traced: No space left on device"]


def test_a_trace_is_bounded(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trace, "SIZE_MAX", 1000)
    for _ in range(3):  # also over several starts
        made = Trace.open(str(file), LOG)
        entries(made, 50)
        made.close()
    assert 900 < file.stat().st_size <= 1000
    assert caplog.messages == ["no more is traced: it has 1000 bytes"] * 3


def test_a_bug_in_the_recording_costs_the_trace_alone(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    async def scenario() -> None:
        async with World(tmp_path, first=A, trace=file) as world:
            monkeypatch.setattr(trace.TracedCore, "outcome", broken)
            assert await world.until_bound() == A
            assert len(world.logged("no more is traced: RuntimeError('planted')")) == 1
            assert not world.logged("internal error")

    play(scenario)
