"""systemd-networkd as a DHCP client with networkd-dispatcher, on a D-Bus of the host's own, without systemd."""

from __future__ import annotations

import contextlib

from . import machine
from .client import Client
from .daemon import Daemon
from .link import Port
from .namespace import PATIENCE

STATES = (
    *("off", "no-carrier", "dormant", "carrier", "degraded", "routable"),
    *("pending", "configuring", "configured", "unmanaged"),
)
_CAPABILITIES = ",".join(f"+{name}" for name in ("net_admin", "net_bind_service", "net_raw"))


class NetworkdClient(Client):
    """networkd for `port`, and for what `serve` names of the same host.

    `events` are the states that networkd-dispatcher reports, for `port` alone. It is networkd's process that
    `pid`, `kill` and the like are about.
    """

    program = "systemd-networkd"
    package = "systemd"

    def __init__(self, port: Port) -> None:
        super().__init__(port)
        host = port.host
        host.run(
            "sh",
            "-ec",
            # A /sys that cannot be written means "no udev" to it: it does not wait for one.
            "mount -o remount,bind,ro /sys\n"
            "rm -rf /etc/systemd/network /etc/networkd-dispatcher/*/lab\n"
            "mkdir -p /run/dbus /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp\n"
            "chown -R systemd-network: /run/systemd/netif\n",
        )
        self.serve(port.name)
        script = f'#!/bin/sh\n[ "$IFACE" != {port.name} ] || {{ {self.log_line("$STATE")}; }}\n'
        for state in STATES:
            # The last hook: when it is run, all others have ended.
            machine.write(host, f"/etc/networkd-dispatcher/{state}.d/zzz-lab", script, 0o755)
        self.command = [
            *("setpriv", "--reuid=systemd-network", "--regid=systemd-network", "--clear-groups"),
            *(f"--inh-caps={_CAPABILITIES}", f"--ambient-caps={_CAPABILITIES}", self.path),
        ]
        self.env.update(SYSTEMD_LOG_TARGET="console", SYSTEMD_LOG_LEVEL="info")
        self.bus = Daemon(
            host,
            port.name,
            ["dbus-daemon", "--system", "--nofork", "--nopidfile", "--print-address"],
        )
        self.bus.label = "D-Bus"
        # The options of Debian's unit.
        self.dispatcher = Daemon(
            host, port.name, ["/usr/bin/networkd-dispatcher", "--run-startup-triggers", "-v"]
        )
        self.dispatcher.label = "networkd-dispatcher"

    def serve(self, interface: str, settings: str = "DHCP=ipv4") -> None:
        """Have it manage this interface from its next start on."""
        machine.write(
            self.namespace,
            f"/etc/systemd/network/10-{interface}.network",
            f"[Match]\nName={interface}\n[Network]\nIPv6AcceptRA=no\nLLDP=no\n{settings}\n",
        )

    def start(self, *arguments: str, die_with_us: bool = True) -> None:
        """Start the bus (if need be), networkd, then the dispatcher (if need be), as at boot."""
        if not self.bus.running:
            _start(self.bus, "unix:")
        since = len(self.lines)
        super().start(*arguments, die_with_us=die_with_us)
        self.wait_line("Enumeration completed", since=since)
        if not self.dispatcher.running:
            _start(self.dispatcher, "Startup complete")

    def lease(self) -> str:
        path = f"/run/systemd/netif/leases/{self.namespace.index(self.interface)}"
        own = ("ADDRESS=", "CLIENTID=", "#")
        lines = machine.read(self.namespace, path).splitlines()
        return "\n".join(line for line in lines if not line.startswith(own))

    def networkctl(self, *words: str) -> str:
        """Run the command; return its output."""
        return self.namespace.run("networkctl", "--no-pager", *words)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.bus.close)
            stack.callback(self.dispatcher.close)
            super().close()


def _start(program: Daemon, ready: str) -> None:
    """Start it, perhaps not for the first time, and wait for the line that it prints when it is ready."""
    since = len(program.lines)
    program.start()
    program.wait_line(ready, 2 * PATIENCE, since=since)
