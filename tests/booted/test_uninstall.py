"""The README takes the program away, where systemd runs. The last tests of a machine: it has no autoip then."""

from __future__ import annotations

from lab import LabError
from lab.booted import Booted
from tools import readme

from .helpers import BOOTED, wait_bound

pytestmark = BOOTED

OURS = "find / -xdev ( -path /root -o -path /proc ) -prune -o -name *autoip* -print"


def make_uninstall(guest: Booted) -> str:
    """What `make uninstall` says; it must be refused."""
    try:
        guest.run("make", "-C", "/root/autoip", "uninstall")
    except LabError as refused:
        return str(refused)
    raise AssertionError("make uninstall was not refused")


def test_services_are_named_and_nothing_is_removed(guest: Booted) -> None:
    guest.run("systemctl", "start", "autoip@eth0")
    wait_bound(guest)
    assert "enabled or running: autoip@eth0.service" in make_uninstall(guest)
    guest.run("systemctl", "enable", "autoip-wait@eth0")
    named = make_uninstall(guest)
    assert "autoip@eth0.service" in named and "autoip-wait@eth0.service" in named
    guest.run("systemctl", "start", "autoip.service")
    assert "autoip.service" in make_uninstall(guest).split()
    guest.run("systemctl", "stop", "autoip.service")
    assert guest.run("autoip", "--version").startswith("autoip ")
    guest.run("systemctl", "disable", "autoip-wait@eth0")


def test_what_the_readme_uninstalls(guest: Booted) -> None:
    guest.run("systemctl", "enable", "--now", "autoip@eth0")
    wait_bound(guest)
    guest.run("bash", "-ec", "\n".join(["cd ~/autoip", *readme.commands("uninstall")]))
    guest.run("sh", "-c", "! command -v autoip")
    guest.run("rm", "-rf", "/etc/systemd/system/autoip@.service.d")  # this test's own
    left = set(guest.run(*OURS.split()).split())
    # What it has learned stays, as with every package that is removed and not purged.
    assert left == {"/run/autoip", "/var/lib/autoip", "/var/lib/private/autoip"} & left, left
