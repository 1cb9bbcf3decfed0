"""Who made a network card, from the lists that the system has: systemd's hwdb, or Debian's ieee-data."""

from __future__ import annotations

import mmap
from contextlib import suppress
from functools import cache, lru_cache

LOCAL = "locally administered"
"""In the place of a vendor, for an address that software made up."""

_HWDB = ("/usr/lib/udev/hwdb.d/20-OUI.hwdb", "/lib/udev/hwdb.d/20-OUI.hwdb")
_IEEE = ("/usr/share/ieee-data/oui.txt", "/var/lib/ieee-data/oui.txt")
_LINE_MAX = 200
_SHARED = "IEEE Registration Authority"
"""Has the prefixes of six digits that are shared out among vendors, by prefixes of seven and nine."""


def vendor(mac: bytes) -> str | None:
    """Return the vendor of a hardware address; None: not known."""
    if mac[0] & 2:
        return LOCAL
    digits = mac.hex().upper()
    name = _listed(digits[:6])
    if name == _SHARED:
        name = _listed(digits[:7]) or _listed(digits[:9]) or name
    return name


@cache
def _lists() -> list[tuple[mmap.mmap, str, bytes]]:
    """Return each list that is there, with how a prefix is written in it and what is before the name."""
    found = []
    for paths, form, before in (
        (_HWDB, "\nOUI:{}*", b"ID_OUI_FROM_DATABASE="),
        (_IEEE, "\n{} ", b"(base 16)"),
    ):
        for path in paths:
            with suppress(OSError, ValueError), open(path, "rb") as file:
                text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                found.append((text, form, before))
                break
    return found


@lru_cache(1024)
def _listed(prefix: str) -> str | None:
    for text, form, before in _lists():
        at = text.find(form.format(prefix).encode())
        if at >= 0:
            line = text[at : at + _LINE_MAX].split(before, 1)[-1].split(b"\n", 1)[0]
            return line.decode("utf-8", "replace").strip() or None
    return None
