"""The directories of the program's files, and the number of the network namespace, which is part of their names."""

from __future__ import annotations

import os

from autoip.errors import AutoipError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `autoip status` must start fast
    from collections.abc import Mapping

AVAHI_STATE = "/var/lib/avahi-autoipd"
"""Where avahi-autoipd keeps its addresses: a file for each MAC, named by it, one line."""


def runtime_directory(environ: Mapping[str, str]) -> str:
    """Return the directory of lock files and control sockets: $RUNTIME_DIRECTORY, or /run/autoip."""
    return _first(environ, "RUNTIME_DIRECTORY") or "/run/autoip"


def state_directory(environ: Mapping[str, str]) -> str:
    """Return the directory of the last addresses: $STATE_DIRECTORY, or /var/lib/autoip."""
    return _first(environ, "STATE_DIRECTORY") or "/var/lib/autoip"


def network_namespace() -> int:
    """Return the inode of this process's network namespace.

    Raises:
        AutoipError: /proc does not show it.
    """
    try:
        return os.stat("/proc/self/ns/net").st_ino
    except OSError as error:
        what = "/proc/self/ns/net, which names the network namespace"
        raise AutoipError(f"{what}: {error.strerror}; mount /proc") from error


def _first(environ: Mapping[str, str], name: str) -> str:
    """Return the first directory of a variable; systemd separates several by colons."""
    return environ.get(name, "").split(":", 1)[0]
