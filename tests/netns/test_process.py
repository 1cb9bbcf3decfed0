"""The process around the negotiation: exit statuses, permissions, logs, the service manager."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from autoip.core.constants import PROBE_MIN
from lab import Daemon, Namespace, Port, Syslog, frames, gaps
from lab.background import Reader
from lab.daemon import REPOSITORY

from .conftest import MakeDaemon, MakeHost, autoip_command
from .helpers import (
    NETNS,
    PATIENCE,
    RIVAL,
    A,
    bind,
    claim,
    claimed,
    claimed_other,
    configuration,
    link,
    reclaimed,
    wait_ready,
    wait_until,
)

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))
NOBODY = 65534
BOTH_CAPABILITIES = 1 << 12 | 1 << 13  # CAP_NET_ADMIN, CAP_NET_RAW

MakeProgram = Callable[..., Daemon]


@pytest.fixture
def make_program(stack: ExitStack) -> MakeProgram:
    """`make_program(namespace, *arguments, wrapper=, env=)`: autoip with no interface but those in the arguments."""

    def make(
        namespace: Namespace,
        *arguments: str,
        wrapper: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Daemon:
        command = [*wrapper, *autoip_command(), *arguments]
        return stack.enter_context(Daemon(namespace, "eth0", command, env=env))

    return make


def shell(script: str, *words: str) -> list[str]:
    """A wrapper: the script, with the program and its arguments as "$@" after the words $1, $2..."""
    shift = f"; shift {len(words)}" if words else ""
    return ["sh", "-c", f'a="$1"{shift}; {script}', "sh", *words]


# Which interface


def _macvlan(port: Port, name: str) -> None:
    port.host.run("ip", "link", "add", "link", "eth0", "name", name, "type", "macvlan")
    port.host.run("ip", "link", "set", name, "up")


def test_the_one_interface_is_found(port: Port, make_program: MakeProgram) -> None:
    """Without IFACE: the one that is Ethernet-like; not lo, veth, docker's, a bridge's port, nor without ARP."""
    port.host.ip("link add name br0 type bridge")
    for name in ("lan0", "docker0", "port0"):
        _macvlan(port, name)
    port.host.ip("link set port0 master br0")
    port.host.ip("link set br0 arp off")
    daemon = make_program(port.host, "--delay", "50")
    since = port.sniffer.mark()
    daemon.start()
    address = port.sniffer.wait_announcement(timeout=PATIENCE, since=since).spa
    assert port.host.link_local("lan0") == [address]
    assert [e.address for e in port.host.addresses()] == [address]


def test_module_option_string(port: Port, make_program: MakeProgram, stack: ExitStack) -> None:
    """`-o if=...,ip=...,debug,delay=...,abandon`: the same meaning, `debug` to syslog as well; mixes with the rest."""
    log = stack.enter_context(Syslog(port.host))
    words = f"if=eth0,ip={A},debug,delay=200,abandon"
    daemon = make_program(port.host, "run", "-o", words, "--no-state")
    assert claim(port, daemon) == A
    daemon.wait_line("eth0: probe 3/3")
    log.wait_line("probe 3/3")
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    other = claimed_other(port, A, since=since)
    assert len(port.sniffer.announcements(A, since)) == 0
    # delay=200 is the longest pause of the probe phase: how late a timer wakes is the machine's affair.
    pauses = [pause for held in (A, other) for pause in gaps(port.sniffer.probes(held))]
    assert len(pauses) == 4 and 0.1 <= min(pauses) < PROBE_MIN
    assert port.host.link_local("eth0") == [other]


# Exit status 5


# Permissions


def _as_nobody(*capabilities: str) -> list[str]:
    plus = ",".join(f"+{name}" for name in capabilities)
    sets = [f"--inh-caps={plus}", f"--ambient-caps={plus}"] if plus else ["--inh-caps=-all"]
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["setpriv", *user, *sets, "--"]


def _let_nobody_in(namespace: Namespace) -> None:
    """Makes Python and this repository readable for every user, in the namespace's view of the files only.

    They may be below a folder such as /root, which others may not enter.
    """
    script = """
        set -e
        n=0
        for path; do
            n=$((n + 1)); mkdir -p /run/kept/$n; mount --rbind "$path" /run/kept/$n
        done
        n=0
        for path; do
            n=$((n + 1)); top=/$(echo "$path" | cut -d/ -f2)
            if [ -z "$(find "$top" -maxdepth 0 -perm -o+x)" ]; then
                mount -t tmpfs -o mode=755 autoip-lab "$top"
            fi
            mkdir -p "$path"; mount --rbind /run/kept/$n "$path"
        done
    """
    paths = {os.path.realpath(p) for p in (sys.base_prefix, sys.prefix, REPOSITORY)}
    namespace.run("sh", "-c", script, "sh", *sorted(paths, key=len))


def test_as_nobody_with_the_two_capabilities(port: Port, make_program: MakeProgram) -> None:
    """CAP_NET_RAW and CAP_NET_ADMIN are enough, but for the two programs that need CAP_BPF: a warning for each."""
    _let_nobody_in(port.host)
    daemon = make_program(port.host, "eth0", *FAST, wrapper=_as_nobody("net_raw", "net_admin"))
    for folder in (daemon.runtime, daemon.state):
        os.chown(folder, NOBODY, NOBODY)
    wait_ready(port)
    before = configuration(port.host)
    assert bind(port, daemon) == A
    _assert_only_two_capabilities(daemon)
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    port.sniffer.wait_announcement(A, since=since)
    wait_until(lambda: list(daemon.state.glob("*.json")), "the saved address")
    assert daemon.stop() == 0
    assert configuration(port.host) == before
    warnings = [line for line in daemon.lines if re.search("permi|cannot", line)]
    assert ["CAP_BPF" in warning for warning in warnings] == [True, True]


def _assert_only_two_capabilities(daemon: Daemon) -> None:
    statuses = {}
    for file in Path(f"/proc/{daemon.pid}/task").glob("*/status"):
        with suppress(OSError):  # the thread has ended
            statuses[file] = file.read_text()
    assert len(statuses) >= 2  # the helper's thread is one of them
    for file, text in statuses.items():
        fields = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)
        held = {name: int(fields[name], 16) for name in fields if name.startswith("Cap")}
        assert held["CapEff"] == held["CapPrm"] == BOTH_CAPABILITIES, (file, held)
        assert held["CapInh"] == held["CapAmb"] == 0, (file, held)
        assert fields["NoNewPrivs"] == "1"
        if fields["Uid"].startswith("0"):
            assert held["CapBnd"] & ~BOTH_CAPABILITIES == 0, (file, held)


def test_gives_up_every_other_capability(port: Port, make_autoip: MakeDaemon) -> None:
    """Started as root: two capabilities stay, in every thread, and none can be had again."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon)
    _assert_only_two_capabilities(daemon)


