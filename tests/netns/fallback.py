"""What the hooks of every DHCP client are to bring about: tests, to be had by inheritance.

The real client and a real server are on one switch. What differs between the clients is in the attributes and methods
that a subclass sets.
"""

from __future__ import annotations

import contextlib
import operator
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import ClassVar

import pytest

from lab import Dhcpd, LabError, Port, machine
from lab.client import Client

from .conftest import MakeHost
from .helpers import LINK_LOCAL, PEER, wait_until
from .hooked import CONFIG, LINGER, Hooked, MakeHooked, routable
from .talk import Talk

AFTER = 2
"""Seconds that a daemon waits which was started before DHCP had its chance, by the configuration of these hosts."""

MakeClient = Callable[..., tuple[Hooked, Client]]


class Fallback(ABC):
    """A link-local address when DHCP gives nothing, beside what it gives later, and nothing of the client's changed."""

    kind: ClassVar[type[Client]]
    name: ClassVar[str]
    """Of the client in `autoip hooks`."""
    bound: ClassVar[str]
    """The event that tells of a lease."""
    renewed: ClassVar[str]
    """The event that tells of a renewal; empty: the client tells nothing."""
    words: ClassVar[str]
    """How its hook has the daemon started."""
    events: ClassVar[Mapping[str, list[str]]]
    """What its hook calls of the shared script for each event, in words that `called` understands."""
    lease: ClassVar[int]
    """Seconds, where a lease is to run out."""
    expires: ClassVar[bool] = True
    """Whether the kernel takes the address off when the lease is over and the client is dead."""

    # --- what differs ----------------------------------------------------------------------------

    @abstractmethod
    def give_up(self, client: Client) -> None:
        """The client is told to let the interface go."""

    @abstractmethod
    def called(self, port: Port, words: str) -> list[str]:
        """What its hook calls at that event."""

    def second(self, client: Client, port: Port) -> Client:
        """Who serves a second interface of the host."""
        return self.kind(port)

    def superseded(self, host: Hooked, port: Port) -> IPv4Address:
        """Until a lease alone is on the interface; the lease."""
        # The address alone does not tell: some clients take it off, and it comes back.
        host.wait_state(port.name, "standby", LINGER + 60)
        host.wait_no_address(port)
        (lease,) = routable(port)
        return lease

    # --- the scene -------------------------------------------------------------------------------

    @pytest.fixture
    def make_client(
        self, make_host: MakeHost, make_hooked: MakeHooked, stack: contextlib.ExitStack
    ) -> MakeClient:
        """`make_client(port, hooks=True)`: that host, and the client on it, not started."""

        def make(
            port: Port, *, hooks: bool = True, config: str = f"after = {AFTER}\n"
        ) -> tuple[Hooked, Client]:
            host = make_hooked(port.host)
            machine.write(port.host, "/etc/autoip.conf", CONFIG + config)
            client = stack.enter_context(self.kind(port))
            if hooks:
                host.install("--client", self.name)
            return host, client

        return make

    @pytest.fixture
    def port(self, make_host: MakeHost) -> Port:
        return make_host(plugged=True)

    @pytest.fixture
    def server(self, make_host: MakeHost, stack: contextlib.ExitStack) -> Dhcpd:
        """Not started yet."""
        return stack.enter_context(Dhcpd(make_host(plugged=True)))

    # --- the tests -------------------------------------------------------------------------------

    def test_words(self, port: Port, make_client: MakeClient) -> None:
        make_client(port)
        assert {words: self.called(port, words) for words in self.events} == self.events

    @pytest.mark.parametrize("name", ["eth0", "fifteen-letters"])
    def test_no_server_then_a_lease_then_the_end(
        self, make_host: MakeHost, make_client: MakeClient, server: Dhcpd, name: str
    ) -> None:
        port = make_host(name, plugged=True)
        host, client = make_client(port)
        client.start()
        address = host.wait_address(port)
        assert host.starts() == [f"{self.words} {name}"]

        server.start()
        client.wait_reason(self.bound)
        (lease,) = routable(port)
        assert lease in server.network
        since = port.sniffer.mark()
        assert self.superseded(host, port) == lease
        assert port.host.ip("route show default").startswith(f"default via {server.address}")
        assert port.sniffer.probes(address, since) == []

        self.give_up(client)
        host.wait_ended(name)
        wait_until(lambda: port.host.addresses(name) == [], "no address at all")
        assert port.host.ip(f"rule show lookup {169254000 + port.host.index(name)}") == ""
        assert [words for words in host.starts() if words.startswith("run")] == [
            f"{self.words} {name}"
        ]
        assert host.complaints() == []

    @pytest.mark.long(60)
    def test_a_lease_then_renewals_then_none(
        self,
        port: Port,
        make_client: MakeClient,
        make_host: MakeHost,
        stack: contextlib.ExitStack,
    ) -> None:
        server = stack.enter_context(Dhcpd(make_host(plugged=True), lease=self.lease))
        host, client = make_client(port, config="")
        server.start()
        client.start()
        client.wait_reason(self.bound)
        (lease,) = routable(port)
        acknowledged = r"DHCPACK on .* to " + port.mac
        for _ in range(2):
            server.wait_line(acknowledged, 60, since=len(server.lines))
        # All is well, so there has never been anything of ours on the wire.
        assert port.host.link_local(port.name) == []
        assert [f for f in port.sniffer.probes() if f.tpa in LINK_LOCAL] == []
        if self.renewed:
            client.wait_reason(self.renewed)

        server.stop()
        address = host.wait_address(port, 120)
        wait_until(lambda: routable(port) == [], "the lease is off")
        lines = len(server.lines)
        server.start()
        server.wait_line(acknowledged, 120, since=lines)
        wait_until(lambda: routable(port) == [lease], "a lease again")
        self.superseded(host, port)
        # Renewals leave it at that.
        since = port.sniffer.mark()
        server.wait_line(acknowledged, 60, since=len(server.lines))
        assert port.sniffer.probes(address, since) == []
        assert port.host.link_local(port.name) == []
        assert host.complaints() == []

    def test_the_client_is_undisturbed(
        self, make_host: MakeHost, make_client: MakeClient, server: Dhcpd
    ) -> None:
        """co-dhcp: two hosts, one without autoip: what the client does and leaves is the same but for our address."""
        ports = [make_host(plugged=True) for _ in range(2)]
        (host, beside), (_, alone) = (
            make_client(port, hooks=hooks) for port, hooks in zip(ports, (True, False), strict=True)
        )
        beside.start()
        alone.start()
        host.wait_address(ports[0])
        assert ports[1].host.addresses("eth0") == []
        server.start()
        for client in (beside, alone):
            client.wait_reason(self.bound)
        self.alike(ports, beside, alone)
        self.superseded(host, ports[0])
        self.alike(ports, beside, alone)
        assert self.seen(ports[0], beside)["address"]
        self.give_up(beside)
        self.give_up(alone)
        host.wait_ended("eth0")
        wait_until(lambda: not any(p.host.addresses("eth0") for p in ports), "no address at all")
        self.alike(ports, beside, alone)

    def alike(self, ports: Sequence[Port], *clients: Client) -> None:
        """What the two clients have brought about is the same, as soon as the slower one has done it."""

        def seen() -> list[dict[str, object]]:
            return [self.seen(port, client) for port, client in zip(ports, clients, strict=True)]

        with contextlib.suppress(LabError):
            wait_until(lambda: operator.eq(*seen()), "the same on both hosts")
        one, other = seen()
        assert one == other

    def seen(self, port: Port, client: Client) -> dict[str, object]:
        """What the client has brought about."""
        own = str(next(iter(routable(port)), None))
        routes = port.host.ip("-4 route show table main").replace(own, "OWN").splitlines()
        entries = [entry for entry in port.host.addresses("eth0") if not entry.link_local]
        return {
            "address": [(e.prefixlen, e.scope, e.label, e.broadcast) for e in entries],
            "routes": sorted(line.strip() for line in routes if not line.startswith("169.254.")),
            "resolv.conf": machine.read(port.host, "/etc/resolv.conf"),
            "lease": client.lease(),
        }

    def test_the_carrier_is_lost(self, port: Port, make_client: MakeClient, server: Dhcpd) -> None:
        host, client = make_client(port)
        client.start()
        address = host.wait_address(port)
        port.carrier(False)
        host.wait_no_address(port)
        since = port.sniffer.mark()
        port.carrier(True)
        port.sniffer.wait_announcement(address, 60, since=since)
        assert len(port.sniffer.probes(address, since)) == 3
        assert port.host.link_local("eth0") == [address]
        server.start()
        client.wait_reason(self.bound, 120)
        self.superseded(host, port)
        port.carrier(False)
        port.carrier(True)
        wait_until(lambda: len(routable(port)) == 1, "a lease")
        assert host.starts() == [f"{self.words} eth0"]
        assert host.complaints() == []

    def test_the_client_is_killed(
        self,
        port: Port,
        make_client: MakeClient,
        make_host: MakeHost,
        stack: contextlib.ExitStack,
    ) -> None:
        """No hook is called: the daemon sees what the kernel does with the lease."""
        server = stack.enter_context(Dhcpd(make_host(plugged=True), lease=self.lease))
        host, client = make_client(port)
        client.start()
        address = host.wait_address(port)
        server.start()
        client.wait_reason(self.bound)
        lease = self.superseded(host, port)
        client.kill()
        if self.expires:
            assert host.wait_address(port, 120) == address
            assert routable(port) == []
        # It starts anew, and all is as it would have been without that.
        since = len(client.reasons())
        client.start()
        if self.expires:
            wait_until(lambda: routable(port) == [lease], "the lease", 120)
            assert self.superseded(host, port) == lease
        else:
            client.wait_reason(self.bound, since=since)
            assert routable(port) == [lease]
            host.wait_no_address(port, LINGER + 60)
        assert host.complaints() == []

    def test_connections_survive(
        self, port: Port, make_client: MakeClient, make_host: MakeHost, server: Dhcpd
    ) -> None:
        """co-session: one over link-local the arrival of a lease, one over the lease the release of link-local."""
        peer = make_host(plugged=True)
        peer.host.ip(f"addr add {PEER}/16 dev eth0")
        host, client = make_client(port)
        client.start()
        address = host.wait_address(port)
        with Talk(peer.host, PEER, port.host, address) as talk:
            talk.alive()
            server.start()
            client.wait_reason(self.bound)
            # Also while the client has taken the address off.
            talk.alive()
            wait_until(lambda: "connections use ours" in host.autoip("status", "eth0"), "draining")
            assert port.host.link_local("eth0") == [address]
            talk.alive()
            (lease,) = routable(port)
            beside = Talk(server.namespace, server.address, port.host, lease)
        with beside:
            beside.alive()
            assert self.superseded(host, port) == lease
            beside.alive()
        assert host.complaints() == []

    def test_the_client_starts_anew_at_once(self, port: Port, make_client: MakeClient) -> None:
        """Whatever its hooks say so fast, in the end one daemon has the address."""
        host, client = make_client(port)
        client.start()
        address = host.wait_address(port)
        port.sniffer.wait_announcement(address, 60)
        client.stop()
        client.start()
        wait_until(lambda: len(host.daemons("eth0")) == 1, "one daemon")
        since = port.sniffer.mark()
        port.carrier(False)
        host.wait_no_address(port)
        port.carrier(True)
        port.sniffer.wait_announcement(address, 90, since=since)
        # The one that ran before may still be about to stop.
        wait_until(lambda: len(host.daemons("eth0")) == 1, "one daemon in the end")
        wait_until(lambda: port.host.link_local("eth0") == [address], "its address")
        assert host.complaints() == []

    def test_the_daemon_is_killed(self, port: Port, make_client: MakeClient) -> None:
        """It is started again, without any event, and takes over what it had."""
        host, client = make_client(port)
        client.start()
        address = host.wait_address(port)
        port.sniffer.wait_announcement(address, 60)
        (daemon,) = host.daemons("eth0")
        os.kill(daemon, signal.SIGKILL)
        since = port.sniffer.mark()
        port.sniffer.wait_announcement(address, 60, since=since)
        assert port.host.link_local("eth0") == [address]
        assert len(host.daemons("eth0")) == 1
        assert daemon not in host.daemons("eth0")
        assert host.starts() == [f"{self.words} eth0", "run --hook eth0"]

    def test_when_our_side_is_broken_the_client_is_not(
        self, port: Port, make_client: MakeClient, server: Dhcpd
    ) -> None:
        host, client = make_client(port)
        server.start()
        broken = (
            "rm /etc/autoip/hook",
            "echo 'exit 1' >/etc/autoip/hook; chmod 755 /etc/autoip/hook",
            "echo '#!/nowhere' >/etc/autoip/hook",
        )
        for command in broken:
            port.host.run("sh", "-c", command)
            client.start()
            wait_until(lambda: len(routable(port)) == 1, "a lease")
            wait_until(lambda: port.host.ip("route show default"), "a default route")
            client.kill()
            port.host.ip("-4 addr flush dev eth0")
        assert host.starts() == []
        said = r"(?i)autoip.*(not found|no such file)|(not found|no such file).*autoip"
        with pytest.raises(LabError):
            client.wait_line(said, 0)

    def test_two_interfaces(
        self, port: Port, make_client: MakeClient, server: Dhcpd, stack: contextlib.ExitStack
    ) -> None:
        second = port.switch.attach(port.host, "eth1", plugged=False)
        host, client = make_client(port)
        other = self.second(client, second)
        if other is not client:
            stack.enter_context(other)
            other.start()
        client.start()
        address, elsewhere = host.wait_address(port), host.wait_address(second)
        assert address != elsewhere
        assert sorted(host.starts()) == [f"{self.words} eth0", f"{self.words} eth1"]
        # A lease on the one is no lease on the other.
        server.start()
        client.wait_reason(self.bound)
        self.superseded(host, port)
        assert port.host.link_local("eth1") == [elsewhere]
        self.give_up(client)
        host.wait_ended("eth0")
        assert port.host.link_local("eth1") == [elsewhere]
        assert len(host.daemons("eth1")) == 1
        assert host.complaints() == []


