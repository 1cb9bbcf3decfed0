"""The root of an image that is being built, or of this machine: safe paths, and files that get there together.

A symbolic link on the way is followed as a system started from the image would follow it, so never out
of the root; a link at the end of a path is not followed. Each directory is opened in the one before, and
a file comes into its place whole, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from dataclasses import dataclass
from typing import final

from autoip.dhcp.clients import MARK
from autoip.errors import AutoipError, NoPermission

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterable, Iterator, Mapping

    Entry = tuple[bytes, int] | str
    """What `Image.put` puts at a path: a file's content and permissions, or a symbolic link's target."""

_LINKS_MAX = 40
"""The kernel's own limit: more links are a loop."""


_NOTHING = os.stat_result([0] * 10)


class Missing(AutoipError):
    """Nothing is at a path, or the directory that it is in does not exist."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a path, or nothing (false); a symbolic link is not followed.

    Attributes:
        status: all zeros for nothing.
        content: of a regular file.
        target: of a symbolic link.
    """

    status: os.stat_result = _NOTHING
    content: bytes = b""
    target: str = ""

    def __bool__(self) -> bool:
        return self.status.st_mode != 0

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file or a symbolic link."""
        return stat.S_IFMT(self.status.st_mode) in (stat.S_IFREG, stat.S_IFLNK)

    @property
    def is_ours(self) -> bool:
        """Whether it is a file with the mark line."""
        return MARK in self.content

    def equals(self, content: bytes, mode: int) -> bool:
        """Return whether it is this regular file, as `Image.put` makes it."""
        same = (self.status.st_mode, self.status.st_uid) == (stat.S_IFREG | mode, os.geteuid())
        return same and self.content == content


@final
class Image:
    """The files below `root`. All paths are absolute and begin there.

    Raises:
        NoPermission: the kernel refuses for want of permission; the message names the path.
        AutoipError: the kernel refuses something else; the message names the path.
    """

    def __init__(self, root: str) -> None:
        with _errors(root):
            os.stat(os.path.join(root, ""))
        self.root = root.rstrip("/")

    def full(self, path: str) -> str:
        """Return the path on this system, for messages."""
        return self.root + path

    def exists(self, path: str) -> bool:
        """Return whether something is there, links followed."""
        return os.path.lexists(self._real(path, follow=True))

    def at(self, path: str) -> Found:
        """Return what is there."""
        with contextlib.suppress(Missing), self._parent(path) as (directory, name):
            status = os.lstat(name, dir_fd=directory)
            if stat.S_ISLNK(status.st_mode):
                return Found(status, target=os.readlink(name, dir_fd=directory))
            if not stat.S_ISREG(status.st_mode):
                return Found(status)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(name, flags, dir_fd=directory), "rb") as file:
                return Found(status, content=file.read())
        return Found()

    def unlink(self, path: str) -> None:
        """Remove a file or a link that may be absent."""
        with contextlib.suppress(Missing), self._parent(path) as (directory, name):
            os.unlink(name, dir_fd=directory)

    def rmdir(self, path: str) -> None:
        """Remove a directory; one that is in use stays."""
        with contextlib.suppress(AutoipError), self._parent(path) as (directory, name):
            os.rmdir(name, dir_fd=directory)

    def replace(self, path: str, by: str) -> None:
        """Rename the file `by` to `path`."""
        with self._parent(by) as (source, old), self._parent(path) as (directory, new):
            os.replace(old, new, src_dir_fd=source, dst_dir_fd=directory)

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return the directories that `put` makes for these paths, each after the one that it is in."""
        found: dict[str, None] = {}
        for path in paths:
            *names, _ = self._real(path)[len(self.root) :].split("/")
            found |= dict.fromkeys([*itertools.accumulate(names, "{}/{}".format)][1:])
        return [path for path in found if not self.exists(path)]

    def put(self, entries: Mapping[str, Entry], keep: Mapping[str, str]) -> None:
        """Put files and links in their places; if one cannot be written, none is.

        Links come last, when all files have reached the disk: an enabled unit has what it needs. A process that is
        killed leaves files with temporary names, see `tidy`.

        Args:
            entries: by path.
            keep: by path: a second name for what is there now.
        """
        waiting: dict[str, str] = {}
        with contextlib.ExitStack() as undo:
            for path in self.missing(entries):
                with self._parent(path) as (directory, name):
                    os.mkdir(
                        name, 0o755, dir_fd=directory
                    )  # never open to others, not even for a moment
                    undo.callback(self.rmdir, path)
                    # Whatever the umask is, everybody may enter it.
                    os.chmod(name, 0o755, dir_fd=directory)  # noqa: S103 (a directory of /etc)
                self._sync(path)
            for path, entry in entries.items():
                with self._parent(path) as (directory, name):
                    waiting[path] = temporary = _temporary(path)
                    self.unlink(temporary)
                    undo.callback(self.unlink, temporary)
                    _write(directory, os.path.basename(temporary), entry)
            for path, second in keep.items():
                with self._parent(path) as (source, old), self._parent(second) as (place, new):
                    os.link(old, new, src_dir_fd=source, dst_dir_fd=place, follow_symlinks=False)
            links = [path for path, entry in entries.items() if isinstance(entry, str)]
            for group in ([path for path in waiting if path not in links], links):
                for path in group:
                    self.replace(path, by=waiting[path])
                for path in group:
                    self._sync(path)
            undo.pop_all()

    def tidy(self, paths: Iterable[str]) -> None:
        """Remove what a `put` for these paths that was killed has left under temporary names."""
        for path in paths:
            self.unlink(_temporary(path))

    def _sync(self, path: str) -> None:
        """Have the directory that a path is in reach the disk, where the file system can do that."""
        with self._parent(path) as (directory, _), contextlib.suppress(OSError):
            handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """Open the directory that a path is in, and yield it with the path's last name."""
        flags = os.O_PATH | os.O_DIRECTORY
        *names, last = self._real(path)[len(self.root) + 1 :].split("/")
        with _errors(self.full(path)), contextlib.ExitStack() as opened:
            handle = os.open(self.root or "/", flags)
            opened.callback(os.close, handle)
            for name in names:
                handle = os.open(name, flags | os.O_NOFOLLOW, dir_fd=handle)
                opened.callback(os.close, handle)
            yield handle, last

    def _real(self, path: str, *, follow: bool = False) -> str:
        """Return where the path is on this system: no name on the way is a link, nor with `follow` the last."""
        found: list[str] = []
        left = path.split("/")[::-1]
        links = 0
        while left:
            name = left.pop()
            here = "/".join((self.root, *found, name))
            if name == "..":
                del found[-1:]
            elif name in ("", "."):
                continue
            elif not (left or follow) or not os.path.islink(here):
                found.append(name)
            elif (links := links + 1) > _LINKS_MAX:
                raise AutoipError(f"{self.full(path)}: {os.strerror(errno.ELOOP)}")
            else:
                target = os.readlink(here)
                found = [] if target.startswith("/") else found
                left += target.split("/")[::-1]
        return "/".join((self.root, *found))


def _temporary(path: str) -> str:
    """Return the name of a file that is not in its place yet: no DHCP client runs one whose name has a dot."""
    directory, name = os.path.split(path)
    return f"{directory}/.{name}.autoip-new"


def _write(directory: int, name: str, entry: Entry) -> None:
    """Make a link or a file; a file is root's, or ours where this process cannot give files away."""
    if isinstance(entry, str):
        os.symlink(entry, name, dir_fd=directory)
        return
    content, mode = entry
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with open(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(content)
        if os.geteuid() == 0:
            os.fchown(file.fileno(), 0, 0)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    """Turn the kernel's errors into ours."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Missing(f"{path}: {error.strerror}") from error
    except PermissionError as error:
        raise NoPermission(f"{path}: {error.strerror}; run as root") from error
    except OSError as error:
        raise AutoipError(f"{path}: {error.strerror}") from error
