"""dhcpcd as a DHCP client, with its hooks and files in the host alone."""

from __future__ import annotations

import base64
import signal
from pathlib import Path

from . import machine
from .client import Client
from .link import Port

CONFIG = "/etc/dhcpcd.conf"
_OPTIONS = 240
"""Where the options of a DHCP message begin (RFC 2131 section 2)."""


class DhcpcdClient(Client):
    """dhcpcd with DHCP alone, unless `ipv4ll`; the host has files of its own (`machine.give_own_files`)."""

    program = "dhcpcd"
    package = "dhcpcd-base"
    shortest_lease = 20
    """Seconds: dhcpcd takes a shorter lease for this long."""

    def __init__(self, port: Port, *, ipv4ll: bool = False) -> None:
        super().__init__(port)
        machine.write(port.host, CONFIG, "ipv4only\nduid\n" + ("" if ipv4ll else "noipv4ll\n"))
        self.command = [self.path, "--nobackground", "--debug", port.name]
        # The last hook: when it is read, all others have ended.
        machine.write(
            port.host,
            f"{machine.DHCPCD}/dhcpcd-hooks/99-lab-{port.name}",
            f'[ "$interface" != {port.name} ] || {{ {self.log_line("$reason")}; }}\n',
        )

    def release(self) -> None:
        """Give the lease back and end it, as `dhcpcd --release` does."""
        self.signal(signal.SIGALRM)
        self.wait()

    def kill(self) -> None:
        """Kill it and its helpers, which it would leave behind."""
        helpers = [pid for pid in self.namespace.processes() if self._is_helper(pid)]
        super().kill()
        for pid in helpers:
            self.namespace.run("kill", "-KILL", str(pid), check=False)

    def _is_helper(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/comm").read_text(), Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return False
        return pid != self.pid and words[0] == "dhcpcd\n"

    def lease(self) -> str:
        """Return the options of the server's last answer, in hexadecimal digits.

        Of the file: dhcpcd 9.4 sometimes ends when `--dumplease` asks it ("eloop_start: Invalid argument").
        """
        path = f"/var/lib/dhcpcd/{self.interface}.lease"
        message = base64.b64decode(self.namespace.run("base64", path, check=False))
        return message[_OPTIONS:].hex()
