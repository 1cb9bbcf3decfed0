"""autoip.control.server and autoip.client: the socket's two sides, with clients that mean no good."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from autoip.commands import main, query
from autoip.control import client, server
from autoip.control.protocol import EVENT, EVENTS, STATUS, event, socket_name
from autoip.control.server import LINE_MAX, USER_MAX, WATCH_MAX, WRITE_MAX, Clients, Handler, Server
from autoip.errors import AutoipError, NoPermission, NotRunning
from autoip.paths import network_namespace

NAME = "eth0"
NAMESPACE = network_namespace()
PATIENCE = 30.0

REPORT: dict[str, Any] = {
    "version": 1,
    "interface": NAME,
    "index": 2,
    "mac": "02:00:00:00:00:01",
    "pid": 1,
    "state": "bound",
    "why": "2 announcements sent",
    "address": "169.254.7.7",
    "since": 1_700_000_000.5,
    "candidate": "169.254.7.7",
    "step": None,
    "step_in": None,
    "policy": "alongside",
    "defence": "defend",
    "delay": 2000,
    "others": ["192.0.2.1/24"],
    "routable": ["192.0.2.1/24"],
    "conflicts": 3,
    "defences": 2,
    "last_conflict": {"mac": "02:00:00:00:00:aa", "address": "169.254.7.7", "at": 1_700_000_001.0},
    "kernel_defence": {"answered": 4, "left": 2, "failed": 1},
    "limits": ["no rules"],
    "notes": ["proxy ARP"],
    "neighbours": [],
}


class Daemon:
    """A server in a thread of its own, with an interface that only counts."""

    def __init__(self, directory: Path, name: str = NAME) -> None:
        self.path = directory / socket_name(NAMESPACE, name)
        self.report = {**REPORT, "interface": name}
        self.did: list[str] = []
        self.clients = Clients()
        self.loop = asyncio.new_event_loop()
        self.server = Server(
            self.path,
            Handler(self._status, self._refresh, self._failed, self._reload, self._stop),
            self.clients,
        )
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.open(), self.loop).result(PATIENCE)

    def _status(self) -> dict[str, Any]:
        self.did.append("status")
        return self.report

    def _refresh(self) -> None:
        self.did.append("refresh")

    def _failed(self) -> None:
        self.did.append("dhcp-failed")

    async def _reload(self) -> str:
        await asyncio.sleep(0)
        self.did.append("reload")
        return "no reload here"

    async def _stop(self) -> None:
        await asyncio.sleep(0)
        self.did.append("stop")

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run something in the server's thread."""

        async def run() -> Any:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE)

    def publish(self, name: str, **fields: Any) -> None:
        self.call(self.server.publish, event(name, self.report["interface"], time.time(), **fields))

    def count(self) -> int:
        return int(self.call(lambda: sum(map(len, self.clients.by_user.values()))))

    def watchers(self) -> int:
        return int(self.call(lambda: len(self.server.watchers)))

    def close(self) -> None:
        if not self.loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(PATIENCE)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(PATIENCE)
            self.loop.close()

    async def _close(self) -> None:
        """All that was accepted, and all its sockets."""
        # asyncio leaves a transport behind that it makes after the end of its server.
        for _ in range(20):
            await asyncio.sleep(0)
        await self.server.close()
        for _ in range(20):
            for those in list(self.clients.by_user.values()):
                for one in list(those):
                    one.drop()
            await asyncio.sleep(0)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(daemon: Daemon, stack: ExitStack | None = None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if stack is not None:
        stack.enter_context(closing(sock))
    # With a time-out of Python's own it would fail at once while the backlog is full.
    sock.connect(str(daemon.path))
    sock.settimeout(PATIENCE)
    return sock


def everything(sock: socket.socket) -> bytes:
    """Until the other side closes."""
    data = b""
    with suppress(ConnectionError):
        while part := sock.recv(65536):
            data += part
    return data


def wait_for(true: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def served(daemon: Daemon) -> None:
    """Somebody else gets an answer."""
    answer = client.ask(str(daemon.path.parent), NAME, "status")
    assert answer == {"version": 1, "ok": True, "status": daemon.report}


# --- what is asked and answered --------------------------------------------------------------


def test_one_line_in_one_line_out(daemon: Daemon, stack: ExitStack) -> None:
    sock = connect(daemon, stack)
    for byte in b'{"version":1,"request":"status"}\n':
        sock.sendall(bytes([byte]))
    lines = everything(sock).splitlines()
    assert [json.loads(line) for line in lines] == [{"version": 1, "ok": True, "status": REPORT}]


def test_one_request_a_connection(daemon: Daemon, stack: ExitStack) -> None:
    sock = connect(daemon, stack)
    sock.sendall(b'{"request":"status"}\n{"request":"stop"}\n{"request":"refresh"}\n')
    assert len(everything(sock).splitlines()) == 1
    assert daemon.did == ["status"]


def test_orders(daemon: Daemon) -> None:
    directory = str(daemon.path.parent)
    assert client.ask(directory, NAME, "refresh") == {"version": 1, "ok": True}
    assert client.ask(directory, NAME, "stop") == {"version": 1, "ok": True}
    assert client.ask(directory, NAME, "dhcp-failed") == {"version": 1, "ok": True}
    assert daemon.did == ["refresh", "stop", "dhcp-failed"]


def test_others_may_read_and_not_change(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = str(daemon.path.parent)
    stranger = os.geteuid() + 1
    monkeypatch.setattr(server, "_user", lambda _: stranger)
    served(daemon)
    for request in ("refresh", "dhcp-failed", "stop"):
        with pytest.raises(NoPermission, match="only root"):
            client.ask(directory, NAME, request)
    assert daemon.did == ["status"]
    monkeypatch.setattr(server, "_user", lambda _: 0)
    client.ask(directory, NAME, "refresh")
    assert daemon.did == ["status", "refresh"]


def test_the_kernel_tells_who_asks() -> None:
    here, there = socket.socketpair()
    with here, there:
        assert server._user(here) == os.geteuid()


def test_who_asked_for_the_end_may_go(daemon: Daemon) -> None:
    with closing(connect(daemon)) as sock:
        sock.sendall(b'{"request":"stop"}\n')
    wait_for(lambda: daemon.did == ["stop"])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"status",
        b"null",
        b"[]",
        b'"status"',
        b'{"request":null}',
        b'{"request":["status"]}',
        b'{"request":"STATUS"}',
        b'{"request":"status\\u0000"}',
        b'{"version":1}',
        b"\xff\xfe\x00",
        b"\x00" * 100,
        b"[" * 4000,
        b'{"a":' * 800,
        b"9" * 4096,
        b"NaN",
        bytes(range(256)).replace(b"\n", b"") * 4,
    ],
    ids=lambda line: repr(line[:12]),
)
def test_garbage(line: bytes, daemon: Daemon, stack: ExitStack) -> None:
    sock = connect(daemon, stack)
    sock.sendall(line + b"\n")
    answer = json.loads(everything(sock))
    assert answer["ok"] is False
    assert answer["error"] == "not a request: status, watch, refresh, dhcp-failed, reload or stop"
    served(daemon)
    assert daemon.did == ["status"]


# --- clients that cost something -------------------------------------------------------------


def test_longest_line(daemon: Daemon, stack: ExitStack) -> None:
    text = b'{"request":"status"}'
    sock = connect(daemon, stack)
    sock.sendall(text.ljust(LINE_MAX) + b"\n")
    assert json.loads(everything(sock))["ok"] is True
    sock = connect(daemon, stack)
    sock.sendall(text.ljust(LINE_MAX + 1) + b"\n")
    assert json.loads(everything(sock))["error"] == f"a request has at most {LINE_MAX} bytes"


def test_ten_megabytes_without_a_newline(daemon: Daemon, stack: ExitStack) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sock = connect(daemon, stack)
    part = b"x" * 65536
    sent = 0
    with suppress(ConnectionError):
        while sent < 10_000_000:
            sent += sock.send(part)
    assert sent < 10_000_000, "cut off long before the end"
    wait_for(lambda: daemon.count() == 0)
    served(daemon)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5_000  # KiB


def test_a_thousand_connections(daemon: Daemon, stack: ExitStack) -> None:
    """A user's new connection takes the place of the oldest one; it does not take memory."""
    socks = [connect(daemon, stack) for _ in range(300)]
    for _ in range(700):
        socks.append(connect(daemon, stack))
        # No more descriptors than a test may have.
        socks.pop(0).close()
    wait_for(lambda: daemon.count() <= USER_MAX)
    served(daemon)
    assert daemon.count() <= USER_MAX


def test_other_users_keep_their_connections(
    daemon: Daemon, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds are for each user: a flood pushes out nobody else."""
    monkeypatch.setattr(server, "_user", lambda _: 1001)
    quiet = connect(daemon, stack)
    wait_for(lambda: daemon.count() == 1)
    monkeypatch.setattr(server, "_user", lambda _: 1002)
    for _ in range(2 * USER_MAX):
        connect(daemon, stack)
    wait_for(lambda: daemon.count() == 1 + USER_MAX)
    quiet.sendall(b'{"request":"status"}\n')
    assert json.loads(everything(quiet))["ok"] is True


def test_watchers_are_not_pushed_out(daemon: Daemon, stack: ExitStack) -> None:
    watchers = []
    for _ in range(WATCH_MAX):
        sock = connect(daemon, stack)
        sock.sendall(b'{"request":"watch"}\n')
        assert json.loads(sock.makefile().readline())["ok"] is True
        watchers.append(sock)
    extra = connect(daemon, stack)
    extra.sendall(b'{"request":"watch"}\n')
    assert json.loads(everything(extra))["error"] == "this user has too many watchers"
    for _ in range(2 * USER_MAX):
        connect(daemon, stack)
    served(daemon)
    daemon.publish("stopped")
    for sock in watchers:
        assert json.loads(sock.makefile().readline())["event"] == "stopped"
    assert daemon.watchers() == WATCH_MAX


def test_a_request_that_never_ends(
    daemon: Daemon, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_TIME", 0.2)
    silent, half, watching = (connect(daemon, stack) for _ in range(3))
    half.sendall(b'{"request":')
    watching.sendall(b'{"request":"watch"}\n')
    assert everything(silent) == everything(half) == b""
    assert daemon.count() == 1, "who watches is not in a hurry"


def test_a_watcher_that_does_not_read(daemon: Daemon, stack: ExitStack) -> None:
    """Cut off when WRITE_MAX bytes wait; the others get everything."""
    slow, good = connect(daemon, stack), connect(daemon, stack)
    for sock in (slow, good):
        sock.sendall(b'{"request":"watch"}\n')
    wait_for(lambda: daemon.watchers() == 2)
    reader = good.makefile()
    reader.readline()
    number = 0
    while daemon.watchers() == 2:
        daemon.publish("address-added", address="x" * 1000, prefixlen=number)
        assert json.loads(reader.readline())["prefixlen"] == number
        number += 1
        assert number * 1000 < 10 * (WRITE_MAX + 1_000_000)
    daemon.publish("stopped")
    assert json.loads(reader.readline())["event"] == "stopped"
    assert daemon.count() == 1
    assert b"stopped" not in everything(slow)


# --- the name of the socket ------------------------------------------------------------------


def test_everyone_may_connect(daemon: Daemon) -> None:
    assert daemon.path.stat().st_mode & 0o777 == 0o666
    assert os.listdir(daemon.path.parent) == [daemon.path.name]


def test_the_socket_of_a_crash_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / socket_name(NAMESPACE, NAME)
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(path))
    dead.close()
    with pytest.raises(NotRunning):
        client.ask(str(tmp_path), NAME, "status")
    (tmp_path / f".{path.name}").touch()  # a crash between bind and rename
    daemon = Daemon(tmp_path)
    try:
        served(daemon)
    finally:
        daemon.close()
    assert os.listdir(tmp_path) == []


def test_closing_answers_first(daemon: Daemon, stack: ExitStack) -> None:
    watching = connect(daemon, stack)
    watching.sendall(b'{"request":"watch"}\n')
    wait_for(lambda: daemon.watchers() == 1)
    daemon.publish("stopped")
    asyncio.run_coroutine_threadsafe(daemon.server.close(), daemon.loop).result(PATIENCE)
    assert json.loads(everything(watching).splitlines()[-1])["event"] == "stopped"
    assert not daemon.path.exists()


def test_a_run_time_directory_with_too_long_a_name(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    with pytest.raises(AutoipError, match="too long"):
        client.ask(str(directory), NAME, "status")


def test_a_full_backlog_is_waited_for(daemon: Daemon, stack: ExitStack) -> None:
    """A daemon that is busy for a moment, and many that want to talk to it."""
    free = threading.Event()
    daemon.loop.call_soon_threadsafe(free.wait)
    for _ in range(64):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.enter_context(closing(sock))
        sock.setblocking(False)
        try:
            sock.connect(str(daemon.path))
        except BlockingIOError:
            break
    else:
        pytest.fail("the backlog is never full")
    threading.Timer(0.3, free.set).start()
    served(daemon)


# --- what the asking side makes of it --------------------------------------------------------


def run(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> tuple[int, str, str]:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(daemon.path.parent))
    status = main.main(line.split())
    return status, *capsys.readouterr()


def test_status(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = run(daemon, capsys, monkeypatch, "status --json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {"version": 1, "interfaces": [REPORT]}
    status, out, err = run(daemon, capsys, monkeypatch, "status eth0")
    assert (status, err) == (0, "")
    head, row, *notes = out.splitlines()
    assert head.split()[:4] == ["INTERFACE", "STATE", "ADDRESS", "SINCE"]
    assert row.startswith("eth0       bound  169.254.7.7  2023-11-1")
    assert row.endswith("-     alongside  3, 2 defended  192.0.2.1/24")
    assert notes[0] == "eth0: bound: 2 announcements sent"
    assert notes[1].startswith(
        "eth0: last conflict: 02:00:00:00:00:aa about 169.254.7.7, 2023-11-1"
    )
    counts = "eth0: conflicts in the kernel: 4 answered, 2 left to the daemon, 1 failed"
    assert notes[2:] == [counts, "eth0: proxy ARP", "eth0: no rules"]


@pytest.mark.parametrize(
    ("line", "address", "expected"),
    [
        ("status", "169.254.7.7", 0),
        ("status", None, 1),
        ("status eth0", None, 1),
        ("status eth0 eth9", "169.254.7.7", 3),
        ("status eth0 eth9", None, 3),
        ("status eth9", "169.254.7.7", 3),
        ("wait eth0", "169.254.7.7", 0),
        ("wait eth0 --timeout 0", "169.254.7.7", 0),
        ("wait eth0 --timeout 0", None, 1),
        ("wait eth0 --timeout 0.1", None, 1),
        ("wait eth9 --timeout 0", "169.254.7.7", 3),
        ("wait eth9 --timeout 0.3", "169.254.7.7", 3),
        ("refresh eth0", None, 0),
        ("refresh --if-waiting eth0", None, 0),
        ("refresh eth9", None, 3),
        ("stop eth0", None, 0),
        ("stop eth9", None, 3),
        ("wait", None, 2),
        ("wait eth0 --timeout -1", None, 2),
        ("wait eth0 --timeout nan", None, 2),
        ("wait eth0 --timeout x", None, 2),
        ("wait eth0 --timeout 86401", None, 2),
        ("stop", None, 2),
        ("status a/b", None, 2),
        ("watch --nonsense", None, 2),
    ],
)
def test_exit_status(
    line: str,
    address: str | None,
    expected: int,
    daemon: Daemon,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon.report["address"] = address
    status, _, err = run(daemon, capsys, monkeypatch, line)
    assert status == expected
    # One line about what went wrong; what a table or a status says already is not said again.
    assert err.count("\n") == (expected > 1 and not line.startswith("status eth"))


@pytest.mark.parametrize(
    ("option", "pretty"),
    [("--json", 1), ("-j", 1), ("--json=pretty", 1), ("--json=short", 0), ("-jshort", 0)],
)
def test_styles_of_json(
    option: str,
    pretty: bool,
    daemon: Daemon,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, out, _ = run(daemon, capsys, monkeypatch, f"status {option} eth0")
    assert status == 0
    assert json.loads(out) == {"version": 1, "interfaces": [REPORT]}
    assert (out.count("\n") > 1) == pretty


@pytest.fixture
def several(tmp_path: Path) -> Iterator[dict[str, Daemon]]:
    """Two interfaces with a daemon: usb0 has an address, usb1 has none yet, but a routable one."""
    with ExitStack() as stack:
        found = {}
        for name in ("usb0", "usb1"):
            found[name] = Daemon(tmp_path, name)
            stack.callback(found[name].close)
        found["usb0"].report |= {"others": [], "routable": []}
        found["usb1"].report |= {"address": None}
        yield found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("wait usb0", 0),
        ("wait usb0 --for link-local", 0),
        ("wait usb0 --for routable --timeout 0", 1),
        ("wait usb1 --for routable", 0),
        ("wait usb1 --timeout 0", 1),
        ("wait usb1 --for any", 0),
        ("wait usb0 usb1 --timeout 0", 1),
        ("wait usb0 usb1 --any", 0),
        ("wait usb0 usb1 --for any", 0),
        ("wait usb* --timeout 0", 1),
        ("wait usb* --any", 0),
        ("wait usb* --for any", 0),
        ("wait usb[0]", 0),
        ("wait usb0 usb7 --timeout 0", 3),
        ("wait usb0 usb7 --any", 0),
        ("wait usb1 usb7 --any --timeout 0", 1),
        ("wait eth* --timeout 0", 3),
        ("wait usb0 eth* --timeout 0", 3),
        ("status usb?", 1),
        ("status usb0 usb[!1]", 0),
        ("status usb0 eth*", 3),
    ],
)
def test_patterns_and_kinds_of_address(
    line: str,
    expected: int,
    several: dict[str, Daemon],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if line.startswith("wait") and expected == 0:
        line += " --timeout 20"  # never waited out, unless this fails
    assert run(several["usb0"], capsys, monkeypatch, line)[0] == expected


def test_a_pattern_of_status(
    several: dict[str, Daemon], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interfaces that are served, each once."""
    _, out, _ = run(several["usb0"], capsys, monkeypatch, "status usb* usb0 us* --json")
    assert [one["interface"] for one in json.loads(out)["interfaces"]] == ["usb0", "usb1"]


def waiting(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "autoip", *words]
    env = {**os.environ, "RUNTIME_DIRECTORY": str(folder)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True)


def test_wait_until_all_of_a_pattern_have_a_routable_address(several: dict[str, Daemon]) -> None:
    late = several["usb0"]
    with waiting(late.path.parent, "wait", "usb*", "--for", "routable") as child:
        wait_for(late.watchers)
        late.publish("transition", old="probing", new="bound")
        wait_for(lambda: late.did.count("status") >= 3)  # at first, when it watches, and now
        assert child.poll() is None
        late.report |= {"routable": ["192.0.2.7/24"]}
        late.publish("address-added", address="192.0.2.7", prefixlen=24)
        assert child.wait(PATIENCE) == 0


def test_watch_of_a_pattern_finds_who_comes_later(several: dict[str, Daemon]) -> None:
    folder = several["usb0"].path.parent
    with waiting(folder, "watch", "-j", "usb*") as child:
        assert child.stdout is not None
        first = {json.loads(child.stdout.readline())["interface"] for _ in range(2)}
        assert first == {"usb0", "usb1"}
        others = [Daemon(folder, "eth0"), Daemon(folder, "usb2")]
        try:
            assert select.select([child.stdout], [], [], PATIENCE)[0]
            assert json.loads(child.stdout.readline())["interface"] == "usb2"
        finally:
            child.terminate()
            for other in others:
                other.close()


def test_running(several: dict[str, Daemon], tmp_path: Path) -> None:
    """A socket that a crash has left does not count."""
    assert query.running({"RUNTIME_DIRECTORY": str(tmp_path)})
    for daemon in several.values():
        daemon.close()
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(tmp_path / socket_name(NAMESPACE, NAME)))
    dead.close()
    assert client.served(str(tmp_path)) == [NAME]
    assert not query.running({"RUNTIME_DIRECTORY": str(tmp_path)})


def test_status_of_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "none"))
    assert main.main(["status"]) == 3
    assert capsys.readouterr() == ("", "autoip: no autoip runs in this network namespace\n")
    assert main.main(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"version": 1, "interfaces": []}


