"""The user that a daemon of root's becomes, and the directories that this user shares with the service.

A daemon that root or a hook starts becomes the service's user, or the user of `--user`, once it has opened what needs
root. Where there is no user `autoip` it takes numbers that belong to nobody. With `--user root` it keeps its user, and
the service's ids become the saved ones (see `capabilities.as_owner`).
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from autoip.errors import NoPermission
from autoip.kernel.native import check, lib

SERVICE_USER = "autoip"
"""The user of the unit, made by share/autoip.sysusers."""

SPARE_IDS = range(65527, 65534)
"""User and group ids where there is no user `autoip`: neither Debian nor systemd gives these to anybody."""

NOBODY = "nobody"
"""Who the daemon becomes instead where there is a D-Bus system bus: it refuses ids without a name, and without it
NetworkManager cannot be followed."""
SYSTEM_BUS = "/run/dbus/system_bus_socket"

UID_MAP = Path("/proc/self/uid_map")

_ENTRIES = (".lock", ".sock", ".json")
"""How the names of our files end."""


def may_become(name: str) -> bool:
    """Return whether this process may become an existing user: root may become any, another user is its own."""
    return os.geteuid() in (0, pwd.getpwnam(name).pw_uid)


def become(name: str | None, directories: Iterable[Path]) -> str | None:
    """As root, and before `capabilities.limit`: become another user, for all threads; keep the permitted capabilities.

    Without effect for another user than root.

    Args:
        name: an existing user; None: the service's, or ids that belong to nobody.
        directories: those that do not exist are made, for the user; so is one that does not exist yet for another user.
            One of root's in which nothing but our files is, is given to the user.

    Returns:
        In words why the process is still root's though another user was wanted; None: it is as wanted.

    Raises:
        NoPermission: there is no id that belongs to nobody.
        KeyError: there is no user `name`.
    """
    directories = list(directories)
    if os.geteuid() != 0:
        for directory in directories:
            _make(directory)
        return None
    user, group = _ids(name) if name is not None else _service_ids()
    shared = _service_ids() if user == 0 else (user, group)
    try:
        # As the saved ids they allow `as_owner`. An attempt: nothing is given away before it has succeeded.
        os.setresgid(-1, -1, shared[1])
        os.setresuid(-1, -1, shared[0])
        for directory in directories:
            _give(directory, *shared)
        if user != 0:
            check(lib.autoip_capabilities_become(user, group))
    except OSError as problem:
        if problem.errno == errno.EINVAL and _is_another_user_outside():
            return None
        return f"the process is root's: it cannot become user {user} ({problem.strerror})"
    return None


def _ids(name: str) -> tuple[int, int]:
    entry = pwd.getpwnam(name)
    return entry.pw_uid, entry.pw_gid


def _service_ids() -> tuple[int, int]:
    """Return user and group of the service, or numbers that have no name.

    Raises:
        NoPermission: all of SPARE_IDS have names.
    """
    with suppress(KeyError):
        return _ids(SERVICE_USER)
    if os.path.exists(SYSTEM_BUS):
        with suppress(KeyError):
            return _ids(NOBODY)
    for number in SPARE_IDS:
        try:
            pwd.getpwuid(number)
        except KeyError:
            try:
                grp.getgrgid(number)
            except KeyError:
                return number, number
    raise NoPermission(
        f"there is no user {SERVICE_USER}, and ids {SPARE_IDS[0]} to {SPARE_IDS[-1]} are taken;"
        " name one with --user"
    )


def _stand_ins() -> list[int]:
    """Return the user ids that a daemon may have had where there was no user `autoip`."""
    with suppress(KeyError):
        return [*SPARE_IDS, _ids(NOBODY)[0]]
    return [*SPARE_IDS]


def _is_another_user_outside() -> bool:
    """Return whether root of this user namespace, which has no further user, is not root outside of it."""
    with suppress(OSError):
        inside, outside, _ = UID_MAP.read_text().splitlines()[0].split()
        return inside == "0" and outside != "0"
    return False


def _make(directory: Path) -> bool:
    """Make the directory, for everybody to enter. Return whether it was made."""
    with suppress(OSError):  # it exists; other errors come again when it is used
        directory.mkdir(parents=True)
        directory.chmod(0o755)  # whatever the umask is
        return True
    return False


def _give(directory: Path, user: int, group: int) -> None:
    """Make the directory for this user, or give the user one of root's with what is ours in it.

    What another user has made in the place of `autoip` is given as well: `autoip` came later. A process of those
    ids could replace an entry meanwhile, so each is opened, and changed only if its owner is the directory's.
    """
    _make(directory)
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            status = os.fstat(handle)
            names = os.listdir(handle)
            theirs = status.st_uid != user and status.st_uid in (0, *_stand_ins())
            if theirs and status.st_mode & 0o22 == 0 and all(n.endswith(_ENTRIES) for n in names):
                for name in names:
                    _give_entry(handle, name, status.st_uid, user, group)
                os.fchown(handle, user, group)
        finally:
            os.close(handle)


def _give_entry(handle: int, name: str, owner: int, user: int, group: int) -> None:
    entry = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=handle)
    try:
        status = os.fstat(entry)
        if status.st_uid == owner and not stat.S_ISLNK(status.st_mode):
            # By this name no other file can be reached than the one that is open.
            os.chown(f"/proc/self/fd/{entry}", user, group)
    finally:
        os.close(entry)
