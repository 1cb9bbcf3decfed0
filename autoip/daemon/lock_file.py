"""One instance for an interface and network namespace, and what a crashed one left behind.

A lock file DIRECTORY/NAMESPACE-INTERFACE.lock, locked with flock(2) for as long as the process lives:
the kernel drops the lock when the process ends, however it ends, so a file that a crash left does not
lock out anybody. /run is often shared by network namespaces (containers, `ip netns exec`), each of which may have
an eth0; the inode of /proc/self/ns/net tells them apart.

When the directory belongs to the service's user, an instance of root's makes and opens the file with
that user's rights (`capabilities.as_owner`): so the file is that user's whoever made it, and either instance
finds the other's lock and record. Root trusts this user with the lock: the user can refuse root the interface
by taking the lock, and can remove the file and so the protection, but cannot make root write outside of the
directory.

The file has one record of fixed size: the pid, for the message of a second instance, and the address that this
instance has put on the interface, so that the next instance can take over what a crash left there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
import zlib
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import final

from autoip.core.constants import is_candidate
from autoip.errors import AlreadyRunning, NoPermission
from autoip.kernel.capabilities import as_owner, trusted_users
from autoip.paths import network_namespace

RECORD_SIZE = 128
# A record may be read while its owner writes it: so many tries, so many seconds apart.
READ_TRIES = 20
READ_PAUSE = 0.01
# In each failed round of `acquire` another instance has just released the lock.
ACQUIRE_TRIES = 1000

# Reasons for which there is no file, other than an attack or a missing permission.
_NO_FILE = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True)
class Held:
    """An address that an instance has put on the interface of this index."""

    index: int
    address: IPv4Address


@final
class LockFile:
    """The right to negotiate on one interface, from `acquire` to `release`."""

    previous: Held | None
    """The address that the last instance had on the interface when it ended without `release`.

    A hint, not a proof: the number of a deleted network namespace is used again.
    """
    warning: str | None
    """Why there is no lock file, or no record in it; None if all is well."""

    def __init__(self, directory: int | None, name: str, file: int | None) -> None:
        """For `acquire` only."""
        self.previous = None
        self.warning = None
        self._held: Held | None = None
        self._directory = directory
        self._name = name
        self._file = file

    @classmethod
    def acquire(cls, directory: Path, interface: str) -> LockFile:
        """Become the instance for `interface` in this process's network namespace.

        On a file system that is full or read-only nothing keeps a second instance away: see `warning`.

        Raises:
            AlreadyRunning: there is an instance.
            NoPermission: the directory or the file cannot be trusted or used.
            ValueError: `interface` cannot be an interface's name.
        """
        if not 0 < len(os.fsencode(interface)) < 16 or "/" in interface or "\0" in interface:
            raise ValueError(f"{interface!r} is not an interface name")
        name = lock_name(interface)
        handle: int | None = None
        try:
            handle = open_directory(directory)
            with as_owner(handle):
                file = _lock(handle, directory, name, interface)
        except BaseException as problem:
            if handle is not None:
                os.close(handle)
            if isinstance(problem, OSError) and problem.errno in _NO_FILE:
                instance = cls(None, name, None)
                instance._warn(f"no lock file {directory / name}", problem)
                return instance
            if isinstance(problem, OSError):
                text = f"{directory / name}: {problem.strerror}"
                raise NoPermission(text) from problem
            raise
        instance = cls(handle, name, file)
        _, instance.previous = _parse(_read(file))
        # Until this instance has an address, the next instance must still find that one.
        instance._held = instance.previous
        instance._write()
        return instance

    @classmethod
    def resume(
        cls,
        interface: str,
        directory: int | None,
        file: int | None,
        held: Held | None,
        warning: str | None,
    ) -> LockFile:
        """Go on with the lock of the program that this process was before: it is in the descriptors."""
        instance = cls(directory, lock_name(interface), file)
        instance._held, instance.warning = held, warning
        return instance

    @property
    def descriptors(self) -> tuple[int | None, int | None]:
        """Of the directory, and of the file."""
        return self._directory, self._file

    def hold(self, index: int, address: IPv4Address) -> None:
        """Record that `address` is on the interface `index`. Call it before the address is added."""
        self._held = Held(index, address)
        self._write()

    def drop(self) -> None:
        """Record that nothing of ours is on the interface. To be called after the removal."""
        self._held = None
        self._write()

    def release(self) -> None:
        """Unlock the interface, and remove the file. May be called more than once."""
        if self._file is None or self._directory is None:
            return
        # Under the lock: no other instance can have locked this file. One that opened it before finds, once it
        # has the lock, that the name is gone.
        with contextlib.suppress(OSError), as_owner(self._directory):
            os.unlink(self._name, dir_fd=self._directory)
        os.close(self._file)
        os.close(self._directory)
        self._file = self._directory = None

    def __enter__(self) -> LockFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _write(self) -> None:
        """Write the record in place: the inode is the lock, so the file cannot be replaced."""
        if self._file is None:
            return
        try:
            if os.pwrite(self._file, _format(os.getpid(), self._held), 0) != RECORD_SIZE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as problem:
            self._warn(f"no record in lock file {self._name}", problem)

    def _warn(self, text: str, problem: OSError) -> None:
        self.warning = f"{text}: {problem.strerror}"


def lock_name(interface: str) -> str:
    """Return the name of an interface's lock file."""
    return f"{network_namespace()}-{interface}.lock"


