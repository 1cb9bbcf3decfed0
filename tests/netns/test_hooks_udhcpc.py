"""udhcpc with our wrapper of Debian's script: the real programs on both sides of the cable."""

from __future__ import annotations

from tests.lab import Port
from tests.lab.client import Client
from tests.lab.require import requires_program
from tests.lab.udhcpc import Udhcpc

from .fallback import Fallback
from .helpers import NETNS

pytestmark = [
    *NETNS,
    requires_program("udhcpc", "udhcpc"),
    requires_program("dhcpd", "isc-dhcp-server"),
]


class TestUdhcpc(Fallback):
    kind = Udhcpc
    name = "udhcpc"
    bound = "bound"
    renewed = "renew"
    words = "run --hook"
    lease = 10
    expires = False

    def give_up(self, client: Client) -> None:
        assert isinstance(client, Udhcpc)
        client.release()

    def provoke(self, port: Port) -> None:
        """It asks again by itself."""
