"""A process that has the program for ARP by broadcast at the egress of an interface, until SIGTERM.

python -m bench.egress IFNAME stays|comes-and-goes
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from autoip.kernel.arp_broadcast import Broadcast
from autoip.kernel.arp_socket import load_broadcast
from autoip.kernel.netlink import Requests
from autoip.kernel.network import Network
from autoip.kernel.rtnetlink import ROUTE


async def serve(interface: str, how: str) -> None:
    """Attach the program, print "ready" and, at the end, how often it came, and where."""
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
    await broadcast.add(link)
    if (refusal := broadcast.refusal(link.index)) is not None:
        sys.exit(refusal)
    print("ready", flush=True)
    times = 1
    while how == "comes-and-goes" and not ended.is_set():
        await broadcast.remove(link.index)
        await broadcast.add(link)
        times += 1
    await ended.wait()
    place = "by tcx" if broadcast.attached else "in a clsact"
    await broadcast.remove(link.index)
    print(json.dumps({"times": times, "place": place}), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
