"""The program with just what the service's unit allows it, without systemd."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import Daemon, Namespace, Port, frames
from lab.daemon import REPOSITORY
from tests.require import requires_kernel_feature, requires_program, requires_root

from .conftest import MakeHost, autoip_command

UNIT = REPOSITORY / "share" / "autoip@.service"
USER = 62345
"""Stands for the unit's user: the capabilities and the rights on files matter, not the name."""
OTHER = "02:00:00:00:00:fe"

pytestmark = [
    requires_root,
    requires_kernel_feature("veth"),
    requires_program("systemd-analyze", "systemd"),
]

Confined = Callable[..., Daemon]


@pytest.fixture
def confined(stack: contextlib.ExitStack) -> Confined:
    """`confined(namespace, interface, command)`: to run as the unit would; not started.

    `beside` another one: with the same directories.
    """

    def make(
        host: Namespace, name: str, command: list[str], *, beside: Daemon | None = None
    ) -> Daemon:
        daemon = stack.enter_context(Daemon(host, name, []))
        where = beside or daemon
        for folder in (where.runtime, where.state):
            os.chown(folder, USER, USER)
        daemon.env["RUNTIME_DIRECTORY"] = str(where.runtime)
        daemon.env["STATE_DIRECTORY"] = str(where.state)
        wrapper = [sys.executable, "-m", "lab.unit", str(UNIT), str(USER)]
        daemon.command = [*wrapper, str(where.runtime), str(where.state), "--", *command]
        return daemon

    return make


def defends(port: Port, address: IPv4Address) -> None:
    """One conflict is answered by one announcement."""
    port.sniffer.wait_count(lambda f: f.is_announcement and f.spa == address, 2, 10)
    since = port.sniffer.mark()
    port.send(frames.conflict_request(OTHER, address))
    port.sniffer.wait_announcement(address, 5, since=since)
    port.sniffer.assert_silent(0.5, since=port.sniffer.mark())
    assert len(port.sniffer.announcements(address, since)) == 1


def test_claim_and_defence(port: Port, confined: Confined) -> None:
    command = [*autoip_command(), port.name, "--delay", "200"]
    daemon = confined(port.host, port.name, command)
    script = daemon.folder / "script"
    script.write_text('#!/bin/sh\necho "eth0: script: $*" >&2\n')
    script.chmod(0o755)
    daemon.start("--script", str(script))
    address = daemon.wait_address(15)
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(USER)] * 4
    assert int(fields["CapPrm"], 16) == int(fields["CapEff"], 16) == 1 << 12 | 1 << 13
    assert int(fields["CapBnd"], 16) & ~int(fields["CapPrm"], 16) == 1 << 39  # CAP_BPF, given up
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert len(port.sniffer.probes(address)) == 3
    defends(port, address)
    # def-broadcast: CAP_BPF was there for as long as it took, and is not needed to attach.
    since = port.sniffer.mark()
    port.send(frames.arp(frames.REQUEST, sha=OTHER, spa="169.254.77.77", tpa=address))
    assert port.sniffer.wait_for(lambda f: f.op == frames.REPLY, 30, since=since).broadcast
    assert "by unicast" not in daemon.output
    assert daemon.stop() == 0
    assert daemon.addresses() == []
    told = [line for line in daemon.lines if line.startswith("eth0: script: ")]
    assert told == [f"eth0: script: {word} eth0 {address}" for word in ("BIND", "STOP")]
    assert list(daemon.runtime.iterdir()) == []
    assert "defended by the reflex" in daemon.output
    # Each line is one of ours: no library complains about what it may not do.
    assert [line for line in daemon.lines if not line.startswith("eth0: ")] == []


def test_started_by_a_hook(port: Port, confined: Confined) -> None:
    """What the hook of a DHCP client adds to the unit's command works with the unit's rights."""
    command = [*autoip_command(), "run", port.name, "--hook", "--delay", "200"]
    daemon = confined(port.host, port.name, command)
    daemon.start()
    address = daemon.wait_address(15)
    port.host.ip(f"addr add 192.0.2.7/24 dev {port.name}")
    daemon.wait_line("the interface has 192.0.2.7")
    assert daemon.addresses() == [address]
    assert daemon.stop() == 0
    assert daemon.addresses() == []


def test_several_instances_share_the_directories(make_host: MakeHost, confined: Confined) -> None:
    first = make_host()
    first.switch.attach(first.host, "eth1")
    command = [*autoip_command(), "--delay", "200"]
    one = confined(first.host, "eth0", [*command, "eth0"])
    two = confined(first.host, "eth1", [*command, "eth1"], beside=one)
    one.start()
    two.start()
    one.wait_address(15)
    address = two.wait_address(15)
    again = confined(first.host, "eth1", [*command, "eth1"], beside=one)
    again.start()
    assert again.wait() == 3
    assert one.stop() == 0
    assert two.addresses() == [address]
    left = {path.name.partition("-")[2] for path in one.runtime.iterdir()}
    assert left == {"eth1.lock", "eth1.sock"}
    ask = [*autoip_command(), "status", "eth1"]
    told = first.host.popen(ask, env=two.env, cwd=REPOSITORY, stdout=subprocess.PIPE)
    out = told.communicate(timeout=20)[0].decode()
    assert told.returncode == 0
    assert str(address) in out
    assert two.stop() == 0


# Root beside the service


def _known_to_all(namespace: Namespace) -> None:
    """The user of the unit exists, in the namespace's view of the files only."""
    line = f"autoip:x:{USER}:{USER}::/nonexistent:/usr/sbin/nologin"
    script = """
        set -e
        { cat /etc/passwd; echo "$1"; } >/run/passwd
        mount --bind /run/passwd /etc/passwd
    """
    namespace.run("sh", "-c", script, "sh", line)


