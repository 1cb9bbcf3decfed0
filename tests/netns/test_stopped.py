"""A process that is stopped over the end of ANNOUNCE_WAIT finds a conflict in its socket: the address is not free."""

from __future__ import annotations

import signal
import time

import pytest

from lab import AddressMonitor, Port, frames

from .conftest import MakeDaemon
from .helpers import NETNS, PATIENCE, RIVAL

pytestmark = NETNS

ROUNDS = 20
"""Of each of the three tests."""
PER_DAEMON = 9
"""After ten conflicts there is one candidate a minute."""
DELAY = 0.4


@pytest.mark.parametrize("part", range(3))
def test_stopped_over_the_end_of_announce_wait(
    port: Port, make_autoip: MakeDaemon, part: int
) -> None:
    done = 0
    with AddressMonitor(port.host) as monitor:
        for number in range(3 * ROUNDS // PER_DAEMON):
            if done >= ROUNDS:
                break
            daemon = make_autoip(port, "--delay", f"{DELAY * 1000:.0f}", "--no-state")
            since = port.sniffer.mark()
            daemon.start()
            for _ in range(PER_DAEMON):
                probes = port.sniffer.wait_count(lambda f: f.is_probe, 3, PATIENCE, since=since)
                candidate = probes[-1].tpa
                daemon.signal(signal.SIGSTOP)
                since = port.sniffer.mark()
                announced = port.sniffer.announcements(candidate, since=0)
                if announced or candidate in port.host.link_local(port.name):
                    daemon.signal(signal.SIGCONT)
                    break  # this machine was too slow to stop it in time
                port.send(frames.conflict_request(RIVAL, candidate))
                time.sleep(1.5 * DELAY)
                daemon.signal(signal.SIGCONT)
                daemon.wait_line(f"claims {candidate}")
                done += 1
                put = [a.address for _, added, a in monitor.events() if added]
                assert candidate not in put, f"round {done} of daemon {number}, part {part}"
            daemon.stop()
    assert done >= ROUNDS // 2, "this machine is too slow for the test"
