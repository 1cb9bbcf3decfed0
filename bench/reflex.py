"""A process with the real helper, armed anew after every defence: `python -m bench.reflex`.

    python -m bench.reflex IFNAME MAC ADDRESS [--busy]

The daemon defends once in DEFEND_INTERVAL (10 s); this shows the same path, thread, filter and reflex,
at every conflict. With --busy the interpreter never rests.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from ipaddress import IPv4Address

from autoip.core.arp import announcement
from autoip.kernel.arp_socket import ArpListener, Phase


def main() -> None:
    interface, mac, address = sys.argv[1], bytes.fromhex(sys.argv[2]), IPv4Address(sys.argv[3])
    busy = "--busy" in sys.argv[4:]
    frame = announcement(mac, address).emit()
    with ArpListener() as listener:
        sock = listener.open(socket.if_nametoindex(interface), mac)
        sock.watch(Phase.DEFEND, address)
        sock.arm(frame)
        poll = select.poll()
        poll.register(listener.fileno(), select.POLLIN)
        print("ready", flush=True)
        while True:
            if busy:
                until = time.monotonic() + 0.001
                while time.monotonic() < until:
                    pass
            else:
                poll.poll()
            if listener.drain():
                sock.arm(frame)


if __name__ == "__main__":
    main()
