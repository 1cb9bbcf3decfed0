"""A systemd unit without systemd: the settings of its file, and a program that runs with just what they allow.

    python -m lab.unit UNIT UID DIRECTORY... -- COMMAND...

runs COMMAND (as root, in a mount namespace of the caller's) as user and group UID with the unit's capabilities, system
call filter, address families, W^X rule and read-only file system; DIRECTORY... may be written. Standard library only,
and libseccomp, which systemd itself needs.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import platform
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 1, 2, 4, 8, 4096
MS_REC, MS_PRIVATE = 0x4000, 0x40000
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
PROT_WRITE, PROT_EXEC = 2, 4
SHM_EXEC = 0o100000
NAMESPACE_FLAGS = (
    0x80,
    0x20000,
    0x2000000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)

SCMP_ACT_ALLOW = 0x7FFF0000
SCMP_CMP_EQ, SCMP_CMP_MASKED_EQ = 4, 7

Unit = Mapping[str, list[str]]


def read(path: Path) -> Unit:
    """Return all settings of the file: for each name its values in order."""
    settings: defaultdict[str, list[str]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings[name].append(value)
    return settings


def yes(unit: Unit, name: str) -> bool:
    return unit[name][-1:] == ["yes"]


def expand(name: str) -> set[str]:
    """Return the system calls of a group (`@system-service`) of systemd; of a single call: itself."""
    if not name.startswith("@"):
        return {name}
    command = ["systemd-analyze", "--no-pager", "syscall-filter", name]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = (line.strip() for line in text.splitlines()[1:])
    found: set[str] = set()
    return found.union(*(expand(line) for line in lines if line and not line.startswith("#")))


def allowed_calls(unit: Unit) -> set[str]:
    """Return SystemCallFilter= as systemd.exec(5) defines it for a list that begins with allowed calls."""
    calls = expand("@default")
    for value in unit["SystemCallFilter"]:
        names: set[str] = set()
        names = names.union(*(expand(word) for word in value.removeprefix("~").split()))
        calls = calls - names if value.startswith("~") else calls | names
    return calls


# --- the file system --------------------------------------------------------------------------------


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    words = [text.encode() for text in (source, target, kind)]
    arguments = (*words, ctypes.c_ulong(flags), data.encode())
    _check(_libc.mount(*arguments), f"mount {kind} {source} on {target}")


def _bind(source: str, target: str) -> None:
    _mount(source, target, "none", MS_BIND | MS_REC)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "namespace")]


def _read_only(path: str, on: bool = True) -> None:
    """Make a mount and all mounts below it read-only, or with `on` false writable (mount_setattr(2), Linux 5.12)."""
    wanted = _MountAttributes(set=MS_RDONLY if on else 0, clear=0 if on else MS_RDONLY)
    at_fdcwd, at_recursive = -100, 0x8000
    arguments = (path.encode(), at_recursive, ctypes.byref(wanted), ctypes.sizeof(wanted))
    _check(_libc.syscall(442, at_fdcwd, *arguments), f"mount_setattr {path}")


def _reveal(paths: Iterable[str]) -> None:
    """Make what lies below a closed directory (such as /root) reachable for others, here alone."""
    closed: dict[str, set[str]] = {}
    for path in map(os.path.realpath, paths):
        parents = [str(parent) for parent in reversed(Path(path).parents)]
        for parent in parents:
            if not os.stat(parent).st_mode & 1:
                closed.setdefault(parent, set()).add(path)
                break
    for parent, below in closed.items():
        handles = {path: os.open(path, os.O_PATH) for path in below}
        _mount("unit", parent, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        for path, handle in sorted(handles.items()):
            if not os.path.exists(path):
                os.makedirs(path, 0o755)
                _bind(f"/proc/self/fd/{handle}", path)
            os.close(handle)


def _file_system(unit: Unit, writable: Sequence[str]) -> None:
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _mount("none", "/", "none", MS_REC | MS_PRIVATE)
    _reveal([os.getcwd(), sys.prefix, sys.base_prefix])
    if yes(unit, "PrivateDevices"):
        nodes = [os.open(f"/dev/{name}", os.O_PATH) for name in ("null", "zero", "urandom")]
        _mount("unit", "/dev", "tmpfs", MS_NOSUID, "mode=755")
        for name, node in zip(("null", "zero", "urandom"), nodes, strict=True):
            Path("/dev", name).touch()
            _bind(f"/proc/self/fd/{node}", f"/dev/{name}")
            os.close(node)
    for path in writable:
        _bind(path, path)
    if unit["ProtectSystem"] == ["strict"]:
        _read_only("/")
        for path in writable:
            _read_only(path, on=False)
    hidden = {"ProtectProc": "hidepid=", "ProcSubset": "subset="}
    options = [option + unit[name][-1] for name, option in hidden.items() if unit[name]]
    _mount("unit", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, ",".join(options))


# --- system calls -------------------------------------------------------------------------------------


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


def _library() -> Any:
    name = ctypes.util.find_library("seccomp")
    if name is None:
        raise OSError(errno.ENOENT, "libseccomp is missing")
    library = ctypes.CDLL(name, use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    return library


class _Filter:
    """A seccomp filter for this process and the program that it executes."""

    def __init__(self, otherwise: int) -> None:
        self._library = _library()
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(otherwise)))

    def rule(self, action: int, call: str, *comparisons: tuple[int, int, int, int]) -> None:
        """Add a rule for `call` with these (argument, operator, a, b); ignore a call that is not of this machine."""
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            return
        array = (_Comparison * len(comparisons))(*(_Comparison(*one) for one in comparisons))
        result = self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(comparisons), array
        )
        if result < 0 and result != -errno.EEXIST:
            raise OSError(-result, f"{call}: {os.strerror(-result)}")

    def load(self) -> None:
        result = self._library.seccomp_load(self._context)
        if result < 0:
            raise OSError(-result, os.strerror(-result))


def _errno(name: str) -> int:
    return 0x00050000 | int(getattr(errno, name))


def _refuse_some(unit: Unit) -> None:
    """Refuse by argument: address families, namespaces, memory that is written and executed."""
    refused = _Filter(SCMP_ACT_ALLOW)
    families = {getattr(socket, name) for name in " ".join(unit["RestrictAddressFamilies"]).split()}
    for family in set(range(64)) - families if families else ():
        refused.rule(_errno("EAFNOSUPPORT"), "socket", (0, SCMP_CMP_EQ, family, 0))
    if yes(unit, "RestrictNamespaces"):
        refused.rule(_errno("ENOSYS"), "clone3")
        for flag in NAMESPACE_FLAGS:
            for call in ("clone", "unshare"):
                refused.rule(_errno("EPERM"), call, (0, SCMP_CMP_MASKED_EQ, flag, flag))
        refused.rule(_errno("EPERM"), "setns")
    if yes(unit, "MemoryDenyWriteExecute"):
        both = PROT_WRITE | PROT_EXEC
        refused.rule(_errno("EPERM"), "mmap", (2, SCMP_CMP_MASKED_EQ, both, both))
        for call in ("mprotect", "pkey_mprotect"):
            refused.rule(_errno("EPERM"), call, (2, SCMP_CMP_MASKED_EQ, PROT_EXEC, PROT_EXEC))
        refused.rule(_errno("EPERM"), "shmat", (2, SCMP_CMP_MASKED_EQ, SHM_EXEC, SHM_EXEC))
        # The kernel's own rule, where it has one (Linux 6.3).
        _libc.prctl(PR_SET_MDWE, ctypes.c_ulong(PR_MDWE_REFUSE_EXEC_GAIN), *[ctypes.c_ulong(0)] * 3)
    refused.load()


def _allow_few(unit: Unit, calls: Iterable[str]) -> None:
    allowed = _Filter(_errno(unit["SystemCallErrorNumber"][-1]))
    for call in calls:
        allowed.rule(SCMP_ACT_ALLOW, call)
    allowed.load()


def _capabilities(values: Sequence[str]) -> str:
    """Return capabilities in the form of setpriv(1): CAP_NET_RAW is +net_raw."""
    names = " ".join(values).split()
    return ",".join("+" + name.lower().removeprefix("cap_") for name in names)


def main(words: list[str]) -> None:
    """See the module."""
    split = words.index("--")
    path, user, *writable = words[:split]
    unit = read(Path(path))
    if os.geteuid() == 0:
        _file_system(unit, writable)
        ambient = _capabilities(unit["AmbientCapabilities"])
        bounding = _capabilities(unit["CapabilityBoundingSet"])
        privileges = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        privileges += [f"--inh-caps=-all,{ambient}", f"--ambient-caps=-all,{ambient}"]
        privileges += [f"--bounding-set=-all,{bounding}"]
        if yes(unit, "NoNewPrivileges"):
            privileges += ["--no-new-privs"]
        again = [sys.executable, "-m", "lab.unit", *words]
        os.execvp("setpriv", ["setpriv", *privileges, "--", *again])
    calls = allowed_calls(unit)
    os.umask(int(unit["UMask"][-1], 8))
    _refuse_some(unit)
    _allow_few(unit, calls)
    os.execvp(words[split + 1], words[split + 1 :])


if __name__ == "__main__":
    if platform.system() != "Linux":
        sys.exit("this is for Linux")
    main(sys.argv[1:])
