"""The laboratory's own tests: what the other tests rely on."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import (
    ArpFrame,
    Daemon,
    LabError,
    Namespace,
    Port,
    Sniffer,
    echoes,
    frames,
    gaps,
    journal,
    leftover_folders,
    leftovers,
)
from lab.daemon import REPOSITORY
from tests.require import requires_kernel_feature, requires_root

from .conftest import MakeHost
from .helpers import PATIENCE, wait_until

A = IPv4Address("169.254.3.4")
B = IPv4Address("169.254.9.9")
HOST = "02:00:00:00:00:01"
OTHER = "02:00:00:00:00:aa"

pytestmark = [requires_root, requires_kernel_feature("veth")]


# Namespaces


def test_namespace_is_another_one_and_shows_only_its_own_interfaces() -> None:
    with Namespace() as namespace:
        assert namespace.inode != os.stat("/proc/self/ns/net").st_ino
        assert namespace.run("ls", "/sys/class/net").split() == ["lo"]
        assert namespace.run("ls", "/run") == ""
        inside = f"/run/only-inside-{os.getpid()}"
        namespace.run("touch", inside)
        assert not Path(inside).exists()


def test_close_ends_every_program_also_grandchildren() -> None:
    with Namespace() as namespace:
        namespace.popen(["sh", "-c", "trap '' TERM; setsid sleep 1000 & setsid sleep 1000; wait"])
        wait_until(lambda: len(namespace.processes()) == 3, "the shell and both of its programs")
        handles = [os.pidfd_open(pid) for pid in namespace.processes()]
        assert len(handles) == 3
    assert len(select.select(handles, [], [], 0)[0]) == 3
    for handle in handles:
        os.close(handle)
    assert not [line for line in leftovers() if namespace.name in line]


def test_leftovers_names_a_socket_that_keeps_a_namespace(port: Port) -> None:
    with Namespace("kept") as namespace:
        sock = namespace.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        assert any(namespace.name in line and "socket" in line for line in leftovers())
    assert not any(namespace.name in line for line in leftovers())


def test_killed_process_leaves_no_program_behind() -> None:
    code = """
        import time
        from lab import Namespace
        namespace = Namespace()
        # The shell speaks only once it has asked the kernel for the signal.
        child = namespace.popen(["sh", "-c", "echo $$; exec sleep 1000"], stdout=-1)
        print(int(child.stdout.readline()), flush=True)
        time.sleep(1000)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as child:
        assert child.stdout is not None
        handle = os.pidfd_open(int(child.stdout.readline()))
        child.send_signal(signal.SIGKILL)
        child.wait(PATIENCE)
        assert select.select([handle], [], [], PATIENCE)[0], (
            "the program outlived its namespace's owner"
        )
        os.close(handle)


# Frames


def test_parse_takes_apart_what_the_builders_made() -> None:
    frame = frames.parse(frames.padded(frames.probe(OTHER, A)))
    assert isinstance(frame, ArpFrame)
    assert (frame.sha, frame.spa, frame.tha, frame.tpa) == (
        OTHER,
        IPv4Address("0.0.0.0"),
        "00:00:00:00:00:00",
        A,
    )
    assert frame.is_probe and frame.broadcast and not frame.is_announcement
    assert frame.data[14:22] == bytes.fromhex("0001080006040001")
    unicast = frames.parse(frames.probe(OTHER, A, destination=HOST))
    assert isinstance(unicast, ArpFrame) and not unicast.is_probe
    announced = frames.parse(frames.announcement(OTHER, A))
    assert isinstance(announced, ArpFrame) and announced.is_announcement
    assert not isinstance(frames.parse(frames.probe(OTHER, A)[:41]), ArpFrame)


# Cables


