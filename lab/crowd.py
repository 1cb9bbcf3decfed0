"""Many hosts in one process: `python -m lab.crowd IFACE COUNT SEED` answers ARP for addresses spread over 169.254/16.

Each address has a MAC of its own. `answers` gives what is answered, so that a test knows it as well.
"""

from __future__ import annotations

import random
import socket
import struct
import sys

FIRST, LAST = 0xA9FE0100, 0xA9FEFEFF
ETH_P_ARP = 0x0806
SO_RCVBUFFORCE = 33
_REQUEST = b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01"


def answers(count: int, seed: int) -> dict[bytes, bytes]:
    """Return addresses and the MACs of their hosts."""
    drawn = random.Random(seed).sample(range(FIRST, LAST + 1), count)
    return {struct.pack("!I", address): struct.pack("!HI", 0x0200, address) for address in drawn}


def serve(interface: str, hosts: dict[bytes, bytes]) -> None:
    """Answer until killed."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    sock.bind((interface, ETH_P_ARP))
    print("ready", flush=True)
    while True:
        frame = sock.recv(64)
        if frame[12:22] == _REQUEST and (mac := hosts.get(frame[38:42])) is not None:
            head = frame[6:12] + mac + _REQUEST[:-1] + b"\x02"
            sock.send(head + mac + frame[38:42] + frame[22:32])


if __name__ == "__main__":
    serve(sys.argv[1], answers(int(sys.argv[2]), int(sys.argv[3])))
