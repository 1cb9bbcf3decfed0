"""Two interfaces of one host on one link: RFC 3927, 3.4.

Linux answers ARP for each of its addresses on each of its interfaces, and asks with any of them as the sender. What the
two ports of one switch then hear of each other must be no conflict once an address is held, and must be one before.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any

import pytest

from lab import Daemon, Namespace, Port, Switch, frames
from tests.require import requires_kernel_feature

from .commands import report
from .conftest import MakeDaemon, MakeHost, autoip_command
from .helpers import NETNS, PATIENCE, PEER, RIVAL, A, bind, claimed, wait_ready, wait_until

pytestmark = NETNS

FAST = ("--delay", "50")
NOWHERE = IPv4Address("169.254.9.9")


@pytest.fixture
def ports(make_host: MakeHost, switch: Switch) -> tuple[Port, Port]:
    """eth0 and eth1 of one host, on one switch."""
    first = make_host(plugged=True)
    second = switch.attach(first.host, "eth1", plugged=True)
    for port in (first, second):
        wait_ready(port)
    return first, second


@pytest.fixture(params=["one process", "two processes"])
def daemons(
    request: pytest.FixtureRequest, ports: tuple[Port, Port], make_by: MakeDaemon
) -> Sequence[Daemon]:
    """For both interfaces, not started."""
    if request.param == "one process":
        return [make_by(ports[0], "eth1", *FAST)]
    return [make_by(port, *FAST) for port in ports]


def _wait_announced(port: Port, address: IPv4Address, since: int) -> None:
    """Until the last announcement: from then on only conflicts make frames."""
    port.sniffer.wait_count(
        lambda f: f.is_announcement and f.spa == address, 2, PATIENCE, since=since
    )


def _wait_said(port: Port, address: IPv4Address, since: int) -> None:
    """Until the kernel has asked by this port with an address that is not this port's."""
    port.sniffer.wait_for(lambda f: f.sha == port.mac and f.spa == address, PATIENCE, since=since)


def _wait_any(host: Namespace, name: str) -> None:
    wait_until(lambda: host.link_local(name), f"{name} has an address")


def _disputed(daemon: Daemon, name: str) -> dict[str, Any]:
    """The status once it has a conflict, which may have been answered before the event loop hears of it."""
    found: dict[str, Any] = {}

    def there() -> bool:
        found.update(report(daemon, name))
        return bool(found["conflicts"])

    wait_until(there, f"a conflict of {name}")
    return found


def _bound(ports: Sequence[Port], daemons: Sequence[Daemon]) -> list[IPv4Address]:
    marks = [port.sniffer.mark() for port in ports]
    for daemon in daemons:
        daemon.start()
    held = [claimed(port, since=mark) for port, mark in zip(ports, marks, strict=True)]
    for port, address, mark in zip(ports, held, marks, strict=True):
        _wait_announced(port, address, mark)
    return held


