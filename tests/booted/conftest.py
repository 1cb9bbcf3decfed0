"""A booted machine for each Debian, with autoip installed as the README says."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from lab import Sniffer, leftovers
from lab.booted import CABLES, Booted
from lab.roots import SUITES, Bare, make_root
from tools import readme

from .helpers import DEBIANS, DHCP_CLIENTS, DHCP_SERVICES, PACKAGES, REPOSITORY, as_new, mask

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
    params=DEBIANS,
)
def machine(request: pytest.FixtureRequest) -> Iterator[Booted]:
    """Booted, with the README's block for installation done; `eth0` of autoip is enabled and has its cable."""
    newest = request.param == SUITES[-1]
    root = make_root(request.param, PACKAGES + (DHCP_CLIENTS if newest else []))
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
        mask(machine, *DHCP_SERVICES)
        machine.boot()
        block = "\n".join(["cd ~/autoip", *readme.commands("install")])
        machine.run("bash", "-ec", block, timeout=300)
        yield machine


@pytest.fixture
def guest(machine: Booted) -> Booted:
    """The machine, its cables in, its interfaces down, with nothing of autoip running; claims are fast."""
    as_new(machine)
    # 0.2 s for a claim; a second start comes at once.
    machine.write(
        "/etc/systemd/system/autoip@.service.d/fast.conf",
        '[Service]\nEnvironment="AUTOIP_OPTIONS=--delay 50"\nRestartSec=100ms\n',
    )
    machine.run("systemctl", "daemon-reload")
    for cable in CABLES:
        machine.cable(True, cable)
    return machine


@pytest.fixture
def wire(guest: Booted) -> Iterator[Sniffer]:
    """What passes the other end of eth0's cable."""
    with contextlib.closing(Sniffer(guest.lan, CABLES[0])) as sniffer:
        yield sniffer
