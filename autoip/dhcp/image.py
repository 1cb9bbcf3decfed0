"""The root of an image that is being built, or of this machine: safe paths, and files that get there together.

A symbolic link on the way is followed as a system started from there would follow it, so never out
of the root; a link at the end of a path is never followed. What is changed is reached by opening each
directory in the one before, and a file comes into its place whole, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from dataclasses import dataclass
from typing import final

from autoip.errors import AutoipError, NoPermission

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterable, Iterator, Mapping

    Entry = tuple[bytes, int] | str
    """What is put at a path: a file's content and permissions, or a symbolic link's target."""

_LINKS_MAX = 40
"""As the kernel has it: more are a loop."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a path; a symbolic link is not followed."""

    status: os.stat_result
    content: bytes | None = None
    """Of a regular file."""
    target: str | None = None
    """Of a symbolic link."""

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file or a symbolic link."""
        return self.content is not None or self.target is not None

    def equals(self, content: bytes, mode: int) -> bool:
        """Return whether it is this file of root's (or ours, where we cannot give files away)."""
        same = stat.S_IMODE(self.status.st_mode) == mode and self.status.st_uid == os.geteuid()
        return same and self.content == content


@final
class Image:
    """The files below `root`. All paths are absolute and begin there.

    Raises AutoipError, or NoPermission, with the path and the kernel's reason, wherever the kernel refuses.
    """

    def __init__(self, root: str) -> None:
        with _errors(root):
            os.stat(os.path.join(root, ""))
        self.root = root.rstrip("/")

    def full(self, path: str) -> str:
        """Return the path as this system has it, for messages."""
        return self.root + path

    def exists(self, path: str) -> bool:
        """Return whether something is there, links followed."""
        return os.path.lexists(self._real(path, follow=True))

    def at(self, path: str) -> Found | None:
        """Return what is there; None if there is nothing."""
        real = self._real(path)
        with _errors(self.full(path)):
            try:
                status = os.lstat(real)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if stat.S_ISLNK(status.st_mode):
                return Found(status, target=os.readlink(real))
            if not stat.S_ISREG(status.st_mode):
                return Found(status)
        with self._parent(path) as (directory, name):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(name, flags, dir_fd=directory), "rb") as file:
                return Found(status, content=file.read())

    def unlink(self, path: str) -> None:
        """Remove a file or a link that may be absent."""
        with self._parent(path) as (directory, name), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)

    def rmdir(self, path: str) -> None:
        """Remove a directory; one that is in use stays."""
        with contextlib.suppress(OSError):
            os.rmdir(self._real(path))

    def replace(self, path: str, by: str) -> None:
        """Rename the file `by` to `path`."""
        with self._parent(by) as (source, old), self._parent(path) as (directory, new):
            os.replace(old, new, src_dir_fd=source, dst_dir_fd=directory)

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return the directories that `put` makes for these paths, each after the one that it is in."""
        found: dict[str, None] = {}
        for path in paths:
            names = self._real(path)[len(self.root) :].split("/")
            parents = ("/".join(names[:number]) for number in range(2, len(names)))
            found |= dict.fromkeys(parent for parent in parents if not self.exists(parent))
        return list(found)

    def put(self, entries: Mapping[str, Entry], keep: Mapping[str, str]) -> None:
        """Put files and links in their places; if one cannot be written, none is.

        Args:
            entries: by path.
            keep: by path: a second name for what is there now.
        """
        waiting: dict[str, str] = {}
        with contextlib.ExitStack() as undo:
            for path in self.missing(entries):
                with self._parent(path) as (directory, name):
                    os.mkdir(name, dir_fd=directory)
                    undo.callback(self.rmdir, path)
                    # Whatever the umask is, everybody may enter it.
                    os.chmod(name, 0o755, dir_fd=directory)  # noqa: S103 (a directory of /etc)
            for path, entry in entries.items():
                # No DHCP client runs a file whose name has a dot.
                name = f".{os.path.basename(path)}.{os.getpid()}"
                waiting[path] = os.path.join(os.path.dirname(path), name)
                self.unlink(waiting[path])
                undo.callback(self.unlink, waiting[path])
                with self._parent(path) as (directory, _):
                    if isinstance(entry, str):
                        os.symlink(entry, name, dir_fd=directory)
                    else:
                        _write(directory, name, *entry)
            for path, second in keep.items():
                with self._parent(path) as (source, old), self._parent(second) as (place, new):
                    os.link(old, new, src_dir_fd=source, dst_dir_fd=place, follow_symlinks=False)
            for path, name in waiting.items():
                self.replace(path, by=name)
            undo.pop_all()

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
            if name == "..":
                del found[-1:]
            elif name not in ("", "."):
                found.append(name)
                here = "/".join((self.root, *found))
                if (left or follow) and os.path.islink(here):
                    links += 1
                    if links > _LINKS_MAX:
                        raise AutoipError(f"{self.full(path)}: {os.strerror(errno.ELOOP)}")
                    target = os.readlink(here)
                    del found[0 if target.startswith("/") else -1 :]
                    left += target.split("/")[::-1]
        return "/".join((self.root, *found))


def _write(directory: int, name: str, content: bytes, mode: int) -> None:
    """Make a file of root's (or ours, where we cannot give files away)."""
    opener = functools.partial(os.open, mode=0o600, dir_fd=directory)
    with open(name, "xb", opener=opener) as file:
        file.write(content)
        if os.geteuid() == 0:
            os.fchown(file.fileno(), 0, 0)
        os.fchmod(file.fileno(), mode)


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    """Turn the kernel's errors into ours."""
    try:
        yield
    except PermissionError as error:
        raise NoPermission(f"{path}: {error.strerror}; run as root") from error
    except OSError as error:
        raise AutoipError(f"{path}: {error.strerror}") from error
