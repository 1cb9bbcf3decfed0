"""The command `probe`: RFC 5227 for any IPv4 address, without a daemon.

Reports whether an address is free before somebody configures it; configures nothing.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import struct
import time
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address
from random import Random

from autoip.commands.arguments import dumped, json_option, texts, values, write
from autoip.control.protocol import VERSION
from autoip.core.acd import Acd, Conflict, Listen, ProbeSucceeded
from autoip.core.arp import ArpPacket, format_mac, parse
from autoip.core.constants import Timing
from autoip.daemon.negotiator import offer
from autoip.errors import CannotTell, NoPermission, NotArp, UsageError
from autoip.kernel.arp_socket import ArpListener, ArpSocket, Phase
from autoip.kernel.model import ARPHRD_ETHER, IFF_LOOPBACK, IFF_NOARP, IFF_RUNNING
from autoip.option_table import Option, one_interface_name
from autoip.options import DELAY

_SIOCGIFFLAGS = 0x8913
_SIOCGIFHWADDR = 0x8927
_SIOCGIFINDEX = 0x8933

IN_USE = 1
"""Exit status: another host has the address."""


def _address(text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise UsageError(f"{text}: not an IPv4 address") from None
    if address.is_unspecified or address.is_loopback or address >= IPv4Address("224.0.0.0"):
        raise UsageError(f"{text}: not an address that one host can have")
    return address


# fmt: off
OPTIONS = (
    Option("delay", "MS", DELAY.help, read=DELAY.read, default=DELAY.default, repeat="last"),
    json_option("one JSON object", "short"),
    Option("interface", "IFACE", "where to ask", read=one_interface_name, operand="1", offers="interfaces"),
    Option("address", "ADDRESS", "any IPv4 address that one host can have", read=_address, operand="1"),
)
# fmt: on


def main(words: Sequence[str]) -> int:
    """Probe an address and print the answer, with the other host's MAC; return 0: free, 1: in use."""
    given = texts(
        "probe",
        OPTIONS,
        words,
        epilog="exit status: 0 free, 1 in use, 2 to 5 as for 'autoip', 6 could not be found out",
    )
    found = values(OPTIONS, given)
    address = found["address"]
    timing = Timing.from_delay(found["delay"])
    name = found["interface"]
    index, mac = _look_up(name)
    holder = _holder(name, index, mac, address, timing)
    other = None if holder is None else format_mac(holder.sha)
    if found["json"]:
        result = {"interface": name, "address": str(address), "in_use": other is not None}
        write(dumped({"version": VERSION, **result, "mac": other}, found["json"]))
    elif other is None:
        write(f"{address} is free on {name}")
    else:
        write(f"{address} is in use on {name} by {other}")
    return 0 if other is None else IN_USE


def _look_up(name: str) -> tuple[int, bytes]:
    """Return the index and hardware address of an interface.

    Raises:
        UsageError: there is no such interface.
        NotArp: it is not an Ethernet interface with ARP.
        CannotTell: it is down, or has no carrier.
    """
    request = struct.pack("16s24x", name.encode("utf-8", "surrogateescape"))
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
    if hardware_type != ARPHRD_ETHER or flags & (IFF_LOOPBACK | IFF_NOARP):
        raise NotArp(f"{name}: not an interface that speaks ARP over Ethernet")
    if not flags & IFF_RUNNING:
        raise CannotTell(f"{name}: down or without carrier, so nobody can be asked")
    return index, mac


def _holder(
    name: str, index: int, mac: bytes, address: IPv4Address, timing: Timing
) -> ArpPacket | None:
    """Return the packet by which another host objects; None if no host does.

    Raises:
        NoPermission: CAP_NET_RAW is missing.
        CannotTell: the kernel refused a socket or a packet.
    """
    try:
        with ArpListener() as listener, listener.open(index, mac) as sock:
            sock.watch(Phase.PROBE, address)
            return _negotiate(listener, sock, Acd(address, mac, timing, Random(), _now()))
    except PermissionError:
        raise NoPermission("no permission: CAP_NET_RAW missing; run as root") from None
    except OSError as error:
        raise CannotTell(f"{name}: {error.strerror}") from error


def _negotiate(listener: ArpListener, sock: ArpSocket, detector: Acd) -> ArpPacket | None:
    while detector.listen is Listen.PROBE:
        if (at := detector.next_timer()) is not None:
            select.select([listener], [], [], max(at - _now(), 0.0))
        for received in listener.drain():
            if (packet := parse(received.frame)) is not None:
                detector.receive(packet, received.at)
        detector.handle_timer(_now())
        offer(detector, sock.send, _now, _refused)
        while (event := detector.next_event()) is not None:
            if isinstance(event, Conflict):
                return event.packet
            if isinstance(event, ProbeSucceeded):
                return None
    return None


def _refused(error: OSError) -> None:
    if error.errno != errno.ENOBUFS:
        raise error


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
