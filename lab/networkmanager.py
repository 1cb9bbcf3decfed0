"""NetworkManager with a D-Bus system bus and a dispatcher of its own, for the interfaces of one host.

The bus has Debian's policy, so an unprivileged client has the same rights as in Debian. Nothing of this machine's
/run, /etc or /var is seen or written: the host has files of its own, seen by all its programs.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from . import machine
from .daemon import Daemon
from .namespace import LabError, Namespace
from .programs import find_program

BUS_SOCKET = Path("/run/dbus/system_bus_socket")
"""Where the system bus listens; of the host's own /run."""

_BUS_POLICY = Path("/usr/share/dbus-1/system.conf")
_DISPATCHER_SERVICE = Path(
    "/usr/share/dbus-1/system-services/org.freedesktop.nm_dispatcher.service"
)
# Ours alone: the daemon, its user, its files, and the services that it may start.
_NOT_OURS = r"<(user|pidfile|servicehelper)>.*?</\1>|<(fork|syslog|standard_system_servicedirs)/>"

# Its folders, empty, and none of what packages have put there.
_PREPARE = """
    for folder in /usr/lib/NetworkManager/conf.d /usr/lib/NetworkManager/system-connections \\
        /usr/lib/NetworkManager/dispatcher.d /etc/NetworkManager; do
        [ ! -d $folder ] || mount -t tmpfs -o mode=755 autoip-lab $folder
    done
    cd /etc/NetworkManager
    mkdir -p conf.d system-connections dispatcher.d/pre-up.d dispatcher.d/pre-down.d dispatcher.d/no-wait.d
    mkdir -p -m 700 /var/lib/NetworkManager
"""


class SystemBus(Daemon):
    """dbus-daemon at the usual place of the system bus. It starts nothing but NetworkManager's dispatcher."""

    label = "bus"

    def __init__(self, host: Namespace) -> None:
        path = find_program("dbus-daemon")
        if path is None:
            raise LabError("dbus-daemon is not installed (Debian package dbus)")
        super().__init__(host, "", [])
        services = self.folder / "services"
        services.mkdir()
        shutil.copy(_DISPATCHER_SERVICE, services)
        ours = f"<servicedir>{services}</servicedir></busconfig>"
        policy = re.sub(_NOT_OURS, "", _BUS_POLICY.read_text(), flags=re.DOTALL)
        # Relative names are those of the folder that the file is in.
        policy = policy.replace(">system.d<", f">{_BUS_POLICY.parent / 'system.d'}<")
        config = self.folder / "bus.conf"
        config.write_text(policy.replace("</busconfig>", ours))
        self.command = [path, f"--config-file={config}", "--nofork", "--nopidfile", "--nosyslog"]

    def start(self, *arguments: str, die_with_us: bool = True) -> None:
        """Start it and wait until it listens."""
        self.namespace.run("mkdir", "-p", str(BUS_SOCKET.parent))
        self.namespace.run("rm", "-f", str(BUS_SOCKET))
        super().start(*arguments, die_with_us=die_with_us)
        _wait(self._listens, "the bus listens", 30)

    def _listens(self) -> bool:
        return self.namespace.run("sh", "-c", f"[ -S {BUS_SOCKET} ] && echo yes || :") != ""