def test_sniffer_sees_both_directions_with_stamps_in_order(port: Port) -> None:
    port.host.ip(f"addr add {A}/16 dev eth0")
    before = time.time_ns()
    asked = port.send_stamped(frames.probe(OTHER, A))
    reply = port.sniffer.wait_for(lambda f: f.op == frames.REPLY and f.spa == A, PATIENCE)
    assert before < asked < reply.ns < time.time_ns()
    assert (reply.sha, reply.from_host, reply.destination) == (HOST, True, OTHER)
    [probe] = port.sniffer.arp(from_host=False)
    assert (probe.ns, probe.from_host) == (asked, False)
    assert "<- probe 169.254.3.4" in journal.timeline()


def test_sniffer_gaps_marks_and_silence(port: Port) -> None:
    port.host.ip(f"addr add {A}/16 dev eth0")
    for number in range(3):
        port.send(frames.probe(OTHER, A))
        port.sniffer.wait_count(lambda f: f.op == frames.REPLY, number + 1, PATIENCE)
        time.sleep(0.02)
    replies = port.sniffer.arp()
    assert all(gap >= 0.02 for gap in gaps(replies)) and len(gaps(replies)) == 2
    port.sniffer.assert_silent(0.1)
    with pytest.raises(LabError, match="not silent"):
        port.sniffer.assert_silent(0, since=0)
    with pytest.raises(LabError, match="0 of 1 awaited"):
        port.sniffer.wait_probe(timeout=0.1)


def test_sniffer_is_bounded(port: Port) -> None:
    with Sniffer(port.switch.namespace, port.far, limit=5) as small:
        for _ in range(8):
            port.send(frames.probe(OTHER, B))
        port.sniffer.wait_count(lambda f: True, 8, PATIENCE, from_host=False)
        wait_until(lambda: len(small.frames()) + small.overflow == 8, "the small one is done")
        assert (len(small.frames()), small.overflow) == (5, 3)


def test_vlan_tag_arrives_as_a_tag(make_host: MakeHost) -> None:
    port = make_host()
    with Sniffer(port.host, "eth0") as inside:
        port.send(frames.tagged(frames.probe(OTHER, A), 5))
        seen = inside.wait_for(lambda f: f.is_probe, PATIENCE)
        assert seen.vlan == 5


def test_unplugged_hosts_do_not_hear_each_other(make_host: MakeHost) -> None:
    one, two = make_host(), make_host(plugged=True)
    for host in (one, two):
        host.host.ip(f"addr add {A if host is one else B}/16 dev eth0")
    one.host.send_udp(B)
    request = one.sniffer.wait_for(lambda f: f.tpa == B, PATIENCE)
    time.sleep(0.1)
    assert not two.sniffer.arp(from_host=None)
    one.plug()
    since = one.sniffer.mark()
    one.host.ip("neigh flush dev eth0")  # else what it asked in vain may count as the answer
    one.host.send_udp(B)
    two.sniffer.wait_for(lambda f: f.op == frames.REPLY, PATIENCE)
    one.sniffer.wait_for(lambda f: f.op == frames.REPLY, PATIENCE, since=since, from_host=False)
    assert request.sha == one.mac != two.mac


@requires_kernel_feature("nft-netdev")
def test_loss_in_each_direction(port: Port) -> None:
    port.host.ip(f"addr add {A}/16 dev eth0")
    port.lose(to_host=100)
    port.send(frames.probe(OTHER, A))
    port.sniffer.assert_silent(0.2)
    port.lose()
    port.send(frames.probe(OTHER, A))
    port.sniffer.wait_for(lambda f: f.op == frames.REPLY, PATIENCE)
    neighbour = port.neighbour(lambda host, frame: [frames.answer(host.mac, frame)])
    port.lose(from_host=100)
    port.host.send_udp(B)
    port.sniffer.wait_for(lambda f: f.tpa == B, PATIENCE)
    time.sleep(0.1)
    assert neighbour.answered == []
    port.lose(to_host=50)
    since = port.sniffer.mark()
    for _ in range(100):
        port.send(frames.probe(OTHER, A))
    port.sniffer.wait_count(lambda f: f.is_probe, 100, PATIENCE, since=since, from_host=False)
    time.sleep(0.2)
    assert 10 < len(port.sniffer.arp(since)) < 90


