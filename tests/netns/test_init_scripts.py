"""The files for hosts without systemd, run by the real start-stop-daemon and the real openrc-run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lab import Namespace, Port, machine
from lab.daemon import REPOSITORY
from lab.roots import make_root
from tests.require import requires_program

from .conftest import MakeHost
from .helpers import NETNS, wait_until

pytestmark = NETNS

SHARE = REPOSITORY / "share"
FAST = "[eth*]\ndelay = 100\nserve = yes\n"

# OpenRC of a Debian root below this machine's files: installed here, it would be part of the machine's own boot.
OPENRC = r"""
set -e
for folder in /usr /lib /sbin; do
    [ -L "$folder" ] || mount -t overlay -o "lowerdir=$folder:$1$folder" autoip-lab "$folder"
done
cp -n "$1/etc/rc.conf" "$1/etc/insserv.conf" /etc
mkdir -p /etc/conf.d
for state in started stopped starting stopping inactive failed hotplugged scheduled exclusive daemons options; do
    mkdir -p "/run/openrc/$state"
done
touch /run/openrc/softlevel
"""


@pytest.fixture
def port(make_host: MakeHost) -> Port:
    """A host with files of its own, whose eth0 is down."""
    port = make_host(up=False)
    machine.give_own_files(port.host)
    machine.write(port.host, "/etc/autoip.conf", FAST)
    return port


def script(host: Namespace, name: str, place: str, installed: Path) -> None:
    """Install a file of share/ with the path of the program."""
    text = (SHARE / name).read_text().replace("@BINDIR@", str(installed.parent))
    machine.write(host, place, text, 0o755)


def status_of(host: Namespace, *command: str) -> int:
    """The exit status of a call; its output is in /run/out."""
    line = '"$@" >/run/out 2>&1; echo $?'
    return int(host.run("sh", "-c", line, "sh", *command, timeout=40))


def serves(port: Port, installed: Path, service: str, pid_file: str) -> None:
    """Start, status, a second start, reload, stop, and the status after a crash."""
    host = port.host

    def call(word: str) -> int:
        return status_of(host, service, word)

    def wait_held() -> None:
        wait_until(lambda: status_of(host, str(installed), "status", "eth0") == 0, "an address")

    def daemon() -> int:
        return int(machine.read(host, pid_file))

    assert call("status") != 0
    assert call("start") == 0, machine.read(host, "/run/out")
    wait_held()
    pid, held = daemon(), host.link_local("eth0")
    assert call("status") == 0
    assert (call("start"), daemon()) == (0, pid)
    assert call("reload") == 0
    assert (daemon(), host.link_local("eth0")) == (pid, held)
    assert call("stop") == 0, machine.read(host, "/run/out")
    assert (host.link_local("eth0"), host.processes()) == ([], [])
    assert call("status") != 0
    assert call("start") == 0
    wait_held()
    os.kill(daemon(), signal.SIGKILL)
    wait_until(lambda: call("status") != 0, "the end is noticed")
    assert call("restart") == 0
    wait_held()
    assert call("stop") == 0
    assert (host.link_local("eth0"), host.processes()) == ([], [])


@requires_program("start-stop-daemon", "dpkg")
def test_sysvinit(port: Port, installed: Path) -> None:
    service = "/etc/init.d/autoip"
    script(port.host, "autoip.init", service, installed)
    serves(port, installed, service, "/run/autoip.pid")
    assert status_of(port.host, service, "nonsense") == 2
    machine.write(port.host, "/etc/default/autoip", 'INTERFACES="eth0"\nUP=\nOPTIONS="--bogus"\n')
    port.host.run(service, "start")
    wait_until(lambda: not port.host.processes(), "the end: an option is wrong")
    wait_until(lambda: status_of(port.host, service, "status") == 1, "the end is noticed")


@requires_program("debootstrap", "debootstrap")
def test_openrc(port: Port, installed: Path) -> None:
    root = make_root("bookworm", ["openrc"])
    port.host.run("sh", "-c", OPENRC, "sh", str(root))
    service = "/etc/init.d/autoip.eth0"
    script(port.host, "autoip.openrc", service, installed)
    serves(port, installed, service, "/run/autoip.eth0.pid")
