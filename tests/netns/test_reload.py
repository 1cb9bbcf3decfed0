"""A reload keeps the address, the process and the connections, and nothing that comes meanwhile is lost."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Daemon, LabError, Namespace, Port, frames, tcx
from lab.daemon import REPOSITORY
from lab.traffic import Traffic

from .commands import report
from .conftest import MakeDaemon, MakeHost
from .helpers import (
    NETNS,
    NO_TCX,
    PATIENCE,
    RIVAL,
    A,
    B,
    bind,
    claimed_other,
    configuration,
    for_every_user,
    python_for_all,
    wait_until,
)

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))


@pytest.fixture(autouse=True)
def _for_every_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for_every_user(monkeypatch)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Unlike pytest's own, one that the daemon's user may enter."""
    with tempfile.TemporaryDirectory(prefix="autoip-test-") as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


def reload(daemon: Daemon) -> None:
    """By the control socket: returns when the new program serves."""
    assert daemon.request("reload") == {"version": 1, "ok": True}


def in_between(daemon: Daemon) -> bool:
    """Whether nobody reads the packet sockets: the thread that does has ended, or is not there yet."""
    tasks = Path(f"/proc/{daemon.pid}/task")
    names = []
    for task in tasks.iterdir():
        with contextlib.suppress(OSError):
            names.append((task / "comm").read_text())
    return "autoip-arp\n" not in names


@contextlib.contextmanager
def reloading(daemon: Daemon) -> Iterator[None]:
    """Hold the process where nobody reads the packet sockets; let the reload end afterwards.

    A process that cannot be stopped in time has reloaded, which harms nothing, and reloads once more.
    """
    for _ in range(50):
        said = len(daemon.lines)
        daemon.signal(signal.SIGHUP)
        with contextlib.suppress(LabError):  # the reload was over before anyone looked
            wait_until(lambda: in_between(daemon), "the exec", 10, pause=0.001)
        daemon.signal(signal.SIGSTOP)
        wait_until(lambda: stopped(daemon), "the stop")
        if held := in_between(daemon):
            yield
        daemon.signal(signal.SIGCONT)
        daemon.wait_line("reloaded", since=said)
        if held:
            return
    raise LabError("the process was never stopped in time")


