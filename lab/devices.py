"""Devices that say what they are, written from the protocols' specifications, not from autoip's parsers."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address
from typing import final

from .background import Reader
from .frames import Ip, mac_bytes
from .namespace import Namespace

GVCP_PORT = 3956
WSD_PORT, WSD_GROUP = 3702, "239.255.255.250"
_MATCH = """<?xml version="1.0"?><e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope" \
xmlns:w="http://schemas.xmlsoap.org/ws/2004/08/addressing" \
xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery" xmlns:dn="http://www.onvif.org/ver10/network/wsdl">\
<e:Header><w:RelatesTo>{relates}</w:RelatesTo>\
<w:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/ProbeMatches</w:Action></e:Header>\
<e:Body><d:ProbeMatches><d:ProbeMatch><d:Types>dn:NetworkVideoTransmitter</d:Types>\
<d:Scopes>onvif://www.onvif.org/name/{name}</d:Scopes></d:ProbeMatch></d:ProbeMatches></e:Body></e:Envelope>"""


def _bound(namespace: Namespace, interface: str, port: int) -> socket.socket:
    sock = namespace.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    sock.bind(("", port))
    return sock


@final
class Camera(Reader):
    """A camera of GigE Vision: it answers a discovery, by broadcast if the command allows that and else not at all.

    A camera in another subnet than the asker has no other way.
    """

    def __init__(
        self, namespace: Namespace, interface: str, mac: str, address: Ip, mask: Ip, *texts: str
    ) -> None:
        super().__init__(_bound(namespace, interface, GVCP_PORT), "camera")
        words = (*texts, "", "", "", "", "", "")[
            :6
        ]  # maker, model, version, information, serial, name
        sizes = (32, 32, 32, 48, 16, 16)
        self._device = b"".join(
            (
                bytes.fromhex("00010002 80000001 0000"),
                mac_bytes(mac),
                bytes.fromhex("00000007 00000005") + bytes(12),
                IPv4Address(address).packed + bytes(12),
                IPv4Address(mask).packed + bytes(12),
                bytes(4),
                *(
                    word.encode().ljust(size, b"\0")
                    for word, size in zip(words, sizes, strict=True)
                ),
            )
        )
        self.start()

    def __enter__(self) -> Camera:
        return self

    def received(self) -> None:
        data, (_, port) = self._sock.recvfrom(2048)
        if data[:1] == b"\x42" and data[1] & 0x11 == 0x11 and data[2:6] == b"\0\2\0\0":
            head = b"\0\0\0\3" + len(self._device).to_bytes(2, "big") + data[6:8]
            self._sock.sendto(head + self._device, ("255.255.255.255", port))


@final
class NetworkCamera(Reader):
    """A camera of ONVIF: it answers a probe of WS-Discovery."""

    def __init__(self, namespace: Namespace, interface: str, name: str) -> None:
        sock = _bound(namespace, interface, WSD_PORT)
        index = namespace.index(interface)
        group = socket.inet_aton(WSD_GROUP) + bytes(4) + index.to_bytes(4, "little")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        super().__init__(sock, "network-camera")
        self._name = name
        self.start()

    def __enter__(self) -> NetworkCamera:
        return self

    def received(self) -> None:
        data, asker = self._sock.recvfrom(65536)
        found = re.search(r"MessageID>([^<]+)<", data.decode())
        if found is not None and "discovery/Probe<" in data.decode():
            self._sock.sendto(_MATCH.format(relates=found[1], name=self._name).encode(), asker)
