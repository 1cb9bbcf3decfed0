"""A booted machine for each Debian, with autoip installed as the README says."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from lab import Sniffer, journal, leftovers
from lab.booted import CABLES, Booted
from lab.roots import SUITES, Bare, make_root
from tools import readme

from .helpers import PACKAGES, REPOSITORY

_CLONE = r"""
set -eu
mkdir -p /root/autoip
tar -C /source --exclude=./.git --exclude=./.venv --exclude=./build --exclude='*.so' -cf - . | tar -C /root/autoip -xf -
cd /root/autoip
make setup
.venv/bin/pip wheel -q --no-build-isolation --wheel-dir /root/wheels '.[networkmanager]'
rm -rf build
"""
"""What needs the network, which a booted machine does not have: afterwards the README's block does without it."""


@pytest.fixture(scope="package", autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert leftovers() == []


@pytest.fixture(
    # Off again before the next test of another folder, which looks whether anything is left.
    scope="package",
    # One worker has all tests of a Debian, so at most one machine of each is on.
    params=[
        pytest.param(suite, marks=pytest.mark.xdist_group(f"booted-{suite}")) for suite in SUITES
    ],
)
def machine(request: pytest.FixtureRequest) -> Iterator[Booted]:
    """Booted, with the README's block for installation done; `eth0` of autoip is enabled and has its cable."""
    root = make_root(request.param, PACKAGES)
    with Booted(root, request.param) as machine:
        with Bare(root, REPOSITORY) as bare:
            bare.run(_CLONE)
            pack = ["tar", "-C", "/root", "-cf", "-", "autoip", "wheels"]
            with subprocess.Popen(bare.command(pack), stdout=subprocess.PIPE) as archive:
                assert archive.stdout is not None
                machine.unpack(archive.stdout, "root")
            assert archive.returncode == 0
        machine.write("/etc/pip.conf", "[global]\nno-index = yes\nfind-links = /root/wheels\n")
        # So that the journal of a boot is there after the next one.
        machine.write("/var/log/journal/.keep", "")
        machine.boot()
        block = "\n".join(["cd ~/autoip", *readme.commands("install")])
        machine.run("bash", "-ec", block, timeout=300)
        yield machine


@pytest.fixture
def guest(machine: Booted) -> Booted:
    """The machine, its cables in, its interfaces down, with nothing of autoip running; claims are fast."""
    journal.register(machine)
    if not machine.running:  # a test before has failed while it was off
        machine.boot()
    machine.run("sh", "-euc", _AS_NEW)
    # 0.2 s for a claim; a second start comes at once.
    machine.write(
        "/etc/systemd/system/autoip@.service.d/fast.conf",
        '[Service]\nEnvironment="AUTOIP_OPTIONS=--delay 50"\nRestartSec=100ms\n',
    )
    machine.run("systemctl", "daemon-reload")
    for cable in CABLES:
        machine.cable(True, cable)
    return machine


_AS_NEW = r"""
systemctl disable -q autoip@eth0 autoip-wait@eth0 autoip.service
systemctl stop 'needs*' 'autoip*' network-online.target
rm -rf /etc/autoip.conf /etc/systemd/system/autoip* /etc/systemd/system/needs* /etc/udev/rules.d/90-autoip.rules
systemctl reset-failed
ip link set eth0 down
"""


@pytest.fixture
def wire(guest: Booted) -> Iterator[Sniffer]:
    """What passes the other end of eth0's cable."""
    with contextlib.closing(Sniffer(guest.lan, CABLES[0])) as sniffer:
        yield sniffer
