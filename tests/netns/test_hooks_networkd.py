"""systemd-networkd with our scripts for networkd-dispatcher, on a D-Bus of the host's own."""

from __future__ import annotations

import time
from typing import ClassVar

import pytest

from lab import Port, machine
from lab.client import Client
from lab.networkd import NetworkdClient
from tests.require import requires_program

from .fallback import Fallback, MakeClient, calls
from .helpers import NETNS, wait_until
from .hooked import routable

pytestmark = [
    *NETNS,
    requires_program("systemd-networkd", "systemd"),
    requires_program("networkd-dispatcher", "networkd-dispatcher"),
    requires_program("dbus-daemon", "dbus"),
    requires_program("dhcpd", "isc-dhcp-server"),
]


class TestNetworkd(Fallback):
    kind = NetworkdClient
    name = "networkd-dispatcher"
    bound = "routable"
    renewed = ""
    words = "run --hook --early"
    lease = 10
    events: ClassVar = {
        "configuring configuring": ["early eth0"],
        "carrier configuring": ["early eth0"],
        "degraded configuring": ["early eth0"],
        "routable configuring": ["early eth0"],
        "off configured": ["stop eth0"],
        "no-carrier configured": [],
        "carrier unmanaged": [],
        "routable unmanaged": [],
        "off unmanaged": [],
    }

    def second(self, client: Client, port: Port) -> Client:
        """One networkd serves all."""
        assert isinstance(client, NetworkdClient)
        client.serve(port.name)
        return client

    def give_up(self, client: Client) -> None:
        assert isinstance(client, NetworkdClient)
        client.networkctl("down", client.interface)

    def called(self, port: Port, words: str) -> list[str]:
        """Whichever folder it is in."""
        state, administrative = words.split()
        env = {"IFACE": "eth0", "STATE": state, "AdministrativeState": administrative}
        (called,) = {
            tuple(calls(port, f"/etc/networkd-dispatcher/{folder}.d/autoip", env=env))
            for folder in ("configuring", "carrier", "degraded", "routable", "off")
        }
        return list(called)

    def test_an_interface_that_it_does_not_manage(
        self, port: Port, make_client: MakeClient
    ) -> None:
        second = port.switch.attach(port.host, "eth1")
        host, client = make_client(port)
        client.start()
        host.wait_address(port)
        # Told of at the dispatcher's start, and now as well.
        second.carrier(False)
        second.carrier(True)
        assert isinstance(client, NetworkdClient)
        client.dispatcher.wait_line("carrier.d/autoip' for interface eth1")
        assert host.starts() == [f"{self.words} eth0"]
        assert port.host.link_local("eth1") == []

    @pytest.mark.parametrize("named", [False, True])
    def test_a_link_without_dhcp(self, port: Port, make_client: MakeClient, named: bool) -> None:
        """It is configured by hand, and stays as it is, unless autoip's configuration has a section for it."""
        host, client = make_client(port, config="[eth0]\nlinger = 3\n" if named else "")
        assert isinstance(client, NetworkdClient)
        client.serve("eth0", "DHCP=ipv6\nIPv6AcceptRA=no")
        drop_in = "/etc/systemd/network/10-eth0.network.d/later.conf"
        machine.write(port.host, drop_in, "[Network]\nDHCP = no\n[DHCPv4]\nDHCP=yes\n")
        client.start()
        client.wait_reason("degraded")
        if named:
            host.wait_address(port)
            return
        time.sleep(3)
        assert host.starts() == []
        machine.write(port.host, drop_in, "[Network]\nDHCP=yes\n")
        client.networkctl("reload")
        host.wait_address(port)
        assert host.starts() == [f"{self.words} eth0"]

    def test_routable_by_ipv6_alone(self, port: Port, make_client: MakeClient) -> None:
        host, client = make_client(port)
        assert isinstance(client, NetworkdClient)
        client.serve("eth0", "DHCP=ipv4\nAddress=2001:db8::5/64")
        client.start()
        client.wait_reason("routable")
        host.wait_address(port)
        assert routable(port) == []

    def test_reconfigured(self, port: Port, make_client: MakeClient) -> None:
        """networkd takes off what it does not know, and it comes back."""
        host, client = make_client(port)
        assert isinstance(client, NetworkdClient)
        client.start()
        address = host.wait_address(port)
        port.sniffer.wait_announcement(address, 60)
        since = port.sniffer.mark()
        client.networkctl("reconfigure", "eth0")
        port.sniffer.wait_announcement(address, 60, since=since)
        wait_until(lambda: port.host.link_local("eth0") == [address], "the address again")
        assert host.starts() == [f"{self.words} eth0"]