def test_other_namespaces_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / socket_name(NAMESPACE + 1, "eth0")).touch()
    (tmp_path / socket_name(NAMESPACE, "eth1")).touch()
    (tmp_path / f"{NAMESPACE}-eth2.lock").touch()
    assert client.served(str(tmp_path)) == ["eth1"]


@pytest.mark.parametrize(
    "answer", [b"", b"\n", b"garbage\n", b"[]\n", b"x" * 3_000_000, b'{"ok":', b"\xff\n"]
)
def test_a_daemon_that_is_none(answer: bytes, tmp_path: Path) -> None:
    """The asking side believes nothing either."""
    path = tmp_path / socket_name(NAMESPACE, NAME)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(8)

        def speak() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock, suppress(OSError):
                        sock.sendall(answer)

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        with pytest.raises(NotRunning):
            client.ask(str(tmp_path), NAME, "status")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)


def test_readable_lines_of_all_events() -> None:
    fields: dict[str, dict[str, Any]] = {
        "status": {"status": REPORT},
        "transition": {
            "old": "probing",
            "new": "bound",
            "why": "so",
            "address": "169.254.7.7",
            "step": None,
            "step_in": None,
        },
        "conflict": {"mac": "m", "address": "a", "in_use": True},
        "defence": {"mac": "m", "address": "a", "delay": 0.0001, "reflex": True},
        "address-added": {"address": "192.0.2.1", "prefixlen": 24},
        "address-removed": {"address": "192.0.2.1", "prefixlen": 24},
        "stopped": {},
        "lost": {},
    }
    assert set(fields) == set(EVENTS)
    told = []
    for name, values in fields.items():
        made = event(name, "eth0", 0.0, **values)
        assert set(made) <= set(EVENT)
        line = query._line(made)
        assert "{" not in line
        told.append(line.partition(" eth0: ")[2])
    assert told == [
        "bound 169.254.7.7",
        "probing -> bound: so; 169.254.7.7",
        "conflict: m about a; given up",
        "defended a against m after 0.10 ms",
        "192.0.2.1/24 came",
        "192.0.2.1/24 went",
        "stopped",
        "the daemon is gone; waiting for it",
    ]