# Folders


def test_run_cannot_be_written(port: Port, make_program: MakeProgram) -> None:
    """A read-only /run: a warning, and all else works."""
    port.host.run("mount", "-o", "remount,ro", "/run")
    daemon = make_program(port.host, "eth0", *FAST, env={"RUNTIME_DIRECTORY": ""})
    assert claim(port, daemon) == A
    daemon.wait_line("eth0: no lock file /run/autoip/.*Read-only")
    assert daemon.stop() == 0
    assert port.host.addresses("eth0") == []


def test_default_folders(port: Port, make_program: MakeProgram) -> None:
    """Without the service manager's variables: /run/autoip and /var/lib/autoip, made when needed."""
    port.host.run("mount", "-t", "tmpfs", "autoip-lab", "/var/lib")
    env = {"RUNTIME_DIRECTORY": "", "STATE_DIRECTORY": ""}
    daemon = make_program(port.host, "eth0", *FAST, env=env)
    claim(port, daemon)
    assert "-eth0.lock" in port.host.run("ls", "/run/autoip")
    wait_until(
        lambda: ".json" in port.host.run("ls", "/var/lib/autoip", check=False), "a state file"
    )
    assert daemon.stop() == 0
    assert port.host.run("ls", "/run/autoip") == ""


# Logs


