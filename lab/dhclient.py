"""dhclient, with its files in a folder of its own and short times."""

from __future__ import annotations

import re
from ipaddress import IPv4Address

from . import machine
from .client import Client
from .link import Port


class Dhclient(Client):
    """dhclient for `port`, whose host has files of its own (`give_own_files`); not started yet.

    It gives up after `timeout` seconds, calls its hooks with FAIL, and tries again `retry` seconds later.
    """

    program = "dhclient"
    package = "isc-dhcp-client"

    def __init__(self, port: Port, *, timeout: int = 3, retry: int = 3) -> None:
        super().__init__(port)
        config = self.folder / "dhclient.conf"
        config.write_text(
            f"timeout {timeout};\nretry {retry};\ninitial-interval 1;\nbackoff-cutoff 1;\n"
            "select-timeout 0;\nreboot 1;\n"
            "request subnet-mask, broadcast-address, routers, domain-name-servers;\n"
        )
        self.lease_file = self.state / "leases"
        files = {"-cf": config, "-lf": self.lease_file, "-pf": self.folder / "pid"}
        self._common = [self.path, "-4", *(str(word) for pair in files.items() for word in pair)]
        self.command = [*self._common, "-d", "-v", port.name]
        # The last hook: when it is called, all others have ended.
        machine.write(
            port.host,
            f"/etc/dhcp/dhclient-exit-hooks.d/zzz-{port.name}",
            f'[ "$interface" != {port.name} ] || {{ {self.log_line("$reason")}; }}\n',
        )

    def ask(self, option: str, timeout: float = 30) -> None:
        """End it as its user does: `-r` gives the lease back, `-x` keeps it. A dhclient of its own calls the hooks."""
        self.namespace.run(*self._common, option, self.interface, timeout=timeout)
        self.wait()

    # Its output

    def wait_bound(self, timeout: float = 60, *, since: int = 0) -> IPv4Address:
        """Wait until it is bound; return the address. `since`: a number of lines."""
        line = self.wait_line(r"bound to ", timeout, since=since)
        return IPv4Address(line.split("bound to ")[1].split()[0])

    def lease(self) -> str:
        """Return its file of leases, without what differs between two hosts and two moments."""
        text = re.sub(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d", "TIME", self.lease_file.read_text())
        text = re.sub(r"fixed-address \S+;", "fixed-address ADDRESS;", text)
        return re.sub(r"(renew|rebind|expire) \d TIME", r"\1 TIME", text)
