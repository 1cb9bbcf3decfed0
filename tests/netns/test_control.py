"""status, watch, wait, refresh, stop and probe, with the real daemon on a real interface."""

from __future__ import annotations

import itertools
import json
import re
import signal
import stat
import time
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import Any

import pytest

from autoip.control.protocol import EVENT, EVENTS, PROBE, STATES, STATUS
from lab import Daemon, LabError, Port, frames

from .commands import Ran, report, run
from .conftest import MakeDaemon, MakeHost, autoip_command
from .helpers import NEIGHBOUR, NETNS, PATIENCE, RIVAL, A, B, bind, claim, wait_until

pytestmark = NETNS

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")


class Watch(Daemon):
    """`autoip watch --json` beside a daemon: its objects, in order."""

    label = "watch"

    def __init__(self, daemon: Daemon, *words: str) -> None:
        super().__init__(
            daemon.namespace,
            daemon.interface,
            [*autoip_command(), "watch", "--json", *words],
            env={"RUNTIME_DIRECTORY": str(daemon.runtime)},
        )

    def events(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.lines]
        for one in found:
            _check_event(one)
        return found

    def wait_event(self, name: str, *, since: int = 0, **fields: object) -> dict[str, Any]:
        """The first event of that name with these fields, from number `since` on."""
        seen: list[dict[str, Any]] = []

        def there() -> bool:
            seen[:] = [
                one
                for one in self.events()[since:]
                if one["event"] == name and all(one[k] == v for k, v in fields.items())
            ]
            return bool(seen)

        try:
            wait_until(there, f"event {name} {fields}")
        except LabError as error:
            raise LabError(f"{error}; there were:\n{self.output}") from None
        return seen[0]


@pytest.fixture
def daemon(port: Port, make_autoip: MakeDaemon) -> Daemon:
    return make_autoip(port, "--delay", "50", "--ip", str(A))


@pytest.fixture
def watch(daemon: Daemon, stack: ExitStack) -> Watch:
    watch = stack.enter_context(Watch(daemon))
    watch.start()
    return watch


_TYPES: dict[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "string": str,
    "boolean": bool,
    "object": dict,
    "array of strings": list,
    "array of objects": list,
}


def _check_type(declared: str, value: object) -> None:
    kind, _, null = declared.partition(" or ")
    assert null in ("", "null")
    if value is None:
        assert null
        return
    assert isinstance(value, _TYPES[kind]), (declared, value)
    assert isinstance(value, bool) == (kind == "boolean")
    if isinstance(value, list):
        of = dict if kind == "array of objects" else str
        assert all(isinstance(element, of) for element in value)


def _check_status(report: dict[str, Any]) -> None:
    assert list(report) == list(STATUS)
    for name, field in STATUS.items():
        _check_type(field.type, report[name])
    assert report["version"] == 1
    assert report["state"] in STATES
    if report["last_conflict"] is not None:
        last = report["last_conflict"]
        assert set(last) == {"mac", "address", "at"}
        assert abs(last["at"] - time.time()) < 300


def _check_event(happened: dict[str, Any]) -> None:
    assert set(happened) <= set(EVENT)
    assert happened["event"] in EVENTS
    for name, value in happened.items():
        _check_type(EVENT[name].type, value)
    if happened["event"] == "status":
        _check_status(happened["status"])


# --- status ----------------------------------------------------------------------------------


def test_status_of_an_address(port: Port, daemon: Daemon) -> None:
    before = time.time()
    bind(port, daemon)
    ran = run(daemon, "status --json")
    assert (ran.status, ran.err) == (0, "")
    assert list(ran.json) == ["version", "interfaces"]
    [found] = ran.json["interfaces"]
    _check_status(found)
    assert before < found.pop("since") < time.time()
    assert isinstance(found.pop("limits"), list)
    assert found.pop("kernel_defence") in (None, {"answered": 0, "left": 0, "failed": 0})
    assert found.pop("notes") == []
    assert found == {
        "version": 1,
        "interface": "eth0",
        "index": port.host.index("eth0"),
        "mac": port.mac,
        "pid": daemon.pid,
        "state": "bound",
        "why": "2 announcements sent",
        "address": str(A),
        "candidate": str(A),
        "step": None,
        "step_in": None,
        "policy": "alongside",
        "defence": "defend",
        "delay": 50,
        "others": [],
        "neighbours": [],
        "routable": [],
        "conflicts": 0,
        "defences": 0,
        "last_conflict": None,
    }


