"""A filter at the egress drops every ARP frame: one line, a note, few attempts; then all is well again."""

from __future__ import annotations

import math
import time

from autoip.core.constants import SEND_RETRY
from lab import Port

from .commands import report
from .conftest import MakeDaemon
from .helpers import NETNS, PATIENCE, A, wait_until

pytestmark = NETNS

SHOT = 2
"""TC_ACT_SHOT, the result of a program that drops all."""


def test_frames_that_the_kernel_drops_at_the_egress(port: Port, make_autoip: MakeDaemon) -> None:

    def tc(words: str, *last: str) -> None:
        port.host.run("tc", *words.split(), *last)

    tc("qdisc add dev eth0 clsact")
    tc("filter add dev eth0 egress pref 7 protocol arp bpf da bytecode", f"1,6 0 0 {SHOT}")
    daemon = make_autoip(port, "--delay", "200", "--ip", str(A), "--debug")
    daemon.start()
    daemon.wait_line(r"the kernel takes none of our frames: .* \(ENOBUFS\)", PATIENCE)
    assert report(daemon)["state"] == "probing"
    assert "(ENOBUFS)" in str(report(daemon)["notes"])
    attempts = len([line for line in daemon.lines if "did not take a frame" in line])
    seconds = (time.time_ns() - daemon.started_ns) / 1e9
    # The first pause has SEND_RETRY, each further one twice as much.
    assert 6 <= attempts <= 1 + math.log2(1 + seconds / SEND_RETRY)
    tc("filter del dev eth0 egress pref 7")
    port.sniffer.wait_announcement(A, PATIENCE)
    wait_until(lambda: report(daemon)["notes"] == [], "the note is gone")
    daemon.wait_line("the kernel takes our frames again")