def test_syslog(port: Port, make_program: MakeProgram, stack: ExitStack) -> None:
    """`--syslog`: what goes to stderr goes there too, with facility daemon and the right priority."""
    log = stack.enter_context(Syslog(port.host))
    daemon = make_program(port.host, "eth0", *FAST, "--syslog")
    bind(port, daemon)
    line = log.wait_line(f"eth0: claimed {A}")
    assert line.startswith(f"<{3 * 8 + 6}>") and f"autoip[{daemon.pid}]: " in line
    port.send(frames.conflict_request(RIVAL, A))
    assert log.wait_line(f"conflict: {RIVAL}").startswith(f"<{3 * 8 + 5}>")
    assert not any("probe 1/3 for" in text for text in log.lines)
    # The log daemon goes away and comes back: nothing is lost but what was said meanwhile.
    log.close()
    since = port.sniffer.mark()
    daemon.request("refresh")
    assert reclaimed(port, since=since) == A
    port.host.run("rm", "/dev/log")
    again = stack.enter_context(Syslog(port.host, prepared=True))
    daemon.request("refresh")
    again.wait_line(f"eth0: claimed {A}")


def test_syslog_daemon_is_stuck(port: Port, make_program: MakeProgram, stack: ExitStack) -> None:
    """Its queue is full and nobody reads it: neither killed nor stalled."""
    log = stack.enter_context(Syslog(port.host))
    with log.stuck():
        daemon = make_program(port.host, "eth0", *FAST, "--syslog", "--debug")
        bind(port, daemon)
        for _ in range(3):  # more lines than the queue of any such socket has
            since = port.sniffer.mark()
            daemon.request("refresh")
            assert reclaimed(port, since=since) == A
    # It reads again: what comes then, arrives.
    log.wait_line("probe 1/3 for")
    log.wait_empty()
    said = len(log.lines)
    daemon.request("refresh")
    wait_until(lambda: any("asked to" in text for text in log.lines[said:]), "refresh")
    assert daemon.stop() == 0


@pytest.mark.parametrize("name", ["its own", "another"])
def test_journal_prefix(port: Port, make_program: MakeProgram, name: str) -> None:
    """Priority prefixes if JOURNAL_STREAM is this stderr, not if the variable was inherited with another one."""
    add = "" if name == "its own" else "1"
    wrapper = shell(f'export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2){add}; exec "$@"')
    daemon = make_program(port.host, "eth0", *FAST, wrapper=wrapper)
    bind(port, daemon)
    port.send(frames.conflict_request(RIVAL, A))
    line = daemon.wait_line(f"conflict: {RIVAL}")
    if name == "its own":
        assert line.startswith("<5>eth0: ")
        assert daemon.wait_line("claimed").startswith("<6>eth0: ")
        assert all(re.match("<[0-7]>", text) for text in daemon.lines)
    else:
        assert not any(text.startswith("<") for text in daemon.lines)


def _terminal(script_arguments: Sequence[str] = ()) -> tuple[int, list[str]]:
    """A pseudo-terminal: its master, and a wrapper that gives the program's stderr the other end."""
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    os.close(slave)
    return master, shell('exec "$@" 2>"$a"', name, *script_arguments)


def test_progress_on_a_terminal(port: Port, make_program: MakeProgram) -> None:
    """A person sees the candidate, each probe and the claim; a file does not show each probe."""
    master, wrapper = _terminal()
    with closing(os.fdopen(master, "rb", buffering=0)) as terminal:
        daemon = make_program(port.host, "eth0", *FAST, wrapper=wrapper)
        claim(port, daemon)
        shown = b""
        while f"claimed {A}".encode() not in shown:
            shown += terminal.read(4096)
        text = shown.decode()
        steps = [str(A), "probe 1/3", "probe 2/3", "probe 3/3", f"claimed {A}"]
        places = [text.index(step) for step in steps]
        assert places == sorted(places)
        assert daemon.stop() == 0
    daemon = make_program(port.host, "eth0", *FAST)
    claim(port, daemon)
    daemon.wait_line("claimed")
    assert not any("probe 1/3 for" in line for line in daemon.lines)


