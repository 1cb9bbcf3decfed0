"""The oldest pyroute2 that is allowed, and the installed one: what rests on its codec works with both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import Daemon, Port, frames

from .helpers import NETNS, PATIENCE, RIVAL, A, bind, wait_until

# One process for all: the packages are fetched once.
pytestmark = [*NETNS, pytest.mark.xdist_group("codec versions")]

OLDEST, DEBIAN_13 = "0.7.2", "0.7.7"
INSTALLED = "the installed one"
CHANGES = 10_000
STORM = "addr add 10.9.9.9/32 dev other\naddr del 10.9.9.9/32 dev other\n" * (CHANGES // 2)

Environment = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The environment in which Python finds that release first; each is fetched once."""
    folders: dict[str, Path] = {}

    def make(release: str) -> dict[str, str]:
        if release == INSTALLED:
            return {}
        if release not in folders:
            folder = tmp_path_factory.mktemp("pyroute2")
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
            command = [
                *pip,
                "install",
                "--no-deps",
                "--target",
                str(folder),
                f"pyroute2=={release}",
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode != 0:
                pytest.skip(f"pyroute2 {release} cannot be fetched: {done.stderr.strip()[-200:]}")
            folder.chmod(0o755)
            folders[release] = folder
        return {"PYTHONPATH": str(folders[release])}

    return make


def _start(port: Port, environment: dict[str, str]) -> Daemon:
    """autoip that holds A on eth0, with another interface beside it."""
    port.host.ip("link add other type veth peer name far")
    port.host.ip("link set other up")
    command = [sys.executable, "-m", "autoip", "eth0", "--delay", "50", "--ip", str(A)]
    return Daemon(port.host, "eth0", command, env=environment)


def _defends(port: Port) -> None:
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    port.sniffer.wait_announcement(A, PATIENCE, since=since)


def _repairs(port: Port, since: int) -> None:
    """The address, which somebody has removed, comes back and is announced."""
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    assert port.host.link_local("eth0") == [A]


def _drops(port: Port) -> int:
    """Messages that the kernel dropped of the program's socket for events, as it is now."""
    rows = [row.split() for row in port.host.run("cat", "/proc/net/netlink").splitlines()]
    column = rows[0].index("Drops") - len(rows[0])
    found = [row for row in rows[1:] if row[1] == "0" and row[3] == "00000011"]
    assert len(found) == 1, found
    return int(found[0][column])


@pytest.mark.parametrize("release", [OLDEST, DEBIAN_13, INSTALLED])
def test_the_codec_alone_is_loaded(environment: Environment, release: str) -> None:
    code = (
        "import sys; from autoip.kernel.netlink import nlmsg;"
        "print(nlmsg.decode.__code__.co_filename);"
        "print([name for name in sys.modules if name.startswith('pyroute2')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment(release)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    file, left = done.stdout.splitlines()
    assert file.startswith(environment(release).get("PYTHONPATH", sys.prefix))
    assert left == "[]"


@pytest.mark.parametrize("release", [OLDEST, INSTALLED])
def test_a_claim_a_defence_and_a_storm_on_another_interface(
    port: Port, environment: Environment, release: str
) -> None:
    with _start(port, environment(release)) as daemon:
        bind(port, daemon)
        storm = port.host.popen(["ip", "-batch", "-"], stdin=subprocess.PIPE)
        assert storm.stdin is not None
        storm.stdin.write(STORM.encode())
        storm.stdin.close()
        _defends(port)
        assert storm.wait(PATIENCE) == 0
        since = port.sniffer.mark()
        port.host.ip(f"addr del {A}/16 dev eth0")
        _repairs(port, since)
        assert "internal error" not in daemon.output and "Traceback" not in daemon.output
        assert daemon.stop() == 0
        assert port.host.link_local("eth0") == []


@pytest.mark.parametrize("release", [OLDEST, INSTALLED])
def test_a_resynchronisation_after_lost_messages(
    port: Port, environment: Environment, release: str
) -> None:
    """The removal of the address is among what is lost: only the resynchronisation can tell of it."""
    with _start(port, environment(release)) as daemon:
        bind(port, daemon)
        daemon.signal(signal.SIGSTOP)
        try:
            for _ in range(10):
                port.host.run("ip", "-batch", "-", stdin=STORM, timeout=120)
                if _drops(port):
                    break
            dropped = _drops(port)
            assert dropped > 0
            since = port.sniffer.mark()
            port.host.ip(f"addr del {A}/16 dev eth0")
            assert _drops(port) > dropped
        finally:
            daemon.signal(signal.SIGCONT)
        _repairs(port, since)
        wait_until(lambda: _drops(port) == 0, "a new socket for events")
        _defends(port)
        assert "internal error" not in daemon.output and "Traceback" not in daemon.output
