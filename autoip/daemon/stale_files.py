"""Files in the run-time directory of interfaces and network namespaces that are gone: nobody else would remove them.

A lock file that a crash left has the record for the next instance on its interface, so it stays as long as the
interface or its network namespace may be there. A file that somebody locks is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from pathlib import Path

from autoip.control.protocol import socket_name
from autoip.daemon.lock_file import open_directory, recorded
from autoip.errors import AutoipError
from autoip.kernel.capabilities import as_owner
from autoip.paths import network_namespace

FILES_MAX = 1000
"""At most this many files are looked at, so that a full directory does not delay the start."""
_LOCK = re.compile(r"(\d{1,20})-(.+)\.lock", re.DOTALL)
_NAMESPACE = re.compile(r" net:\[(\d+)\] ")


def remove(directory: Path) -> None:
    """Remove lock files, and the sockets beside them, of what is gone.

    Call this before the capabilities are given up: without them the network namespaces of other users' processes
    are not shown, and the files of all other namespaces stay. Processes of another pid namespace are not shown either:
    their crashed instance may lose its record, which is a hint. A failure is harmless, and not reported.
    """
    if not directory.is_dir():
        return
    with contextlib.suppress(OSError, AutoipError), contextlib.ExitStack() as opened:
        handle = open_directory(directory)
        opened.callback(os.close, handle)
        names = sorted(os.listdir(handle))[:FILES_MAX]
        locks = [match for name in names if (match := _LOCK.fullmatch(name))]
        living = _namespaces() if any(int(m[1]) != network_namespace() for m in locks) else None
        for match in locks:
            namespace, interface = int(match[1]), match[2]
            if namespace == network_namespace():
                gone = _interface_is_gone(handle, match[0], interface)
            else:
                gone = living is not None and namespace not in living
            if gone:
                with contextlib.suppress(OSError), as_owner(handle):
                    _remove(handle, match[0], socket_name(namespace, interface))


def _interface_is_gone(handle: int, lock: str, interface: str) -> bool:
    """Return whether no interface has the name, nor the number that the record of the last instance has."""
    with contextlib.suppress(OSError), as_owner(handle):
        owned = recorded(handle, lock)
        there = socket.if_nameindex()
        return not any(
            name == interface or (owned is not None and owned.index == index)
            for index, name in there
        )
    return False


def _remove(handle: int, lock: str, control: str) -> None:
    """Remove a lock file that nobody has locked, and the socket beside it."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.open(lock, flags, dir_fd=handle)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its owner may have removed the file before the lock, and another instance made a new one.
        found = os.stat(lock, dir_fd=handle, follow_symlinks=False)
        if os.path.samestat(found, os.fstat(file)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(control, dir_fd=handle)
            os.unlink(lock, dir_fd=handle)
    finally:
        os.close(file)


def _namespaces() -> set[int] | None:
    """Return the network namespaces that a thread or a mount keeps; None: not all are shown."""
    tasks: dict[int, str] = {}  # by namespace: a thread of it
    hidden: set[int] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for thread in os.listdir(f"/proc/{pid}/task"):
                task = f"/proc/{pid}/task/{thread}"
                try:
                    tasks[os.stat(f"{task}/ns/net").st_ino] = task
                except PermissionError:
                    # Another number of its namespace, which every user may read.
                    hidden.add(os.stat(f"{task}/net/dev").st_ino)
    for task in tasks.values() if hidden else ():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            hidden.discard(os.stat(f"{task}/net/dev").st_ino)
    if hidden:
        return None
    # Of `ip netns add`, and of containers.
    with open("/proc/self/mountinfo", errors="surrogateescape") as mounts:
        return {*tasks, *map(int, _NAMESPACE.findall(mounts.read()))}
