"""The Debian package in the life of a machine, on Debian 12 and 13: built, installed, upgraded, removed, purged.

The tests of one Debian are steps: each goes on with what the one before has left.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

import autoip
from lab import LabError, Sniffer
from lab.booted import CABLES, Booted
from lab.roots import SUITES, Bare, make_root

from .helpers import BOOTED, REPOSITORY, show, wait_bound

pytestmark = BOOTED

DEPENDENCIES = ["python3-cffi-backend", "python3-jeepney", "python3-pyroute2"]
"""Of the package: a booted machine has no network."""
MACHINE = ["systemd", "systemd-sysv", "udev", "dbus", "iproute2", *DEPENDENCIES]
VERSION = f"{autoip.__version__}-1"
BEFORE = "0.0.9"

_BUILD = r"""
set -eu
umask "$2"
mkdir -p "$1"
tar -C /source --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./dist -cf - . | tar -C "$1" -xf -
cd "$1"
unshare --net make deb >log 2>&1 || { tail -n 30 log; exit 1; }
"""
"""$1: the folder; $2: the umask. There is no network."""

_OLDER = rf"""
set -eu
cd /root/tree/dist
dpkg-deb -R autoip_{VERSION}_*.deb older
sed -i 's/^Version: .*/Version: {BEFORE}/' older/DEBIAN/control
sed -i 's/^__version__ = .*/__version__ = "{BEFORE}"/' older/usr/lib/python3/dist-packages/autoip/__init__.py
dpkg-deb -b older /root/tree/dist/older.deb
rm -rf older
"""
"""The version before: the same package, with another version of package and program."""


PARAMETERS = [
    pytest.param(suite, marks=pytest.mark.xdist_group(f"package-{suite}")) for suite in SUITES
]


def build_dependencies() -> list[str]:
    """What debian/control names, and what Debian takes for granted."""
    text = (REPOSITORY / "debian" / "control").read_text()
    (field,) = re.findall(r"^Build-Depends: (.*(?:\n .*)*)", text, re.MULTILINE)
    return ["build-essential", *(item.split()[0] for item in field.split(","))]


@pytest.fixture(
    scope="module",
    params=PARAMETERS,
)
def built(request: pytest.FixtureRequest) -> Iterator[Bare]:
    """A bare machine of the release in which the packages have been built, below /root/tree/dist."""
    packages = build_dependencies()
    if request.param == SUITES[-1]:
        packages.append("lintian")
    with Bare(make_root(request.param, packages), REPOSITORY) as bare:
        build(bare, "/root/tree", "022")
        yield bare


def build(bare: Bare, folder: str, umask: str) -> None:
    bare.run(["bash", "-c", _BUILD, "bash", folder, umask])


@pytest.fixture(scope="module")
def machine(built: Bare) -> Iterator[Booted]:
    """A booted machine with what the package depends on, and with the packages in /root."""
    suite = built.base.name.split("-")[0]
    with Booted(make_root(suite, MACHINE), f"package-{suite}") as machine:
        built.run(_OLDER)
        pack = built.command("cd /root/tree/dist && tar -cf - *.deb")
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as archive:
            assert archive.stdout is not None
            machine.unpack(archive.stdout, "root")
        machine.write("/root/claim-and-defence", (REPOSITORY / CLAIM).read_text())
        machine.boot()
        yield machine


CLAIM = "debian/tests/claim-and-defence"
WAS_THERE = "find / -xdev ( -path /root -o -path /proc ) -prune -o -name *autoip* -print"


def apt(machine: Booted, *words: str) -> str:
    return machine.run(
        "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", *words, timeout=120
    )


def debs(machine: Booted, *names: str) -> list[str]:
    """The files of the packages whose file names begin like this."""
    found = machine.run("sh", "-c", f"ls /root/*_{VERSION}_*.deb").split()
    return [path for path in found if path.startswith(tuple(f"/root/{name}" for name in names))]


def journal_of(machine: Booted) -> str:
    return machine.run("journalctl", "-b", "--no-pager", "-o", "cat", "-u", "autoip@eth0")


@pytest.mark.parametrize("built", PARAMETERS[1:], indirect=True)
def test_lintian_finds_nothing(built: Bare) -> None:
    command = "lintian --allow-root --display-info --pedantic"
    found = built.run(f"cd /root/tree/dist && {command} autoip_{VERSION}_*.deb autoip-*_all.deb")
    assert found.stdout == ""


@pytest.mark.parametrize("built", PARAMETERS[:1], indirect=True)
def test_two_builds_are_the_same(built: Bare) -> None:
    """The folder and the umask are not in the packages."""
    build(built, "/root/another/place", "027")
    sums = "for deb in autoip*.deb; do sha256sum $deb; done"
    first, second = (
        built.run(f"cd {tree}/dist && {sums}").stdout
        for tree in ("/root/tree", "/root/another/place")
    )
    assert first == second and len(first.splitlines()) == 3  # with the symbols for a debugger


def test_installed_it_starts_nothing(machine: Booted) -> None:
    before = machine.run("ip", "-d", "address")
    apt(machine, "install", "/root/older.deb")
    assert machine.run("autoip", "--version") == f"autoip {BEFORE}\n"
    assert machine.run("ip", "-d", "address") == before
    assert machine.run("systemctl", "list-units", "--plain", "--no-legend", "autoip*") == ""
    enabled = machine.run("systemctl", "list-unit-files", "--no-legend", "autoip*")
    assert {line.split()[1] for line in enabled.splitlines()} == {"disabled"}
    assert machine.run("getent", "passwd", "autoip")
    size = int(machine.run("dpkg-query", "-W", "-f", "${Installed-Size}", "autoip"))
    assert size <= 1000, "KiB"


def test_claim_and_defence(machine: Booted) -> None:
    """The test of the package itself."""
    assert "defended: 169.254." in machine.run("python3", "/root/claim-and-defence")


def test_an_upgrade_reloads(machine: Booted) -> None:
    fast = '[Service]\nEnvironment="AUTOIP_OPTIONS=--delay 50"\n'
    machine.write("/etc/systemd/system/autoip@eth0.service.d/test.conf", fast)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "enable", "--now", "autoip@eth0")
    address, pid = wait_bound(machine), show(machine, "autoip@eth0", "MainPID")
    with Sniffer(machine.lan, CABLES[0]) as wire:
        since = wire.mark()
        apt(machine, "install", *debs(machine, "autoip_", "autoip-avahi-compat_"))
        assert wire.arp(since) == []
    assert f"version {autoip.__version__} goes on for {BEFORE}" in journal_of(machine)
    assert (wait_bound(machine), show(machine, "autoip@eth0", "MainPID")) == (address, pid)
    assert machine.run("readlink", "-f", "/usr/sbin/avahi-autoipd") == "/usr/bin/autoip\n"


def test_a_refused_reload_fails_no_upgrade(machine: Booted) -> None:
    """The administrator is told, and the program from before goes on."""
    machine.write("/etc/autoip.conf", "[eth0]\npolicy = sometimes\n")
    address, pid = wait_bound(machine), show(machine, "autoip@eth0", "MainPID")
    apt(machine, "install", "--reinstall", *debs(machine, "autoip_"))
    machine.run("rm", "/etc/autoip.conf")
    assert "/etc/autoip.conf:2: policy" in journal_of(machine)
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
    apt(machine, "purge", "autoip")
    machine.run("rm", "-r", "/etc/systemd/system/autoip@eth0.service.d")  # this test's own
    assert machine.run(*WAS_THERE.split()) == ""
    assert "autoip" not in machine.run("getent", "passwd")
    assert machine.run("systemctl", "--failed", "--no-legend") == ""
