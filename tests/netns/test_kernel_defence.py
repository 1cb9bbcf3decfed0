"""The kernel defends (csrc/defence.c): also while the daemon is stopped. Without CAP_BPF the helper's thread does."""

from __future__ import annotations

import contextlib
import signal
import time

import pytest

from lab import Daemon, Port, frames

from .commands import report
from .conftest import MakeDaemon
from .helpers import NETNS, PATIENCE, RIVAL, A, autoip_command, bind, claimed_other, wait_until

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))
INTERVAL = 10.0
"""DEFEND_INTERVAL of RFC 3927."""
WITHOUT_BPF = ["setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-all", "--"]
BY_DAEMON = "the kernel does not defend the address itself, the daemon does"


def conflict(port: Port) -> int:
    """Dispute the address; a mark of the sniffer from before."""
    since = port.sniffer.mark()
    port.send(frames.padded(frames.conflict_request(RIVAL, A)))
    return since


def defended(port: Port, since: int) -> bool:
    """Whether the address is announced within a second."""
    with contextlib.suppress(Exception):
        port.sniffer.wait_announcement(A, 1, since=since)
        return True
    return False


def attached(daemon: Daemon, port: Port) -> None:
    """Wait for the program's place at the interface."""
    index = port.host.index(port.name)

    def there() -> bool:
        for number in range(3, 64):
            with contextlib.suppress(OSError):
                with open(f"/proc/{daemon.pid}/fdinfo/{number}", encoding="ascii") as file:
                    text = file.read()
                if "link_type:\ttcx\n" in text and f"ifindex:\t{index}\n" in text:
                    return True
        return False

    wait_until(there, "the program at the interface")


@pytest.fixture
def bound(port: Port, make_autoip: MakeDaemon) -> Daemon:
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    if any(BY_DAEMON in limit for limit in report(daemon)["limits"]):
        pytest.skip("needs tcx of the kernel (Linux 6.6)")
    attached(daemon, port)
    return daemon


def test_a_stopped_daemon_is_defended(port: Port, bound: Daemon) -> None:
    """def-once, def-again, def-yield: by the kernel, and then by the daemon as if it had seen each at its time."""
    bound.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert defended(port, conflict(port))
    time.sleep(began + INTERVAL + 0.5 - time.monotonic())
    assert defended(port, conflict(port))
    since = conflict(port)  # too soon
    assert not defended(port, since)
    assert not defended(port, conflict(port))
    said = len(bound.lines)
    bound.signal(signal.SIGCONT)
    other = claimed_other(port, A, since=since)
    assert not port.sniffer.announcements(A, since=since)
    bound.wait_line(f"{RIVAL} claims {A}", since=said)
    found = report(bound)
    assert (found["address"], found["defences"], found["conflicts"]) == (str(other), 2, 3)
    assert not found["notes"] and "internal error" not in bound.output


def test_a_stopped_daemon_goes_on(port: Port, bound: Daemon) -> None:
    """def-once, def-yield: a defence by the kernel counts, so the next conflict soon after costs the address."""
    bound.signal(signal.SIGSTOP)
    assert defended(port, conflict(port))
    bound.signal(signal.SIGCONT)
    wait_until(lambda: report(bound)["defences"] == 1, "the report of the defence")
    assert A in port.host.link_local(port.name)
    since = conflict(port)
    claimed_other(port, A, since=since)
    assert not port.sniffer.announcements(A, since=since)


def test_a_killed_daemon_does_not_defend(port: Port, bound: Daemon) -> None:
    """The program goes with the process, and nothing of it is left."""
    bound.kill()
    assert not defended(port, conflict(port))
    bind(port, bound)
    attached(bound, port)
    assert defended(port, conflict(port))
    assert bound.stop() == 0
    assert not defended(port, conflict(port))


def test_abandon_never_arms(port: Port, make_autoip: MakeDaemon) -> None:
    """def-abandon: not even while the daemon is stopped."""
    daemon = make_autoip(port, *FAST, "--abandon")
    bind(port, daemon)
    daemon.signal(signal.SIGSTOP)
    since = conflict(port)
    assert not defended(port, since)
    daemon.signal(signal.SIGCONT)
    claimed_other(port, A, since=since)


def test_without_the_kernel_the_thread_defends(port: Port, stack: contextlib.ExitStack) -> None:
    """def-once, def-yield: one line in the log and in the status; the rest is as ever."""
    command = [*WITHOUT_BPF, *autoip_command(), "eth0", *FAST]
    daemon = stack.enter_context(Daemon(port.host, "eth0", command))
    bind(port, daemon)
    reason = f"{BY_DAEMON}: no permission to load a program; CAP_BPF gives it"
    assert reason in report(daemon)["limits"]
    assert daemon.output.count(BY_DAEMON) == 1
    daemon.signal(signal.SIGSTOP)
    since = conflict(port)
    assert not defended(port, since)
    daemon.signal(signal.SIGCONT)
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    wait_until(lambda: report(daemon)["defences"] == 1, "the report of the defence")
    since = conflict(port)
    claimed_other(port, A, since=since)
    assert not port.sniffer.announcements(A, since=since)