def test_status_counts(port: Port, daemon: Daemon) -> None:
    """A defended conflict, a lost one, another address beside ours."""
    bind(port, daemon)
    port.host.ip("addr add 192.0.2.1/24 dev eth0")
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    port.sniffer.wait_announcement(A, since=since, timeout=PATIENCE)
    wait_until(lambda: report(daemon)["others"], "the other address in the status")
    # The kernel defends before the daemon knows.
    wait_until(lambda: report(daemon)["defences"], "the defence in the status")
    found = report(daemon)
    _check_status(found)
    assert (found["conflicts"], found["defences"]) == (1, 1)
    assert (found["last_conflict"]["mac"], found["last_conflict"]["address"]) == (RIVAL, str(A))
    assert found["others"] == ["192.0.2.1/24"]
    assert found["address"] == str(A)
    said = len(daemon.lines)
    port.send(frames.conflict_reply(NEIGHBOUR, A))
    daemon.wait_line(f"conflict: {NEIGHBOUR} claims", PATIENCE, since=said)
    wait_until(lambda: report(daemon)["state"] == "bound", "another address")
    found = report(daemon)
    assert (found["conflicts"], found["defences"]) == (2, 1)
    assert found["last_conflict"]["mac"] == NEIGHBOUR
    assert found["address"] not in (None, str(A))
    lines = run(daemon, "status").out.splitlines()
    assert re.fullmatch(
        rf"eth0 +bound +{found['address']} +\S+ \S+ +- +alongside +2, 1 defended +192.0.2.1/24",
        lines[1],
    )
    assert lines[0].index("OTHERS") == lines[1].index("192.0.2.1/24")
    assert any(RIVAL in line or NEIGHBOUR in line for line in lines[2:])


def test_status_without_an_address(port: Port, make_autoip: MakeDaemon) -> None:
    """1 while there is none yet: first no carrier, then probing, with what comes next."""
    port.carrier(False)
    daemon = make_autoip(port, "--delay", "8000")
    daemon.start()
    daemon.wait_line("no carrier")
    ran = run(daemon, "status --json eth0")
    assert ran.status == 1
    [found] = ran.json["interfaces"]
    _check_status(found)
    assert (found["state"], found["address"], found["step"]) == ("no-link", None, None)
    assert found["why"] == "waits: no carrier"
    port.carrier(True)
    port.sniffer.wait_probe(timeout=PATIENCE)
    ran = run(daemon, "status --json")
    assert ran.status == 1
    [found] = ran.json["interfaces"]
    _check_status(found)
    assert (found["state"], found["address"], found["since"]) == ("probing", None, None)
    assert IPv4Address(found["candidate"]).is_link_local
    assert re.fullmatch("probe [23]/3", found["step"])  # the third one, if this took 4 s
    assert 0 <= found["step_in"] <= 8
    text = run(daemon, "status").out
    assert re.search(rf"probing +\({found['candidate']}\) +- +probe [23]/3 in \d\.\d s", text)


# --- watch -----------------------------------------------------------------------------------


def test_watch_a_life(port: Port, daemon: Daemon, watch: Watch) -> None:
    """Started before the daemon: each transition, conflict, defence, address of others, the end."""
    bind(port, daemon)
    watch.wait_event("status")
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    port.sniffer.wait_announcement(A, since=since, timeout=PATIENCE)
    defence = watch.wait_event("defence")
    assert (defence["mac"], defence["address"], defence["reflex"]) == (RIVAL, str(A), True)
    assert 0 <= defence["delay"] < 10
    for verb, name in (("add", "address-added"), ("del", "address-removed")):
        port.host.ip(f"addr {verb} 192.0.2.1/24 dev eth0")
        event = watch.wait_event(name)
        assert (event["address"], event["prefixlen"]) == ("192.0.2.1", 24)
    count = len(watch.events())
    since = port.sniffer.mark()
    port.send(frames.conflict_reply(NEIGHBOUR, A))
    second = str(port.sniffer.wait_announcement(timeout=PATIENCE, since=since).spa)
    conflict = watch.wait_event("conflict")
    assert (conflict["mac"], conflict["address"], conflict["in_use"]) == (NEIGHBOUR, str(A), True)
    watch.wait_event("transition", since=count, new="bound", address=second)
    assert daemon.stop() == 0
    watch.wait_event("stopped")

    events = watch.events()
    assert {one["interface"] for one in events} == {"eth0"}
    assert [one["at"] for one in events] == sorted(one["at"] for one in events)
    steps = [(one["old"], one["new"]) for one in events if one["event"] == "transition"]
    first = events[0]["status"]["state"] if events[0]["event"] == "status" else "no-link"
    life = [
        *("no-link", "probing", "announce-wait", "configuring", "announcing", "bound"),
        *("probing", "announce-wait", "configuring", "announcing", "bound", "no-link"),
    ]
    expected = list(itertools.pairwise(life))
    # The watch looks for a daemon four times a second: it may come in the middle of the claim.
    assert steps == expected[life.index(first) :]
    names = [one["event"] for one in events]
    assert [names.count(n) for n in ("status", "conflict", "defence", "stopped")] == [1, 1, 1, 1]
    assert "lost" not in names
    assert [names.count(n) for n in ("address-added", "address-removed")] == [1, 1]


