"""SIGHUP when the kernel takes the terminal away before it, a moment later, or not at all."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

import pytest

from autoip.daemon import terminal
from autoip.daemon.terminal import HANGUP_TIME, Hangup


class Fake:
    """A loop that only notes what it has to call later, and a terminal."""

    def __init__(self) -> None:
        self.error = 0
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.called: list[str] = []

    def call_later(self, pause: float, function: Callable[[], object]) -> None:
        self.later.append((pause, function))

    def hangup(self) -> Hangup:
        return Hangup(lambda: self.called.append("again"), lambda: self.called.append("end"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: fake)
    monkeypatch.setattr(terminal, "_open_terminal", lambda: fake.error)
    return fake


@pytest.mark.parametrize("error", [errno.ENXIO, errno.EIO])
def test_gone_at_once(fake: Fake, error: int) -> None:
    hangup = fake.hangup()
    fake.error = error
    hangup.signalled()
    assert (fake.called, fake.later) == (["end"], [])


@pytest.mark.parametrize("error", [0, errno.EMFILE, errno.ENXIO])
def test_a_moment_later(fake: Fake, error: int) -> None:
    """The address is probed again meanwhile; nothing looks a third time."""
    fake.hangup().signalled()
    assert fake.called == ["again"]
    [(pause, look)] = fake.later
    assert pause == HANGUP_TIME
    fake.error = error
    look()
    assert fake.called == (["again", "end"] if error == errno.ENXIO else ["again"])
    assert len(fake.later) == 1


def test_there_never_was_one(fake: Fake) -> None:
    fake.error = errno.ENXIO
    fake.hangup().signalled()
    fake.later[0][1]()
    assert fake.called == ["again"]
