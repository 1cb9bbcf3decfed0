"""BusyBox udhcpc, with Debian's script in the host alone."""

from __future__ import annotations

import signal

from . import machine
from .client import Client
from .link import Port

SCRIPT = "/etc/udhcpc/default.script"
DEBIANS = "/etc/udhcpc/debian.script"


class Udhcpc(Client):
    """udhcpc, which asks twice, a second apart, and again `again` seconds later.

    A script of the laboratory's is in the place of Debian's: it calls that one, then notes the event.
    """

    program = "udhcpc"
    package = "udhcpc"

    def __init__(self, port: Port, *, again: int = 2) -> None:
        super().__init__(port)
        times = ["-t", "2", "-T", "1", "-A", str(again)]
        self.command = [self.path, "-f", "-i", port.name, *times]
        if not machine.read(port.host, DEBIANS):
            port.host.run("mv", SCRIPT, DEBIANS)
            text = (
                f'#!/bin/sh\n{DEBIANS} "$@"\nstatus=$?\n'
                'log=/run/udhcpc-$interface\n[ ! -f "$log" ] || . "$log"\nexit $status\n'
            )
            machine.write(port.host, SCRIPT, text, 0o755)
        machine.write(port.host, f"/run/udhcpc-{port.name}", self.log_line("$1") + "\n")

    def release(self) -> None:
        """Have it give the lease back and go on, without asking for another."""
        self.signal(signal.SIGUSR2)

    def renew(self) -> None:
        """Have it ask for its lease again, or after a release for a new one."""
        self.signal(signal.SIGUSR1)
