"""The command `probe`: RFC 5227 for any IPv4 address, without a daemon.

Reports whether an address is free before somebody configures it; configures nothing.
"""

from __future__ import annotations

import errno
import select
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
from autoip.errors import CannotTell, NoPermission, UsageError
from autoip.kernel.arp_socket import ArpListener, ArpSocket, Phase
from autoip.kernel.interface_facts import look_up
from autoip.option_table import Option, one_interface_name
from autoip.options import DELAY

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
    index, mac = look_up(name)
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
        if sock.pending():
            continue  # a frame came at the last moment, or this process was stopped meanwhile
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