def stopped(daemon: Daemon) -> bool:
    """Whether each thread of the process is stopped."""
    states = []
    for task in Path(f"/proc/{daemon.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
    return {*states} == {"T"}


def kept(host: Namespace) -> list[str]:
    """All that autoip has configured; what the kernel learns of neighbours comes and goes."""
    texts = configuration(host)
    del texts[4]  # ip neigh
    return texts


def test_the_kernel_defends_meanwhile(port: Port, make_autoip: MakeDaemon) -> None:
    """A conflict is answered while no program runs that could; the one that goes on counts it."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    if any("does not defend" in limit for limit in report(daemon)["limits"]):
        pytest.skip(NO_TCX)
    reload(daemon)  # what is handed over twice is tried, too
    since = port.sniffer.mark()
    with reloading(daemon):
        port.send(frames.conflict_request(RIVAL, A))
        port.sniffer.wait_announcement(A, PATIENCE, since=since)
    # By no command, whose start takes time: the next conflict must come within DEFEND_INTERVAL.
    wait_until(lambda: daemon.request("status")["status"]["defences"] == 1, "the report of it")
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    claimed_other(port, A, since=since)
    assert not port.sniffer.announcements(A, since=since)
    index = port.host.index(port.name)
    tcx.detach(daemon.pid, index, tcx.INGRESS)
    reload(daemon)  # finds that, without being asked for the status
    wait_until(lambda: tcx.links(daemon.pid, index, tcx.INGRESS), "the program at the interface")
    assert report(daemon)["kernel_defence"] == {"answered": 1, "left": 1, "failed": 0}


@pytest.mark.parametrize(("by", "reloads"), [("tcx", 50), ("clsact", 10)], indirect=["by"])
def test_many_reloads(
    make_host: MakeHost, make_by: MakeDaemon, by: str, stack: contextlib.ExitStack, reloads: int
) -> None:
    """Under a TCP session, and a conflict in one of ten while nobody reads the sockets."""
    port, other, third = (make_host(plugged=True) for _ in range(3))
    other.host.ip(f"addr add {B}/16 dev {other.name}")
    daemon = make_by(port, *FAST)
    bind(port, daemon)
    before = kept(port.host)
    links = tcx.links(daemon.pid, port.host.index(port.name))
    assert len(links) == (by == "tcx")
    # Where the packets of the session do not come.
    pid, since = daemon.pid, third.sniffer.mark()
    listener = port.host.call(socket.create_server, (str(A), 7000))
    client = other.host.call(socket.create_connection, (str(A), 7000), PATIENCE)
    traffic = Traffic(listener, client)
    stack.callback(traffic.stop)
    last = 0.0
    for number in range(reloads):
        if number % 10 == 5:
            time.sleep(max(0.0, last + 10.5 - time.monotonic()))  # DEFEND_INTERVAL
            said = len(daemon.lines)
            with reloading(daemon):
                port.send(frames.conflict_request(RIVAL, A))
            daemon.wait_line("defended by the reflex", since=said)
            last = time.monotonic()
        else:
            reload(daemon)
    traffic.stop()
    assert traffic.got == list(range(traffic.sent)) and traffic.sent > 20 * reloads
    assert (daemon.pid, daemon.addresses()) == (pid, [A])
    seen = [f for f in third.sniffer.arp(since, from_host=False) if f.sha == port.mac]
    assert len([f for f in seen if f.is_announcement]) == reloads // 10  # each once
    assert not any(f.is_probe for f in seen)
    status = daemon.request("status")["status"]
    assert (status["conflicts"], status["defences"]) == (reloads // 10, reloads // 10)
    assert kept(port.host) == before
    assert tcx.links(daemon.pid, port.host.index(port.name)) == links
    assert daemon.output.count("claimed") == 1
    assert daemon.stop() == 0
    assert daemon.addresses() == []


def test_openssl_is_not_loaded(port: Port, make_autoip: MakeDaemon) -> None:
    """asyncio would load it, with 4 MB of memory: not at the start, and not in a program that goes on for another."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    for _ in range(2):
        mapped = Path(f"/proc/{daemon.pid}/maps").read_text()
        assert "libpython" in mapped or "python3" in mapped
        assert "libssl" not in mapped and "libcrypto" not in mapped
        reload(daemon)


def test_second_conflict_meanwhile(port: Port, make_by: MakeDaemon) -> None:
    """The first is defended, the second, within 10 s, ends it: as without a reload."""
    daemon = make_by(port, *FAST)
    bind(port, daemon)
    since = port.sniffer.mark()
    with reloading(daemon):
        for _ in range(2):
            port.send(frames.conflict_request(RIVAL, A))
    daemon.wait_line("bound -> probing: conflict")
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    assert len(port.sniffer.announcements(A, since)) == 1


def test_broken_configuration(port: Port, make_autoip: MakeDaemon, tmp_path: Path) -> None:
    """Refused with file and line; a right one counts, without a probe."""
    file = tmp_path / "autoip.conf"
    file.write_text("[*]\nabandon = no\n")
    daemon = make_autoip(port, *FAST, "--config", str(file))
    bind(port, daemon)
    since = port.sniffer.mark()
    file.write_text("[*]\nabandon = no\npolicy = sometimes\n")
    with pytest.raises(LabError, match=re.escape(f"{file}:3: policy")):
        daemon.request("reload")
    said = f"reload refused, all goes on as before: {file}:3: policy"
    assert daemon.wait_line(re.escape(said))
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: daemon.output.count(said) == 2, "the second refusal")
    port.send(frames.conflict_request(RIVAL, A))
    daemon.wait_line("defended by the reflex")
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    file.write_text("[*]\nabandon = yes\n")
    reload(daemon)
    assert daemon.request("status")["status"]["defence"] == "abandon"
    assert len(port.sniffer.announcements(A, since)) == 1
    assert port.sniffer.probes(A, since) == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the program's folder, that a test may change."""
    made = tmp_path / "autoip"
    shutil.copytree(REPOSITORY / "autoip", made, ignore=shutil.ignore_patterns("__pycache__"))
    return made


@pytest.fixture
def copied(port: Port, stack: contextlib.ExitStack, copy: Path) -> Daemon:
    """The program of that folder; not started."""
    start = ["sh", "-c", f'cd {copy.parent} && exec "$@"', "sh"]
    command = [*start, *python_for_all(), "-m", "autoip", "run", port.name]
    environ = {"PYTHONDONTWRITEBYTECODE": "1"}
    return stack.enter_context(Daemon(port.host, port.name, command, env=environ))


