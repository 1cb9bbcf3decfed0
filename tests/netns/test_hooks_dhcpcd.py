"""dhcpcd with our hook: the real programs on both sides of the cable."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import Dhcpd, Port
from tests.lab.dhcpcd import DhcpcdClient, give_own_hooks
from tests.lab.require import requires_program

from .conftest import MakeHost
from .helpers import NETNS
from .hooked import LINGER, Hooked, hooked, routable

pytestmark = [
    *NETNS,
    requires_program("dhcpcd", "dhcpcd-base"),
    requires_program("dhcpd", "isc-dhcp-server"),
]

AFTER = 2
CONFIG = f"[*]\ndelay = 100\nlinger = {LINGER}\nafter = {AFTER}\n"

MakeHooked = Callable[..., Hooked]


@pytest.fixture
def make_hooked(stack: contextlib.ExitStack, tmp_path: Path) -> MakeHooked:
    numbers = iter(range(100))

    def make(port: Port) -> Hooked:
        folder = tmp_path / f"hooked{next(numbers)}"
        folder.mkdir()
        give_own_hooks(port.host)
        made = hooked(port.host, folder, config=CONFIG)
        stack.enter_context(made.syslog)
        return made

    return make


@pytest.fixture
def port(make_host: MakeHost) -> Port:
    return make_host(plugged=True)


@pytest.fixture
def host(port: Port, make_hooked: MakeHooked) -> Hooked:
    made = make_hooked(port)
    made.install("--client", "dhcpcd")
    return made


@pytest.fixture
def client(port: Port, host: Hooked, stack: contextlib.ExitStack) -> DhcpcdClient:
    return stack.enter_context(DhcpcdClient(port))


@pytest.fixture
def server(make_host: MakeHost, stack: contextlib.ExitStack) -> Dhcpd:
    return stack.enter_context(Dhcpd(make_host(plugged=True), lease=20))


def test_no_server_then_one_then_release(
    port: Port, host: Hooked, client: DhcpcdClient, server: Dhcpd
) -> None:
    client.start()
    client.wait_reason("CARRIER")
    address = host.wait_address(port)
    assert host.starts() == ["run --hook --early eth0"]

    server.start()
    client.wait_reason("BOUND")
    (lease,) = routable(port)
    client.wait_reason("IPV4LL")
    host.wait_no_address(port, LINGER + 60)
    assert routable(port) == [lease]
    host.wait_state("eth0", "standby")

    client.release()
    host.wait_ended("eth0")
    assert port.host.addresses("eth0") == []
    print(client.reasons())
    print(client.output)
    assert host.syslog.lines == []
    assert 0
