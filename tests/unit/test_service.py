"""The units by themselves, and the watchdog's rhythm; tests/booted has systemd judge and run them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from autoip import errors
from autoip.daemon.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]
SHARE = ROOT / "share"
UNIT = SHARE / "autoip@.service"
WAIT = SHARE / "autoip-wait@.service"


def settings(unit: Path) -> Mapping[str, list[str]]:
    """For each name of the file its values in order."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in unit.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name].append(value)
    return found


def test_what_would_fail_again_is_not_started_again() -> None:
    kinds: list[type[errors.AutoipError]]
    kinds = [errors.UsageError, errors.AlreadyRunning, errors.NoPermission, errors.NotArp]
    statuses = sorted(kind.exit_status for kind in kinds)
    assert settings(UNIT)["RestartPreventExitStatus"] == [" ".join(map(str, statuses))]


def test_the_user_of_the_unit_is_made() -> None:
    for file in (UNIT, WAIT):
        assert settings(file)["User"] == settings(file)["Group"] == ["autoip"]
    lines = (SHARE / "autoip.sysusers").read_text().splitlines()
    assert [line.split()[:2] for line in lines if line[0] != "#"] == [["u", "autoip"]]


def test_who_waits_has_no_privilege() -> None:
    found = settings(WAIT)
    assert found["CapabilityBoundingSet"] == [""]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert "AmbientCapabilities" not in found


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
