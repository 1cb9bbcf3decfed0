"""Patterns instead of names: interfaces are served as the kernel makes, renames and removes them."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from lab import Daemon, Namespace, Port
from tests.require import requires_kernel_feature

from .conftest import MakeDaemon
from .helpers import NETNS, claimed, reclaimed, wait_until

pytestmark = [*NETNS, requires_kernel_feature("veth")]

FAST = ("--delay", "50")


def wait_address(host: Namespace, name: str) -> IPv4Address:
    """Until the interface has one link-local address, which it returns."""
    wait_until(lambda: host.link_local(name), f"{name} has an address")
    (address,) = host.link_local(name)
    return address


def served(daemon: Daemon) -> set[str]:
    """The interfaces that have a lock file or a control socket."""
    return {path.stem.partition("-")[2] for path in daemon.runtime.iterdir()}


def test_interfaces_come_are_renamed_and_go(port: Port, make_autoip: MakeDaemon) -> None:
    daemon = make_autoip(port, "usb*", *FAST)
    daemon.command[daemon.command.index("eth0")] = "eth*"
    daemon.start()
    first = claimed(port)
    host = port.host
    host.ip("link add usb3 address 02:00:00:00:00:77 type veth peer name far3")
    host.ip("link set far3 up")
    host.ip("link set usb3 up")
    address = wait_address(host, "usb3")
    assert host.link_local("far3") == [] and host.link_local("eth0") == [first]

    host.ip("link set usb3 down")
    host.ip("link set usb3 name lan3")
    wait_until(lambda: served(daemon) == {"eth0"}, "usb3 is released")
    host.ip("link set lan3 up")
    assert host.link_local("lan3") == []
    host.ip("link set lan3 down")
    host.ip("link set lan3 name usb4")
    host.ip("link set usb4 up")
    assert wait_address(host, "usb4") == address

    host.ip("link del usb4")
    wait_until(lambda: served(daemon) == {"eth0"}, "usb4 is released")
    assert host.link_local("eth0") == [first]
    assert daemon.stop() == 0
    assert host.link_local("eth0") == [] and served(daemon) == set()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_other_process_ends(port: Port, make_autoip: MakeDaemon, end: str) -> None:
    """At once, however it ends; the one that comes second does not touch the address before."""
    first, second = make_autoip(port, *FAST), make_autoip(port, *FAST)
    second.command[second.command.index("eth0")] = "eth*"
    second.env |= {name: first.env[name] for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY")}
    first.start()
    address = claimed(port)
    second.start()
    second.wait_line(rf"eth0: already running \(pid {first.pid}.*\); serves it when")
    assert port.host.link_local("eth0") == [address]
    mark = port.sniffer.mark()
    if end == "kill":
        first.kill()
    else:
        assert first.stop() == 0
    assert reclaimed(port, since=mark) == address
    assert second.stop() == 0
    assert port.host.link_local("eth0") == []
