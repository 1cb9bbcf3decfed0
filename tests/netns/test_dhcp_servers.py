"""The laboratory's DHCP servers: what the tests of the hooks take for granted."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from lab import DHCP_SERVERS, Dhcpd, DhcpServer, Port
from tests.require import requires_program

from .conftest import MakeHost
from .helpers import NETNS

pytestmark = [*NETNS, requires_program("udhcpc", "udhcpc")]
SERVERS = [
    pytest.param(server, marks=requires_program(server.program, server.package), id=name)
    for name, server in DHCP_SERVERS.items()
]


def ask(port: Port, folder: Path) -> dict[str, str]:
    """What a client is told that asks once and configures nothing; empty if nobody answers."""
    script = folder / "script"
    script.write_text('#!/bin/sh\necho "event=$1"; env\n')
    script.chmod(0o755)
    command = ["udhcpc", "-f", "-q", "-n", "-t", "2", "-T", "1", "-i", port.name, "-s"]
    told = port.host.run(*command, str(script), check=False)
    if "event=bound" not in told:
        return {}
    lines = told[told.index("event=bound") :].splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.mark.parametrize("kind", SERVERS)
def test_a_lease_and_what_belongs_to_it(
    kind: type[DhcpServer],
    make_host: MakeHost,
    tmp_path: Path,
    stack: contextlib.ExitStack,
) -> None:
    lease = max(kind.shortest_lease, 7)
    client = make_host(plugged=True)
    server = stack.enter_context(kind(make_host(plugged=True), lease=lease))
    assert ask(client, tmp_path) == {}

    server.start()
    told = ask(client, tmp_path)
    first, last = server.pool
    assert first <= server.leases()[client.mac] <= last
    assert told["ip"] == str(server.leases()[client.mac])
    assert told["lease"] == str(lease)
    assert told["mask"] == "24"
    assert told["router"] == told["serverid"] == told["dns"] == str(server.address)

    assert server.stop() in (0, -15)
    assert ask(client, tmp_path) == {}
    # It knows its clients again after a crash.
    server.start()
    server.kill()
    server.set_lease(lease + 5)
    server.start()
    again = ask(client, tmp_path)
    assert again["ip"] == told["ip"]
    assert int(again["lease"]) == lease + 5


@pytest.mark.parametrize("kind", SERVERS)
def test_without_a_router(
    kind: type[DhcpServer],
    make_host: MakeHost,
    tmp_path: Path,
    stack: contextlib.ExitStack,
) -> None:
    port = make_host(plugged=True)
    server = stack.enter_context(kind(port, lease=200, network="192.0.2.0/24", router=False))
    server.start()
    told = ask(make_host(plugged=True), tmp_path)
    assert told["ip"].startswith("192.0.2.1")
    assert "router" not in told


def test_a_lease_that_is_too_short_is_refused(make_host: MakeHost) -> None:
    with pytest.raises(ValueError, match="no lease under 120 s"):
        DHCP_SERVERS["dnsmasq"](make_host(), lease=119)


def test_a_lease_that_ran_out_or_was_given_back_is_none(
    make_host: MakeHost, stack: contextlib.ExitStack
) -> None:
    server = stack.enter_context(Dhcpd(make_host(plugged=True)))
    entry = "lease {} {{\n  binding state {};\n  hardware ethernet {};\n}}\n".format
    server.lease_file.write_text(
        entry("10.77.0.100", "active", "02:00:00:00:00:01")
        + entry("10.77.0.101", "active", "02:00:00:00:00:02")
        + entry("10.77.0.100", "free", "02:00:00:00:00:01")
    )
    assert {mac: str(address) for mac, address in server.leases().items()} == {
        "02:00:00:00:00:02": "10.77.0.101"
    }
