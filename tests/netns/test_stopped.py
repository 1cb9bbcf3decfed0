"""A process that is stopped over the end of ANNOUNCE_WAIT finds a conflict in its socket: the address is not free."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from lab import AddressMonitor, Daemon, Port, frames

from .conftest import MakeDaemon
from .helpers import NETNS, PATIENCE, RIVAL

pytestmark = NETNS

ROUNDS = 20
"""Of each of the three tests."""
PER_DAEMON = 9
"""After ten conflicts there is one candidate a minute."""
DELAY, LONGEST_DELAY = 0.4, 6.4
"""Seconds; twice as many each time that the machine was too slow to stop the daemon in time."""
DAEMONS = 3 * ROUNDS // PER_DAEMON + 6


def let_the_helper_come_last(daemon: Daemon) -> None:
    """Put all threads on one processor, where the helper's runs only when the event loop has nothing to do."""
    processor = min(os.sched_getaffinity(0))
    for task in Path(f"/proc/{daemon.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(int(task.name), {processor})
            if (task / "comm").read_text().strip() == "autoip-arp":
                os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))


@pytest.mark.parametrize("part", range(3))
def test_stopped_over_the_end_of_announce_wait(
    port: Port, make_autoip: MakeDaemon, part: int
) -> None:
    done, delay = 0, DELAY
    with AddressMonitor(port.host) as monitor:
        for number in range(DAEMONS):
            if done >= ROUNDS:
                break
            daemon = make_autoip(port, "--delay", f"{delay * 1000:.0f}", "--no-state")
            # Each daemon has the same candidates.
            began = since = port.sniffer.mark()
            before = len(monitor.events())
            daemon.start()
            for _ in range(PER_DAEMON):
                probes = port.sniffer.wait_count(lambda f: f.is_probe, 3, PATIENCE, since=since)
                candidate = probes[-1].tpa
                let_the_helper_come_last(daemon)
                daemon.signal(signal.SIGSTOP)
                since = port.sniffer.mark()
                announced = port.sniffer.announcements(candidate, since=began)
                if announced or candidate in port.host.link_local(port.name):
                    daemon.signal(signal.SIGCONT)
                    delay = min(2 * delay, LONGEST_DELAY)
                    break  # this machine was too slow to stop it in time
                port.send(frames.conflict_request(RIVAL, candidate))
                time.sleep(1.5 * delay)
                daemon.signal(signal.SIGCONT)
                daemon.wait_line(f"claims {candidate}")
                done += 1
                put = [a.address for _, added, a in monitor.events()[before:] if added]
                assert candidate not in put, f"round {done} of daemon {number}, part {part}"
            daemon.stop()
    assert done >= ROUNDS // 2, "this machine is too slow for the test"
