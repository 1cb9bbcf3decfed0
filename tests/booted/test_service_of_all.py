"""autoip.service, which serves interfaces as they appear, and autoip@.service beside it."""

from __future__ import annotations

import re
from ipaddress import IPv4Address

import pytest

from lab import LabError
from lab.booted import Booted

from . import helpers
from .helpers import BOOTED, DEBIANS, addresses, mask, show, wait_log, wait_show

pytestmark = BOOTED

UNIT = "autoip.service"


def wait_bound(guest: Booted, name: str) -> IPv4Address:
    """Until the service's status says that the interface holds an address, which it does. Raises LabError."""
    text = wait_show(guest, UNIT, "StatusText", rf"(.*, )?{name}: bound \S+ \(.+")
    found = re.search(rf"{name}: bound (\S+)", text)
    assert found is not None
    assert addresses(guest, name) == [IPv4Address(found[1])]
    return IPv4Address(found[1])


def test_interfaces_are_served_as_they_appear(guest: Booted) -> None:
    guest.write("/etc/autoip.conf", "[usb*]\nserve = yes\ndelay = 50\n")
    guest.run("systemctl", "enable", "--now", UNIT)
    assert show(guest, UNIT, "ActiveState") == "active"
    waits = "waits for interfaces"
    wait_show(guest, UNIT, "StatusText", waits)
    guest.run(
        "ip",
        *[
            "link",
            "add",
            "usb0",
            "address",
            "02:00:00:00:00:07",
            "type",
            "veth",
            "peer",
            "name",
            "far0",
        ],
    )
    guest.run("ip", "link", "set", "far0", "up")
    address, pid = wait_bound(guest, "usb0"), show(guest, UNIT, "MainPID")
    assert f" {address} " in guest.run("autoip", "status", "usb0")

    guest.run("ip", "link", "set", "usb0", "down")
    guest.run("ip", "link", "set", "usb0", "name", "lan0")
    wait_show(guest, UNIT, "StatusText", waits)
    guest.run("ip", "link", "set", "lan0", "up")
    assert addresses(guest, "lan0") == []
    guest.run("sh", "-c", 'test -z "$(ls /run/autoip)"')
    guest.run("ip", "link", "set", "lan0", "down")
    guest.run("ip", "link", "set", "lan0", "name", "usb9")
    assert wait_bound(guest, "usb9") == address

    guest.run("ip", "link", "del", "usb9")
    wait_show(guest, UNIT, "StatusText", waits)
    assert (show(guest, UNIT, "MainPID"), show(guest, UNIT, "NRestarts")) == (pid, "0")
    guest.run("systemctl", "disable", "--now", UNIT)


def test_the_template_was_there_first(guest: Booted) -> None:
    """The service leaves the interface to it, says so, and takes over when it ends; killed, too."""
    guest.write("/etc/autoip.conf", "[eth*]\nserve = yes\ndelay = 50\n")
    guest.run("systemctl", "start", "autoip@eth0")
    pid = show(guest, "autoip@eth0", "MainPID")
    guest.run("systemctl", "start", UNIT)
    other = re.escape(f"eth0: already running (pid {pid}, autoip@eth0.service)")
    wait_show(guest, UNIT, "StatusText", rf"eth1: bound \S+ \(.+\), {other}")
    assert len(re.findall(other, wait_log(guest, other, UNIT))) == 1
    address = helpers.wait_bound(guest)
    guest.run("systemctl", "stop", "autoip@eth0")
    assert wait_bound(guest, "eth0") == address
    guest.run("systemctl", "stop", UNIT)
    assert addresses(guest) == addresses(guest, "eth1") == []


def test_the_service_was_there_first(guest: Booted) -> None:
    """The template is refused once, and names it; nothing happens to the address."""
    guest.write("/etc/autoip.conf", "[eth*]\nserve = yes\ndelay = 50\n")
    guest.run("systemctl", "start", UNIT)
    address, pid = wait_bound(guest, "eth0"), show(guest, UNIT, "MainPID")
    try:
        guest.run("systemctl", "start", "autoip@eth0")
    except LabError:
        pass
    else:
        raise AssertionError("autoip@eth0 was not refused")
    wait_show(guest, "autoip@eth0", "ActiveState", "failed")
    assert show(guest, "autoip@eth0", "ExecMainStatus") == "3"
    assert show(guest, "autoip@eth0", "NRestarts") == "0"
    wait_log(guest, re.escape(f"eth0: already running (pid {pid}, autoip.service)"))
    assert wait_bound(guest, "eth0") == address
    guest.run("systemctl", "stop", UNIT)


@pytest.mark.parametrize("machine", DEBIANS[:1], indirect=True)
def test_patterns_beside_networkmanager(guest: Booted) -> None:
    """`hooks install` has the service serve what they match, but what is named itself; `remove` ends both."""
    manager, named = "NetworkManager.service", "autoip@eth0.service"
    guest.write("/etc/autoip.conf", "[*]\nafter = 1\ndelay = 50\n")
    guest.run("rm", f"/etc/systemd/system/{manager}")
    guest.run("systemctl", "daemon-reload")
    guest.run("systemctl", "start", manager)
    try:
        said = guest.run("autoip", "hooks", "install", "eth*")
        assert f"started {UNIT}" in said.splitlines()
        address = wait_bound(guest, "eth0")
        # Started again, as at a boot, none of the two takes the other's.
        for verb in ("start", "restart"):
            said = guest.run("autoip", "hooks", "install", "eth0")
            assert f"reloaded {UNIT}" in said.splitlines()
            guest.run("systemctl", verb, UNIT, named)
            assert helpers.wait_bound(guest) == address
            wait_show(guest, UNIT, "StatusText", r"eth1: bound \S+ \([^)]*\)")
        assert guest.run("systemctl", "is-enabled", UNIT, named) == "enabled\n" * 2
        said = guest.run("autoip", "hooks", "remove")
        for unit in (UNIT, named):
            assert f"stopped {unit}" in said.splitlines()
            wait_show(guest, unit, "ActiveState", "inactive")
            assert guest.run("systemctl", "is-enabled", unit, check=False) == "disabled\n"
        assert addresses(guest) == addresses(guest, "eth1") == []
    finally:
        guest.run("autoip", "hooks", "remove")
        guest.run("systemctl", "stop", manager)
        mask(guest, "NetworkManager")
        guest.run("systemctl", "daemon-reload")


def test_what_systemd_thinks_of_the_unit(guest: Booted) -> None:
    text = guest.run("systemd-analyze", "security", "--no-pager", UNIT)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
    assert found and float(found[1]) <= 2.0, text
    assert guest.run("systemd-analyze", "verify", "--man=no", UNIT) == ""
