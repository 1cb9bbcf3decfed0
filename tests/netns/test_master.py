"""if-master: a port has no address of its own, and its master has what it needs.

Bonds and VRFs, which few kernels for tests have, are in tests/unit/test_daemon.py.
"""

from __future__ import annotations

import contextlib

import pytest

from lab import Daemon, Namespace, Port
from tests.require import requires_kernel_feature

from .commands import report, run
from .conftest import MakeDaemon, autoip_command
from .helpers import (
    NETNS,
    PATIENCE,
    PEER,
    A,
    B,
    bind,
    broadcasting,
    claimed,
    notify_socket,
    wait_ready,
    wait_until,
)

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))


def _bridge(host: Namespace) -> None:
    """br0, whose port forwards at once."""
    host.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
    host.ip("link set br0 up")


TRACES = ("169.254.0.0", str(A), "broadcasting")
"""What shows the address, its routes, its rule, and the filter."""


def _set_up(host: Namespace) -> str:
    """Addresses, rules, routes and filters, as text."""
    whats = ("addr", "rule", "route show table all")
    filters = [*broadcasting(host, "eth0"), host.run("tc", "qdisc", "show", "clsact")]
    return "".join([*map(host.ip, whats), "broadcasting" if any(filters) else ""])


def _ping(host: Namespace, *arguments: str) -> str:
    """The line of `ping` that tells how many of 50 were answered."""
    words = ("ping", "-q", "-c", "50", "-i", "0.02", "-W", "10", *arguments, str(PEER))
    return next(line for line in host.run(*words, check=False).splitlines() if "loss" in line)


@requires_kernel_feature("bridge")
def test_a_bridge_takes_its_port_and_gives_it_back(
    port: Port, make_autoip: MakeDaemon, stack: contextlib.ExitStack
) -> None:
    """What is on the port goes at once; the neighbour is reached by the bridge without any loss."""
    host = port.host
    far = port.switch.namespace
    far.ip(f"addr add {PEER}/16 brd + dev {port.far}")
    _bridge(host)
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    assert all(text in _set_up(host) for text in TRACES)
    said = len(daemon.lines)
    host.ip("link set eth0 master br0")
    daemon.wait_line("bound -> standby: belongs to br0", PATIENCE, since=said)
    wait_until(lambda: not any(text in _set_up(host) for text in TRACES), "nothing of ours")
    status = report(daemon, "eth0")
    assert (status["state"], status["why"], status["address"]) == (
        "standby",
        "belongs to br0",
        None,
    )

    bridge = stack.enter_context(
        Daemon(host, "br0", [*autoip_command(), "br0", "--delay", "50", "--ip", str(B)])
    )
    bridge.start()
    bridge.wait_line("announcing -> bound", PATIENCE)
    assert host.link_local("br0") == [B]
    assert "50 received" in _ping(host)
    assert run(daemon, "refresh eth0").status == 0
    assert "50 received" in _ping(host, "-I", "br0")
    assert host.link_local("eth0") == []
    assert bridge.stop() == 0

    mark = port.sniffer.mark()
    host.ip("link set eth0 nomaster")
    assert claimed(port, since=mark) == A
    assert len(port.sniffer.probes(A, mark)) == 3
    assert "50 received" in _ping(host)
    assert daemon.stop() == 0
    assert not [text for text in TRACES if text in _set_up(host)]


@requires_kernel_feature("bridge")
def test_a_port_from_the_start(port: Port, make_autoip: MakeDaemon) -> None:
    """By hand and by a hook alike: not one frame of ours, one line."""
    host = port.host
    _bridge(host)
    host.ip("link set eth0 master br0")
    wait_ready(port)
    mark = port.sniffer.mark()
    for options in ((), ("--hook",), ("--route-only",)):
        daemon = make_autoip(port, *(FAST if not options else ()), *options)
        daemon.start()
        daemon.wait_line("-> standby: belongs to br0", PATIENCE)
        status = report(daemon, "eth0")
        assert (status["state"], status["why"]) == ("standby", "belongs to br0")
        host.ip("link set eth0 mtu 1400")  # the link changes, what it belongs to does not
        host.ip("link set eth0 mtu 1500")
        assert daemon.stop() == 0
        assert len([line for line in daemon.lines if "belongs to br0" in line]) == 1
    assert not [f for f in port.sniffer.arp(mark) if f.is_probe or f.is_announcement]


@pytest.mark.parametrize("options", [(), ("--hook",)])
def test_a_tunnel(port: Port, make_autoip: MakeDaemon, options: tuple[str, ...]) -> None:
    """A hook is called for tunnels as well: that is no error, and the service manager starts nothing again."""
    port.host.ip("tuntap add name tun0 mode tun")
    daemon = make_autoip(port, *options)
    daemon.command = [word if word != "eth0" else "tun0" for word in daemon.command]
    with notify_socket() as manager:
        manager.setblocking(False)
        daemon.env["NOTIFY_SOCKET"] = manager.getsockname()
        daemon.start()
        assert daemon.wait() == (0 if options else 5)
        if options:
            assert manager.recv(100) == b"READY=1"
        with pytest.raises(BlockingIOError):
            manager.recv(100)
    assert "tun0: not an interface that speaks ARP" in daemon.output
    assert len(daemon.lines) == 1
