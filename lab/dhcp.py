"""A real DHCP server for the hosts at a switch, with its files in a folder of its own.

It has its address on its interface while it exists, so that a client finds a router to ask whether the server program
runs or not.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network

from .daemon import Daemon
from .link import Port
from .namespace import LabError
from .programs import find_program


class Dhcpd(Daemon):
    """isc-dhcp-server's dhcpd at `port`, which must be plugged in; not started yet.

    It has the first address of `network` and gives the 100th to the 199th away for `lease` seconds, with itself as the
    name server and the router. A server that is not authoritative ignores who asks for another network's address.
    """

    def __init__(
        self,
        port: Port,
        *,
        lease: int = 600,
        network: IPv4Network | str = "10.77.0.0/24",
        authoritative: bool = True,
    ) -> None:
        path = find_program("dhcpd")
        if path is None:
            raise LabError("dhcpd is not installed (Debian package isc-dhcp-server)")
        self.network = IPv4Network(network)
        super().__init__(port.host, port.name, [])
        self.label = "dhcpd"
        self.lease_file = self.state / "leases"
        self.lease_file.touch()
        config = self.folder / "dhcpd.conf"
        files = ["-cf", str(config), "-lf", str(self.lease_file)]
        self.command = [path, "-4", "-f", "-d", *files, "--no-pid", self.interface]
        self._config = config
        self._authoritative = "authoritative;\n" if authoritative else ""
        self.set_lease(lease)
        port.host.ip(f"addr add {self.address}/{self.network.prefixlen} dev {port.name}")

    @property
    def address(self) -> IPv4Address:
        return self.network[1]

    def start(self, *arguments: str, die_with_us: bool = True) -> None:
        """Start it and wait until it answers."""
        since = len(self.lines)
        super().start(*arguments, die_with_us=die_with_us)
        self.wait_line("Server starting service", 30, since=since)

    def set_lease(self, seconds: int) -> None:
        """Set the seconds of all leases from the next start on."""
        if self.running:
            raise LabError(f"{self.label} runs")
        options = [
            f"range {self.network[100]} {self.network[199]};",
            f"option domain-name-servers {self.address};",
            f"option routers {self.address};",
        ]
        self._config.write_text(
            f"{self._authoritative}ddns-update-style none;\nping-check off;\n"
            # Without this a client that asks again within a quarter of its lease gets only the rest of it.
            "dhcp-cache-threshold 0;\n"
            f"default-lease-time {seconds};\nmin-lease-time {seconds};\n"
            f"max-lease-time {seconds};\n"
            f"subnet {self.network.network_address} netmask {self.network.netmask} {{\n"
            f"  {' '.join(options)}\n}}\n"
        )

    def leases(self) -> dict[str, IPv4Address]:
        """The address that each hardware address was given last, by the server's own file."""
        found: dict[str, IPv4Address] = {}
        text = self.lease_file.read_text(encoding="utf-8", errors="replace")
        # A journal: what comes later is true.
        blocks = re.findall(r"^lease (\S+) \{(.*?)^\}", text, re.MULTILINE | re.DOTALL)
        for address, block in blocks:
            mac = re.search(r"hardware ethernet ([0-9a-f:]+);", block)
            if mac is None:
                continue
            if re.search(r"^\s*binding state active;", block, re.MULTILINE):
                found[mac[1]] = IPv4Address(address)
            elif found.get(mac[1]) == IPv4Address(address):
                del found[mac[1]]
        return found
