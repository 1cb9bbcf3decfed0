"""if-resume: after the machine slept the address is probed again before it is used (RFC 3927, 2.2).

A test cannot put the machine to sleep. The daemon here is the real one but for what tells of it: the clock that counts
sleep is ahead by what is written into a pipe, and the pipe is what the kernel makes readable after a sleep.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from lab import AddressMonitor, Daemon, Port, echoes

from .commands import report
from .helpers import NETNS, A, bind, probed, wait_until

pytestmark = NETNS

PROGRAM = """
import os, sys, time
from autoip.commands import main
from autoip.daemon import daemon
from autoip.kernel import timers

pipe = os.open(sys.argv.pop(1), os.O_RDWR | os.O_NONBLOCK)

class Watch(timers.ClockWatch):
    slept = 0.0

    def __init__(self):
        super().__init__(boottime=lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + self.slept)

    def fileno(self):
        return pipe

    def changed(self):
        self.slept += float(os.read(pipe, 99))
        return super().changed()

daemon.ClockWatch = Watch
sys.exit(main.main(sys.argv[1:]))
"""

Sleep = Callable[[float], None]


@pytest.fixture
def sleeper(port: Port, stack: ExitStack) -> tuple[Daemon, Sleep]:
    """A daemon, and what makes it believe that the machine has slept for some seconds."""
    daemon = stack.enter_context(Daemon(port.host, "eth0", []))
    pipe = daemon.folder / "slept"
    os.mkfifo(pipe)
    options = ["eth0", "--delay", "200", "--ip", str(A)]
    daemon.command = [sys.executable, "-c", PROGRAM, str(pipe), *options]

    def sleep(seconds: float) -> None:
        with open(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "w") as file:
            file.write(str(seconds))

    return daemon, sleep


def test_probed_again(port: Port, sleeper: tuple[Daemon, Sleep], stack: ExitStack) -> None:
    """if-resume, claim-echo: from the first probe, off the interface meanwhile; the same one, if it is free."""
    daemon, sleep = sleeper
    port.neighbour(echoes)
    bind(port, daemon)
    monitor = stack.enter_context(AddressMonitor(port.host))
    for number in (1, 2):
        since = port.sniffer.mark()
        sleep(30)
        *_, last = probed(port, A, since=since)
        daemon.wait_line("the machine slept")
        assert port.host.link_local("eth0") == [A]
        wait_until(lambda n=number: len(monitor.events()) == 2 * n, "its removal and its return")  # type: ignore[misc]
        gone, back = monitor.events()[-2:]
        assert [(e.address, added) for _, added, e in (gone, back)] == [(A, False), (A, True)]
        assert back[0] > last.ns
    wait_until(lambda: report(daemon)["state"] == "bound", "bound")
    assert report(daemon)["conflicts"] == 0


def test_wall_clock_is_set(port: Port, sleeper: tuple[Daemon, Sleep]) -> None:
    """if-resume: the kernel gives the same sign when somebody sets the clock: no reason to probe."""
    daemon, sleep = sleeper
    bind(port, daemon)
    sleep(0)
    port.sniffer.assert_silent(1)
    assert port.host.link_local("eth0") == [A]
    assert "slept" not in daemon.output