# Scripted hosts


def _speak(port: Port, frame: bytes) -> None:
    """A frame from the host."""

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((port.name, 0))
            sock.send(frame)

    port.host.call(send)


def test_neighbour_echo_does_not_echo_itself(port: Port) -> None:
    port.neighbour(echoes)
    _speak(port, frames.announcement(HOST, A))
    port.sniffer.wait_for(lambda f: f.is_announcement, PATIENCE, from_host=False)
    time.sleep(0.1)
    assert len(port.sniffer.arp(from_host=None)) == 2


# Programs


def test_daemon_lines_status_usage_and_second_start(port: Port) -> None:
    script = 'trap "echo bye; exit 7" TERM; echo "up $STATE_DIRECTORY $RUNTIME_DIRECTORY $1"; sleep 100 & wait'
    with Daemon(port.host, "eth0", ["sh", "-c", script, "sh"]) as daemon:
        daemon.start("first")
        assert daemon.wait_line("^up").split() == [
            "up",
            str(daemon.state),
            str(daemon.runtime),
            "first",
        ]
        wait_until(lambda: daemon.usage().voluntary > 0, "it sleeps")
        usage = daemon.usage()
        assert usage.threads == 1 and usage.rss_kib > 100
        with pytest.raises(LabError, match="did not print 'never'"):
            daemon.wait_line("never", 0.1)
        assert daemon.stop() == 7
        assert "bye" in daemon.output
        with pytest.raises(LabError, match="has ended"):
            daemon.usage()
        said = len(daemon.lines)
        daemon.start("second")
        daemon.wait_line("^up .* second", since=said)
        daemon.kill()
        assert daemon.status == -9
        folder = daemon.folder
        assert folder.exists()
    assert not folder.exists()


def test_nothing_is_written_to_this_machine(port: Port) -> None:
    inside = f"/run/autoip-lab-{os.getpid()}"
    script = f"touch {inside}; echo done; sleep 100"
    with Daemon(port.host, "eth0", ["sh", "-c", script]) as daemon:
        daemon.start()
        daemon.wait_line("done")
        assert not Path(inside).exists()
        assert any(str(daemon.folder) in line for line in leftover_folders())
    assert not any(str(daemon.folder) in line for line in leftover_folders())


# The suite's own rules, tried in a suite of their own

SUITE = """
    import pytest
    from tests.require import requires_program

    def test_passes(): pass

    @requires_program("no-such-program", "no-such-package")
    def test_marked(): pass

    def test_inside(): pytest.skip("inside")

    @pytest.mark.xfail(strict=True)
    def test_expected(): assert False
"""


def _suite(folder: Path, ci: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(REPOSITORY / "conftest.py", folder)
    (folder / "test_some.py").write_text(textwrap.dedent(SUITE))
    (folder / "test_module.py").write_text(
        "import pytest\npytest.importorskip('no_such_module', reason='at collection')\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--continue-on-collection-errors",
            ".",
        ],
        cwd=folder,
        check=False,
        env={**environment, "CI": ci, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_skip_tells_its_reason_in_the_summary(tmp_path: Path) -> None:
    result = _suite(tmp_path, "")
    assert result.returncode == 0, result.stdout
    assert "1 passed, 3 skipped, 1 xfailed" in result.stdout
    for reason in ("Debian package no-such-package", "inside", "at collection"):
        assert reason in result.stdout


def test_skip_is_a_failure_under_ci(tmp_path: Path) -> None:
    result = _suite(tmp_path, "true")
    assert result.returncode == 1, result.stdout
    assert "1 failed, 1 passed, 1 xfailed, 2 errors" in result.stdout
    for reason in ("Debian package no-such-package", "inside", "at collection"):
        assert "a skip is a failure under CI: " in result.stdout and reason in result.stdout
