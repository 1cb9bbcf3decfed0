"""A process with the real helper, armed anew after every defence: `python -m bench.reflex`.

    python -m bench.reflex IFNAME MAC ADDRESS [--busy] [--kernel]

The daemon defends once in DEFEND_INTERVAL (10 s); this shows the same path, thread, filter and reflex,
at every conflict. With --busy the interpreter never rests; with --kernel the kernel answers, and arms itself again.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from ipaddress import IPv4Address

from autoip.core.arp import announcement
from autoip.kernel.arp_socket import ArpListener, Phase, load_defence

INTERVAL = 0.002
"""Seconds after a conflict in which the kernel does not answer the next one; less than between two samples."""


def main() -> None:
    interface, mac, address = sys.argv[1], bytes.fromhex(sys.argv[2]), IPv4Address(sys.argv[3])
    busy = "--busy" in sys.argv[4:]
    frame = announcement(mac, address).emit()
    with ArpListener(load_defence(INTERVAL) if "--kernel" in sys.argv[4:] else "") as listener:
        if listener.undefended is not None:
            sys.exit(listener.undefended)
        sock = listener.open(socket.if_nametoindex(interface), mac)
        sock.watch(Phase.DEFEND, address)
        sock.arm(frame)
        while listener.in_kernel and sock.attached is None:
            time.sleep(0.01)
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
            # The kernel goes on to answer; to arm it anew would disarm it for a moment.
            if listener.drain() and not listener.in_kernel:
                sock.arm(frame)


if __name__ == "__main__":
    main()
