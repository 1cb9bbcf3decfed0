"""autoip under the name of avahi-autoipd: beside the real one, and with those who call it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

from lab import Dhclient, Dhcpd, LabError, Namespace, Port, machine
from lab.daemon import REPOSITORY
from tests.require import requires_program

from .conftest import MakeHost
from .helpers import NETNS, A, wait_until

pytestmark = [*NETNS, requires_program("avahi-autoipd", "avahi-autoipd")]

PAGE = REPOSITORY / "docs" / "avahi-autoipd.md"
REAL = "/usr/sbin/avahi-autoipd"
PID_FILE = "/run/avahi-autoipd.eth0.pid"
WARNED = ["avahi-autoipd -D -S 10.0.0.1 eth0"]
"""Where autoip prints a warning, and the real one does not."""
FAST = "[*]\ndelay = 100\n"


class Call(NamedTuple):
    """A row of the page's table: a call on a host, and what each program makes of it."""

    host: str
    command: str
    autoip: str
    real: str


def rows() -> Iterator[Call]:
    table = PAGE.read_text().partition("\n## What differs")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[1].startswith("`"):
            same = cells[3] == "the same"
            real = cells[2] if same else cells[3].partition(":")[0]
            yield Call(cells[0], cells[1].strip("`"), cells[2], real)


HOSTS = {name: list(calls) for name, calls in groupby(rows(), lambda call: call.host)}


def replaced(host: Namespace, program: Path | None) -> None:
    """Give the host its own files and that program as /usr/sbin/avahi-autoipd; None: it stays the real one."""
    machine.give_own_files(host)
    machine.write(host, "/etc/autoip.conf", FAST)
    if program is not None:
        host.run("mount", "--bind", str(program), REAL)


def made(host: Namespace, command: str, expected: str) -> bool:
    """Make a call; what it gives, in the words of the page, is as expected. Return whether it prints anything.

    The end of an address may come a moment after the call: a process that the call has signalled takes it off.
    """
    shell = f"({command}) >/run/out 2>&1; echo $?"
    status = host.run("sh", "-c", shell, timeout=40).strip()

    def outcome() -> str:
        pid_file = machine.read(host, PID_FILE)
        held = host.link_local("eth0")
        return ", ".join([status, *["pid file"] * bool(pid_file), *["address"] * bool(held)])

    try:
        wait_until(lambda: outcome() == expected, command)
    except LabError:
        told = machine.read(host, "/run/out")
        raise AssertionError(f"{command}: {outcome()}, not {expected}: {told}") from None
    return machine.read(host, "/run/out") != ""


@pytest.mark.parametrize("name", HOSTS)
def test_side_by_side(make_host: MakeHost, installed: Path, name: str) -> None:
    """Both at once: the real one knows no shorter times than those of the RFC."""
    ports = {kind: make_host(up=name != "link down") for kind in ("autoip", "real")}
    for kind, port in ports.items():
        replaced(port.host, installed if kind == "autoip" else None)
        if name == "with 192.0.2.1":
            port.host.ip("address add 192.0.2.1/24 dev eth0")

    def make(kind: str) -> list[bool]:
        host = ports[kind].host
        return [made(host, call.command, getattr(call, kind)) for call in HOSTS[name]]

    with ThreadPoolExecutor(2) as both:
        printed = zip(*both.map(make, ports), strict=True)
    for call, (ours, theirs) in zip(HOSTS[name], printed, strict=True):
        assert ours == theirs or call.autoip != call.real or call.command in WARNED, call.command


def test_the_table_is_read() -> None:
    """None is lost by a change of the page."""
    counts = {name: len(calls) for name, calls in HOSTS.items()}
    assert counts == {"with 192.0.2.1": 25, "link down": 3}


# --- those who call it ---------------------------------------------------------------------------


def routes(host: Namespace) -> set[str]:
    """The destinations in the main table."""
    return {line.split()[0] for line in host.ip("route").splitlines()}


def keep_debians(host: Namespace, path: str) -> None:
    """Give the host a file of the package avahi-autoipd that `give_own_files` has taken away."""
    text = Path(path).read_text()
    machine.write(host, path, text, 0o755)


def test_several_starts_at_once(port: Port, installed: Path) -> None:
    """One of them wins, and the pid file is the winner's, also where a file was left."""
    replaced(port.host, installed)
    machine.write(port.host, PID_FILE, "4194305\n")
    command = f"umask 077; for n in 1 2 3 4; do {REAL} -D eth0 & done; wait"
    port.host.run("sh", "-c", command, timeout=40)
    wait_until(lambda: len(port.host.processes()) == 2, "one daemon, and who removes its file")
    pid = int(machine.read(port.host, PID_FILE))
    assert pid in port.host.processes()
    listed = port.host.run("sh", "-c", "stat -c '%n %a' /run/avahi-autoipd.*")
    assert listed == f"{PID_FILE} 644\n"
    port.host.run(REAL, "-k", "eth0")
    wait_until(lambda: not port.host.processes(), "the end of all processes")


