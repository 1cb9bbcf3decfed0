"""Real programs that do link-local addressing, each alone with its files.

Every one runs in a mount namespace and a PID namespace of its own below the host's network namespace: it writes
nothing to this machine's /run, /var or /etc, and its helpers end with it. A shell stays as the first process in there,
because a program that changes its user loses the kernel's promise to kill it when its parent dies.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from .daemon import Daemon
from .link import Port, Switch
from .namespace import PATIENCE, LabError, Namespace
from .programs import find_program


def _children(parent: int) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                yield int(name)


class Peer(Daemon, ABC):
    """A program at `port`, not started yet."""

    program = ""
    package = ""
    """Debian's package."""
    takes_candidate = False
    """Whether it takes a first candidate; else that follows from the MAC alone, see `first_candidate`."""

    def __init__(self, port: Port, candidate: IPv4Address | None = None) -> None:
        if candidate is not None and not self.takes_candidate:
            raise ValueError(f"{self.program} takes no first candidate")
        path = find_program(self.program)
        if path is None:
            raise LabError(f"{self.program} is not installed (Debian package {self.package})")
        self.path = path
        self.candidate = candidate
        super().__init__(port.host, port.name, [])
        self.label = self.program.rpartition("-")[2]
        # The last line keeps the shell: some shells replace themselves by their last command.
        script = f"set -e\n{self.script()}\nexit $?"
        self.command = [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", script),
        ]

    @abstractmethod
    def script(self) -> str:
        """Return shell lines that prepare the mounts and end with the program in the foreground."""

    def _shell(self) -> int:
        return next(_children(self.process.pid), 0)

    @property
    def pid(self) -> int:
        """The program's pid: the shell's child, once the shell has started it. Raises LabError."""
        until = time.monotonic() + PATIENCE
        name = Path(self.path).name
        while self.running and time.monotonic() < until:
            for pid in _children(self._shell()):
                # Some programs rewrite their title, as seen in cmdline; comm stays, cut to 15 characters.
                with contextlib.suppress(OSError):  # one of the shell's commands, which has ended
                    if Path(f"/proc/{pid}/comm").read_text().strip() == name[:15]:
                        return pid
            time.sleep(0.01)
        raise LabError(f"{self.program} does not run: {self.output[-500:]}")

    def kill(self) -> None:
        """Kill the program and all its helpers."""
        if self.running and (shell := self._shell()):
            os.kill(shell, signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        self.end(3)
        super().close()

    @classmethod
    @functools.cache
    def first_candidate(cls, mac: str) -> IPv4Address:
        """Return its first candidate with this MAC, found out by a start of its own (about a second)."""
        with Switch() as switch, Namespace("learn") as host:
            port = switch.attach(host, mac=mac)
            with cls(port) as peer:
                peer.start()
                try:
                    return port.sniffer.wait_probe().tpa
                finally:
                    peer.kill()


class AvahiAutoipd(Peer):
    """Avahi's; the address with its label `IFACE:avahi` comes from its action script."""

    program = "avahi-autoipd"
    package = "avahi-autoipd"
    takes_candidate = True

    def script(self) -> str:
        account = pwd.getpwnam("avahi-autoipd")
        os.chown(self.state, account.pw_uid, account.pw_gid)
        start = "" if self.candidate is None else f"--start={self.candidate}"
        return (
            f"mount --bind {self.state} /var/lib/avahi-autoipd\n"
            f"{self.path} --force-bind {start} {self.interface}"
        )


class AvahiDaemon(Peer):
    """Avahi's multicast DNS: the host's name, NAME.local, and a service of HTTP."""

    program = "avahi-daemon"
    package = "avahi-daemon"
    NAME = "box7"

    def script(self) -> str:
        files = self.folder / "avahi"
        (files / "services").mkdir(parents=True)
        (files / "avahi-daemon.conf").write_text(
            f"[server]\nhost-name={self.NAME}\nuse-ipv6=no\nenable-dbus=no\n"
            "[publish]\npublish-workstation=no\n"
        )
        (files / "services" / "http.service").write_text(
            "<service-group><name>Front page</name>"
            "<service><type>_http._tcp</type><port>80</port></service></service-group>\n"
        )
        return (
            "mkdir -p /run/avahi-daemon\n"
            f"mount --bind {files} /etc/avahi\n"
            f"{self.path} --no-drop-root --no-chroot --no-rlimits"
        )


class Dhcpcd(Peer):
    """dhcpcd with IPv4LL only. Its candidate follows from the MAC."""

    program = "dhcpcd"
    package = "dhcpcd-base"

    def script(self) -> str:
        config = self.folder / "dhcpcd.conf"
        config.write_text("ipv4only\nnodhcp\nnoipv6rs\nnodev\n")
        return (
            f"mount --bind {self.state} /var/lib/dhcpcd\n"
            "mkdir -p /run/dhcpcd\n"
            f"{self.path} --nobackground --debug --config {config} --script /bin/true {self.interface}"
        )


class Networkd(Peer):
    """systemd-networkd without systemd, udev and D-Bus. Its candidate follows from the MAC, and it saves none."""

    program = "systemd-networkd"
    package = "systemd"

    def script(self) -> str:
        network = self.folder / "network"
        network.mkdir()
        (network / "00-lab.network").write_text(
            f"[Match]\nName={self.interface}\n"
            "[Network]\nLinkLocalAddressing=ipv4\nDHCP=no\nIPv6AcceptRA=no\nLLDP=no\n"
        )
        return (
            # A /sys that cannot be written means "no udev" to it: it does not wait for one.
            "mount -o remount,bind,ro /sys\n"
            f"mount --bind {network} /etc/systemd/network\n"
            "mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp\n"
            "chown -R systemd-network: /run/systemd/netif\n"
            "export SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=info\n"
            f"{self.path}"
        )


PEERS: dict[str, type[Peer]] = {peer.program: peer for peer in (AvahiAutoipd, Dhcpcd, Networkd)}
