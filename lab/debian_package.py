"""The Debian packages of a source tree: built in a bare machine of a release, and brought to a booted one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from .booted import Booted
from .roots import Bare

MACHINE = (
    *("systemd", "systemd-sysv", "udev", "dbus", "iproute2"),
    # What the package depends on and recommends: a booted machine has no network.
    *("python3-cffi-backend", "python3-jeepney", "python3-pyroute2"),
)
"""Debian packages of the root of a machine that gets the package."""
DIST = "/root/tree/dist"
"""Where the packages are, in the bare machine and on the disk of the booted one."""

_BUILD = r"""
set -eu
umask "$2"
mkdir -p "$1"
tar -C /source --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./dist -cf - . | tar -C "$1" -xf -
cd "$1"
unshare --net make deb >log 2>&1 || { tail -n 30 log; exit 1; }
"""
_OLDER = r"""
set -eu
cd "$1"
dpkg-deb -R autoip_*.deb older
sed -i "s/^Version: .*/Version: $2/" older/DEBIAN/control
sed -i "s/^__version__ = .*/__version__ = \"$2\"/" older/usr/lib/python3/dist-packages/autoip/__init__.py
dpkg-deb -b older older.deb
rm -rf older
"""


def build_dependencies(source: Path) -> list[str]:
    """Return the Debian packages with which the tree is built: debian/control's, and what Debian takes for granted."""
    text = (source / "debian" / "control").read_text()
    (found,) = re.findall(r"^Build-Depends: (.*(?:\n .*)*)", text, re.MULTILINE)
    return ["build-essential", *(item.split()[0] for item in found.split(","))]


def build(bare: Bare, tree: str = "/root/tree", umask: str = "022") -> None:
    """Run `make deb` in a copy of /source, without a network. Raises LabError, with the last lines."""
    bare.run(["bash", "-c", _BUILD, "bash", tree, umask])


def build_older(bare: Bare, version: str) -> None:
    """Make DIST/older.deb: the same package, of which package and program have another version."""
    bare.run(["bash", "-c", _OLDER, "bash", DIST, version])


def bring(bare: Bare, machine: Booted) -> None:
    """Put the packages on the booted machine's disk, into DIST."""
    pack = bare.command(f"cd {DIST} && tar -cf - *.deb")
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as archive:
        assert archive.stdout is not None
        machine.unpack(archive.stdout, DIST)


def installed_size(machine: Booted) -> int:
    """Return the bytes of the files of the installed package. Raises LabError."""
    files = "dpkg-query -L autoip | while read -r f; do [ -d $f ] || stat -c %s $f; done"
    return sum(map(int, machine.run("sh", "-c", files).split()))
