"""Links of tcx (Linux 6.6): a BPF program at one side of one interface, with no qdisc.

Such a program sees a frame before all filters of tc. Ours is put before all that are there; another one that is put
first later runs before ours. The link goes with its descriptor, so with the process, also by SIGKILL.

Somebody else may detach it (BPF_LINK_DETACH), which the kernel reports to nobody: see `Link.detached`.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import final

from autoip.kernel.native import check, ffi, lib

_DETACH_TIME_MS = 5000
_WHY = {
    errno.EPERM: "no permission to load a program; CAP_BPF gives it",
    errno.EACCES: "no permission to load a program; CAP_BPF gives it",
    errno.EOPNOTSUPP: "that needs Linux 6.6, with CONFIG_NET_CLS_ACT",
    errno.ERANGE: "other programs have all places of tcx there",
}


def why(number: int) -> str:
    """Return in words why a program is not loaded or attached.

    Args:
        number: errno.
    """
    return _WHY.get(number, os.strerror(number))


@final
class Link:
    """A program at one side of one interface.

    `attach` and `close` take the kernel some 10 ms each: call them in threads, in any order.

    Args:
        program: its descriptor.
        index: the interface's.
        egress: where frames leave; otherwise where they come in.
        descriptor: of the link, if there is one already.

    Attributes:
        descriptor: None while there is no link.
    """

    def __init__(
        self, program: int, index: int, *, egress: bool, descriptor: int | None = None
    ) -> None:
        self.index = index
        self.descriptor = descriptor
        self._program = program
        self._egress = egress
        self._closed = False
        self._lock = threading.Lock()

    @property
    def attached(self) -> bool:
        """Whether the program is at the interface; True for a link of which that cannot be read."""
        if self.descriptor is None:
            return False
        try:
            # Not by bpf(2): most of it is refused to the daemon.
            shown = Path(f"/proc/self/fdinfo/{self.descriptor}").read_bytes()
        except OSError:
            return True
        return b"ifindex:\t%d\n" % self.index in shown

    @property
    def detached(self) -> bool:
        """Whether somebody else has detached the program."""
        return self.descriptor is not None and not self.attached

    def attach(self) -> None:
        """Attach the program, also again, unless it is attached or `close` was called.

        Raises:
            OSError: EOPNOTSUPP: the kernel has no tcx; ENODEV: there is no such interface; ERANGE, EMFILE, EPERM.
        """
        with self._lock:
            if self.attached:
                return
            self._close()
            for _ in range(_DETACH_TIME_MS):
                if self._closed:
                    return
                result: int = lib.autoip_tcx_attach(self._program, self.index, self._egress)
                if result != -errno.EEXIST:
                    break
                time.sleep(0.001)  # the kernel still detaches it from a link that was closed
            self.descriptor = check(result)

    def close(self) -> None:
        """Detach the program for ever. Harmless when repeated."""
        self._closed = True
        with self._lock:
            self._close()

    def _close(self) -> None:
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def programs(index: int, *, egress: bool) -> tuple[int, int | None]:
    """Return how many programs are at an interface, and how many of them run before ours; None: ours is not there.

    Raises:
        OSError: EOPNOTSUPP: the kernel has no tcx; EPERM: without CAP_NET_ADMIN and, where there are some,
            CAP_SYS_ADMIN.
    """
    ours = ffi.new("int *")
    count = check(lib.autoip_tcx_programs(index, egress, ours))
    return count, None if ours[0] < 0 else ours[0]
