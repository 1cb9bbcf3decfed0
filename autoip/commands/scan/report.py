"""How a scan shows a host: as a line, or as an object of JSON."""

from __future__ import annotations

from autoip.commands.scan.hosts import Host, text
from autoip.commands.scan.vendor import vendor
from autoip.control.protocol import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:  # a scan must start fast
    from typing import Any


def line(host: Host) -> str:
    """Return the line of a host, for people."""
    address = "-" if host.address is None else text(host.address)
    words = [*host.names, *host.kinds]
    parts = [
        f"{host.interface:<8} {address:<15} {host.mac.hex(':')}",
        vendor(host.mac) or "",
        ", ".join(words),
        f"({', '.join(host.via)}" + (")" if host.rtt is None else f", {host.rtt * 1e3:.1f} ms)"),
        "; ".join(host.notes),
    ]
    return "  ".join(filter(None, parts))


def value(host: Host) -> dict[str, Any]:
    """Return the object of a host; see `protocol.SCAN`."""
    return {
        "version": VERSION,
        "interface": host.interface,
        "address": None if host.address is None else text(host.address),
        "mac": host.mac.hex(":"),
        "vendor": vendor(host.mac),
        "names": host.names,
        "kinds": host.kinds,
        "via": host.via,
        "rtt_ms": None if host.rtt is None else round(host.rtt * 1e3, 3),
        "first_seen": host.first_seen,
        "notes": host.notes,
    }
