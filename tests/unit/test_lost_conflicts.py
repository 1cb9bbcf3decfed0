"""Conflicts that the helper's queue had no room for are in the log."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from autoip.daemon.daemon import Daemon
from autoip.kernel.arp_socket import ArpListener, Received


class Flooded:
    """A listener that lost conflicts since it was read last."""

    def __init__(self, *lost: int) -> None:
        self.lost = 0
        self._next = iter(lost)

    def drain(self) -> list[Received]:
        self.lost += next(self._next)
        return []


def test_each_loss_is_one_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    daemon = Daemon.__new__(Daemon)
    parts: Any = daemon
    parts._interfaces = []
    parts._log = logging.getLogger("autoip.test")
    parts._reactor = cast("ArpListener", Flooded(0, 3, 0, 2))
    with caplog.at_level(logging.DEBUG, "autoip.test"):
        for _ in range(4):
            daemon._on_frames()
    assert [(record.levelname, record.getMessage().split(":")[0]) for record in caplog.records] == [
        ("DEBUG", "3 conflicts dropped"),
        ("DEBUG", "2 conflicts dropped"),
    ]
