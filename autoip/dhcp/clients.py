"""The DHCP clients that hooks can be installed for: a table.

A new client is a row here and its files in `hooks/`; every file there has the mark line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Callable, Mapping, Sequence

MARK = b"\n# autoip hooks: written by `autoip hooks install`, taken away by `autoip hooks remove`\n"
"""The line by which a file is known to be ours."""

SHARED = "/etc/autoip/hook"
"""The script that the clients' files call: `SHARED start IFACE`, `SHARED stop IFACE`."""


@dataclass(frozen=True, slots=True)
class File:
    """One file to install."""

    source: str
    """Its name in `hooks/`; the word @AUTOIP@ in it becomes the path of the program."""
    path: str
    mode: int
    keeps: str = ""
    """Ours calls what is at `path` already, which is kept under this name and put back in the end."""


@dataclass(frozen=True, slots=True)
class Conf:
    """A configuration file, made for the interfaces that are named; `--no-conf` leaves it out."""

    path: str
    mode: int
    text: Callable[[Sequence[str]], str]
    """What it says for these interfaces, the mark line included (MARK, not as the first line)."""


@dataclass(frozen=True, slots=True)
class Needs:
    """A word of the client's own configuration, at the start of a line, without which its hook does nothing."""

    path: str
    word: str


@dataclass(frozen=True, slots=True)
class Client:
    """A DHCP client."""

    programs: tuple[str, ...]
    """Where its program may be: if one is there, the client is installed."""
    files: tuple[File, ...]
    confs: tuple[Conf, ...] = ()
    enables: bool = field(default=False, kw_only=True)
    """The unit is enabled for the interfaces that are named."""
    needs: Needs | None = field(default=None, kw_only=True)

    @property
    def takes_names(self) -> bool:
        """Whether it is of any use to name interfaces."""
        return self.enables or bool(self.confs)

    @property
    def paths(self) -> tuple[str, ...]:
        """All files that may be there because of this client."""
        return (*(file.path for file in self.files), *(conf.path for conf in self.confs))


def _networkmanager_conf(interfaces: Sequence[str]) -> str:
    """For these interfaces NetworkManager goes on asking for a lease, and calls nothing a failure."""
    devices = ",".join(f"interface-name:{name}" for name in interfaces)
    return f"""\
# For these interfaces DHCP goes on until there is a lease.  By default NetworkManager gives up after
# 45 seconds, takes all addresses off the interface, link-local ones too, and begins anew.
{MARK.decode().strip()}
[connection-autoip]
match-device={devices}
ipv4.dhcp-timeout=2147483647
"""


def _networkmanager_policy(interfaces: Sequence[str]) -> str:
    """The service that is enabled for these interfaces runs all the time: DHCP has its chance first."""
    sections = "".join(f"[{name}]\npolicy = fallback\n" for name in interfaces)
    return f"""\
# Beside NetworkManager autoip is a fallback.  This counts more than /etc/autoip.conf; what counts more
# is a file of this directory with a later name.
{MARK.decode().strip()}
{sections}"""


CLIENTS: Mapping[str, Client] = {
    "dhclient": Client(
        ("/sbin/dhclient", "/usr/sbin/dhclient"),
        (File("dhclient", "/etc/dhcp/dhclient-exit-hooks.d/autoip", 0o644),),
    ),
    "ifupdown": Client(
        ("/sbin/ifup", "/usr/sbin/ifup"),
        (
            File("ifupdown", "/etc/network/if-up.d/autoip", 0o755),
            File("ifupdown", "/etc/network/if-down.d/autoip", 0o755),
        ),
    ),
    "dhcpcd": Client(
        ("/sbin/dhcpcd", "/usr/sbin/dhcpcd"),
        (File("dhcpcd", "/lib/dhcpcd/dhcpcd-hooks/90-autoip", 0o644),),
        needs=Needs("/etc/dhcpcd.conf", "noipv4ll"),
    ),
    "udhcpc": Client(
        ("/sbin/udhcpc", "/usr/sbin/udhcpc"),
        (
            File(
                "udhcpc",
                "/etc/udhcpc/default.script",
                0o755,
                "/etc/udhcpc/default.script.before-autoip",
            ),
        ),
    ),
    "networkd-dispatcher": Client(
        ("/usr/bin/networkd-dispatcher",),
        tuple(
            File("networkd-dispatcher", f"/etc/networkd-dispatcher/{state}.d/autoip", 0o755)
            for state in ("carrier", "degraded", "routable", "off")
        ),
    ),
    "networkmanager": Client(
        ("/usr/sbin/NetworkManager", "/usr/bin/NetworkManager"),
        (
            File("networkmanager", "/etc/NetworkManager/dispatcher.d/90-autoip", 0o755),
            File("networkmanager", "/etc/NetworkManager/dispatcher.d/pre-down.d/90-autoip", 0o755),
        ),
        (
            Conf("/etc/NetworkManager/conf.d/90-autoip.conf", 0o644, _networkmanager_conf),
            Conf("/etc/autoip.conf.d/networkmanager.conf", 0o644, _networkmanager_policy),
        ),
        enables=True,
    ),
}
