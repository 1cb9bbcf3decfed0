"""What a command must know of an interface before it sends there, by ioctl(2): netlink takes longer to load."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import sys

from autoip.errors import CannotTell, NotArp, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:  # a scan must start fast
    from collections.abc import Iterator

_SIOCGIFCONF = 0x8912
_SIOCGIFFLAGS = 0x8913
_SIOCGIFNETMASK = 0x891B
_SIOCGIFHWADDR = 0x8927
_SIOCGIFINDEX = 0x8933
_ARPHRD_ETHER = 1
_IFF_LOOPBACK, _IFF_RUNNING, _IFF_NOARP = 0x8, 0x40, 0x80
_REQUEST = struct.Struct("@16s24s")
_ADDRESSES_MAX = 4096


def look_up(name: str) -> tuple[int, bytes]:
    """Return the index and hardware address of an interface.

    Raises:
        UsageError: there is no such interface.
        NotArp: it is not an Ethernet interface with ARP.
        CannotTell: it is down, or has no carrier.
    """
    request = struct.pack("16s24x", os.fsencode(name))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answers = [
                fcntl.ioctl(any_socket, number, request)
                for number in (_SIOCGIFINDEX, _SIOCGIFFLAGS, _SIOCGIFHWADDR)
            ]
        except OSError as error:
            raise UsageError(f"{name}: no such interface") from error
    (index,) = struct.unpack_from("=i", answers[0], 16)
    (flags,) = struct.unpack_from("=H", answers[1], 16)
    hardware_type, mac = struct.unpack_from("=H6s", answers[2], 16)
    if hardware_type != _ARPHRD_ETHER or flags & (_IFF_LOOPBACK | _IFF_NOARP):
        raise NotArp(f"{name}: not an interface that speaks ARP over Ethernet")
    if not flags & _IFF_RUNNING:
        raise CannotTell(f"{name}: down or without carrier, so nobody can be asked")
    return index, mac


def addresses(name: str) -> list[tuple[int, int]]:
    """Return the IPv4 addresses of an interface and their masks, as numbers; the first is the kernel's own choice."""
    room = array.array("B", bytes(_ADDRESSES_MAX * _REQUEST.size))
    where, size = room.buffer_info()
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFCONF, struct.pack("@iP", size, where))
        (size,) = struct.unpack_from("@i", answer)
        for label, address in _REQUEST.iter_unpack(room.tobytes()[:size]):
            # A label is the name of the interface, perhaps with a colon and more.
            if os.fsdecode(label.rstrip(b"\0")).split(":", 1)[0] == name:
                mask = fcntl.ioctl(any_socket, _SIOCGIFNETMASK, _REQUEST.pack(label, address))
                found.append((_ipv4(address), _ipv4(mask[16:])))
    return found


def neighbours(name: str) -> Iterator[int]:
    """Yield the IPv4 addresses that the kernel has resolved on an interface, as numbers."""
    try:
        with open("/proc/net/arp", encoding="ascii", errors="replace") as table:
            rows = [line.split() for line in table][1:]
    except OSError:
        return
    for address, _, flags, _, _, interface in (row for row in rows if len(row) == 6):
        if interface == name and int(flags, 16) & 2:  # ATF_COM
            yield int.from_bytes(socket.inet_aton(address), "big")


def reaches_link_local(name: str) -> bool:
    """Return whether the main table has a route to 169.254.0.0/16 by an interface; True where that cannot be read."""
    try:
        with open("/proc/net/route", encoding="ascii", errors="replace") as table:
            rows = [line.split() for line in table][1:]
    except OSError:
        return True
    network, mask = (
        f"{int.from_bytes(value, sys.byteorder):08X}"
        for value in (b"\xa9\xfe\0\0", b"\xff\xff\0\0")
    )
    return any(row[:2] == [name, network] and row[7:8] == [mask] for row in rows)


def is_wireless(name: str) -> bool:
    """Return whether it is a Wi-Fi interface, where a broadcast takes the air for a long time."""
    return os.path.exists(f"/sys/class/net/{name}/phy80211")


def is_port(name: str) -> bool:
    """Return whether a bridge, bond or team (or a VRF) has it."""
    return os.path.exists(f"/sys/class/net/{name}/master")


def _ipv4(address: bytes) -> int:
    """Return the address in a struct sockaddr_in."""
    return int.from_bytes(address[4:8], "big")
