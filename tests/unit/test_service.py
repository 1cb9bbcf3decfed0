"""The units by themselves: systemd's own judgement of it, and the watchdog's rhythm."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoip import errors
from autoip.daemon.daemon import Daemon
from lab import unit
from tests.require import requires_program

ROOT = Path(__file__).resolve().parents[2]
SHARE = ROOT / "share"
UNIT = SHARE / "autoip@.service"
WAIT = SHARE / "autoip-wait@.service"
SCORES = {UNIT: 2.0, WAIT: 1.5}
"""systemd's exposure level, 0 to 10, that must not be exceeded."""

each_unit = pytest.mark.parametrize("unit_file", SCORES, ids=lambda path: path.stem)

requires_systemd = requires_program("systemd-analyze", "systemd")


@requires_systemd
@each_unit
def test_exposure(unit_file: Path) -> None:
    command = ["systemd-analyze", "--no-pager", "security", "--offline=true", str(unit_file)]
    result = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert found, result.stdout + result.stderr
    assert float(found[1]) <= SCORES[unit_file]


@requires_systemd
@each_unit
def test_systemd_has_no_complaint(unit_file: Path, tmp_path: Path) -> None:
    # As installed, both of them, but for the program, which is not.
    for file in SCORES:
        text = file.read_text().replace("ExecStart=autoip ", "ExecStart=/bin/sh ")
        (tmp_path / file.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit_file.name)]
    result = subprocess.run(command, capture_output=True, text=True)
    ours = [line for line in result.stderr.splitlines() if "autoip" in line]
    assert (ours, result.returncode) == ([], 0)


def test_what_would_fail_again_is_not_started_again() -> None:
    kinds: list[type[errors.AutoipError]]
    kinds = [errors.UsageError, errors.AlreadyRunning, errors.NoPermission, errors.NotArp]
    statuses = sorted(kind.exit_status for kind in kinds)
    assert unit.read(UNIT)["RestartPreventExitStatus"] == [" ".join(map(str, statuses))]


def test_the_user_of_the_unit_is_made() -> None:
    for file in SCORES:
        settings = unit.read(file)
        assert settings["User"] == settings["Group"] == ["autoip"]
    lines = (SHARE / "autoip.sysusers").read_text().splitlines()
    assert [line.split()[:2] for line in lines if line[0] != "#"] == [["u", "autoip"]]


def test_who_waits_has_no_privilege() -> None:
    settings = unit.read(WAIT)
    assert settings["CapabilityBoundingSet"] == [""]
    assert settings["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert "AmbientCapabilities" not in settings


@requires_systemd
def test_the_filter_lets_through_what_it_names() -> None:
    calls = unit.allowed_calls(unit.read(UNIT))
    assert {"execve", "socket", "capset", "bpf", "epoll_wait"} <= calls
    assert calls.isdisjoint({"chown", "setuid", "mount", "ptrace", "setpriority"})


class Fake:
    """A loop that only notes what it is to call later, and a service manager that only counts."""

    def __init__(self, interval: float | None) -> None:
        self.watchdog_interval = interval
        self.fed = 0
        self.later: list[tuple[float, Callable[[], None]]] = []

    def watchdog(self) -> None:
        self.fed += 1

    def call_later(self, pause: float, function: Callable[[], None]) -> None:
        self.later.append((pause, function))


def fed(monkeypatch: pytest.MonkeyPatch, interval: float | None) -> tuple[Fake, Any]:
    fake = Fake(interval)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: fake)
    daemon = Daemon.__new__(Daemon)
    daemon._notifier = fake  # type: ignore[assignment]
    daemon._feed_watchdog()
    return fake, daemon


def test_watchdog_rhythm(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, daemon = fed(monkeypatch, 7.5)
    for count in (1, 2, 3):
        assert fake.fed == count
        assert fake.later == [(7.5, daemon._feed_watchdog)] * count
        fake.later[-1][1]()


def test_without_a_watchdog_nothing_wakes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, _ = fed(monkeypatch, None)
    assert (fake.fed, fake.later) == (0, [])