@requires_program("ifup", "ifupdown")
def test_ifupdown(make_host: MakeHost, installed: Path) -> None:
    """The method ipv4ll, and the package's own scripts beside a static address."""
    port = make_host(up=False)
    port.switch.attach(port.host, "eth1")
    replaced(port.host, installed)
    for folder in ("if-up.d", "if-down.d"):
        keep_debians(port.host, f"/etc/network/{folder}/avahi-autoipd")
    machine.write(
        port.host,
        "/etc/network/interfaces",
        "iface eth0 inet ipv4ll\niface eth1 inet static\n    address 192.0.2.1/24\n",
    )
    port.host.run("ifup", "eth1")
    assert routes(port.host) == {"192.0.2.0/24", "169.254.0.0/16"}  # by the package's script
    port.host.run("ifdown", "eth1")
    assert routes(port.host) == set()
    port.host.run("ifup", "eth0")
    wait_until(lambda: port.host.link_local("eth0"), "an address")
    wait_until(lambda: "default" in routes(port.host), "the default route of the action script")
    assert int(machine.read(port.host, PID_FILE)) in port.host.processes()
    port.host.run("ifdown", "eth0")
    assert (port.host.link_local("eth0"), machine.read(port.host, PID_FILE)) == ([], "")
    wait_until(lambda: not port.host.processes(), "the end of all processes")


@requires_program("dhclient", "isc-dhcp-client")
@requires_program("dhcpd", "isc-dhcp-server")
def test_dhclient(make_host: MakeHost, installed: Path) -> None:
    """The package's two hooks: an address after FAIL, none after BOUND."""
    port, other = make_host(plugged=True), make_host(plugged=True)
    replaced(port.host, installed)
    keep_debians(port.host, "/etc/dhcp/dhclient-enter-hooks.d/avahi-autoipd")
    keep_debians(port.host, "/etc/dhcp/dhclient-exit-hooks.d/zzz_avahi-autoipd")
    with Dhclient(port) as client, Dhcpd(other) as server:
        client.start()
        wait_until(lambda: port.host.link_local("eth0"), "an address after a failure")
        server.start()
        client.wait_bound()
        wait_until(lambda: not port.host.link_local("eth0"), "its end with the lease")
        # The process that called ends the daemon, which takes its address off first, then removes the file.
        wait_until(lambda: machine.read(port.host, PID_FILE) == "", "the end of the pid file")


def test_script_without_debians(port: Port, installed: Path) -> None:
    """A script of the user's, by its contract; and without any, autoip sets the default route itself."""
    replaced(port.host, installed)
    machine.write(port.host, "/run/script", '#!/bin/sh\necho "$* $(id -u)" >>/run/calls\n', 0o755)
    for words, uid in ((["--no-drop-root"], "0"), ([], None)):
        machine.write(port.host, "/run/calls", "", 0o666)
        port.host.run(REAL, "-wD", "-t", "/run/script", "-S", str(A), *words, "eth0")
        wait_until(lambda: machine.read(port.host, "/run/calls"), "the first call")
        port.host.run(REAL, "-k", "eth0")
        calls = [line.split() for line in machine.read(port.host, "/run/calls").splitlines()]
        assert [call[:3] for call in calls] == [[w, "eth0", str(A)] for w in ("BIND", "STOP")]
        assert {call[3] == "0" for call in calls} == {uid == "0"}
    port.host.run("rm", "/etc/avahi/avahi-autoipd.action")
    port.host.run(REAL, "-wD", "eth0")
    wait_until(lambda: "default" in routes(port.host), "autoip's own default route")


def test_reload_in_the_background(port: Port, installed: Path) -> None:
    """The program of a reload neither goes to the background again nor takes itself for a second daemon."""
    replaced(port.host, installed)
    # As started by a program that has closed its own streams.
    port.host.run("sh", "-c", f"exec {REAL} -wD eth0 <&- >&- 2>&-")
    for name in ("0", "1", "2"):
        stream = Path("/proc", machine.read(port.host, PID_FILE).strip(), "fd", name)
        assert stream.readlink() == Path("/dev/null")
    pid, held = machine.read(port.host, PID_FILE), port.host.link_local("eth0")
    port.host.run(str(installed), "reload", "eth0")
    assert (machine.read(port.host, PID_FILE), port.host.link_local("eth0")) == (pid, held)
    # As a service manager ends it: each process of the service, and the other one outlives the daemon.
    for process in port.host.processes():
        os.kill(process, signal.SIGTERM)
    wait_until(lambda: not port.host.processes(), "the end of all processes")
    assert (machine.read(port.host, PID_FILE), port.host.link_local("eth0")) == ("", [])


# --- zcip ----------------------------------------------------------------------------------------

ZCIP = """\
#!/bin/sh
echo "$1 $interface $ip" >>/run/calls
case $1 in
    config) ip address replace "$ip/16" dev "$interface" scope link ;;
    deconfig) ip address del "$ip/16" dev "$interface" || true ;;
esac
"""


def test_zcip(port: Port, installed: Path) -> None:
    """By that name: back when there is an address, and the script's three calls."""
    machine.give_own_files(port.host)
    machine.write(port.host, "/etc/autoip.conf", FAST)
    machine.write(port.host, "/run/script", ZCIP, 0o755)
    machine.write(port.host, "/run/calls", "", 0o666)
    name = installed.with_name("zcip")
    name.symlink_to(installed)
    with pytest.raises(LabError, match=r"exit status 2: autoip: -l 10\.0\.0\.0: allowed are 169"):
        port.host.run(str(name), "-l", "10.0.0.0", "eth0", "/run/script")
    port.host.run(str(name), "-r", str(A), "eth0", "/run/script")
    assert port.host.link_local("eth0") == [A]
    port.host.run(str(installed), "stop", "eth0")
    wait_until(lambda: not port.host.processes(), "the end of all processes")
    calls = machine.read(port.host, "/run/calls").splitlines()
    assert calls == ["init eth0 ", f"config eth0 {A}", f"deconfig eth0 {A}"]
