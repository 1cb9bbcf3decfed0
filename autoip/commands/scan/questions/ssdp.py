"""SSDP, the discovery of UPnP (UPnP Device Architecture 1.1 section 1)."""

from __future__ import annotations

from autoip.commands.scan.questions import Answer

PORT, GROUP, TTL = 1900, 0xEFFFFFFA, 2

_HEADERS_MAX = 64


def question() -> bytes:
    """Return an M-SEARCH for root devices, each of which answers within a second."""
    lines = ("M-SEARCH * HTTP/1.1", "HOST: 239.255.255.250:1900", 'MAN: "ssdp:discover"', "MX: 1")
    return "\r\n".join([*lines, "ST: upnp:rootdevice", "", ""]).encode()


def answer(payload: bytes) -> Answer | None:
    """Read a response or a NOTIFY: what the server's software is, and the type of the device."""
    first, *lines = payload.decode("utf-8", "replace").split("\r\n", _HEADERS_MAX)
    if not first.startswith(("HTTP/1.1 200", "NOTIFY ")):
        return None
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().upper()] = value.strip()
    kinds = []
    for name in ("ST", "NT"):
        words = headers.get(name, "").split(":")
        if words[0] == "urn" and "device" in words[:-1]:
            kinds.append(words[words.index("device") + 1])
    if headers.get("SERVER"):
        kinds.append(headers["SERVER"])
    return Answer((), tuple(kinds))
