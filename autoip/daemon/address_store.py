"""The last address of each interface, kept over restarts (RFC 3927 section 2.1: sel-memory).

One small JSON file for each MAC, so that two daemons never write one file for different interfaces, and a
damaged file costs one address. The content is not trusted: a file can be damaged by a power cut, edited by hand or
come from a backup of another machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from ipaddress import IPv4Address
from pathlib import Path

from autoip.core.constants import is_candidate
from autoip.errors import StateProblem
from autoip.kernel.capabilities import as_owner
from autoip.paths import AVAHI_STATE

VERSION = 1
# Our files have about 80 bytes. Bytes beyond this limit are not read.
MAX_SIZE = 4096


class AddressStore:
    """Addresses by MAC in one directory."""

    def __init__(self, directory: Path | None, avahi: Path = Path(AVAHI_STATE)) -> None:
        """Use `directory`, which the first save makes; None: neither read nor write.

        `avahi` is avahi-autoipd's directory; it is only read.
        """
        self._directory = directory
        self._avahi = avahi

    def load(self, mac: bytes) -> IPv4Address | None:
        """Return the address last saved for `mac` (6 bytes), or None if there is none.

        Raises:
            StateProblem: there is a file, and no address of the candidate range can be read from it.
        """
        name = _file_name(mac)
        if self._directory is None:
            return None
        path = self._directory / name
        with as_owner(self._directory):
            data = _saved(path)
        return None if data is None else _address(data, path)

    def load_avahi(self, mac: bytes) -> IPv4Address | None:
        """Return the address that avahi-autoipd saved for `mac` (6 bytes), or None if there is none.

        For the first start on a machine that had avahi-autoipd before.

        Raises:
            StateProblem: there is a file that cannot be read, since it is another user's, or that has no
                address of the candidate range.
        """
        if self._directory is None:
            return None
        path = self._avahi / mac.hex(":")
        if (data := _saved(path)) is None:
            return None
        return _candidate(data.decode("ascii", "replace").strip(), path, "is not avahi-autoipd's")

    def save(self, mac: bytes, address: IPv4Address, interface: str) -> None:
        """Remember `address` for `mac` (6 bytes). `interface` is for people who read the file.

        After a crash or a power cut at any moment the file has the former content or the new one, never a part.

        Raises:
            StateProblem: the file cannot be written; the former content stays.
            ValueError: `address` is not a candidate.
        """
        name = _file_name(mac)
        if not is_candidate(address):
            raise ValueError(f"{address} is not a link-local candidate")
        if self._directory is None:
            return
        path = self._directory / name
        record = {"version": VERSION, "address": str(address), "interface": interface}
        data = (json.dumps(record) + "\n").encode("ascii")
        try:
            _make_directory(self._directory)
            with as_owner(self._directory):
                # The same address again is the usual case: it must not wear out the flash.
                with contextlib.suppress(OSError):
                    if _read(path) == data:
                        return
                _replace(self._directory, name, data)
        except OSError as problem:
            raise StateProblem(f"cannot write {path}: {problem.strerror}") from problem


def _file_name(mac: bytes) -> str:
    if len(mac) != 6:
        raise ValueError(f"a MAC has 6 bytes, not {len(mac)}")
    return mac.hex() + ".json"


def _saved(path: Path) -> bytes | None:
    """Return a file's content; None: there is no file. Raises StateProblem: it cannot be read."""
    try:
        return _read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise StateProblem(f"cannot read {path}: {problem.strerror}") from problem


def _read(path: Path) -> bytes:
    """Return the content of `path`, at most MAX_SIZE + 1 bytes. Raises OSError."""
    # O_NOFOLLOW: a link could point at anything. O_NONBLOCK: else the open of a FIFO could wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "not a regular file")
        parts = []
        left = MAX_SIZE + 1
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def _address(data: bytes, path: Path) -> IPv4Address:
    """Return the address in a file's content. Raises StateProblem: there is none."""
    if len(data) > MAX_SIZE:
        raise StateProblem(f"{path} is damaged: more than {MAX_SIZE} bytes")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise StateProblem(f"{path} is damaged: not JSON") from problem
    if not isinstance(record, dict):
        raise StateProblem(f"{path} is damaged: not a JSON object")
    version = record.get("version")
    # True == 1 in Python.
    if version != VERSION or isinstance(version, bool):
        raise StateProblem(f"{path} has another version than {VERSION}")
    text = record.get("address")
    # IPv4Address(2851995905) is valid too, but our files have text.
    if not isinstance(text, str):
        raise StateProblem(f"{path} is damaged: no address")
    return _candidate(text, path, "is damaged")


def _candidate(text: str, path: Path, fault: str) -> IPv4Address:
    """Return the candidate that the text names. Raises StateProblem: it names none; `fault` is the file's."""
    try:
        address = IPv4Address(text)
    except ValueError as problem:
        raise StateProblem(f"{path} {fault}: no IPv4 address") from problem
    if not is_candidate(address):
        raise StateProblem(f"{path}: {address} is not a link-local candidate")
    return address


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    directory.mkdir(parents=True, exist_ok=True)
    # A umask of 077 must not hide the state, which is not a secret.
    directory.chmod(0o755)


def _replace(directory: Path, name: str, data: bytes) -> None:
    """Give the file `name` a new content, atomically."""
    path = directory / name
    # The process id keeps two daemons with one MAC (a VLAN and its parent) apart.
    temporary = directory / f".{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o644)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            while data:
                data = data[file.write(data) or 0 :]
            # Without this a power cut after the rename can leave an empty file.
            os.fsync(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The rename reaches the disk with the directory. Where a directory cannot be synced, the file has the
    # former content or the new one.
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
