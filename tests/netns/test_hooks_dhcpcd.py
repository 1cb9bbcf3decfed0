"""dhcpcd with our hook: the real programs on both sides of the cable."""

from __future__ import annotations

from tests.lab import Port
from tests.lab.client import Client
from tests.lab.dhcpcd import DhcpcdClient, give_own_hooks
from tests.lab.require import requires_program

from .fallback import Fallback
from .helpers import NETNS

pytestmark = [
    *NETNS,
    requires_program("dhcpcd", "dhcpcd-base"),
    requires_program("dhcpd", "isc-dhcp-server"),
]


class TestDhcpcd(Fallback):
    kind = DhcpcdClient
    name = "dhcpcd"
    bound = "BOUND"
    renewed = "RENEW"
    words = "run --hook --early"
    lease = DhcpcdClient.shortest_lease

    def prepare(self, port: Port) -> None:
        give_own_hooks(port.host)

    def give_up(self, client: Client) -> None:
        assert isinstance(client, DhcpcdClient)
        client.release()
        assert client.reasons()[-2:] == ["STOP", "STOPPED"]
