"""What the log says of what happens: with which priority, and each reason once."""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest

from lab import Daemon, Port, Syslog

from .conftest import autoip_command
from .helpers import NETNS, PATIENCE, A, bind, claimed

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))
JOURNAL = 'export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); exec "$@"'


def journalled(port: Port, stack: ExitStack, *arguments: str) -> Daemon:
    """autoip whose stderr is the journal's stream; not started."""
    command = ["sh", "-c", JOURNAL, "sh", *autoip_command(), *arguments]
    return stack.enter_context(Daemon(port.host, port.name, command))


def claims(port: Port, since: int) -> None:
    """Wait for both announcements after the mark: no frame of this claim comes later."""
    claimed(port, since=since)
    port.sniffer.wait_count(lambda f: f.is_announcement, 2, PATIENCE, since=since)


def tells(daemon: Daemon, since: int, reason: str, priority: int) -> None:
    """Of all lines from number `since` on, up to the end of a claim, one has the reason, and has this priority."""
    daemon.wait_line(reason, since=since)
    daemon.wait_line("-> bound", since=since)
    [line] = [line for line in daemon.lines[since:] if re.search(reason, line)]
    assert line.startswith(f"<{priority}>{daemon.interface}: "), line


def test_losses(port: Port, stack: ExitStack) -> None:
    """Without carrier, down, removed by somebody else: a warning; asked for, at the end: no more than said."""
    daemon = journalled(port, stack, port.name, *FAST)
    bind(port, daemon)
    said, since = len(daemon.lines), port.sniffer.mark()
    port.carrier(False)
    daemon.wait_no_address()
    port.carrier(True)
    claims(port, since)
    tells(daemon, said, "no carrier", 4)

    said, since = len(daemon.lines), port.sniffer.mark()
    port.host.ip("addr flush dev eth0")
    claims(port, since)
    tells(daemon, said, "address was removed by somebody else", 4)

    said, since = len(daemon.lines), port.sniffer.mark()
    daemon.request("refresh")
    claims(port, since)
    tells(daemon, said, "asked to", 6)

    said = len(daemon.lines)
    port.host.ip("link set eth0 down")
    daemon.wait_no_address()
    daemon.wait_line("it is down", since=said)
    [line] = [line for line in daemon.lines[said:] if "it is down" in line]
    assert line.startswith("<4>eth0: bound -> no-link: ") or "announcing -> no-link" in line

    assert daemon.stop() == 0
    levels = {line[:3] for line in daemon.lines if "->" in line and " -> no-link" not in line}
    assert levels == {"<4>", "<6>"}  # the removal, and all steps


def test_debug(port: Port, stack: ExitStack) -> None:
    """What --debug adds has that priority."""
    daemon = journalled(port, stack, port.name, *FAST, "--debug")
    bind(port, daemon)
    steps = [line for line in daemon.lines if re.search("(probe|announcement) ./. (for|of)", line)]
    assert len(steps) == 5
    assert all(line.startswith("<7>eth0: ") for line in steps)
    assert daemon.stop() == 0


REFUSED: dict[str, tuple[tuple[str, ...], int]] = {
    "bad value": (("eth0", "--ip", "10.0.0.1"), 2),
    "not ARP": (("lo",), 5),
    "script": (("eth0", "--script", "/bin/false", "--script-style", "zcip"), 1),
}


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.parametrize("to_syslog", [False, True])
def test_refused_start(port: Port, stack: ExitStack, why: str, to_syslog: bool) -> None:
    """The line that says why is an error, and there is one of it in each log."""
    arguments, status = REFUSED[why]
    daemon = journalled(port, stack, *arguments, *["--syslog"] * to_syslog)
    with Syslog(port.host) as log:
        daemon.start()
        assert daemon.wait() == status
        [line] = daemon.lines
        assert line.startswith("<3>autoip: ")
        if to_syslog and status != 2:  # what is wrong with the options is told before they count
            text = line.removeprefix("<3>autoip: ")
            log.wait_line(re.escape(text))
            [told] = log.lines
            assert told.startswith(f"<{3 * 8 + 3}>") and told.endswith(text)
        else:
            assert log.lines == []