class NetworkManager(Daemon):
    """NetworkManager for a host's interfaces, not started yet; `bus` must run.

    Args:
        host: must have files of its own (`machine.give_own_files`). All links but `lo` are managed,
            those of `unmanaged` excepted.
        unmanaged: names of interfaces that it leaves alone.
    """

    label = "NM"

    def __init__(self, host: Namespace, *, unmanaged: Iterable[str] = ()) -> None:
        path = find_program("NetworkManager")
        if path is None:
            raise LabError("NetworkManager is not installed (Debian package network-manager)")
        super().__init__(host, "", [])
        exceptions = "".join(f";interface-name:{name}" for name in unmanaged)
        host.run("sh", "-ec", _PREPARE)
        machine.write(
            host,
            "/etc/NetworkManager/NetworkManager.conf",
            "[main]\nplugins=keyfile\nauth-polkit=false\ndns=none\nrc-manager=unmanaged\n"
            "no-auto-default=*\ndhcp=internal\nsystemd-resolved=false\nhostname-mode=none\n"
            f"[keyfile]\nunmanaged-devices=interface-name:lo{exceptions}\n"
            # By default it leaves a veth alone.
            "[device-lab]\nmatch-device=interface-name:*,except:interface-name:lo"
            f"{exceptions.replace(';', ',except:')}\nmanaged=1\n"
            "[connectivity]\nenabled=false\n",
        )
        # A /sys that cannot be written means "no udev" to it: it does not wait for one.
        self.command = [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
            f'mount -o remount,bind,ro /sys && exec {path} --debug --log-level="$LEVEL"',
        ]
        self.env["LEVEL"] = "INFO"

    def start(self, *arguments: str, die_with_us: bool = True) -> None:
        """Start it and wait until it answers."""
        super().start(*arguments, die_with_us=die_with_us)
        _wait(lambda: self.nmcli("-g RUNNING general", check=False).strip() == "running", "NM", 60)

    def nmcli(self, arguments: str, *, check: bool = True, timeout: float = 100) -> str:
        """Run `nmcli ARGUMENTS`; return its output."""
        return self.namespace.run("nmcli", *arguments.split(), check=check, timeout=timeout)

    def add_profile(self, interface: str, *, name: str = "", **settings: str) -> str:
        """A profile that connects by itself; settings as in `ipv6__method="disabled"`. Gives its name."""
        name = name or f"wired-{interface}"
        words = [f"{key.replace('__', '.').replace('_', '-')} {v}" for key, v in settings.items()]
        self.nmcli(f"con add type ethernet con-name {name} ifname {interface} {' '.join(words)}")
        return name

    def device_state(self, interface: str) -> int:
        """Return the number of the device's state, as NM_DEVICE_STATE; 0 if it has no such device."""
        state = self.nmcli(f"-g GENERAL.STATE device show {interface}", check=False)
        number = state.split(" ", 1)[0]
        return int(number) if number.isdigit() else 0

    def wait_state(self, interface: str, *wanted: int, timeout: float = 60) -> int:
        """Wait until the device is in one of the states; return which. Raises LabError."""
        until = time.monotonic() + timeout
        while (state := self.device_state(interface)) not in wanted:
            if time.monotonic() > until:
                raise LabError(f"{interface} is in state {state} after {timeout} s, not {wanted}")
            time.sleep(0.05)
        return state

    def active(self, interface: str) -> str:
        """Return the name of the profile that is active on the interface; empty if there is none."""
        return self.nmcli(f"-g GENERAL.CONNECTION device show {interface}", check=False).strip()

    def states(self, interface: str) -> list[tuple[int, int]]:
        """Return the changes of the device's state that it logged so far, as (old, new)."""
        pattern = rf"device \({re.escape(interface)}\): state change: ([\w-]+) -> ([\w-]+)"
        return [
            (STATES[found[1]], STATES[found[2]])
            for line in self.lines
            if (found := re.search(pattern, line))
        ]


def _wait(true: Callable[[], bool], what: str, timeout: float) -> None:
    until = time.monotonic() + timeout
    while not true():
        if time.monotonic() > until:
            raise LabError(f"not within {timeout} s: {what}")
        time.sleep(0.05)


STATES = {
    "unknown": 0,
    "unmanaged": 10,
    "unavailable": 20,
    "disconnected": 30,
    "prepare": 40,
    "config": 50,
    "need-auth": 60,
    "ip-config": 70,
    "ip-check": 80,
    "secondaries": 90,
    "activated": 100,
    "deactivating": 110,
    "failed": 120,
}
"""How NetworkManager's log names the states of a device."""