def calls(port: Port, *command: str, env: dict[str, str]) -> list[str]:
    """What a client's hook that is run in a bare environment calls of the shared script.

    It has to end with status 0 and without a word, though that fails and says something.
    """
    recorder = '#!/bin/sh\necho "$*" >>/run/calls\n'
    machine.write(
        port.host, "/etc/autoip/hook", recorder + "echo noise; echo noise >&2; exit 1\n", 0o755
    )
    machine.write(port.host, "/run/calls", "")
    words = [f"{name}={value}" for name, value in env.items()]
    said = port.host.run(
        "env", "-i", "PATH=/usr/bin:/bin", *words, "sh", "-c", '"$@" 2>&1', "sh", *command
    )
    assert said == ""
    return machine.read(port.host, "/run/calls").splitlines()


class MakesRoom(Fallback):
    """Whose hook is called before an address is set."""

    def test_a_lease_of_our_own_prefix(
        self,
        port: Port,
        make_client: MakeClient,
        make_host: MakeHost,
        stack: contextlib.ExitStack,
    ) -> None:
        """A server that gives link-local addresses away: the kernel wants one scope of all of a prefix."""
        server = stack.enter_context(Dhcpd(make_host(plugged=True), network=LINK_LOCAL))
        host, client = make_client(port)
        client.start()
        address = host.wait_address(port)
        server.start()
        client.wait_reason(self.bound)
        lease = server.leases()[port.mac]
        both = {address, lease}
        wait_until(lambda: set(port.host.link_local("eth0")) == both, "both addresses")
        assert len({entry.scope for entry in port.host.addresses("eth0")}) == 1
        wait_until(host.complaints, "the note, for which all processes are read")
        (note,) = host.complaints()
        assert f"somebody has put {lease}/16 on this interface as well" in note
