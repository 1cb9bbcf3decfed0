"""Give up every capability but the two that are needed; with `--user root`, share files with the service.

The service's user owns /run/autoip and /var/lib/autoip. Root without CAP_DAC_OVERRIDE may not write
there; with it root could follow a name that this user has replaced to another place. So a daemon
that stays root's makes, opens and removes files in a directory of this user with this user's rights on
files and with no others (`as_owner`), and only for as long as that takes. `users.become` has set this
user's ids as the saved ones. They allow it later, record which user it is, and let this user send
signals to the daemon.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoip.errors import MissingCapability
from autoip.kernel.native import check, ffi, lib

_NEEDED = {
    "CAP_NET_RAW": lib.CAP_NET_RAW,  # the packet sockets
    "CAP_NET_ADMIN": lib.CAP_NET_ADMIN,  # addresses, routes, links
}


def beyond() -> tuple[str, ...]:
    """Return those of the capabilities that a daemon uses that no program started here can have.

    They are missing from the bounding set, also of root. CAP_SYS_ADMIN can stand for CAP_BPF.

    Raises:
        OSError: there is no /proc.
    """
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        allowed = next(int(line.split()[1], 16) for line in file if line.startswith("CapBnd:"))
    names = [name for name, bit in _NEEDED.items() if not allowed >> bit & 1]
    if not allowed & (1 << lib.CAP_BPF | 1 << lib.CAP_SYS_ADMIN):
        names.append("CAP_BPF")
    return tuple(names)


def limit(*, pass_on: bool = False) -> None:
    """Keep CAP_NET_RAW and CAP_NET_ADMIN, permitted and effective, and nothing else.

    Inheritable and ambient sets are emptied, the bounding set is cut down (where CAP_SETPCAP
    is permitted), and no program started later can gain privileges. The kernel keeps
    capabilities for each thread: call this before the first thread is started.

    Args:
        pass_on: whether programs started later have the two as well, also without root.

    Raises:
        MissingCapability: one of the two is not permitted; nothing was changed.
        OSError: the kernel refused.
    """
    permitted = ffi.new("uint64_t *")
    check(lib.autoip_capabilities_permitted(permitted))
    missing = tuple(name for name, bit in _NEEDED.items() if not permitted[0] >> bit & 1)
    if missing:
        raise MissingCapability(missing)
    check(lib.autoip_capabilities_limit(sum(1 << bit for bit in _NEEDED.values()), pass_on))


def hand_on() -> None:
    """Let the program that this process executes next have the two capabilities, and no more rights on files.

    The kernel forgets the saved user id at an exec. So root's process that has the service's user there becomes
    this user now, for good.

    Raises:
        OSError: the kernel refused.
    """
    user, group = os.getresuid()[2], os.getresgid()[2]
    if user != os.geteuid():
        check(lib.autoip_capabilities_keep())
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    limit(pass_on=True)


def trusted_users() -> frozenset[int]:
    """Return the users that may own the files of this process: root, its own, the service's."""
    _, effective, saved = os.getresuid()
    return frozenset({0, effective, saved})


@contextmanager
def as_owner(directory: Path | int) -> Iterator[None]:
    """Have the rights of the service's user on files, if `directory` belongs to this user.

    For the calling thread, which must not await anything meanwhile. Without effect for a process
    without another user's ids.

    Args:
        directory: path, or descriptor.
    """
    _, user, saved_user = os.getresuid()
    _, group, saved_group = os.getresgid()
    theirs = False
    if saved_user != user:
        with suppress(OSError):
            theirs = os.stat(directory).st_uid == saved_user
    if not theirs:
        yield
        return
    check(lib.autoip_capabilities_files_as(saved_user, saved_group))
    try:
        yield
    finally:
        check(lib.autoip_capabilities_files_as(user, group))
