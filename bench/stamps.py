"""Kernel time stamps (SO_TIMESTAMPNS), and their way to CLOCK_BOOTTIME."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable

from lab.sniffer import SO_TIMESTAMPNS


def stamp_ns(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    """Return CLOCK_REALTIME in ns from the ancillary data of recvmsg(); 0 if there is no stamp."""
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("@ll", value[:16])
            return int(seconds * 1_000_000_000 + nanoseconds)
    return 0


def boottime_offset_ns() -> int:
    """Return CLOCK_REALTIME minus CLOCK_BOOTTIME now, in ns: the closest of a few readings."""
    best: tuple[int, int] | None = None
    for _ in range(5):
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        real = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if best is None or after - before < best[0]:
            best = (after - before, real - (before + after) // 2)
    assert best is not None
    return best[1]
