"""The Debian package in the life of a machine, on Debian 12 and 13: built, installed, upgraded, removed, purged.

The tests of one Debian are steps: each goes on with what the one before has left.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

import autoip
from lab import LabError, Sniffer
from lab.booted import CABLES, Booted
from lab.debian_package import (
    DIST,
    MACHINE,
    bring,
    build,
    build_dependencies,
    build_older,
    installed_size,
)
from lab.roots import SUITES, Bare, make_root
from lab.traffic import Traffic

from .helpers import BOOTED, REPOSITORY, show, wait_bound, wait_log

pytestmark = BOOTED

VERSION = f"{autoip.__version__}-1"
BEFORE = "0.0.9"
CLAIM = "debian/tests/claim-and-defence"
WAS_THERE = "find / -xdev ( -path /root -o -path /proc ) -prune -o -name *autoip* -print"

PARAMETERS = [
    pytest.param(suite, marks=pytest.mark.xdist_group(f"package-{suite}")) for suite in SUITES
]


@pytest.fixture(scope="module", params=PARAMETERS)
def built(request: pytest.FixtureRequest) -> Iterator[Bare]:
    """A bare machine of the release in which the packages have been built, in DIST."""
    packages = build_dependencies(REPOSITORY)
    if request.param == SUITES[-1]:
        packages.append("lintian")
    with Bare(make_root(request.param, packages), REPOSITORY) as bare:
        build(bare)
        yield bare


@pytest.fixture(scope="module")
def machine(built: Bare) -> Iterator[Booted]:
    """A booted machine with what the package depends on, and with the packages in DIST."""
    suite = built.base.name.split("-")[0]
    build_older(built, BEFORE)
    with Booted(make_root(suite, MACHINE), f"package-{suite}") as machine:
        bring(built, machine)
        machine.write("/root/claim-and-defence", (REPOSITORY / CLAIM).read_text())
        machine.boot()
        yield machine


def apt(machine: Booted, *words: str) -> str:
    """Run it to its end; return its output, with the lines of maintainer scripts. Raises LabError."""
    command = "DEBIAN_FRONTEND=noninteractive apt-get -y"
    return machine.run("sh", "-c", f"{command} {shlex.join(words)} 2>&1", timeout=300)


def debs(machine: Booted, *names: str) -> list[str]:
    """The files of the packages whose file names begin like this."""
    found = machine.run("sh", "-c", f"ls {DIST}/*_{VERSION}_*.deb").split()
    return [path for path in found if path.startswith(tuple(f"{DIST}/{name}" for name in names))]


@pytest.mark.parametrize("built", PARAMETERS[1:], indirect=True)
def test_lintian_finds_nothing(built: Bare) -> None:
    command = "lintian --allow-root --display-info --pedantic"
    found = built.run(f"cd {DIST} && {command} autoip_{VERSION}_*.deb autoip-*_all.deb")
    assert found.stdout == ""


@pytest.mark.parametrize("built", PARAMETERS[:1], indirect=True)
def test_built_on_the_oldest_it_fits_the_newest(built: Bare, tmp_path: Path) -> None:
    for path in (built.root / DIST.lstrip("/")).glob(f"autoip_{VERSION}_*.deb"):
        shutil.copy(path, tmp_path / "autoip.deb")
    shutil.copy(REPOSITORY / CLAIM, tmp_path)
    with Bare(make_root(SUITES[-1], MACHINE), tmp_path) as other:
        other.run("apt-get install -y /source/autoip.deb")
        claimed = other.run("unshare --net python3 /source/claim-and-defence")
        assert "defended: 169.254." in claimed.stdout


@pytest.mark.parametrize("built", PARAMETERS[:1], indirect=True)
def test_two_builds_are_the_same(built: Bare) -> None:
    """The folder and the umask are not in the packages."""
    build(built, "/root/another/place", "027")
    sums = "for deb in autoip*.deb; do sha256sum $deb; done"
    first, second = (
        built.run(f"cd {dist} && {sums}").stdout for dist in (DIST, "/root/another/place/dist")
    )
    assert first == second and len(first.splitlines()) == 3  # with the symbols for a debugger


def test_installed_it_starts_nothing(machine: Booted) -> None:
    before = machine.run("ip", "-d", "address")
    apt(machine, "install", f"{DIST}/older.deb")
    assert machine.run("autoip", "--version") == f"autoip {BEFORE}\n"
    assert machine.run("ip", "-d", "address") == before
    assert machine.run("systemctl", "list-units", "--plain", "--no-legend", "autoip*") == ""
    enabled = machine.run("systemctl", "list-unit-files", "--no-legend", "autoip*")
    assert {line.split()[1] for line in enabled.splitlines()} == {"disabled"}
    assert machine.run("getent", "passwd", "autoip")
    assert installed_size(machine) <= 1 << 20


def test_claim_and_defence(machine: Booted) -> None:
    """The test of the package itself."""
    assert "defended: 169.254." in machine.run("python3", "/root/claim-and-defence")


def session(machine: Booted, address: IPv4Address) -> Traffic:
    """Packets from the other end of eth0's cable to the address."""
    machine.lan.ip(f"addr replace 169.254.1.1/16 dev {CABLES[0]}")
    listener = machine.call(socket.create_server, (str(address), 7000))
    return Traffic(listener, machine.lan.call(socket.create_connection, (str(address), 7000), 20))


