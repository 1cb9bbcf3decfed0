"""A process that receives conflicts by one means, and prints their cost.

    python -m bench.receiver helper|socket|scapy IFNAME MAC ADDRESS COUNT

Ends after COUNT frames, or half a second after the last one. Each means does the same: it turns a frame
that claims ADDRESS with another hardware address into a value (frame, time).
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

ETH_P_ARP = 0x0806
ARP = struct.Struct("!6s6sHHHBBH6s4s6s4s")
SO_TIMESTAMPNS = 35


def helper(interface: str, mac: bytes, address: IPv4Address) -> tuple[int, Callable[[], int]]:
    """The helper's thread, filter and queue."""
    from autoip.kernel.arp_socket import ArpListener, Phase

    listener = ArpListener()
    sock = listener.open(socket.if_nametoindex(interface), mac)
    sock.watch(Phase.DEFEND, address)
    return listener.fileno(), lambda: len(listener.drain())


def plain(interface: str, mac: bytes, address: IPv4Address) -> tuple[int, Callable[[], int]]:
    """Python's socket module."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setblocking(False)
    sock.bind((interface, ETH_P_ARP))
    wanted = address.packed

    def receive() -> int:
        found: list[tuple[bytes, float]] = []
        while True:
            try:
                data, ancillary, _, _ = sock.recvmsg(2048, 64)
            except BlockingIOError:
                return len(found)
            if len(data) < ARP.size:
                continue
            _, _, kind, hardware, protocol, hlen, plen, op, sha, spa, _, _ = ARP.unpack_from(data)
            if (kind, hardware, protocol, hlen, plen) != (ETH_P_ARP, 1, 0x0800, 6, 4):
                continue
            if op not in (1, 2) or spa != wanted or sha == mac:
                continue
            at = 0.0
            for level, number, value in ancillary:
                if level == socket.SOL_SOCKET and number == SO_TIMESTAMPNS:
                    seconds, nanoseconds = struct.unpack("@ll", value)
                    at = seconds + nanoseconds * 1e-9
            found.append((data[:42], at))

    return sock.fileno(), receive


def scapy(interface: str, mac: bytes, address: IPv4Address) -> tuple[int, Callable[[], int]]:
    """scapy's own socket and dissection."""
    from scapy.config import conf
    from scapy.layers import l2

    sock = conf.L2listen(iface=interface, type=ETH_P_ARP, promisc=False)
    wanted, own = str(address), mac.hex(":")

    def receive() -> int:
        found: list[tuple[Any, float]] = []
        while select.select([sock], [], [], 0)[0]:
            packet = sock.recv()
            if packet is None or l2.ARP not in packet:
                continue
            arp = packet[l2.ARP]
            if arp.op in (1, 2) and arp.psrc == wanted and arp.hwsrc != own:
                found.append((packet, float(packet.time)))
        return len(found)

    return sock.fileno(), receive


def main() -> None:
    means, interface = sys.argv[1:3]
    mac, address, count = bytes.fromhex(sys.argv[3]), IPv4Address(sys.argv[4]), int(sys.argv[5])
    makers = {"helper": helper, "socket": plain, "scapy": scapy}
    fd, receive = makers[means](interface, mac, address)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    print("ready", flush=True)
    poll.poll()
    cpu, start = time.process_time(), time.monotonic()
    got = 0
    end, end_cpu = start, cpu
    while got < count and poll.poll(500):
        got += receive()
        end, end_cpu = time.monotonic(), time.process_time()
    print(json.dumps({"frames": got, "cpu": end_cpu - cpu, "wall": end - start}), flush=True)


if __name__ == "__main__":
    main()
