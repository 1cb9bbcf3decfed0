"""What belongs to an address and is removed by hand is put back; changes of others do not wake the daemon."""

from __future__ import annotations

import asyncio
import signal

import pytest

from autoip.kernel.loss_watch import LossWatch
from lab import Port, tcx

from .commands import report
from .conftest import MakeDaemon
from .helpers import NETNS, A, bind, configuration, wait_until

pytestmark = NETNS

REMOVALS = {
    "rule": ["ip rule del from {a} priority 1690"],
    "every rule": [
        "ip rule flush",
        "ip rule add priority 32766 table main",
        "ip rule add priority 32767 table default",
    ],
    "source route": ["ip route flush table {table}"],
    "connected route": ["ip route del 169.254.0.0/16 dev eth0"],
    "filter": ["tc filter del dev eth0 egress"],
    "clsact": ["tc qdisc del dev eth0 clsact"],
    "all": [
        "ip rule del from {a} priority 1690",
        "ip route flush table {table}",
        "ip route del 169.254.0.0/16 dev eth0",
        "tc qdisc del dev eth0 clsact",
    ],
}


def picture(port: Port) -> list[str]:
    """What is set up, but for what changes by itself."""
    host = port.host
    filters = host.run("tc", "filter", "show", "dev", port.name, "egress")
    words = [word for word in filters.split() if word != "id"]
    kept = [word for word in words if not word.isdigit()]
    return [*configuration(host)[1:3], " ".join(kept), host.run("tc", "qdisc")]


@pytest.mark.parametrize("what", REMOVALS)
def test_what_somebody_removes_is_put_back(port: Port, make_autoip: MakeDaemon, what: str) -> None:
    daemon = make_autoip(port, "--delay", "200", "--ip", str(A))
    if any(command.startswith("tc ") for command in REMOVALS[what]):
        daemon.command[:0] = tcx.WITHOUT
    before = configuration(port.host)
    bind(port, daemon)
    wanted = picture(port)
    since = port.sniffer.mark()
    table = 169254000 + port.host.index("eth0")
    daemon.signal(signal.SIGSTOP)  # else all may be back before anyone looks
    for command in REMOVALS[what]:
        port.host.run(*command.format(a=A, table=table).split())
    assert picture(port) != wanted
    daemon.signal(signal.SIGCONT)
    wait_until(lambda: picture(port) == wanted, what)
    wait_until(lambda: "somebody removed our" in str(report(daemon)["notes"]), "a note")
    assert report(daemon)["state"] == "bound"
    assert port.sniffer.probes(since=since) == []  # the address itself was never in doubt
    daemon.stop()
    assert configuration(port.host) == before


def test_changes_of_others_pass_unnoticed(port: Port) -> None:
    """The filter in the kernel drops them; the control is a removal that counts, and is the only one received."""
    host = port.host
    watch = LossWatch()
    host.call(watch.open)

    async def body() -> set[int] | None:
        try:
            for number in range(50):
                words = f"10.{number}.0.0/16 dev eth0 metric 7"
                host.run("ip", "route", "add", *words.split())
                host.run("ip", "route", "del", *words.split())
            for other in ("10.1.1.1 priority 1691", "10.1.1.2 priority 1690"):
                host.run("ip", "rule", "add", "from", *other.split(), "table", "7")
            host.run("ip", "rule", "del", "from", "10.1.1.1")
            host.run("tc", "qdisc", "add", "dev", "eth0", "root", "handle", "7:", "pfifo")
            host.run("tc", "qdisc", "del", "dev", "eth0", "root")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(watch.next(), 0.5)
            host.run("ip", "route", "add", *["10.9.0.0/16", "dev", "eth0", "proto", "169"])
            host.run("ip", "route", "del", *["10.9.0.0/16", "dev", "eth0"])
            return await asyncio.wait_for(watch.next(), 30)
        finally:
            watch.close()

    assert asyncio.run(body()) == {host.index("eth0")}
