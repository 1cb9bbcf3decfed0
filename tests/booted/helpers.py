"""What the tests of the service under a real systemd share."""

from __future__ import annotations

import re
import socket
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import LabError, Sniffer, journal
from lab.booted import CABLES, Booted
from lab.roots import SUITES
from tests.netns.helpers import wait_until
from tests.require import requires_kernel_feature, requires_program, requires_root

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = [
    # A machine with systemd, and with it what `systemctl`, udev and the README's first lines need.
    *("systemd", "systemd-sysv", "udev", "dbus", "iproute2", "sudo"),
    # What `make` would install.
    *("make", "gcc", "libc6-dev", "python3", "python3-dev", "python3-venv"),
]
DHCP_CLIENTS = ["isc-dhcp-client", "ifupdown", "network-manager", "networkd-dispatcher"]
"""On the newest Debian alone; their services are off but in the tests of them."""
DHCP_SERVICES = [
    "networking",
    "NetworkManager",
    "NetworkManager-wait-online",
    "networkd-dispatcher",
]
DEBIANS = [
    # One worker has all tests of a Debian, so at most one machine of each is on.
    pytest.param(suite, marks=pytest.mark.xdist_group(f"booted-{suite}"))
    for suite in reversed(SUITES)
]
"""The newest comes first: so it has the same place for tests on it alone, and pytest keeps its machine for them."""
PATIENCE = 60.0
"""Seconds to wait for what must come: long, since the machine may be busy, and never waited out."""
RIVAL = "02:00:00:00:00:aa"
"""The hardware address of a host that wants what we have."""

BOOTED = [
    pytest.mark.long(180),  # all of one Debian, one after the other
    requires_root,
    requires_kernel_feature("veth"),
    requires_program("systemd-nspawn", "systemd-container"),
    requires_program("debootstrap", "debootstrap"),
]
"""The marks of every test here."""


def show(guest: Booted, unit: str, name: str) -> str:
    """A property of a unit."""
    return guest.run("systemctl", "show", "--value", f"--property={name}", unit).strip()


def wait_show(guest: Booted, unit: str, name: str, pattern: str) -> str:
    """Until the regular expression is all of a unit's property; its value. Raises LabError."""
    until = time.monotonic() + PATIENCE
    while not re.fullmatch(pattern, value := show(guest, unit, name)):
        if time.monotonic() > until:
            raise LabError(f"{unit}: {name} is {value!r} and not {pattern!r} after {PATIENCE} s")
        time.sleep(0.05)
    return value


def wait_bound(guest: Booted, name: str = "eth0", which: str = r"\S+") -> IPv4Address:
    """Until the status of the service says that an address is held, which it is. Raises LabError.

    Args:
        guest: the machine.
        name: the interface's.
        which: a regular expression for the address; systemd may still show the one before.
    """
    text = wait_show(guest, f"autoip@{name}", "StatusText", rf"{name}: bound {which} \(.+\)")
    address = IPv4Address(text.split()[2])
    assert addresses(guest, name) == [address]
    return address


def addresses(guest: Booted, name: str = "eth0") -> list[IPv4Address]:
    """The interface's link-local addresses."""
    text = guest.run("ip", "-4", "-o", "addr", "show", "dev", name)
    return [IPv4Address(found) for found in re.findall(r"inet (169\.254\.[0-9.]+)/16", text)]


def wait_no_address(guest: Booted, name: str = "eth0") -> None:
    """Until the interface has no link-local address. Raises LabError."""
    wait_until(lambda: addresses(guest, name) == [], f"no address on {name}", PATIENCE)


def wait_log(guest: Booted, pattern: str, unit: str = "autoip@eth0") -> str:
    """Until a unit's journal since the boot has a regular expression; all of that journal. Raises LabError.

    The journal reads later what a process has written, and what systemd has logged.
    """
    log = ""

    def there() -> bool:
        nonlocal log
        log = guest.run("journalctl", "-b", "--no-pager", "-o", "cat", "-u", unit)
        return re.search(pattern, log, re.MULTILINE) is not None

    wait_until(there, f"{pattern!r} in the journal of {unit}", PATIENCE)
    return log


def wait_announced(wire: Sniffer, address: IPv4Address) -> int:
    """Until the last announcement has been seen, which may be after the status says so; the mark. Raises LabError."""
    wire.wait_count(lambda f: f.is_announcement and f.spa == address, 2, PATIENCE)
    return wire.mark()


def as_new(guest: Booted) -> None:
    """On, its interface down, with nothing of autoip running."""
    journal.register(guest)
    if not guest.running:  # a test before has failed while it was off
        guest.boot()
    guest.run("sh", "-euc", _AS_NEW)


_AS_NEW = r"""
systemctl disable -q autoip@eth0 autoip-wait@eth0 autoip.service
systemctl stop 'needs*' 'autoip*' network-online.target
rm -rf /etc/autoip.conf /etc/systemd/system/autoip* /etc/systemd/system/needs* /etc/udev/rules.d/90-autoip.rules
systemctl reset-failed
ip link set eth0 down
"""


def mask(guest: Booted, *units: str) -> None:
    """Keep services from being started; the machine may be off."""
    for unit in units:
        guest.write(f"/etc/systemd/system/{unit}.service", "")


def drop_in(guest: Booted, unit: str, text: str) -> None:
    """What `systemctl edit UNIT` would write."""
    guest.write(f"/etc/systemd/system/{unit}.service.d/test.conf", text)
    guest.run("systemctl", "daemon-reload")


def send(guest: Booted, frame: bytes) -> None:
    """A frame from the other end of eth0's cable."""
    with guest.lan.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((CABLES[0], 0))
        sock.send(frame)
