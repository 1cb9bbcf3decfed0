"""A process that sends or receives ARP in bulk by one means, and prints its cost.

    python -m bench.bulk_arp helper|socket send|receive IFACE COUNT

As bench/bulk.c does it: COUNT requests, each for another address; or values of COUNT frames.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import struct
import sys
import time
from array import array
from collections.abc import Callable

from bench.receiver import ARP, SO_TIMESTAMPNS

ETH_P_ARP = 0x0806
SO_RCVBUFFORCE = 33
FIRST = 0xA9FE0100
SENDER = 0xA9FE0909
MAC = b"\2\0\0\0\0\1"
BATCH = 256


def helper(interface: str) -> tuple[int, Callable[[int], int], Callable[[], int]]:
    """The helper of a scan."""
    from autoip.kernel.bulk_arp import BulkArp

    sock = BulkArp(socket.if_nametoindex(interface), MAC)

    def send(first: int) -> int:
        try:
            return sock.send(SENDER, array("I", range(first, first + BATCH)))
        except BlockingIOError:
            return 0

    def receive() -> int:
        return len(sock.receive())

    return sock.fileno(), send, receive


def plain(interface: str) -> tuple[int, Callable[[int], int], Callable[[], int]]:
    """Python's socket module."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    sock.bind((interface, ETH_P_ARP))

    def send(first: int) -> int:
        spa = SENDER.to_bytes(4, "big")
        for target in range(first, first + BATCH):
            tpa = target.to_bytes(4, "big")
            sock.send(
                ARP.pack(b"\xff" * 6, MAC, ETH_P_ARP, 1, 0x0800, 6, 4, 1, MAC, spa, bytes(6), tpa)
            )
        return BATCH

    def receive() -> int:
        data, ancillary, _, _ = sock.recvmsg(42, 64)
        ARP.unpack_from(data)
        struct.unpack("@ll", ancillary[0][2])
        return 1

    return sock.fileno(), send, receive


def main() -> None:
    means, direction, interface, number = sys.argv[1:]
    count = int(number)
    fd, send, receive = {"helper": helper, "socket": plain}[means](interface)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    print("ready", flush=True)
    if direction == "receive":
        poll.poll(10_000)
    before = time.process_time(), _user()
    done = 0
    if direction == "send":
        while done < count:
            done += send(FIRST + done)
    else:
        while done < count and poll.poll(500):
            done += receive()
    found = {"frames": done, "user": _user() - before[1], "cpu": time.process_time() - before[0]}
    print(json.dumps(found), flush=True)


def _user() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


if __name__ == "__main__":
    main()
