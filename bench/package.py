"""The Debian package on a bare machine: its size, how soon there is an address, and an upgrade under a TCP session."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from lab import LabError
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

from . import samples
from .report import Result, Target, number
from .setting import Setting

NAME = "package"

SOURCE = Path(__file__).resolve().parents[1]
LIMIT = 60.0
"""Seconds to wait for an address."""
BEFORE = "0.0.9"


def measure(setting: Setting) -> Result:
    result = Result(
        NAME, f"Debian package on a bare {SUITES[0]}", ("", "times", "min", "median", "max")
    )
    times = setting.times(5, 1)
    with Bare(make_root(SUITES[0], build_dependencies(SOURCE)), SOURCE) as bare:
        build(bare)
        build_older(bare, BEFORE)
        rounds = [_Round(bare) for _ in range(times)]
    for name, unit in _FIGURES.items():
        values = [each.figures[name] for each in rounds]
        shares = (number(samples.quantile(values, share)) for share in (0.0, 0.5, 1.0))
        result.rows.append((f"{name} ({unit})", str(times), *shares))
        result.numbers[name] = samples.summary(values)
    worst = {name: max(each.figures[name] for each in rounds) for name in _FIGURES}
    result.targets = [
        Target("installed size", 1024, worst["installed size"], "KiB"),
        Target("beyond the claim", 1, worst["beyond the claim"], "s"),
        Target("lost in the upgrade", 0, worst["lost in the upgrade"], "packets"),
    ]
    result.notes = [
        (
            "The claim is RFC 3927's: from the first pause before a probe to the address. Beyond it is the rest of"
            " the time from `systemctl enable --now` to the address on eth0. A packet that TCP sent again was lost."
        )
    ]
    return result


_FIGURES = {
    "installed size": "KiB",
    "apt install": "s",
    "apt install to address": "s",
    "beyond the claim": "s",
    "upgrade": "s",
    "packets in the upgrade": "",
    "lost in the upgrade": "",
}


_ENABLE = """
systemctl enable -q --now autoip@eth0
until ip -4 -o addr show dev eth0 | grep -o 'inet 169[^ ]*'; do sleep 0.02; done
"""


def _apt(machine: Booted, package: str) -> None:
    machine.run(
        "sh",
        "-c",
        f"DEBIAN_FRONTEND=noninteractive apt-get install -y {DIST}/{package}",
        timeout=LIMIT,
    )


def _claim(machine: Booted) -> float:
    """Return the seconds of the claim, by the journal: from the first pause to the end of the last.

    Raises:
        LabError: there was none, or more than one.
    """
    text = machine.run("journalctl", "-o", "short-unix", "-u", "autoip@eth0", "--no-pager")
    stamps = [
        float(line.split()[0])
        for line in text.splitlines()
        if "no-link -> probing" in line or "announce-wait -> configuring" in line
    ]
    if len(stamps) != 2:
        raise LabError(f"not one claim: {text}")
    return stamps[1] - stamps[0]


class _Round:
    """One new machine: the package is installed, the service enabled, the package upgraded."""

    def __init__(self, bare: Bare) -> None:
        self.figures: dict[str, float] = {}
        with Booted(make_root(SUITES[0], MACHINE), "package") as machine:
            bring(bare, machine)
            machine.boot()
            address = self._install(machine)
            self._upgrade(machine, address)

    def _install(self, machine: Booted) -> str:
        began = time.monotonic()
        _apt(machine, "older.deb")
        installed = time.monotonic()
        size = installed_size(machine)
        enabling = time.monotonic()
        address = machine.run("sh", "-euc", _ENABLE).split()[-1].partition("/")[0]
        there = time.monotonic()
        claim = _claim(machine)
        self.figures |= {
            "installed size": size / 1024,
            "apt install": installed - began,
            "apt install to address": (installed - began) + (there - enabling),
            "beyond the claim": (there - enabling) - claim,
        }
        return address

    def _upgrade(self, machine: Booted, address: str) -> None:
        machine.lan.ip(f"addr add 169.254.1.1/16 dev {CABLES[0]}")
        listener = machine.call(socket.create_server, (address, 7000))
        client = machine.lan.call(socket.create_connection, (address, 7000), LIMIT)
        traffic = Traffic(listener, client)
        try:
            began = time.monotonic()
            _apt(machine, "autoip_*.deb")
            took = time.monotonic() - began
        finally:
            traffic.stop()
        missing = traffic.sent - len(traffic.got)
        self.figures |= {
            "upgrade": took,
            "packets in the upgrade": float(traffic.sent),
            "lost in the upgrade": float(missing + traffic.retransmitted),
        }
