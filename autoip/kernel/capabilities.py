"""Gives up every capability but the two that are needed."""

from __future__ import annotations

from autoip.errors import MissingCapability
from autoip.kernel.native import check, ffi, lib

_NEEDED = {
    "CAP_NET_RAW": lib.CAP_NET_RAW,  # the packet sockets
    "CAP_NET_ADMIN": lib.CAP_NET_ADMIN,  # addresses, routes, links
}


def limit(*, pass_on: bool = False) -> None:
    """Keep CAP_NET_RAW and CAP_NET_ADMIN, permitted and effective, and nothing else.

    Inheritable and ambient sets are emptied, the bounding set is cut down (where CAP_SETPCAP
    is permitted), and no program started later can gain privileges. The kernel keeps
    capabilities for each thread: call this before the first thread is started.

    Args:
        pass_on: whether programs started later have the two as well, also if we are not root.

    Raises:
        MissingCapability: one of the two is not permitted; nothing was changed.
        OSError: the kernel refused.
    """
    permitted = ffi.new("uint64_t *")
    check(lib.autoip_capabilities_permitted(permitted))
    missing = tuple(name for name, bit in _NEEDED.items() if not permitted[0] >> bit & 1)
    if missing:
        raise MissingCapability(missing)
    check(lib.autoip_capabilities_limit(sum(1 << bit for bit in _NEEDED.values()), pass_on))
