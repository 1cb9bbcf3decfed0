"""A process that sends announcements by one means, and prints their cost.

python -m bench.sender helper|socket|scapy IFNAME MAC ADDRESS COUNT
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address

ARP = struct.Struct("!6s6sHHHBBH6s4s6s4s")
BROADCAST = b"\xff" * 6


def helper(interface: str, mac: bytes, address: IPv4Address) -> Callable[[], object]:
    """The helper: the frame is built once, as the daemon does for what it arms."""
    from autoip.core.arp import announcement
    from autoip.kernel.arp_socket import ArpListener

    sock = ArpListener().open(socket.if_nametoindex(interface), mac)
    frame = announcement(mac, address).emit()
    return lambda: sock.send(frame)


def plain(interface: str, mac: bytes, address: IPv4Address) -> Callable[[], object]:
    """Python's socket module; the frame is built each time."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((interface, 0))
    raw = address.packed

    def send() -> object:
        zero = b"\0\0\0\0\0\0"
        sock.send(ARP.pack(BROADCAST, mac, 0x0806, 1, 0x0800, 6, 4, 1, mac, raw, zero, raw))
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    return send


def scapy(interface: str, mac: bytes, address: IPv4Address) -> Callable[[], object]:
    """scapy's own socket; the packet is built each time."""
    from scapy.config import conf
    from scapy.layers import l2

    sock = conf.L2socket(iface=interface)
    own, text = mac.hex(":"), str(address)

    def send() -> object:
        header = l2.Ether(src=own, dst="ff:ff:ff:ff:ff:ff")
        sock.send(header / l2.ARP(op=1, hwsrc=own, psrc=text, pdst=text))
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    return send


def main() -> None:
    means, interface = sys.argv[1:3]
    mac, address, count = bytes.fromhex(sys.argv[3]), IPv4Address(sys.argv[4]), int(sys.argv[5])
    makers = {"helper": helper, "socket": plain, "scapy": scapy}
    send = makers[means](interface, mac, address)
    print("ready", flush=True)
    cpu, start = time.process_time(), time.monotonic()
    for _ in range(count):
        send()
    cpu, wall = time.process_time() - cpu, time.monotonic() - start
    print(json.dumps({"frames": count, "cpu": cpu, "wall": wall}), flush=True)


if __name__ == "__main__":
    main()