def test_an_upgrade_reloads(machine: Booted) -> None:
    fast = '[Service]\nEnvironment="AUTOIP_OPTIONS=--delay 50"\n'
    machine.write("/etc/systemd/system/autoip@eth0.service.d/test.conf", fast)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "enable", "--now", "autoip@eth0")
    address, pid = wait_bound(machine), show(machine, "autoip@eth0", "MainPID")
    with Sniffer(machine.lan, CABLES[0]) as wire:
        since = wire.mark()
        traffic = session(machine, address)
        try:
            apt(machine, "install", *debs(machine, "autoip_", "autoip-avahi-compat_"))
        finally:
            traffic.stop()
        assert not [frame for frame in wire.arp(since) if frame.is_probe or frame.is_announcement]
    assert traffic.got == list(range(traffic.sent)) and traffic.sent > 1000
    wait_log(machine, re.escape(f"version {autoip.__version__} goes on for {BEFORE}"))
    assert (wait_bound(machine), show(machine, "autoip@eth0", "MainPID")) == (address, pid)


def test_by_the_name_of_avahi_autoipd(machine: Booted) -> None:
    machine.run("avahi-autoipd", "--daemonize", "eth1")
    machine.run("avahi-autoipd", "--check", "eth1")
    machine.run("avahi-autoipd", "--kill", "eth1")
    machine.run("sh", "-c", "! avahi-autoipd --check eth1")


def test_a_refused_reload_fails_no_upgrade(machine: Booted) -> None:
    """The administrator is told, and the program from before goes on."""
    machine.write("/etc/autoip.conf", "[eth0]\npolicy = sometimes\n")
    address, pid = wait_bound(machine), show(machine, "autoip@eth0", "MainPID")
    told = apt(machine, "install", "--reinstall", *debs(machine, "autoip_"))
    machine.run("rm", "/etc/autoip.conf")
    assert "\nautoip: not reloaded; the program from before goes on; " in told
    wait_log(machine, "/etc/autoip.conf:2: policy")
    assert (wait_bound(machine), show(machine, "autoip@eth0", "MainPID")) == (address, pid)


def test_removed_it_leaves_what_it_has_learned(machine: Booted) -> None:
    machine.run("autoip", "hooks", "install", "--client", "dhclient")
    hook = "/etc/dhcp/dhclient-exit-hooks.d/autoip"
    assert machine.run("cat", hook)
    apt(machine, "remove", "autoip")
    for gone in (hook, "/etc/autoip", "/usr/bin/autoip", "/usr/lib/python3/dist-packages/autoip"):
        with pytest.raises(LabError):
            machine.run("test", "-e", gone)
    assert show(machine, "autoip@eth0", "ActiveState") == "inactive"
    assert "169.254." not in machine.run("ip", "-4", "address")
    assert machine.run("ls", "/var/lib/autoip")


def test_purged_it_leaves_nothing(machine: Booted) -> None:
    machine.write("/etc/autoip.conf", "[eth0]\n")
    machine.write("/etc/autoip.conf.d/site.conf", "[eth0]\n")
    apt(machine, "purge", "autoip")
    machine.run("rm", "-r", "/etc/systemd/system/autoip@eth0.service.d")  # this test's own
    assert machine.run(*WAS_THERE.split()) == ""
    assert "autoip" not in machine.run("getent", "passwd")
    assert machine.run("systemctl", "--failed", "--no-legend") == ""