def _lives_without_stderr(port: Port, daemon: Daemon) -> None:
    """It does all that it does with one."""
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    port.sniffer.wait_announcement(A, since=since)
    since = port.sniffer.mark()
    daemon.request("refresh")
    assert reclaimed(port, since=since) == A
    port.carrier(False)
    daemon.wait_no_address()
    since = port.sniffer.mark()
    port.carrier(True)
    assert claimed(port, since=since) == A
    assert daemon.stop() == 0
    assert port.host.addresses("eth0") == []


@pytest.mark.parametrize(
    "redirection", ["2>&-", "<&- >&- 2>&-", "2>/dev/full", "2>/dev/null"], ids=lambda r: r
)
def test_stderr_closed(port: Port, make_program: MakeProgram, redirection: str) -> None:
    """No stderr, or one that takes nothing: neither killed nor stalled."""
    wrapper = shell(f'exec "$@" {redirection}')
    daemon = make_program(port.host, "eth0", *FAST, "--debug", wrapper=wrapper)
    bind_silently(port, daemon)
    _lives_without_stderr(port, daemon)


def bind_silently(port: Port, daemon: Daemon) -> None:
    """As `bind`, for one that cannot be heard."""
    assert claim(port, daemon) == A
    port.sniffer.wait_count(lambda f: f.is_announcement, 2, PATIENCE)
    time.sleep(0.1)


@pytest.mark.parametrize("reader", ["does not read", "is gone"])
def test_stderr_is_a_stuck_pipe(port: Port, make_program: MakeProgram, reader: str) -> None:
    """A pipe that is full and read by nobody, or that broke: neither killed nor stalled."""
    daemon = make_program(port.host, "eth0", *FAST, "--debug")
    fifo = daemon.folder / "stderr"
    os.mkfifo(fifo)
    daemon.command[:0] = shell('exec "$@" 2>"$a"', str(fifo))
    with _full_pipe(fifo) as pipe:
        if reader == "is gone":
            pipe.read(1 << 17)
        bind_silently(port, daemon)
        if reader == "is gone":
            pipe.close()
        _lives_without_stderr(port, daemon)


def test_dropped_lines_are_counted(port: Port, make_program: MakeProgram) -> None:
    """Once somebody reads the pipe again, the log says how much is missing."""
    daemon = make_program(port.host, "eth0", *FAST)
    fifo = daemon.folder / "stderr"
    os.mkfifo(fifo)
    daemon.command[:0] = shell('exec "$@" 2>"$a"', str(fifo))
    with _full_pipe(fifo) as pipe:
        bind_silently(port, daemon)
        said = pipe.read(1 << 17) or b""
        daemon.request("refresh")

        def told() -> bool:
            nonlocal said
            said += pipe.read(1 << 17) or b""
            return re.search(rb"(?m)^[1-9]\d* log lines were dropped", said) is not None

        wait_until(told, "it tells of the loss")
        wait_until(lambda: told() and b"claimed" in said, "and goes on")


def _full_pipe(fifo: Path) -> io.FileIO:
    """Opened for both directions, without blocking, and filled."""
    pipe = open(os.open(fifo, os.O_RDWR | os.O_NONBLOCK), "r+b", buffering=0)  # noqa: SIM115
    while pipe.write(b"x" * 4095 + b"\n"):
        pass
    return pipe


# The service manager