def test_nothing_can_be_read(port: Port, copy: Path, copied: Daemon) -> None:
    """As after a crash: the record in the lock file has the address, which is taken off and probed first."""
    file = copy / "daemon" / "handover.py"
    file.write_text(file.read_text().replace("return json.dumps(", "return b'?' or json.dumps("))
    bind(port, copied, *FAST)
    pid, since = copied.pid, port.sniffer.mark()
    copied.signal(signal.SIGHUP)
    copied.wait_line("what was handed over cannot be read")
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    assert len(port.sniffer.probes(A, since)) == 3
    assert copied.pid == pid and copied.running
    assert f"takes over {A} from an instance that died" in copied.output
    assert copied.stop() == 0
    assert copied.addresses() == []


def test_new_version(port: Port, copy: Path, copied: Daemon) -> None:
    """The program from the file, as it is then; one that does not start, or is too old, is refused."""
    daemon = copied
    bind(port, daemon, *FAST)
    since, version = port.sniffer.mark(), copy / "__init__.py"
    right = version.read_text()
    version.write_text("this is no Python")
    with pytest.raises(LabError, match="SyntaxError"):
        daemon.request("reload")
    version.write_text(right)
    main = copy / "commands" / "dry_run.py"
    new = main.read_text()
    main.write_text(new.replace("write(executable.READABLE)", "pass"))
    with pytest.raises(LabError, match="not a program for that"):
        daemon.request("reload")
    main.write_text(new)
    version.write_text(re.sub(r'__version__ = ".*"', '__version__ = "7.8.9"', right))
    reload(daemon)
    assert daemon.wait_line("reloaded: version 7.8.9 goes on for 0.1.0")
    assert daemon.addresses() == [A]
    assert port.sniffer.arp(since) == []


def test_watch_goes_on(port: Port, make_autoip: MakeDaemon) -> None:
    """And only what is handed over is open afterwards."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    (path,) = daemon.runtime.glob("*.sock")

    def opened() -> int:
        return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))

    reload(daemon)
    count = opened()  # perhaps with the connection that this reload was requested by
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as events:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(b'{"request":"watch"}\n')
        assert b'"address":"169.254' in events.readline()
        for _ in range(3):
            reload(daemon)
        port.send(frames.conflict_request(RIVAL, A))
        assert b'"event":"defence"' in events.readline()
    wait_until(lambda: opened() <= count, "the same files")


def test_reload_needs_nothing_that_was_given_up(port: Port, make_autoip: MakeDaemon) -> None:
    """The two capabilities are there again, and no others; so is the program that was loaded at the start."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)

    def capabilities() -> list[str]:
        text = Path(f"/proc/{daemon.pid}/status").read_text()
        return re.findall(r"(?m)^(?:Uid|Gid|NoNewPrivs|CapPrm|CapEff):.*", text)

    before = capabilities()
    reload(daemon)
    assert capabilities() == before
    since = port.sniffer.mark()
    daemon.request("refresh")
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    assert "by unicast" not in daemon.output
    assert daemon.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_meanwhile(port: Port, make_autoip: MakeDaemon, number: signal.Signals) -> None:
    """It waits until the new program handles it: SIGTERM takes the address off, SIGHUP reloads once more."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    daemon.signal(signal.SIGHUP)

    def begun() -> bool:
        return in_between(daemon) or "reloaded: version" in daemon.output  # over already

    wait_until(begun, "the exec", pause=0.001)
    daemon.signal(number)
    if number is signal.SIGTERM:
        assert daemon.wait() == 0
        assert daemon.addresses() == []
        assert list(daemon.runtime.iterdir()) == []
    else:
        wait_until(lambda: daemon.output.count("reloaded: version") == 2, "the second reload")
        assert daemon.addresses() == [A]


def test_script(port: Port, make_autoip: MakeDaemon) -> None:
    """No call is lost or made twice; a reload waits for the one that runs."""
    daemon = make_autoip(port, *FAST, "--script-style", "zcip")
    script, calls = daemon.folder / "script", daemon.folder / "calls"
    script.write_text(f'#!/bin/sh\nsleep 0.5\necho "$1 $ip" >>{calls}\n')
    script.chmod(0o755)
    calls.touch()
    calls.chmod(0o666)  # the script is run by the daemon's user
    bind(port, daemon, "--script", str(script))
    for _ in range(3):
        reload(daemon)
        assert calls.read_text() == f"init \nconfig {A}\n"
    assert daemon.stop() == 0
    assert calls.read_text() == f"init \nconfig {A}\ndeconfig {A}\n"