def open_directory(directory: Path) -> int:
    """Make and open the directory.

    Raises:
        NoPermission: somebody else could put files into it.
    """
    try:
        directory.mkdir(parents=True)
        # Whatever the umask is: others may list the interfaces that are served.
        directory.chmod(0o755)
    except FileExistsError:
        pass
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    status = os.fstat(handle)
    problem = None
    if status.st_uid not in trusted_users():
        problem = f"belongs to user {status.st_uid}"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = f"can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    if problem is not None:
        os.close(handle)
        raise NoPermission(f"{directory} {problem}: not used for a lock file")
    return handle


def recorded(handle: int, name: str) -> Held | None:
    """Return what the last instance had on its interface, from a lock file of the directory `handle`.

    Raises:
        OSError: the file cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.open(name, flags, dir_fd=handle)
    try:
        return _parse(_read(file))[1]
    finally:
        os.close(file)


def _lock(handle: int, directory: Path, name: str, interface: str) -> int:
    """Open and lock the file `name`. Return the descriptor that has the lock."""
    for _ in range(ACQUIRE_TRIES):
        file = _open_file(handle, directory, name)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if os.path.samestat(found, os.fstat(file)):
                return file
        except BlockingIOError:
            pid = _owner(file)
            os.close(file)
            raise AlreadyRunning(interface, pid, _unit(pid)) from None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        # Its owner removed the file between open and flock: a lock on it keeps nobody away.
        os.close(file)
    raise AlreadyRunning(interface, None)


def _open_file(handle: int, directory: Path, name: str) -> int:
    # O_NOFOLLOW: never create or lock what a link points at. (Opened for both, a FIFO does not wait.)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        # 0600: whoever can open a file can lock it, and so keep this instance away.
        file = os.open(name, flags, 0o600, dir_fd=handle)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            raise NoPermission(f"{directory / name} is a symbolic link: not used") from problem
        raise
    status = os.fstat(file)
    text = None
    if not stat.S_ISREG(status.st_mode):
        text = "is not a regular file"
    elif status.st_uid not in trusted_users():
        text = f"belongs to user {status.st_uid}"
    elif status.st_nlink > 1:
        # A second name: the record would be written into somebody's other file.
        text = "has another name"
    elif status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        text = "can be opened, and so locked, by others"
    if text is not None:
        os.close(file)
        raise NoPermission(f"{directory / name} {text}: not used as a lock file")
    return file


def _owner(file: int) -> int | None:
    """Return the pid of the instance that has the lock; None: it has not recorded one."""
    pid = None
    for _ in range(READ_TRIES):
        pid, _held = _parse(_read(file))
        if pid is not None and _alive(pid):
            return pid
        # The lock was taken just now: there is no record yet, or that of a crashed instance.
        time.sleep(READ_PAUSE)
    # Alive but invisible: it runs in another pid namespace.
    return pid


def _unit(pid: int | None) -> str:
    """Return the service of systemd that has the process; empty: none, or it cannot be seen."""
    with contextlib.suppress(OSError):
        found = re.search(
            r"/([^/\n]+\.service)$", Path(f"/proc/{pid}/cgroup").read_text(), re.MULTILINE
        )
        return found[1] if found is not None else ""
    return ""


def _alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _read(file: int) -> bytes:
    try:
        return os.pread(file, RECORD_SIZE, 0)
    except OSError:
        return b""


def _format(pid: int, held: Held | None) -> bytes:
    """Return a record: text, then a check sum, since a reader can get parts of two records."""
    text = f"autoip 1 pid={pid}"
    if held is not None:
        text += f" index={held.index} address={held.address}"
    body = text.encode("ascii").ljust(RECORD_SIZE - 10)
    return body + b" %08x\n" % zlib.crc32(body)


def _parse(record: bytes) -> tuple[int | None, Held | None]:
    """Return pid and address of a record; None for what is missing, or if it is damaged."""
    body = record[: RECORD_SIZE - 10]
    if len(record) != RECORD_SIZE or record[RECORD_SIZE - 10 :] != b" %08x\n" % zlib.crc32(body):
        return None, None
    words = body.decode("ascii", "replace").split()
    if words[:2] != ["autoip", "1"]:
        return None, None
    values = dict(word.partition("=")[::2] for word in words[2:])
    pid: int | None = None
    held: Held | None = None
    with contextlib.suppress(ValueError, KeyError):
        pid = _number(values["pid"])
        index, address = _number(values["index"]), IPv4Address(values["address"])
        if is_candidate(address):
            held = Held(index, address)
    return pid, held


def _number(text: str) -> int:
    """A pid or an interface's index. Raises ValueError for what can be neither."""
    number = int(text)
    if not 0 < number < 2**31:
        raise ValueError(f"{number} is out of range")
    return number
