"""Links of tcx as other programs have them, and a host whose kernel has none.

`python -m lab.tcx COMMAND ...` runs a command for which the kernel is one from before Linux 6.6: bpf(2) refuses what
concerns tcx as such a kernel does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import struct
import sys
from contextlib import suppress
from pathlib import Path

WITHOUT = (sys.executable, "-m", "lab.tcx")
"""Before a command: without tcx."""
INGRESS, EGRESS = 46, 47
NEXT, PASS = -1, 0
"""What a program decides: the next one runs as well; none does, and the frame leaves."""

_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _PROG_QUERY, _LINK_CREATE, _LINK_GET_FD_BY_ID, _LINK_DETACH = 5, 16, 28, 30, 34
_SCHED_CLS = 3
_BEFORE = 8
_PR_SET_SECCOMP, _FILTER = 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def _bpf(command: int, fields: bytes) -> int:
    """bpf(2). Raises OSError."""
    attributes = ctypes.create_string_buffer(fields, 144)
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(_SYS_BPF[platform.machine()], command, attributes, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def attach(
    index: int,
    place: int = EGRESS,
    *,
    verdict: int = NEXT,
    name: bytes = b"theirs",
    before: bool = False,
) -> int:
    """Attach a program to an interface; return the link's descriptor, with which it goes.

    Args:
        index: the interface's.
        place: EGRESS or INGRESS.
        verdict: what the program decides about each frame.
        name: the program's.
        before: put it before all that are there; otherwise it comes last.
    """
    code = ctypes.create_string_buffer(
        struct.pack("<BBhi", 0xB7, 0, 0, verdict) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    )
    terms = ctypes.create_string_buffer(b"GPL")
    words = struct.pack("=IIQQ", _SCHED_CLS, 2, ctypes.addressof(code), ctypes.addressof(terms))
    program = _bpf(_PROG_LOAD, words + bytes(24) + name.ljust(16, b"\0"))
    try:
        flags = _BEFORE if before else 0
        return _bpf(_LINK_CREATE, struct.pack("=IIII", program, index, place, flags))
    finally:
        os.close(program)


def links(pid: int, index: int, place: int = EGRESS) -> list[int]:
    """Return the numbers of the links that a process has at an interface; index 0: at one that is gone."""
    found = []
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        words: dict[str, str] = {}
        with suppress(FileNotFoundError):  # it is closed meanwhile
            words = dict(re.findall(r"^(\w+):\t(\S+)", path.read_text(), re.MULTILINE))
        if (words.get("ifindex"), words.get("attach_type")) == (str(index), str(place)):
            found.append(int(words["link_id"]))
    return found


def detach(pid: int, index: int, place: int = EGRESS) -> None:
    """Detach those links, as root can (BPF_LINK_DETACH)."""
    for number in links(pid, index, place):
        link = _bpf(_LINK_GET_FD_BY_ID, struct.pack("=I", number))
        _bpf(_LINK_DETACH, struct.pack("=I", link))
        os.close(link)


def _refuse() -> None:
    """Have the kernel refuse, for this process and all that it starts, what concerns tcx."""
    little = sys.byteorder == "little"
    code = [
        (0x20, 0, 0, 0),  # A <- number of the system call
        (0x15, 0, 4, _SYS_BPF[platform.machine()]),
        (0x20, 0, 0, 16 if little else 20),  # A <- command
        (0x15, 1, 0, _PROG_QUERY),
        (0x15, 0, 1, _LINK_CREATE),
        (0x06, 0, 0, _ERRNO | errno.EINVAL),
        (0x06, 0, 0, _ALLOW),
    ]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(packed)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    _refuse()
    os.execvp(sys.argv[1], sys.argv[1:])