class _Manager(Reader):
    """Listens at $NOTIFY_SOCKET."""

    def __init__(self, namespace: Namespace, name: str) -> None:
        # An abstract name belongs to a network namespace.
        sock = namespace.call(socket.socket, socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            namespace.call(sock.bind, name)
            if not name.startswith("\0"):
                namespace.call(os.chmod, name, 0o777)  # as the service manager makes it
        except BaseException:
            sock.close()
            raise
        super().__init__(sock, "manager")
        self.said: list[str] = []
        self.start()

    def __enter__(self) -> _Manager:
        return self

    def received(self) -> None:
        self.said.append(self._sock.recv(8192).decode())


def test_ready_without_an_address(port: Port, make_program: MakeProgram, stack: ExitStack) -> None:
    """READY=1 comes where there is no cable and no such interface; STATUS= says so, and the control sockets answer."""
    port.carrier(False)
    daemon = make_program(port.host, "run", "eth9", "eth0", "--delay", "50")
    daemon.env["NOTIFY_SOCKET"] = str(daemon.folder / "notify")
    manager = stack.enter_context(_Manager(port.host, daemon.env["NOTIFY_SOCKET"]))
    daemon.start()
    wait_until(lambda: "READY=1" in manager.said, "READY=1")
    assert len(list(daemon.runtime.glob("*.sock"))) == 2
    missing = "STATUS=eth9: no-link (waits: there is no such interface yet), "
    assert manager.said[: manager.said.index("READY=1")] == [
        missing + "eth0: no-link (waits: no carrier)"
    ]
    port.carrier(True)
    address = claimed(port)
    bound = f"{missing}eth0: bound {address} (2 announcements sent)"
    wait_until(lambda: bound in manager.said, "STATUS= bound")
    assert manager.said.count("READY=1") == 1
    assert daemon.stop() == 0


# Being a neighbour of others


def test_down_interface_is_left_down(make_host: MakeHost, make_autoip: MakeDaemon) -> None:
    """Without `--up` nothing brings the interface up, from start to stop."""
    port = make_host(up=False)
    daemon = make_autoip(port, *FAST)
    daemon.start()
    daemon.wait_line("it is down")
    assert daemon.stop() == 0
    assert "UP" not in link(port.host, "eth0")["flags"]


def test_environment_without_anything(port: Port, make_program: MakeProgram) -> None:
    """An empty environment and another working directory, as a service has."""
    daemon = make_program(port.host, "eth0", *FAST)
    where = str(Path.cwd())
    keep = [f"{k}={daemon.env[k]}" for k in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY")]
    daemon.command[:0] = ["env", "-i", "-C", "/", f"PYTHONPATH={where}", *keep]
    daemon.start()
    # Sees the same IPv4 addresses as `ip`.
    assert claimed(port) == A == IPv4Address(port.host.link_local("eth0")[0])


# A signal during the start

BLOCKED = ("env", "--block-signal=SIGINT,SIGTERM")
"""As the installed program is started."""


def _outlives(pid: int, number: signal.Signals) -> bool:
    """Whether the signal does not just end the process: it is blocked, or handled by now."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = re.findall(r"^Sig(?:Blk|Cgt):\s+(\w+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_during_the_start_takes_off_what_a_crash_has_left(
    port: Port, make_program: MakeProgram, number: signal.Signals
) -> None:
    wait_ready(port)
    before = configuration(port.host)
    daemon = make_program(port.host, "run", "eth0", *FAST, wrapper=BLOCKED)
    for step in range(8):
        claim(port, daemon)
        daemon.kill()
        assert port.host.link_local("eth0") == [A]
        daemon.start()
        wait_until(lambda: _outlives(daemon.pid, number), "env has blocked the signal")
        time.sleep(step * 0.04)
        daemon.signal(number)
        assert daemon.wait() == 0
        assert configuration(port.host) == before, step
        assert port.host.addresses("eth0") == [], step
        assert list(daemon.runtime.iterdir()) == [], step


def test_ctrl_c_at_any_moment(port: Port, make_program: MakeProgram) -> None:
    """From exec on, through the imports and the claim: no traceback, and nothing is left, neither address nor file."""
    # A start that is cut off must leave no half-written bytecode in the source tree.
    env = {"PYTHONDONTWRITEBYTECODE": "1"}
    daemon = make_program(port.host, "run", "eth0", *FAST, wrapper=BLOCKED, env=env)
    wait_ready(port)
    before = configuration(port.host)
    ended = []
    for step in range(24):
        daemon.start()
        if step:  # in the first moment env has not blocked the signal yet
            wait_until(lambda: _outlives(daemon.pid, signal.SIGINT), "env has blocked the signal")
        time.sleep(step * 0.03)
        daemon.signal(signal.SIGINT)
        ended.append(daemon.wait())
        assert "Traceback" not in daemon.output and "KeyboardInterrupt" not in daemon.output
        assert port.host.addresses("eth0") == [], step
        assert configuration(port.host) == before, step
        assert list(daemon.runtime.iterdir()) == [], step
    assert ended[0] in (-signal.SIGINT, 0)
    assert set(ended[1:]) == {0}
    bind(port, daemon)
    daemon.signal(signal.SIGINT)
    assert daemon.wait() == 0
    assert configuration(port.host) == before
