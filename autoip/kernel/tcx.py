"""Links of tcx (Linux 6.6): a BPF program at one side of one interface, with no qdisc.

Such a program sees a frame before all filters of tc. Ours is put before all that are there; another one that is put
first later runs before ours. The link goes with its descriptor, so with the process, also by SIGKILL.

Somebody else may detach it (BPF_LINK_DETACH), which the kernel reports to nobody.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from autoip.kernel.native import check, ffi, lib

_DETACH_TIME_MS = 5000
_WHY = {
    errno.EPERM: "no permission to load a program; CAP_BPF gives it",
    errno.EACCES: "no permission to load a program; CAP_BPF gives it",
    errno.EOPNOTSUPP: "that needs Linux 6.6, with CONFIG_NET_CLS_ACT",
}


def why(number: int) -> str:
    """Return in words why a program is not loaded or attached.

    Args:
        number: errno.
    """
    return _WHY.get(number, os.strerror(number))


def attach(
    program: int, index: int, *, egress: bool, wanted: Callable[[], bool] = lambda: True
) -> int:
    """Attach a program to an interface. Call it in a thread: the kernel takes some 10 ms, as to close the link.

    Args:
        program: its descriptor.
        index: the interface's.
        egress: where frames leave; otherwise where they come in.
        wanted: whether to go on while the kernel still detaches the program from a link that was closed.

    Returns:
        The link's descriptor.

    Raises:
        OSError: EOPNOTSUPP: the kernel has no tcx; ENODEV: there is no such interface; EMFILE, EPERM.
    """
    for _ in range(_DETACH_TIME_MS):
        result: int = lib.autoip_tcx_attach(program, index, egress)
        if result != -errno.EEXIST or not wanted():
            break
        time.sleep(0.001)
    return check(result)


def attached(descriptor: int, index: int) -> bool:
    """Return whether a link still is at the interface `index`; also where that cannot be read."""
    try:
        # Not by bpf(2): most of it is refused to the daemon.
        shown = Path(f"/proc/self/fdinfo/{descriptor}").read_bytes()
    except OSError:
        return True
    return b"ifindex:\t%d\n" % index in shown


def programs(index: int, *, egress: bool) -> tuple[int, int | None]:
    """Return how many programs are at an interface, and how many of them run before ours; None: ours is not there.

    Raises:
        OSError: EOPNOTSUPP: the kernel has no tcx; EPERM: without CAP_NET_ADMIN and, where there are some,
            CAP_SYS_ADMIN.
    """
    ours = ffi.new("int *")
    count = check(lib.autoip_tcx_programs(index, egress, ours))
    return count, None if ours[0] < 0 else ours[0]
