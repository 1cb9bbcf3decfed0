"""What the daemon can no longer do once it runs: most system calls, sockets of other families, most files.

The list of system calls (csrc/system_calls) is within that of share/autoip@.service, so that a daemon that is started
by hand or by a hook has no more than the service. Landlock, where the kernel has it, lets the daemon write to its
directories and to devices, and read programs and libraries, the configuration and the kernel's files: what a reload
needs as well.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from autoip.kernel.native import check, ffi, lib

_READ = 1 << 0 | 1 << 2 | 1 << 3
"""LANDLOCK_ACCESS_FS_EXECUTE, READ_FILE, READ_DIR."""
_WRITE = 1 << 1 | 1 << 14
"""WRITE_FILE, TRUNCATE."""
_CHANGE = _WRITE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9
"""Besides: REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SOCK."""

_READABLE = (
    "/usr",
    "/bin",
    "/lib",
    "/lib64",
    "/opt",
    "/nix",
    "/gnu",
    "/etc",
    "/proc",
    "/sys",
    "/run",
    "/var/lib/avahi-autoipd",
)

_NO_LANDLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""The kernel is too old or has it switched off; or the service's own filter refuses it."""


def confine(writable: Iterable[Path], readable: Iterable[Path]) -> str | None:
    """Confine this process, after `capabilities.limit` and before the first thread is started; children inherit it.

    Without effect in a program that a confined one has executed.

    Args:
        writable: directories; where one does not exist, it could not be made, and the one that it would be in counts.
        readable: directories besides the system's and Python's.

    Returns:
        In words why there is no filter of system calls; None: there is one.

    Raises:
        OSError: the kernel refused something.
    """
    if lib.autoip_confined():
        return None
    rules: int = lib.autoip_files_new()
    if -rules not in _NO_LANDLOCK:
        check(rules)
        try:
            _confine_files(rules, writable, [*readable, *_program()])
        finally:
            os.close(rules)
    calls = ffi.new("int[]", sorted(set(lib.autoip_calls)))
    result: int = lib.autoip_confine_calls(calls, len(calls))
    if result < 0:
        return f"no filter of system calls: {os.strerror(-result)}"
    return None


def _confine_files(rules: int, writable: Iterable[Path], readable: Iterable[Path]) -> None:
    rights = [(Path(path), _READ) for path in _READABLE] + [(path, _READ) for path in readable]
    rights.append((Path("/dev"), _READ | _WRITE))
    rights += [(_existing(path), _READ | _CHANGE) for path in writable]
    for path, right in rights:
        with suppress(FileNotFoundError, PermissionError):  # then it cannot be used either
            check(lib.autoip_files_allow(rules, os.fsencode(path), right))
    check(lib.autoip_files_confine(rules))


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), path)


def _program() -> list[Path]:
    """Return the directories of Python, of all modules, and of the file that was started."""
    here = Path(__file__).parents[2]
    started = (sys.executable, os.path.realpath(sys.executable), sys.argv[0])
    # The first entry of the path is the folder of the file that was started, or the working directory.
    folders = [sys.prefix, sys.base_prefix, *map(os.path.dirname, started), *sys.path[1:]]
    return [here, *(Path(folder) for folder in dict.fromkeys(folders) if folder not in ("", "/"))]
