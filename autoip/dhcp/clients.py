"""The DHCP clients that hooks can be installed for: a table.

A new DHCP client is a row here and its files in `hooks/`; every file there has the mark line.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, field
from fnmatch import fnmatchcase

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Callable, Mapping, Sequence

MARK = b"\n# autoip hooks: written by `autoip hooks install`, taken away by `autoip hooks remove`\n"
"""A file with this line is ours."""

SHARED = "/etc/autoip/hook"
"""The script that the DHCP clients' hooks call: `SHARED start IFACE`, `SHARED stop IFACE`."""

POLICY = "/etc/autoip.conf.d/networkmanager.conf"
"""The file of autoip's own configuration for the interfaces that were named."""

_UDHCPC = "/etc/udhcpc/default.script"


@dataclass(frozen=True, slots=True)
class File:
    """One file to install."""

    source: str
    """The file's name in `hooks/`; the word @AUTOIP@ in the text becomes the path of the program."""
    path: str
    mode: int = 0o755
    keeps: str = ""
    """If our file calls the one that is at `path` already: the name under which that one is kept."""


@dataclass(frozen=True, slots=True)
class DhcpClient:
    """A DHCP client."""

    programs: tuple[str, ...]
    """Paths of the program: if one exists, the DHCP client is installed."""
    files: tuple[File, ...]
    _: KW_ONLY
    confs: Mapping[str, Callable[[Sequence[str]], str]] = field(default_factory=dict)
    """For a DHCP client that needs names of interfaces: by path, what makes a configuration file's text of them.

    Patterns are names here. The text has MARK in it. The units of `running.unit` are enabled.
    """
    needs: tuple[str, str] | None = None
    """A configuration file, and a word: without a line that begins with the word the hook does nothing."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All files that `install` may put there for this DHCP client."""
        return (*(file.path for file in self.files), *self.confs)


def is_pattern(name: str) -> bool:
    """Return whether a name is a pattern, for autoip and for NetworkManager alike, which knows no `[...]`."""
    return "*" in name or "?" in name


DHCP_TIMEOUT = 300
"""Seconds for which NetworkManager tries DHCP at a time, where it is installed to try for longer than by default."""


def _networkmanager_conf(interfaces: Sequence[str]) -> str:
    """Return the file that has NetworkManager try DHCP on these interfaces for long, and again and again."""
    devices = ",".join(f"interface-name:{name}" for name in interfaces)
    return f"""\
# By default NetworkManager gives DHCP up after 45 seconds, takes all addresses off the interface, link-local ones
# too, begins anew, and after 4 times leaves the interface alone for 300 seconds.  For these interfaces it tries for
# {DHCP_TIMEOUT} seconds.  Not without an end: only when it begins anew it asks any server for any address, and a lost
# lease is replaced after a change of the network.  Between the times the address goes for one claim.
{MARK.decode().strip()}
[main]
autoconnect-retries-default=0
[connection-autoip]
match-device={devices}
ipv4.dhcp-timeout={DHCP_TIMEOUT}
"""


def _networkmanager_policy(interfaces: Sequence[str]) -> str:
    """Return the file that gives DHCP the first chance: the service of these interfaces always runs."""
    # Of those that match the last section counts: an interface with a unit of its own is not the one service's.
    patterns = list(filter(is_pattern, interfaces))
    names = [name for name in interfaces if name not in patterns]
    apart = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    serve = {**dict.fromkeys(patterns, "serve = yes\n"), **dict.fromkeys(apart, "serve = no\n")}
    sections = "".join(
        f"[{name}]\npolicy = fallback\n{serve.get(name, '')}" for name in [*patterns, *names]
    )
    return f"""\
# Beside NetworkManager autoip is a fallback.  This counts more than /etc/autoip.conf; what counts more
# is a file of this directory with a later name.
{MARK.decode().strip()}
{sections}"""


def named(policy: str) -> list[str]:
    """Return the interfaces and patterns that the text of POLICY is for."""
    return re.findall(r"^\[(.+)\]$", policy, re.MULTILINE)


CLIENTS: Mapping[str, DhcpClient] = {
    "dhclient": DhcpClient(
        ("/sbin/dhclient", "/usr/sbin/dhclient"),
        (
            File("dhclient", "/etc/dhcp/dhclient-exit-hooks.d/autoip", 0o644),
            File("dhclient-enter", "/etc/dhcp/dhclient-enter-hooks.d/autoip", 0o644),
        ),
    ),
    "ifupdown": DhcpClient(
        ("/sbin/ifup", "/usr/sbin/ifup"),
        tuple(
            File("ifupdown", f"/etc/network/if-{way}.d/autoip") for way in ("pre-up", "up", "down")
        ),
    ),
    "dhcpcd": DhcpClient(
        ("/sbin/dhcpcd", "/usr/sbin/dhcpcd"),
        (File("dhcpcd", "/lib/dhcpcd/dhcpcd-hooks/90-autoip", 0o644),),
        needs=("/etc/dhcpcd.conf", "noipv4ll"),
    ),
    "udhcpc": DhcpClient(
        ("/sbin/udhcpc", "/usr/sbin/udhcpc"),
        (File("udhcpc", _UDHCPC, keeps=f"{_UDHCPC}.before-autoip"),),
    ),
    "networkd-dispatcher": DhcpClient(
        ("/usr/bin/networkd-dispatcher",),
        tuple(
            File("networkd-dispatcher", f"/etc/networkd-dispatcher/{state}.d/autoip")
            for state in ("configuring", "carrier", "degraded", "routable", "off")
        ),
    ),
    "networkmanager": DhcpClient(
        ("/usr/sbin/NetworkManager", "/usr/bin/NetworkManager"),
        tuple(
            File("networkmanager", f"/etc/NetworkManager/dispatcher.d/{folder}90-autoip")
            for folder in ("", "pre-down.d/")
        ),
        confs={
            "/etc/NetworkManager/conf.d/90-autoip.conf": _networkmanager_conf,
            POLICY: _networkmanager_policy,
        },
    ),
}
