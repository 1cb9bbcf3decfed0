"""Who made a network card, from the lists that the system has: systemd's hwdb, or Debian's ieee-data."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache

LOCAL = "locally administered"
"""In the place of a vendor, for an address that software made up."""

_LISTS = {
    "/usr/lib/udev/hwdb.d/20-OUI.hwdb": rb"\nOUI:([0-9A-F]{6,9})\*\n ID_OUI_FROM_DATABASE=(.*)",
    "/lib/udev/hwdb.d/20-OUI.hwdb": rb"\nOUI:([0-9A-F]{6,9})\*\n ID_OUI_FROM_DATABASE=(.*)",
    "/usr/share/ieee-data/oui.txt": rb"\n([0-9A-F]{6}) +\(base 16\)\s*(.*)",
}
"""Files, and how a prefix and its vendor are written there. Only the first that exists is read."""


def vendor(mac: bytes) -> str | None:
    """Return the vendor of a hardware address; None: not known."""
    if mac[0] & 2:
        return LOCAL
    digits = mac.hex().upper().encode()
    for length in (9, 7, 6):  # of the prefixes that IEEE assigns
        if name := _listed().get(digits[:length]):
            return name.decode("utf-8", "replace").strip()
    return None


@cache
def _listed() -> dict[bytes, bytes]:
    for path, pattern in _LISTS.items():
        with suppress(OSError), open(path, "rb") as file:
            return dict(re.findall(pattern, file.read()))
    return {}
