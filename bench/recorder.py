"""autoip, with a record of the time at which its core asked for each frame.

    python -m bench.recorder FILE ARGUMENT ...

Each frame that the core hands out gets a line in FILE: its 42 bytes, the time that the core had asked for, and
CLOCK_REALTIME minus CLOCK_BOOTTIME now, both in ns.
"""

from __future__ import annotations

import sys
from pathlib import Path

from autoip.commands import main as command_line
from autoip.core.acd import Acd
from autoip.core.arp import ArpPacket

from .stamps import boottime_offset_ns


def main() -> int:
    record = Path(sys.argv[1]).open("a", buffering=1)  # noqa: SIM115 (open as long as the process)
    original = Acd.to_send

    def to_send(self: Acd, now: float) -> ArpPacket | None:
        wanted = self._send_at()
        packet = original(self, now)
        if packet is not None and wanted is not None:
            offset = boottime_offset_ns()
            record.write(f"{packet.emit().hex()} {round(wanted * 1e9)} {offset}\n")
        return packet

    Acd.to_send = to_send  # type: ignore[method-assign]
    return command_line.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