def test_watch_survives_a_restart(port: Port, daemon: Daemon, watch: Watch) -> None:
    """A crash is told as 'lost', an end as 'stopped'; the next daemon is found by itself."""
    claim(port, daemon)
    watch.wait_event("status")
    daemon.kill()
    watch.wait_event("lost")
    count = len(watch.events())
    daemon.start()
    watch.wait_event("status", since=count)
    daemon.wait_address(PATIENCE)
    count = len(watch.events())
    assert daemon.stop() == 0
    watch.wait_event("stopped")
    daemon.start()
    watch.wait_event("status", since=count)
    names = [one["event"] for one in watch.events()]
    assert [n for n in names if n in ("status", "lost", "stopped")] == [
        *("status", "lost", "status", "stopped", "status")
    ]
    assert watch.running
    watch.signal(signal.SIGINT)
    assert watch.wait() == 0


# --- stop, refresh, wait ---------------------------------------------------------------------


def test_stop_one_of_two_then_the_last(port: Port, make_autoip: MakeDaemon) -> None:
    other = port.switch.attach(port.host, "eth1")
    daemon = make_autoip(port, "eth1", "--delay", "50")
    bind(port, daemon)
    held = other.sniffer.wait_announcement(timeout=PATIENCE).spa
    assert run(daemon, "stop eth0") == Ran(0, "", "")
    assert port.host.link_local("eth0") == []
    assert port.host.link_local("eth1") == [held]
    assert daemon.running
    assert run(daemon, "stop eth0").status == 3
    names = [one["interface"] for one in run(daemon, "status --json").json["interfaces"]]
    assert names == ["eth1"]
    # The other one is defended as ever.
    since = other.sniffer.mark()
    other.send(frames.conflict_request(RIVAL, held))
    other.sniffer.wait_announcement(held, since=since, timeout=PATIENCE)
    # The first one is free for another process.
    second = make_autoip(port, "--delay", "50")
    second.env["RUNTIME_DIRECTORY"] = str(daemon.runtime)
    since = port.sniffer.mark()
    second.start()
    port.sniffer.wait_announcement(timeout=PATIENCE, since=since)
    assert run(daemon, "stop eth1") == Ran(0, "", "")
    assert daemon.wait() == 0
    assert port.host.link_local("eth1") == []
    assert len(port.host.link_local("eth0")) == 1
    assert second.stop() == 0
    assert list(daemon.runtime.iterdir()) == []


# --- who may ---------------------------------------------------------------------------------


