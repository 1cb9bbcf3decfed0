"""A DHCP client under test: a program that calls hooks, and the record of its calls."""

from __future__ import annotations

import time
from pathlib import Path

from .daemon import Daemon
from .link import Port
from .namespace import LabError
from .programs import find_program


class Client(Daemon):
    """A client for `port`, whose host has files of its own (`machine.give_own_files`); not started yet.

    A hook of the laboratory's adds a line to the file `log` for each event: `log_line`.
    """

    program = ""
    package = ""
    """Debian's package."""

    def __init__(self, port: Port) -> None:
        path = find_program(self.program)
        if path is None:
            raise LabError(f"{self.program} is not installed (Debian package {self.package})")
        self.path = path
        super().__init__(port.host, port.name, [])
        self.label = f"{self.program} {port.name}"
        self.log = self.folder / "events"
        self.log.touch()

    def log_line(self, event: str) -> str:
        """Return a shell command that notes the event, which may have shell variables in it."""
        return f'[ ! -f {self.log} ] || echo "$(date +%s%N) {event}" >>{self.log}'

    def close(self) -> None:
        # A hook that still runs must leave nothing behind.
        self.end(3)
        self.log.unlink(missing_ok=True)
        super().close()

    def events(self) -> list[tuple[int, str]]:
        """Return the events for which its hooks were called, each with its time (CLOCK_REALTIME, ns)."""
        rows = [line.split(maxsplit=1) for line in Path(self.log).read_text().splitlines()]
        return [(int(row[0]), row[1]) for row in rows if len(row) == 2]

    def lease(self) -> str:
        """Return its file of the lease, without what differs between two hosts; empty if it keeps none."""
        return ""

    def reasons(self) -> list[str]:
        """Return the events without their times."""
        return [event for _, event in self.events()]

    def wait_reason(self, reason: str, timeout: float = 60, *, since: int = 0) -> int:
        """Wait until its hooks were called so after the first `since` events; return the time (ns). Raises LabError."""
        until = time.monotonic() + timeout
        while True:
            for ns, seen in self.events()[since:]:
                if seen == reason:
                    return ns
            if time.monotonic() > until:
                raise LabError(
                    f"{self.label}: no {reason} within {timeout} s, but {self.reasons()[since:]}"
                )
            time.sleep(0.01)
