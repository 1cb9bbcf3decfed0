"""Real DHCP servers for the hosts at a switch, each with its files in a folder of its own.

A server has its address on its interface while it exists, so that a client finds a router to ask whether the server
program runs or not.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from .daemon import Daemon
from .link import Port
from .namespace import LabError
from .programs import find_program


class DhcpServer(Daemon):
    """A server at `port`, which must be plugged in; not started yet.

    It has the first address of `network` and leases the 100th to the 199th for `lease` seconds, with itself as the
    name server and, unless `router` is false, as the router.
    """

    program = ""
    package = ""
    """Debian's package."""
    shortest_lease = 1
    """Seconds of the shortest lease that the program gives."""
    ready = ""
    """The line that it logs when it is ready."""

    def __init__(
        self,
        port: Port,
        *,
        lease: int = 600,
        network: IPv4Network | str = "10.77.0.0/24",
        router: bool = True,
    ) -> None:
        path = find_program(self.program)
        if path is None:
            raise LabError(f"{self.program} is not installed (Debian package {self.package})")
        if lease < self.shortest_lease:
            raise ValueError(f"{self.program}: no lease under {self.shortest_lease} s")
        self.lease = lease
        self.network = IPv4Network(network)
        self.router = router
        super().__init__(port.host, port.name, [])
        self.label = self.program
        self.lease_file = self.state / "leases"
        self.lease_file.touch()
        self.command = [path, *self.arguments()]
        port.host.ip(f"addr add {self.address}/{self.network.prefixlen} dev {port.name}")

    @property
    def address(self) -> IPv4Address:
        return self.network[1]

    @property
    def pool(self) -> tuple[IPv4Address, IPv4Address]:
        """The first and the last address that it leases."""
        return self.network[100], self.network[199]

    def arguments(self) -> list[str]:
        """Write the files that the program reads; return its words: in the foreground, logging to standard error."""
        raise NotImplementedError

    def leases(self) -> dict[str, IPv4Address]:
        """Return the last address of each hardware address, by the server's own file."""
        raise NotImplementedError

    def start(self, *arguments: str, die_with_us: bool = True) -> None:
        """Start it and wait until it answers."""
        since = len(self.lines)
        super().start(*arguments, die_with_us=die_with_us)
        self.wait_line(self.ready, 30, since=since)

    def set_lease(self, seconds: int) -> None:
        """Set the seconds of all leases from the next start on."""
        if self.running:
            raise LabError(f"{self.label} runs")
        self.lease = seconds
        self.command[1:] = self.arguments()


class Dhcpd(DhcpServer):
    """isc-dhcp-server's. It gives leases of any length."""

    program = "dhcpd"
    package = "isc-dhcp-server"
    ready = "Server starting service"

    def arguments(self) -> list[str]:
        config = self.folder / "dhcpd.conf"
        first, last = self.pool
        options = [
            f"range {first} {last};",
            f"option domain-name-servers {self.address};",
            *([f"option routers {self.address};"] if self.router else []),
        ]
        config.write_text(
            "authoritative;\nddns-update-style none;\nping-check off;\n"
            # Without this a client that asks again within a quarter of its lease gets only the rest of it.
            "dhcp-cache-threshold 0;\n"
            f"default-lease-time {self.lease};\nmin-lease-time {self.lease};\n"
            f"max-lease-time {self.lease};\n"
            f"subnet {self.network.network_address} netmask {self.network.netmask} {{\n"
            f"  {' '.join(options)}\n}}\n"
        )
        files = ["-cf", str(config), "-lf", str(self.lease_file)]
        return ["-4", "-f", "-d", *files, "--no-pid", self.interface]

    def leases(self) -> dict[str, IPv4Address]:
        found: dict[str, IPv4Address] = {}
        # A journal: a later entry replaces an earlier one.
        blocks = re.findall(
            r"^lease (\S+) \{(.*?)^\}", _read(self.lease_file), re.MULTILINE | re.DOTALL
        )
        for address, block in blocks:
            mac = re.search(r"hardware ethernet ([0-9a-f:]+);", block)
            if mac is None:
                continue
            if re.search(r"^\s*binding state active;", block, re.MULTILINE):
                found[mac[1]] = IPv4Address(address)
            elif found.get(mac[1]) == IPv4Address(address):
                del found[mac[1]]
        return found


class Dnsmasq(DhcpServer):
    """dnsmasq as a DHCP server only."""

    program = "dnsmasq"
    package = "dnsmasq-base"
    shortest_lease = 120
    ready = "DHCP, IP range"

    def arguments(self) -> list[str]:
        first, last = self.pool
        options = [
            "--keep-in-foreground",
            "--log-facility=-",
            "--conf-file=/dev/null",
            "--user=root",
            "--pid-file",
            "--port=0",
            f"--interface={self.interface}",
            "--bind-interfaces",
            "--dhcp-authoritative",
            "--no-ping",
            f"--dhcp-leasefile={self.lease_file}",
            f"--dhcp-range={first},{last},{self.network.netmask},{self.lease}",
            f"--dhcp-option=option:dns-server,{self.address}",
        ]
        # An option without a value is not sent; the default would be the server itself.
        router = f",{self.address}" if self.router else ""
        return [*options, f"--dhcp-option=option:router{router}"]

    def leases(self) -> dict[str, IPv4Address]:
        rows = [line.split() for line in _read(self.lease_file).splitlines()]
        return {row[1]: IPv4Address(row[2]) for row in rows if len(row) >= 3}


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


DHCP_SERVERS: dict[str, type[DhcpServer]] = {server.program: server for server in (Dhcpd, Dnsmasq)}
