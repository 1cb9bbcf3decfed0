"""Files below a folder that stands for `/`: of this machine, or of an image that is being built.

A symbolic link on the way is followed as a system started from there would follow it, so never out
of the folder; a link at the end of a path is never followed. Directories are opened one in the
other, and a file comes into its place whole, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import final

from autoip.errors import AutoipError, NoPermission

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterator
    from types import TracebackType

_LINKS_MAX = 40
"""As the kernel has it: more are a loop."""


class NotAFile(AutoipError):
    """Something that is neither a regular file nor absent is in the way."""


@final
class Rooted:
    """The tree below `root`. All paths are absolute and begin there.

    Raises AutoipError, or NoPermission, with the path and the kernel's word, wherever the kernel refuses.
    """

    def __init__(self, root: str) -> None:
        with _told(root):
            self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.root = root.rstrip("/")

    def shown(self, path: str) -> str:
        """The path as the caller's system has it, for what is told."""
        return self.root + path

    def exists(self, path: str) -> bool:
        """Whether something is there, links followed."""
        with _told(self.shown(path)):
            return self._status("/".join(self._resolve(path, last=True))) is not None

    def read(self, path: str) -> bytes | None:
        """The content of a regular file; None if there is nothing.

        Raises:
            NotAFile: there is something else.
        """
        with _told(self.shown(path)):
            name = "/".join(self._resolve(path))
            status = self._status(name)
            if status is None:
                return None
            if not stat.S_ISREG(status.st_mode):
                what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no regular file"
                raise NotAFile(f"{self.shown(path)}: is {what}")
            with self.directory(path) as (directory, last):
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                with open(os.open(last, flags, dir_fd=directory), "rb") as file:
                    return file.read()

    def is_file(self, path: str) -> bool:
        """Whether there is a regular file, or a symbolic link, which is not followed."""
        status = self._status("/".join(self._resolve(path)))
        return status is not None and (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode))

    def link(self, path: str) -> str | None:
        """What the symbolic link at the path says; None if there is none."""
        with _told(self.shown(path)):
            try:
                return os.readlink("/".join(self._resolve(path)), dir_fd=self._root)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
                    return None
                raise

    def has_mode(self, path: str, mode: int) -> bool:
        """Whether the file is root's (or ours, where we cannot give files away) with these permissions."""
        status = self._status("/".join(self._resolve(path)))
        if status is None:
            return False
        return stat.S_IMODE(status.st_mode) == mode and status.st_uid == os.geteuid()

    def unlink(self, path: str) -> None:
        """Take away a file or a link."""
        with _told(self.shown(path)), self.directory(path) as (directory, last):
            os.unlink(last, dir_fd=directory)

    def replace(self, path: str, by: str) -> None:
        """Put the file `by`, as it is, in the place of the one at `path`."""
        with (
            _told(self.shown(path)),
            self.directory(by) as (source, name),
            self.directory(path) as (directory, last),
        ):
            os.replace(name, last, src_dir_fd=source, dst_dir_fd=directory)

    def same(self, path: str, other: str) -> bool:
        """Whether both are names of one file, which is there."""
        one, two = (self._status("/".join(self._resolve(each))) for each in (path, other))
        return one is not None and two is not None and os.path.samestat(one, two)

    def rmdir(self, path: str) -> bool:
        """Take away a directory if it is empty; whether it is gone."""
        with _told(self.shown(path)):
            try:
                os.rmdir("/".join(self._resolve(path)), dir_fd=self._root)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
            return True

    @contextlib.contextmanager
    def directory(self, path: str, made: list[str] | None = None) -> Iterator[tuple[int, str]]:
        """The directory that a path is in, open, and the last name of the path.

        With `made` what is missing is made, with mode 755, and noted there.
        """
        *names, last = self._resolve(path)
        handle = os.dup(self._root)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            for number, name in enumerate(names, 1):
                if made is not None:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=handle)
                        made.append("/" + "/".join(names[:number]))
                        # The umask is not to say who may look there.
                        os.chmod(name, 0o755, dir_fd=handle)  # noqa: S103 (a directory of /etc)
                deeper = os.open(name, flags, dir_fd=handle)
                os.close(handle)
                handle = deeper
            yield handle, last
        finally:
            os.close(handle)

    def close(self) -> None:
        """Let the folder go."""
        os.close(self._root)

    def __enter__(self) -> Rooted:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _status(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name or ".", dir_fd=self._root, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _resolve(self, path: str, *, last: bool = False) -> list[str]:
        """The names on the way, none of them a link but the last one (with `last`: nor that)."""
        found: list[str] = []
        left = path.split("/")[::-1]
        links = 0
        while left:
            name = left.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del found[-1:]
                continue
            found.append(name)
            if not left and not last:
                break
            try:
                target = os.readlink("/".join(found), dir_fd=self._root)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                    continue
                raise
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if target.startswith("/"):
                found.clear()
            else:
                del found[-1]
            left += target.split("/")[::-1]
        return found


@final
class Change:
    """Files and links for a tree, written beside their places, then all of them put there.

    Used in a `with`: what was not committed at its end is taken away again, new directories too.
    """

    def __init__(self, tree: Rooted) -> None:
        self.made: list[str] = []
        """The directories that were made, outermost first."""
        self._tree = tree
        self._waiting: list[tuple[str, str]] = []
        self._keep: list[tuple[str, str]] = []
        self._committed = False

    def write(self, path: str, content: bytes, mode: int) -> None:
        """A file of root's with this content and these permissions."""
        with self._beside(path) as (directory, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
                file.write(content)
                file.flush()
                if os.geteuid() == 0:
                    os.fchown(file.fileno(), 0, 0)
                os.fchmod(file.fileno(), mode)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        with self._beside(path) as (directory, name):
            os.symlink(target, name, dir_fd=directory)

    def keep(self, path: str, name: str) -> None:
        """What is at the path gets this second name, which stays when the path is written."""
        self._keep.append((path, name))

    def commit(self) -> None:
        """Put everything in its place."""
        for path, name in self._keep:
            with (
                _told(self._tree.shown(name)),
                self._tree.directory(path) as (directory, last),
                self._tree.directory(name) as (kept, second),
            ):
                os.link(last, second, src_dir_fd=directory, dst_dir_fd=kept, follow_symlinks=False)
        for path, waiting in self._waiting:
            with _told(self._tree.shown(path)), self._tree.directory(path) as (directory, last):
                os.replace(waiting, last, src_dir_fd=directory, dst_dir_fd=directory)
        self._committed = True

    @contextlib.contextmanager
    def _beside(self, path: str) -> Iterator[tuple[int, str]]:
        """The open directory of the path, made if need be, and a name for a file that waits there."""
        with (
            _told(self._tree.shown(path)),
            self._tree.directory(path, self.made) as (directory, last),
        ):
            # No client runs a file whose name has a dot.
            waiting = f".{last}.{os.getpid()}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(waiting, dir_fd=directory)
            self._waiting.append((path, waiting))
            yield directory, waiting

    def __enter__(self) -> Change:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._committed:
            return
        for path, waiting in self._waiting:
            with contextlib.suppress(OSError), self._tree.directory(path) as (directory, _):
                os.unlink(waiting, dir_fd=directory)
        for path in reversed(self.made):
            with contextlib.suppress(AutoipError):
                self._tree.rmdir(path)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise NoPermission(f"{path}: {error.strerror}; run as root") from error
    except OSError as error:
        raise AutoipError(f"{path}: {error.strerror}") from error
