"""systemd-networkd with our scripts for networkd-dispatcher, on a D-Bus of the host's own."""

from __future__ import annotations

from tests.lab.client import Client
from tests.lab.networkd import NetworkdClient
from tests.lab.require import requires_program

from .fallback import Fallback
from .helpers import NETNS

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

    def give_up(self, client: Client) -> None:
        assert isinstance(client, NetworkdClient)
        client.networkctl("down", client.interface)
