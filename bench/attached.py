"""A process that has both BPF programs at an interface, as the daemon has, until SIGTERM.

    python -m bench.attached IFNAME MAC ADDRESS stays|comes-and-goes

Without tcx there is only the one for ARP by broadcast, in a clsact.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from ipaddress import IPv4Address

from autoip.core.arp import announcement
from autoip.core.constants import DEFEND_INTERVAL
from autoip.kernel.arp_broadcast import Broadcast
from autoip.kernel.arp_socket import ArpListener, ArpSocket, Phase, load_broadcast, load_defence
from autoip.kernel.netlink import Requests
from autoip.kernel.network import Network
from autoip.kernel.rtnetlink import ROUTE


async def serve(interface: str, mac: bytes, address: IPv4Address, how: str) -> None:
    """Attach the programs, print "ready" and, at the end, how often they came, and where."""
    network = Network()
    await network.open()
    links, _ = await network.snapshot()
    network.close()
    [link] = [link for link in links if link.name == interface]
    requests = Requests(ROUTE)
    requests.open()
    broadcast = Broadcast(requests, load_broadcast())
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    with ArpListener(load_defence(DEFEND_INTERVAL)) as listener:

        async def come() -> ArpSocket:
            await broadcast.add(link)
            if (refusal := broadcast.refusal(link.index)) is not None:
                sys.exit(refusal)
            sock = listener.open(link.index, mac)
            sock.watch(Phase.DEFEND, address)
            sock.arm(announcement(mac, address).emit())
            while listener.in_kernel and sock.attached is None:
                await asyncio.sleep(0.001)
            return sock

        sock = await come()
        print("ready", flush=True)
        times = 1
        while how == "comes-and-goes" and not ended.is_set():
            await broadcast.remove(link.index)
            sock.close()
            sock = await come()
            times += 1
        await ended.wait()
        place = "by tcx" if broadcast.attached and listener.in_kernel else "in a clsact"
        await broadcast.remove(link.index)
    print(json.dumps({"times": times, "place": place}), flush=True)


if __name__ == "__main__":
    asyncio.run(
        serve(sys.argv[1], bytes.fromhex(sys.argv[2]), IPv4Address(sys.argv[3]), sys.argv[4])
    )
