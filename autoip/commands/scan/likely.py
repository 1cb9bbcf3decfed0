"""Addresses that a sweep asks for first."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress

from autoip.paths import AVAHI_STATE, state_directory

TYPE_CHECKING = False
if TYPE_CHECKING:  # a scan must start fast
    from collections.abc import Iterator

_SIZE_MAX = 4096

FIXED = (
    0xA9FE040A,  # 169.254.4.10: Agilent 34410A/11A/L4411A User's Guide, "IP Address"
    0xA9FE0A0A,  # 169.254.10.10: Avid NEXIS System Overview, "Management Interface port"
    0xA9FE0003,  # 169.254.0.3: Dell iDRAC 8 User's Guide, "iDRAC Direct"
    0xA9FE5F76,  # 169.254.95.118: Lenovo BladeCenter HX5, "LAN over USB addresses"
    0xA9FE0101,  # 169.254.1.1: RAD SecFlow-1p manual, "Startup"
)
"""The addresses that devices have from the factory, and where their vendors say so."""


def remembered(mac: bytes) -> Iterator[int]:
    """Yield what autoip and avahi-autoipd have saved for our MAC (6 bytes), where the files may be read.

    `address_store` checks these files; here a wrong address costs one request, and to load that takes longer than
    a camera needs for its answer.
    """
    for path in (
        f"{state_directory(os.environ)}/{mac.hex()}.json",
        f"{AVAHI_STATE}/{mac.hex(':')}",
    ):
        with suppress(OSError):
            # O_NONBLOCK: else the open of a FIFO could wait for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(descriptor, "rb", buffering=0) as file:
                found = re.search(rb"169\.254\.\d{1,3}\.\d{1,3}", file.read(_SIZE_MAX) or b"")
            if found is not None:
                yield int.from_bytes(socket.inet_aton(found[0].decode()), "big")


def derived(mac: bytes) -> Iterator[int]:
    """Yield the addresses that a host with this MAC (6 bytes) tries first."""
    from autoip.core import candidates  # takes long to load: when the first host has been shown

    return map(int, candidates.derived(mac))
