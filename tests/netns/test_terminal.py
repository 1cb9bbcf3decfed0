"""SIGHUP: of a terminal that goes away, and of a user who asks for a reload."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from autoip.daemon.terminal import HANGUP_TIME
from lab import Daemon, Port, frames

from .conftest import autoip_command
from .helpers import NETNS, PATIENCE, RIVAL, A, claim, wait_until

pytestmark = NETNS

ON_TERMINAL = """
import os, sys
os.setsid()
terminal = os.open(sys.argv[1], os.O_RDWR)  # the first one that such a process opens is its own
for descriptor in range(3):
    os.dup2(terminal, descriptor)
os.execvp(sys.argv[2], sys.argv[2:])
"""
SHELL = ["sh", "-c", '"$@"; :', "sh"]
"""Waits for the program, as a person's shell does for what runs in the foreground."""
NOHUP = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
"""As nohup(1), but its output stays the terminal."""


class Terminal:
    """A pseudo-terminal that a person closes."""

    def __init__(self) -> None:
        master, slave = os.openpty()
        self.name = os.ttyname(slave)
        # Both are kept: a terminal that nobody has open would be hung up already.
        self._descriptors = [slave, master]

    def close(self) -> None:
        """May be called twice."""
        while self._descriptors:
            os.close(self._descriptors.pop())


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def on_terminal(port: Port, stack: ExitStack, terminal: Terminal, *before: str) -> Daemon:
    """autoip, behind the command `before`, on its own terminal; not started."""
    wrapper = [sys.executable, "-c", ON_TERMINAL, terminal.name, *before]
    command = [*wrapper, *autoip_command(), port.name, "--delay", "50", "--ip", str(A)]
    return stack.enter_context(Daemon(port.host, port.name, command))


def ended(port: Port) -> None:
    """Nothing runs in the namespace any more, and nothing is left on the interface."""
    wait_until(lambda: not port.host.processes(), "the end of all processes")
    assert port.host.link_local(port.name) == []


def test_terminal_goes_away(port: Port, stack: ExitStack, terminal: Terminal) -> None:
    """The terminal is closed: as with SIGTERM, the address is taken off, and the status is 0."""
    daemon = on_terminal(port, stack, terminal)
    claim(port, daemon)
    terminal.close()
    assert daemon.wait() == 0
    ended(port)


def test_terminal_goes_away_with_the_shell(
    port: Port, stack: ExitStack, terminal: Terminal
) -> None:
    """The signal comes to the shell, whose end passes it on."""
    daemon = on_terminal(port, stack, terminal, *SHELL)
    claim(port, daemon)
    terminal.close()
    daemon.wait()
    ended(port)


def test_shell_is_killed(port: Port, stack: ExitStack, terminal: Terminal) -> None:
    """The signal comes from the kernel at the end of the session, and the terminal lives on."""
    daemon = on_terminal(port, stack, terminal, *SHELL)
    claim(port, daemon)
    daemon.kill()
    ended(port)


def test_signal_while_the_terminal_is_there(
    port: Port, stack: ExitStack, terminal: Terminal
) -> None:
    """`kill -HUP`: the daemon goes on, and so it does when it is done again."""
    daemon = on_terminal(port, stack, terminal)
    claim(port, daemon)
    port.sniffer.wait_count(lambda f: f.is_announcement, 2, PATIENCE)
    since = port.sniffer.mark()
    for _ in range(2):
        daemon.signal(signal.SIGHUP)
        time.sleep(2 * HANGUP_TIME)
        assert daemon.running
    assert daemon.addresses() == [A]
    assert port.sniffer.arp(since) == []
    terminal.close()
    assert daemon.wait() == 0
    ended(port)


def test_nohup(port: Port, stack: ExitStack, terminal: Terminal) -> None:
    """Ignored at the start: neither the end of the terminal nor the signal has an effect."""
    daemon = on_terminal(port, stack, terminal, *NOHUP)
    claim(port, daemon)
    port.sniffer.wait_count(lambda f: f.is_announcement, 2, PATIENCE)
    since = port.sniffer.mark()
    terminal.close()
    daemon.signal(signal.SIGHUP)
    time.sleep(2 * HANGUP_TIME)
    assert daemon.addresses() == [A]
    assert port.sniffer.arp(since) == []
    # It writes to what is gone, and does what it has to.
    port.send(frames.conflict_request(RIVAL, A))
    port.sniffer.wait_announcement(A, since=since)
    assert daemon.stop() == 0
    ended(port)
