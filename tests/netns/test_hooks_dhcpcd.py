"""dhcpcd with our hook: the real programs on both sides of the cable."""

from __future__ import annotations

import contextlib
import re
from typing import ClassVar

import pytest

from lab import AddressMonitor, Dhcpd, Port, machine
from lab.client import Client
from lab.dhcpcd import CONFIG as CONFIG_FILE
from lab.dhcpcd import DhcpcdClient
from tests.require import requires_program

from .conftest import MakeDaemon
from .fallback import Fallback, MakeClient, calls
from .helpers import NETNS, wait_until
from .hooked import routable

pytestmark = [
    *NETNS,
    requires_program("dhcpcd", "dhcpcd-base"),
    requires_program("dhcpd", "isc-dhcp-server"),
]

HOOK = "/lib/dhcpcd/dhcpcd-hooks/90-autoip"


class TestDhcpcd(Fallback):
    kind = DhcpcdClient
    name = "dhcpcd"
    bound = "BOUND"
    renewed = "RENEW"
    words = "run --hook --early"
    lease = DhcpcdClient.shortest_lease
    events: ClassVar = {
        "PREINIT": [],
        "CARRIER": ["early eth0"],
        "NOCARRIER ifcarrier=down if_down=true": [],
        "BOUND if_up=true": [],
        "RENEW if_up=true": [],
        "EXPIRE if_down=true": ["start eth0"],
        "EXPIRE if_down=true ifcarrier=down": [],
        "NAK if_down=true": ["start eth0"],
        "IPV4LL if_up=true": ["stop eth0"],
        "IPV4LL if_down=true": [],
        "STOP if_down=true": ["stop eth0"],
        "STOPPED": [],
        "DEPARTED if_down=true": ["stop eth0"],
        "TEST": [],
        "BOUND6 if_up=true": [],
        "STOP6 if_down=true": [],
        "ROUTERADVERT if_up=true": [],
    }

    def give_up(self, client: Client) -> None:
        assert isinstance(client, DhcpcdClient)
        client.release()
        assert client.reasons()[-2:] == ["STOP", "STOPPED"]

    def called(self, port: Port, words: str) -> list[str]:
        """It is read, not run: nothing may be left of it, and it may end nothing, whatever options are set."""
        reason, *more = words.split()
        env = {"interface": "eth0", "ifcarrier": "up", "if_up": "false", "if_down": "false"}
        env |= {"reason": reason, **dict(word.split("=") for word in more)}
        script = """
            set -eu
            all=
            all=$(set)
            . "$1"
            case $- in *e*u* | *u*e*) ;; *) echo "options: $-" ;; esac
            [ "$all" = "$(all= && set)" ] || set
        """
        return calls(port, "sh", "-c", script, "sh", HOOK, env=env)

    @pytest.mark.parametrize("by_hand", [False, True])
    def test_what_it_deletes_comes_back(
        self,
        port: Port,
        make_client: MakeClient,
        make_autoip: MakeDaemon,
        server: Dhcpd,
        by_hand: bool,
    ) -> None:
        """With a lease dhcpcd deletes every link-local address; `alongside` ours is there again a second later."""
        server.set_lease(self.lease)
        host, client = make_client(port, hooks=not by_hand, config="policy = alongside\n")
        daemon = make_autoip(port, "--delay", "100")
        if by_hand:
            daemon.start()
            daemon.wait_address(30)
            # An address that is there at its start dhcpcd does not know, and so does not delete.
            port.carrier(False)
            daemon.wait_no_address()
        client.start()
        if by_hand:
            client.wait_reason("NOCARRIER")
            port.carrier(True)
        address = host.wait_address(port)
        port.sniffer.wait_announcement(address, 60)
        with AddressMonitor(port.host) as monitor:
            server.start()
            client.wait_reason("IPV4LL", 120)
            since = port.sniffer.mark()
            port.sniffer.wait_announcement(address, 60, since=since)
            assert port.host.link_local("eth0") == [address]
            assert len(routable(port)) == 1
            for _ in range(2):
                client.wait_reason("RENEW", since=len(client.reasons()))
            assert port.host.link_local("eth0") == [address]
            ours = [added for _, added, entry in monitor.events() if entry.link_local]
        assert ours == [False, True]
        assert port.sniffer.probes(address, since) == []
        assert len(port.host.ip("rule show").splitlines()) == 4
        self.give_up(client)
        if by_hand:
            wait_until(lambda: port.host.link_local("eth0") == [address], "the address again")
            assert daemon.stop() == 0
        else:
            host.wait_ended("eth0")
        assert port.host.addresses("eth0") == []

    def test_its_end_with_persistent(self, port: Port, make_client: MakeClient) -> None:
        """Debian's configuration: dhcpcd leaves what it has set up, and so does the hook; a release ends both."""
        host, client = make_client(port)
        machine.write(port.host, CONFIG_FILE, "ipv4only\nnoipv4ll\nduid\npersistent\n")
        client.start()
        address = host.wait_address(port)
        client.stop()
        assert "STOP" not in client.reasons()
        lines = len(client.lines)
        client.start()
        client.wait_line("sending DISCOVER", 30, since=lines)
        assert port.host.link_local("eth0") == [address]
        assert host.starts() == [f"{self.words} eth0"]
        self.give_up(client)
        host.wait_ended("eth0")
        assert port.host.addresses("eth0") == []

    def test_it_has_a_link_local_address_itself(
        self, port: Port, make_client: MakeClient, stack: contextlib.ExitStack
    ) -> None:
        """Its configuration does not say `noipv4ll`: the hook stays away, for dhcpcd would fail beside ours."""
        host, _ = make_client(port)
        client = stack.enter_context(DhcpcdClient(port, ipv4ll=True))
        client.start()
        client.wait_reason("IPV4LL", 120)
        (address,) = port.host.link_local("eth0")
        client.wait_line(f"using IPv4LL address {re.escape(str(address))}$")
        assert [words for words in host.starts() if words.startswith("run")] == []

    def test_it_has_one_against_its_configuration(
        self, port: Port, make_client: MakeClient, stack: contextlib.ExitStack
    ) -> None:
        """It was started with another: it takes our address for its own, and autoip ends as soon as that is told."""
        host, _ = make_client(port)
        client = stack.enter_context(DhcpcdClient(port, ipv4ll=True))
        machine.write(port.host, "/run/dhcpcd.conf", machine.read(port.host, CONFIG_FILE))
        machine.write(port.host, CONFIG_FILE, "noipv4ll\n")
        client.start("--config", "/run/dhcpcd.conf")
        client.wait_reason("IPV4LL", 120)
        host.wait_ended("eth0")
        wait_until(lambda: len(port.host.link_local("eth0")) == 1, "dhcpcd's own", 120)
        assert host.daemons("eth0") == []
        assert [words for words in host.starts() if words.startswith("run")] == [
            f"{self.words} eth0"
        ]

    def test_its_configuration(self, port: Port, make_client: MakeClient) -> None:
        make_client(port)
        env = {"interface": "eth0", "ifcarrier": "up", "if_up": "false", "reason": "CARRIER"}
        expected: dict[str | None, list[str]] = {
            "": [],
            "noipv4ll": ["early eth0"],
            "  noipv4ll # why": ["early eth0"],
            "#noipv4ll": [],
            "noipv4llx": [],
            "interface eth0\nnoipv4ll": ["early eth0"],
            "interface eth1\nnoipv4ll": [],
            "interface eth1\nnoipv4ll\ninterface eth0\nnoipv4ll": ["early eth0"],
            "interface eth0\nssid home\nnoipv4ll": [],
            "profile eth0\nnoipv4ll": [],
            None: [],
        }
        for config, called in expected.items():
            machine.write(port.host, CONFIG_FILE, f"{config}\n")
            if config is None:
                port.host.run("rm", CONFIG_FILE)
            assert calls(port, "sh", HOOK, env=env) == called, config
