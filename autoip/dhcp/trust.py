"""Whether others than root may write a program that root runs, or a directory in which it is found."""

from __future__ import annotations

import os
import stat

from autoip.errors import AutoipError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterable, Iterator

_LINKS_MAX = 40
"""The kernel's own limit: more links are a loop."""
_STAFF = 50
"""Debian's group of those who install programs below /usr/local, where root's PATH finds them: trusted there."""
_INTERPRETER_MAX = 256


class Untrusted(AutoipError):
    """Others than root may write what would be run as root."""


def check(paths: Iterable[str], root: str = "") -> None:
    """Check programs, their interpreters, and all directories in which they are found.

    Args:
        paths: absolute, below `root`; what does not exist is not checked, but the directories up to there are.
        root: of an image that is being built, without a final slash. Links are followed as in a system started from it.

    Raises:
        Untrusted: others may write something; the message names the first.
    """
    for path in paths:
        for found, status in _way(path, root):
            if others_may_write(
                found, status.st_uid, status.st_gid, status.st_mode, (os.geteuid(), os.getegid())
            ):
                raise Untrusted(
                    f"{root}{found}: belongs to {_name(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):o}:"
                    " others than root may write it, and hooks run the program as root: nothing was changed"
                )
            if stat.S_ISREG(status.st_mode):
                check(_interpreters(root + found), root)


def below(folder: str) -> Iterator[str]:
    """Return the files and directories of a package."""
    for path, _, names in os.walk(folder):
        yield from (os.path.join(path, name) for name in names)


def others_may_write(
    path: str, user: int, group: int, mode: int, builder: tuple[int, int] = (0, 0)
) -> bool:
    """Return whether anybody but root may write a file, or replace one of a directory.

    In a directory with the sticky bit, such as /tmp, only the owner of a file may replace it.

    Args:
        path: its path.
        user: its owner.
        group: its group.
        mode: st_mode.
        builder: user and group that are trusted besides: those of who builds an image.
    """
    if user not in (0, builder[0]):
        return True
    if stat.S_ISLNK(mode) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
        return False
    trusted = group in (0, builder[1]) or (group == _STAFF and f"{path}/".startswith("/usr/local/"))
    return bool(mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not trusted))


def _way(path: str, root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Return each directory and link on the way to a path, and what is there, as far as it exists."""
    found: list[str] = []
    left = path.split("/")[::-1]
    links = 0
    if not root:
        yield "/", os.stat("/")
    while left:
        name = left.pop()
        if name == "..":
            del found[-1:]
        if name in ("", ".", ".."):
            continue
        here = "/".join(("", *found, name))
        try:
            status = os.lstat(root + here)
        except (FileNotFoundError, NotADirectoryError):
            return
        yield here, status
        if not stat.S_ISLNK(status.st_mode):
            found.append(name)
        elif (links := links + 1) > _LINKS_MAX:
            return
        else:
            target = os.readlink(root + here)
            found = [] if target.startswith("/") else found
            left += target.split("/")[::-1]


def _interpreters(path: str) -> list[str]:
    """Return the absolute paths in the first line of a script; none for another file."""
    with open(path, "rb") as file:
        line = file.readline(_INTERPRETER_MAX)
    if not line.startswith(b"#!"):
        return []
    return [word for word in os.fsdecode(line[2:]).split() if word.startswith("/")]


def _name(user: int) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"user {user}"
