"""The errors, each kind with the exit status that a command ends with.

Three sides can be at fault: the caller (`UsageError`, `AlreadyRunning`, `NotArp`), the
system (`NoPermission`, `KernelRefused`, `StateProblem`), or our own use of the negotiation
core (`CoreMisuse`: a bug, never caused by input). A peer's bad frame raises nothing: it is
dropped where it is read.
"""

from __future__ import annotations

import errno as _errno


class AutoipError(Exception):
    """Base of every error of which a command writes one line to stderr."""

    exit_status = 1


class UsageError(AutoipError):
    """A bad option, value or interface name. The message names what is allowed."""

    exit_status = 2


class AlreadyRunning(AutoipError):
    """Another instance serves this interface in this network namespace."""

    exit_status = 3

    def __init__(self, interface: str, pid: int | None) -> None:
        self.interface = interface
        self.pid = pid
        by = f"by process {pid}" if pid is not None else "by another process"
        super().__init__(f"{interface}: autoip already runs here, {by}")


class CannotWrite(AutoipError):
    """Standard output cannot be written to."""

    def __init__(self, problem: OSError) -> None:
        super().__init__(f"cannot write to standard output: {problem.strerror}")


class NotRunning(AutoipError):
    """No daemon serves this interface in this network namespace."""

    exit_status = 3

    def __init__(self, interface: str) -> None:
        self.interface = interface
        super().__init__(f"{interface}: no autoip runs for it here")


class NoPermission(AutoipError):
    """The process lacks a permission. The message names the remedy."""

    exit_status = 4


class MissingCapability(NoPermission):
    """A Linux capability is missing.

    Args:
        names: the missing ones, as in capabilities(7), e.g. ``("CAP_NET_RAW",)``.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        super().__init__(
            f"no permission: {' and '.join(names)} missing; run as root, or with"
            " 'setpriv --inh-caps +net_raw,+net_admin --ambient-caps +net_raw,+net_admin',"
            " or in a service with AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN"
        )


class NotArp(AutoipError):
    """The interface exists but is not one that speaks ARP over Ethernet."""

    exit_status = 5


class CannotTell(AutoipError):
    """A command could not find out whether an address is free."""

    exit_status = 6


class KernelRefused(AutoipError):
    """A request to the kernel failed.

    Args:
        errno: the positive error number.
        what: the request, e.g. ``"add 169.254.7.7 to eth0"``.
    """

    def __init__(self, errno: int, what: str) -> None:
        self.errno = errno
        self.what = what
        super().__init__(f"{what}: {_errno.errorcode.get(errno, errno)}")


class StateProblem(AutoipError):
    """Saved state is damaged or cannot be written: a warning, not a failure."""


class CoreMisuse(RuntimeError):
    """The negotiation core was called in a way that its contract forbids. A bug of the caller."""
