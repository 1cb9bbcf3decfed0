"""Addresses that a sweep asks for first."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # a scan must start fast
    from collections.abc import Iterator

FIXED = (
    0xA9FE040A,  # 169.254.4.10: Agilent 34410A/11A/L4411A User's Guide, "IP Address"
    0xA9FE0A0A,  # 169.254.10.10: Avid NEXIS System Overview, "Management Interface port"
    0xA9FE0003,  # 169.254.0.3: Dell iDRAC 8 User's Guide, "iDRAC Direct"
    0xA9FE5F76,  # 169.254.95.118: Lenovo BladeCenter HX5, "LAN over USB addresses"
    0xA9FE0101,  # 169.254.1.1: RAD SecFlow-1p manual, "Startup"
)
"""The addresses that devices have from the factory, and where their vendors say so."""


def remembered(mac: bytes) -> Iterator[int]:
    """Yield what autoip and avahi-autoipd have saved for our MAC (6 bytes), where the files may be read."""
    from pathlib import Path  # these take longer to load than all of a scan

    from autoip.daemon.address_store import AddressStore
    from autoip.errors import StateProblem
    from autoip.paths import state_directory

    store = AddressStore(Path(state_directory(os.environ)))
    for load in (store.load, store.load_avahi):
        try:
            address = load(mac)
        except StateProblem:
            continue
        if address is not None:
            yield int(address)


def derived(mac: bytes) -> Iterator[int]:
    """Yield the addresses that a host with this MAC (6 bytes) tries first."""
    from autoip.core import candidates

    return map(int, candidates.derived(mac))
