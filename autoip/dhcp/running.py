"""What runs on this machine and bears on a failure of DHCP: DHCP clients, NetworkManager, systemd's services."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from autoip.dhcp.clients import is_pattern

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterator, Sequence

_PROGRAMS = {"dhclient": "dhclient", "dhcpcd": "dhcpcd", "udhcpc": "udhcpc"}
"""Names of processes that serve the interface on their command line, and of their DHCP clients."""
_LINKS = Path("/run/systemd/netif/links")
_MANAGER = "/run/systemd/system"
"""The directory exists where systemd is the service manager."""
SERVICE = "autoip.service"
"""The unit that serves the interfaces which the configuration means by patterns."""
_DONE = {"start": "started", "stop": "stopped", "reload": "reloaded"}
_TIME = 30
"""Seconds that a command of another program may take."""


def networkmanager_devices() -> dict[str, str] | None:
    """Return the type of each interface that NetworkManager manages; None: it does not run, or has no nmcli."""
    words = ("nmcli", "--terse", "--fields", "DEVICE,TYPE,STATE", "device")
    status, text = _run(*words)
    if status != 0:
        return None
    rows = (line.rsplit(":", 2) for line in text.splitlines() if line.count(":") >= 2)
    return {name: kind for name, kind, state in rows if not state.startswith("unmanaged")}


def dhcp_clients() -> dict[str, str]:
    """Return the name in `CLIENTS` of the DHCP client that serves each interface of this network namespace."""
    found = {}
    for index, name in socket.if_nameindex():
        try:
            state = (_LINKS / str(index)).read_text()
        except OSError:
            continue
        if "ADMIN_STATE=unmanaged" not in state:
            found[name] = "networkd-dispatcher"
    names = [name for _, name in socket.if_nameindex()]
    for words in _command_lines():
        client = _PROGRAMS.get(os.path.basename(words[0].partition(":")[0]))
        if client is not None:
            # dhcpcd without names serves all interfaces, and says so in its title.
            wanted = {word for text in words for word in text.split()}
            found |= {name: client for name in names if name in wanted}
    return found | dict.fromkeys(networkmanager_devices() or (), "networkmanager")


def _command_lines() -> Iterator[list[str]]:
    """Yield the command lines of the processes of this network namespace."""
    here = os.stat("/proc/self/ns/net").st_ino
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes().decode(errors="replace")
            if text and (folder / "ns/net").stat().st_ino == here:
                yield text.rstrip("\0").split("\0")
        except OSError:  # it has ended, or is not ours to look at
            continue


def unit(name: str) -> str:
    """Return the unit that serves an interface, or those that a pattern matches."""
    return SERVICE if is_pattern(name) else f"autoip@{name}.service"


def start(units: Sequence[str]) -> Iterator[str]:
    """Start units, or have those that run read the configuration again; yield a line for each thing done."""
    if not units:
        return
    if not os.path.isdir(_MANAGER):
        yield f"note: systemd does not run here, so nothing was started: {' '.join(units)}"
        return
    _run("systemctl", "daemon-reload")
    for name in units:
        yield from _systemctl("reload" if _is_active(name) else "start", name)


def stop(units: Sequence[str]) -> Iterator[str]:
    """Stop units that are not enabled any more; the service for all interfaces, if it stays, reads the configuration.

    Yield a line for each thing done.
    """
    if os.path.isdir(_MANAGER):
        for name in units:
            yield from _systemctl("stop", name)
        if SERVICE not in units and _is_active(SERVICE):
            yield from _systemctl("reload", SERVICE)


def reload_networkmanager() -> Iterator[str]:
    """Have NetworkManager read its files; yield what was done."""
    if _run("nmcli", "general", "reload", "conf")[0] == 0:
        yield "reloaded NetworkManager's configuration, which counts from the next activation on"


def _is_active(name: str) -> bool:
    return _run("systemctl", "--quiet", "is-active", name)[0] == 0


def _systemctl(verb: str, name: str) -> Iterator[str]:
    # What follows a reload may need what the service gives up; all else is not waited for.
    status, text = _run("systemctl", *["--no-block"] * (verb != "reload"), verb, name)
    if status == 0:
        yield f"{_DONE[verb]} {name}"
    else:
        yield f"note: systemctl {verb} {name} failed: {text.strip() or f'status {status}'}"


def _run(*words: str) -> tuple[int, str]:
    """Return the exit status and the output of a command; 127 if it cannot be run."""
    try:
        ended = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            timeout=_TIME,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return 127, str(problem)
    return ended.returncode, ended.stdout