def _neighbour(number: int, **changes: Any) -> dict[str, Any]:
    return {"address": f"169.254.9.{number}", "mac": f"m{number}", "ambiguous": None, **changes}


def test_status_lists_neighbours() -> None:
    few = query._table([{**REPORT, "neighbours": [_neighbour(1), _neighbour(2, mac=None)]}])
    assert few[-1] == "eth0: neighbours: 169.254.9.1 m1, 169.254.9.2 ?"
    many = query._table([{**REPORT, "neighbours": [_neighbour(n) for n in range(10)]}])
    assert many[-1].endswith("169.254.9.7 m7, 2 more")
    assert "neighbours" not in query._table([REPORT])[-1]


def test_route() -> None:
    first = {**REPORT, "address": "169.254.7.7", "neighbours": [_neighbour(1)]}
    other = {"interface": "eth0", "mac": "m9"}
    second = {**REPORT, "interface": "eth1", "address": "169.254.8.8", "routable": []}
    second |= {"neighbours": [_neighbour(2, ambiguous=other), _neighbour(3, mac=None)]}
    both = [first, second]
    for address, source, reports, expected in (
        ("169.254.9.1", None, both, "not reached"),
        ("169.254.7.7", "169.254.7.7", both, "this host itself"),
        (
            "169.254.9.1",
            "10.0.0.1",
            both,
            "from 10.0.0.1, which is not by an interface that autoip",
        ),
        ("169.254.9.1", "169.254.7.7", both, "by eth0 from 169.254.7.7: m1 on eth0 has it"),
        ("169.254.9.1", "192.0.2.1", both, "by eth0 from 192.0.2.1: m1 on eth0 has it"),
        (
            "169.254.9.2",
            "169.254.8.8",
            both,
            "by eth1 from 169.254.8.8: m2 on eth1 has it; ambiguous",
        ),
        (
            "169.254.9.3",
            "169.254.8.8",
            both,
            "by eth1 from 169.254.8.8: a host that has sent nothing",
        ),
        ("169.254.9.4", "169.254.7.7", both, "by eth0 from 169.254.7.7: not known yet"),
        ("169.254.9.4", "169.254.7.7", [first], "by eth0 from 169.254.7.7: no other interface"),
    ):
        line = query._route(address, source, reports)
        assert line.startswith(expected)
        assert ("m9 on eth0" in line) == (address == "169.254.9.2")