def _ask_from(host: Namespace, interface: str, source: IPv4Address) -> None:
    """Leaves by an interface that does not have the source: the kernel asks with that very address."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            sock.bind((str(source), 0))
            sock.sendto(b"x", (str(NOWHERE), 9))

    host.call(send)


def test_no_conflict_with_ourselves(ports: tuple[Port, Port], daemons: Sequence[Daemon]) -> None:
    """claim-echo, if-many: what the kernel says of one address on the other port is not defended against."""
    held = _bound(ports, daemons)
    assert held[0] != held[1]
    host = ports[0].host
    marks = [port.sniffer.mark() for port in ports]
    for index, port in enumerate(ports):
        other = ports[1 - index]
        _ask_from(host, port.name, held[1 - index])
        _wait_said(port, held[1 - index], marks[index])
        # And the answer by broadcast that section 2.5 demands: from the MAC of the wrong port.
        other.send(frames.conflict_reply(port.mac, held[1 - index]))
    # The last word on each link is another host's: it is answered, and nothing was before.
    for port, address, mark in zip(ports, held, marks, strict=True):
        port.send(frames.conflict_request(RIVAL, address))
        port.sniffer.wait_announcement(address, PATIENCE, since=mark)
        assert len([f for f in port.sniffer.announcements(since=mark) if f.spa == address]) == 1
    for port, daemon in zip(ports, [*daemons, *daemons], strict=False):
        status = _disputed(daemon, port.name)
        assert status["conflicts"] == 1
        assert status["last_conflict"]["mac"] == RIVAL
    assert [host.link_local(port.name) for port in ports] == [[one] for one in held]


@pytest.mark.parametrize(("all_", "own"), [(1, 0), (0, 1), (2, 1), (0, 2), (0, 0)])
def test_strict_rp_filter_is_a_limit(
    ports: tuple[Port, Port], make_autoip: MakeDaemon, all_: int, own: int
) -> None:
    host = ports[0].host
    for name, value in {"all": all_, "eth0": own, "eth1": own}.items():
        host.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter={value}")
    ports[1].host.ip(f"addr add {PEER}/16 dev eth1")
    daemon = make_autoip(ports[0], *FAST)
    bind(ports[0], daemon)

    def found() -> list[str]:
        return [limit for limit in report(daemon)["limits"] if "rp_filter" in limit]

    strict = max(all_, own) == 1
    assert len(found()) == strict
    for limit in found():
        host.run("sysctl", "-qw", limit.rpartition("sysctl -w ")[2])
    assert found() == []


def test_new_hardware_address_of_the_other(ports: tuple[Port, Port], make_by: MakeDaemon) -> None:
    """claim-echo: the helper learns of hardware addresses that change, also of interfaces not served."""
    port, other = ports
    daemon = make_by(port, *FAST, "--ip", str(A))
    bind(port, daemon)
    other.set_mac("02:00:00:00:0e:0e")

    # The kernel's words come in order: who knows of this address knows of the new MAC.
    port.host.ip("addr add 192.0.2.5/24 dev eth0")
    wait_until(lambda: report(daemon, "eth0")["others"], "the daemon has heard")
    since = port.sniffer.mark()
    port.send(frames.conflict_reply(other.mac, A))
    port.send(frames.conflict_request(RIVAL, A))
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    status = _disputed(daemon, "eth0")
    assert (status["conflicts"], status["last_conflict"]["mac"]) == (1, RIVAL)
    # The former one is nobody's of this host any more: the second conflict in a row.
    port.send(frames.conflict_reply("02:00:00:00:00:02", A))
    assert daemon.wait_address(other_than=A) != A


def test_one_candidate_at_one_moment(ports: tuple[Port, Port], make_autoip: MakeDaemon) -> None:
    """if-many: two processes with one first candidate and no way to hear each other: two addresses."""
    # Not on one switch: what one sends is not heard by the other, as with a bridge and its port.
    for port in ports:
        port.unplug()
    daemons = [make_autoip(port, *FAST, "--ip", str(A)) for port in ports]
    for daemon in daemons:
        daemon.start()
    host = ports[0].host

    def settled() -> bool:
        held = [host.link_local(port.name) for port in ports]
        return all(len(one) == 1 for one in held) and held[0] != held[1]

    for daemon in daemons:
        daemon.wait_line("-> bound", PATIENCE)
    wait_until(settled, "two different addresses")


def _served_with(port: Port, daemons: Sequence[Daemon], names: Sequence[str]) -> None:
    for daemon in daemons:
        daemon.start()
    host = port.host

    def settled() -> bool:
        held = [host.link_local(name) for name in names]
        return all(len(one) == 1 for one in held) and held[0] != held[1]

    for name in names:
        _wait_any(host, name)
    wait_until(settled, "two different addresses")
    for daemon, name in zip(daemons, names, strict=True):
        daemon.wait_line("-> bound", PATIENCE)
        status = report(daemon, name)
        assert status["address"] == str(host.link_local(name)[0])
        assert status["defences"] == 0
    assert settled()


@requires_kernel_feature("macvlan")
def test_macvlan_and_its_parent(
    port: Port, make_autoip: MakeDaemon, stack: contextlib.ExitStack
) -> None:
    """3.4: parent and child are one wire's, but do not hear each other."""
    host = port.host
    host.ip("link add link eth0 name mv0 type macvlan mode bridge")
    host.ip("link set mv0 up")
    ip = ("--ip", str(A))
    child = stack.enter_context(Daemon(host, "mv0", [*autoip_command(), "mv0", *FAST, *ip]))
    _served_with(port, [make_autoip(port, *FAST, *ip), child], ["eth0", "mv0"])
    # A neighbour reaches both, and none of them takes the other's answer for a conflict.
    far = port.switch.namespace
    far.ip(f"addr add {PEER}/16 brd + dev {port.far}")
    for name in ("eth0", "mv0"):
        far.run("ping", "-c", "1", "-W", "5", str(host.link_local(name)[0]))