@pytest.mark.parametrize("order", ["service first", "root first"])
def test_root_beside_the_service(
    order: str, port: Port, confined: Confined, stack: contextlib.ExitStack
) -> None:
    """Each has an interface; neither takes the other's, but what a crash of the other has left."""
    host = port.host
    port.switch.attach(host, "eth1")
    _known_to_all(host)
    command = [*autoip_command(), "--delay", "200"]

    root = stack.enter_context(Daemon(host, "eth1", command))
    if order == "root first":  # and makes the directories
        root.runtime.rmdir()
        root.state.rmdir()
        root.start("eth1", "--ip", "169.254.20.20")
        root.wait_address(15)
    service = confined(host, "eth0", command, beside=root)
    service.start("eth0", "--ip", "169.254.30.30")
    service.wait_address(15)
    if order == "service first":
        root.start("eth1", "--ip", "169.254.20.20")
    assert root.wait_address(15) == IPv4Address("169.254.20.20")
    assert service.addresses() == [IPv4Address("169.254.30.30")]
    runtime = root.runtime
    assert {path.stat().st_uid for path in (runtime, root.state, *runtime.iterdir())} == {USER}

    by_root = stack.enter_context(Daemon(host, "eth0", command, env=root.env))
    by_service = confined(host, "eth1", command, beside=root)
    for second, first in ((by_root, service), (by_service, root)):
        second.start(second.interface)
        assert second.wait() == 3
        text = f"{second.interface}: autoip already runs here, by process {first.pid}"
        assert second.lines == [f"autoip: {text}"]

    for second, first in ((by_root, service), (by_service, root)):
        [address] = first.addresses()
        first.kill()
        assert second.addresses() == [address]
        said = len(second.lines)
        second.start(second.interface)
        second.wait_line(f"takes over {address} from an instance that died", since=said)
        second.wait_line(f"claimed {address}", since=said)
        assert second.addresses() == [address]
        assert second.stop() == 0
        assert second.addresses() == []
    assert list(runtime.iterdir()) == []

    # Nothing of the crash is left but the saved address.
    said = len(service.lines)
    service.start("eth1")
    service.wait_line("claimed 169.254.20.20", since=said)
    assert service.stop() == 0
    assert "cannot" not in service.output + root.output + by_root.output + by_service.output


FORBIDDEN = {
    "IP socket": "socket.socket(socket.AF_INET)",
    "another user": "os.setuid(0)",
    "chown": "os.chown('/tmp', 0, 0)",
    "a file elsewhere": "open('/usr/x', 'w')",
    "a new namespace": "check(ctypes.CDLL(None, use_errno=True).unshare(0x40000000))",
    "memory to write and execute": "mmap.mmap(-1, 4096, prot=7)",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_confinement_is_real(what: str, port: Port, confined: Confined) -> None:
    """Else the tests above would prove nothing."""
    program = f"""
import ctypes, mmap, os, socket
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
open(os.environ["STATE_DIRECTORY"] + "/mine", "w").close()
socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
try:
    {FORBIDDEN[what]}
except OSError as error:
    print("refused", error.errno)
else:
    print("done")
"""
    daemon = confined(port.host, port.name, [sys.executable, "-c", program])
    daemon.start()
    assert daemon.wait() == 0, daemon.output
    assert re.fullmatch("refused [0-9]+", daemon.lines[-1]), daemon.output


# Watchdog


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(10)
        yield receiver


def test_watchdog_is_fed_by_the_loop_and_by_nothing_else(
    port: Port, manager: socket.socket, stack: contextlib.ExitStack
) -> None:
    interval = 0.25
    # Signal handlers of Python run where the event loop runs: this one makes it hang.
    program = (
        "import signal, sys, time\n"
        "def hang(*_):\n"
        "    print('hangs', flush=True)\n"
        "    time.sleep(2)\n"
        "    print('goes on', flush=True)\n"
        "signal.signal(signal.SIGUSR1, hang)\n"
        "from autoip.commands.main import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, port.name, "--delay", "200"]
    env = {
        "NOTIFY_SOCKET": str(manager.getsockname()),
        "WATCHDOG_USEC": str(int(interval * 2e6)),
    }
    daemon = stack.enter_context(Daemon(port.host, port.name, command, env=env))
    started = time.monotonic()
    daemon.start()
    seen: list[str] = []
    while "READY=1" not in seen or seen.count("WATCHDOG=1") < 6:
        seen.append(manager.recv(4096).decode())
    # Never earlier than each interval; how much later is the machine's affair.
    assert seen.count("WATCHDOG=1") <= (time.monotonic() - started) / interval + 1
    address = daemon.wait_address()
    port.sniffer.wait_count(lambda f: f.is_announcement and f.spa == address, 2, 10)

    daemon.signal(signal.SIGUSR1)
    daemon.wait_line("hangs")
    manager.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            manager.recv(4096)
    # The helper's thread lives on, and defends; it must not hide that the loop hangs.
    since = port.sniffer.mark()
    port.send(frames.conflict_request(OTHER, address))
    port.sniffer.wait_announcement(address, 5, since=since)
    time.sleep(4 * interval)
    if "goes on" not in daemon.output:  # else the machine slept longer than the loop hung
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
    manager.settimeout(10)
    while manager.recv(4096) != b"WATCHDOG=1":
        pass
    assert daemon.stop() == 0
    assert "goes on" in daemon.output