@pytest.mark.parametrize("address", ["192.0.2.1", "169.254.1", "x", "169.254.1.1.1", "eth0", ""])
def test_route_to_what_is_not_link_local(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["route", address]) == 2
    assert "not an IPv4 address in 169.254.0.0/16" in capsys.readouterr().err


def test_route_without_a_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert main.main(["route", "169.254.7.7"]) == 3
    assert "no autoip runs" in capsys.readouterr().err


def test_the_example_here_is_complete() -> None:
    assert set(REPORT) == set(STATUS)


@pytest.mark.parametrize("command", ["status", "watch", "wait", "refresh", "stop", "route"])
def test_asking_commands_start_light(command: str, tmp_path: Path) -> None:
    """No pyroute2, no asyncio, no compiled helper; nor what takes long to import."""
    arguments = {"status": [], "watch": ["--help"], "wait": ["x", "--timeout", "0"]}
    arguments["route"] = ["169.254.7.7"]
    words = [command, *arguments.get(command, ["x"])]
    # An editable installation has a finder of its own, which Python loads before us.
    _, before = imported(tmp_path, "-c", "pass")
    status, names = imported(tmp_path, "-m", "autoip", *words)
    assert status == (0 if command == "watch" else 3)
    assert "autoip.commands.query" in names
    heavy = {"pyroute2", "asyncio", "dataclasses", "ipaddress", "pathlib", "logging", "shutil"}
    heavy |= {
        "autoip.kernel._native",
        "autoip.kernel.rtnetlink",
        "autoip.kernel.network",
        "autoip.daemon.daemon",
        "autoip.core.constants",
        "typing",
    }
    if command == "watch":  # argparse uses it for help
        heavy -= {"shutil"}
    assert not (names - before) & heavy


def imported(runtime: Path, *words: str) -> tuple[int, set[str]]:
    """The exit status of a Python program, and the modules that it imported."""
    found = subprocess.run(
        [sys.executable, "-X", "importtime", *words],
        env={**os.environ, "RUNTIME_DIRECTORY": str(runtime)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
        timeout=60,
    )
    lines = [line for line in found.stderr.splitlines() if line.startswith("import time:")]
    return found.returncode, {line.rpartition("|")[2].strip() for line in lines}