def test_an_unprivileged_user_may_read_and_not_change(port: Port, daemon: Daemon) -> None:
    bind(port, daemon)
    since = port.sniffer.mark()
    assert run(daemon, "status eth0", prefix=AS_NOBODY).status == 0
    assert run(daemon, "wait eth0", prefix=AS_NOBODY).status == 0
    for order in ("refresh", "stop"):
        ran = run(daemon, f"{order} eth0", prefix=AS_NOBODY)
        assert ran.status == 4
        assert ran.err == "autoip: eth0: only root and the daemon's own user may do that\n"
    assert daemon.addresses() == [A]
    assert port.sniffer.arp(since) == []
    [path] = daemon.runtime.glob("*.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    [lock] = daemon.runtime.glob("*.lock")
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


# --- probe -----------------------------------------------------------------------------------


@pytest.fixture
def alone(port: Port, make_autoip: MakeDaemon) -> Daemon:
    """Never started: what `run` needs, and no daemon."""
    return make_autoip(port)


@pytest.mark.parametrize("address", ["169.254.9.9", "192.0.2.77", "10.0.0.1"])
def test_probe_free(address: str, port: Port, alone: Daemon) -> None:
    ran = run(alone, f"probe eth0 {address} --delay 50")
    assert ran == Ran(0, f"{address} is free on eth0\n", "")
    port.sniffer.wait_count(lambda f: f.is_probe, 3, PATIENCE)
    seen = port.sniffer.arp()
    assert [f.tpa for f in seen] == [IPv4Address(address)] * 3
    assert all(f.is_probe for f in seen)
    assert port.host.addresses("eth0") == []


@pytest.mark.parametrize("way", ["answer", "probe"])
def test_probe_in_use(way: str, port: Port, alone: Daemon) -> None:
    """Somebody says so, or wants it at the same time; the second probe, 2 s later, is not sent."""
    from lab import answers_probes, probes_too

    port.neighbour(answers_probes() if way == "answer" else probes_too(None), mac=RIVAL)
    ran = run(alone, "probe eth0 192.0.2.77 --delay 4000")
    assert ran == Ran(1, f"192.0.2.77 is in use on eth0 by {RIVAL}\n", "")
    port.sniffer.wait_probe(timeout=PATIENCE)
    assert len(port.sniffer.probes()) == 1


def test_probe_an_address_of_a_real_host(make_host: MakeHost, make_autoip: MakeDaemon) -> None:
    here, there = make_host(plugged=True), make_host(plugged=True)
    there.host.ip("addr add 192.0.2.77/24 dev eth0")
    alone = make_autoip(here)
    ran = run(alone, "probe eth0 192.0.2.77 --delay 200 --json")
    assert ran.status == 1
    assert list(ran.json) == list(PROBE)
    assert ran.json == {
        "version": 1,
        "interface": "eth0",
        "address": "192.0.2.77",
        "in_use": True,
        "mac": there.mac,
    }
    ran = run(alone, "probe eth0 192.0.2.78 --delay 50 --json")
    assert ran.status == 0
    assert (ran.json["in_use"], ran.json["mac"]) == (False, None)
    for found in (ran.json,):
        for name, field in PROBE.items():
            _check_type(field.type, found[name])


def test_probe_beside_a_daemon(port: Port, daemon: Daemon) -> None:
    bind(port, daemon)
    assert run(daemon, f"probe eth0 {B} --delay 50").status == 0
    assert daemon.addresses() == [A]
    assert report(daemon)["state"] == "bound"


def test_probe_where_nobody_can_be_asked(port: Port, alone: Daemon) -> None:
    """Not told as 'in use' and not as 'free'."""
    assert run(alone, "probe nowhere0 192.0.2.1").status == 2
    assert run(alone, "probe lo 192.0.2.1").status == 5
    port.carrier(False)
    wait_until(lambda: "NO-CARRIER" in port.host.ip("link show eth0"), "the loss of the carrier")
    ran = run(alone, "probe eth0 192.0.2.1 --delay 50")
    assert (ran.status, ran.out) == (6, "")
    port.carrier(True)
    port.down()
    assert run(alone, "probe eth0 192.0.2.1 --delay 50").status == 6
    ran = run(alone, "probe eth0 192.0.2.1", prefix=AS_NOBODY)
    assert ran.status in (4, 6)
    port.up()
    ran = run(alone, "probe eth0 192.0.2.1", prefix=AS_NOBODY)
    assert ran.status == 4
    assert "CAP_NET_RAW" in ran.err
    assert port.sniffer.arp() == []


def test_probe_while_the_link_goes_down(port: Port, alone: Daemon, stack: ExitStack) -> None:
    probing = Watch(alone)
    probing.command = [*autoip_command(), "probe", "eth0", "192.0.2.1", "--delay", "4000"]
    stack.enter_context(probing).start()
    port.sniffer.wait_probe(timeout=PATIENCE)
    port.down()
    assert probing.wait(PATIENCE) == 6
    [line] = probing.lines
    assert line.startswith("autoip: eth0: ")


def test_an_interrupted_probe_is_no_answer(port: Port, alone: Daemon, stack: ExitStack) -> None:
    probing = Watch(alone)
    probing.command = [*autoip_command(), "probe", "eth0", "192.0.2.1", "--delay", "4000"]
    stack.enter_context(probing).start()
    port.sniffer.wait_probe(timeout=PATIENCE)
    probing.signal(signal.SIGINT)
    assert probing.wait(PATIENCE) == 130
    assert probing.lines == []
