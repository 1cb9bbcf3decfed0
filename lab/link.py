"""Cables: a switch in a namespace of its own, and a veth pair from it to each host.

A test records and sends at the switch's end of each cable: a frame sent there arrives at that host alone, and what
the host sends is seen there whether or not the cable is plugged into the bridge.
"""

from __future__ import annotations

import itertools
import json
import socket
import time
from typing import final

from .namespace import PATIENCE, LabError, Namespace
from .neighbour import Neighbour, Rule
from .sniffer import Sniffer


@final
class Switch:
    """A namespace with a bridge `sw`; a host's port joins the bridge only when it is plugged in.

    `namespace`: somebody else's, instead of one of its own.
    """

    def __init__(self, namespace: Namespace | None = None) -> None:
        self._own = namespace is None
        self.namespace = namespace or Namespace("switch")
        self.ports: list[Port] = []
        self._numbers = itertools.count(1)
        self._bridge = False

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def bridge(self) -> str:
        """Return the bridge's name; make the bridge on first use. No spanning tree: a port forwards at once."""
        if not self._bridge:
            self.namespace.ip(
                "link add name sw type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            )
            self.namespace.ip("link set sw up")
            self._bridge = True
        return "sw"

    def attach(
        self,
        host: Namespace,
        name: str = "eth0",
        *,
        mac: str | None = None,
        up: bool = True,
        plugged: bool = False,
        sniff: bool = True,
    ) -> Port:
        """Return a cable to `host`, where it is the interface `name` (up to 15 characters)."""
        number = next(self._numbers)
        port = Port(self, host, name, number, mac or f"02:00:00:00:00:{number:02x}", up, sniff)
        self.ports.append(port)
        if plugged:
            port.plug()
        return port

    def close(self) -> None:
        """Remove everything. May be called twice."""
        for port in self.ports:
            port.close()
        if self._own:
            self.namespace.close()
        elif self._bridge:
            self.namespace.ip("link del sw")
            self._bridge = False


@final
class Port:
    """One cable. `host` and `name` are the host's end, `far` the switch's end."""

    def __init__(
        self,
        switch: Switch,
        host: Namespace,
        name: str,
        number: int,
        mac: str,
        up: bool,
        sniff: bool,
    ) -> None:
        self.switch = switch
        self.host = host
        self.name = name
        self.far = f"p{number}"
        self._far_index = 1000 + number
        self.mac = mac
        self.neighbours: list[Neighbour] = []
        self._far_mac = f"02:00:00:00:ff:{number:02x}"
        self._sniff = sniff
        self._sniffer: Sniffer | None = None
        self._socket: socket.socket | None = None
        self.create(up=up)

    def __repr__(self) -> str:
        return (
            f"<Port {self.far} of {self.switch.namespace.name} to {self.name} of {self.host.name}>"
        )

    @property
    def sniffer(self) -> Sniffer:
        """The recorder at the switch's end; it survives `delete` and `create`."""
        if self._sniffer is None:
            self._sniffer = Sniffer(self.switch.namespace, self.far)
        return self._sniffer

    # The cable

    def create(self, *, up: bool = True) -> None:
        """Make both ends (again, after `delete`), with the same names and MACs."""
        # Another index than the host's end: where a veth's two indexes are equal (each namespace counts from 2) the
        # kernel takes it for a plain device and reports its change of carrier only once a second.
        self.switch.namespace.ip(
            f"link add name {self.far} index {self._far_index} address {self._far_mac} type veth"
            f" peer name {self.name} address {self.mac} netns {self.host.path}"
        )
        self.switch.namespace.ip(f"link set {self.far} up")
        if self._sniffer is not None:
            self._sniffer.rebind()
        elif self._sniff:
            self._sniffer = Sniffer(self.switch.namespace, self.far)
        for neighbour in self.neighbours:
            neighbour.rebind()
        if up:
            self.up()

    def delete(self) -> None:
        """Remove both ends, as when the interface is pulled out of the machine."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.host.ip(f"link del {self.name}")

    def up(self) -> None:
        """Set the host's end up and wait until both ends carry frames: until then the kernel drops them silently."""
        self.host.ip(f"link set {self.name} up")
        self._wait_carries()

    def _wait_carries(self, timeout: float = PATIENCE) -> None:
        """Wait until the host's end carries frames; return at once if it is down."""
        if "UP" not in json.loads(self.host.ip(f"-j link show {self.name}"))[0]["flags"]:
            return
        until = time.monotonic() + timeout
        for namespace, name in ((self.switch.namespace, self.far), (self.host, self.name)):
            while True:
                [link] = json.loads(namespace.ip(f"-j link show {name}"))
                if link["operstate"] in ("UP", "DORMANT") and link["qdisc"] != "noop":
                    break
                if time.monotonic() > until:
                    raise LabError(f"{name} does not come up: {link}")
                time.sleep(0.005)

    def down(self) -> None:
        self.host.ip(f"link set {self.name} down")

    def carrier(self, on: bool) -> None:
        """Pull the cable at the switch's end, or put it back; the host's interface stays up."""
        self.switch.namespace.ip(f"link set {self.far} {'up' if on else 'down'}")
        if on:
            self._wait_carries()

    def dormant(self, on: bool) -> None:
        """Set the state before 802.1X or Wi-Fi association: carrier, without IFF_RUNNING, and operstate dormant."""
        if on:
            self.host.ip(f"link set {self.name} mode dormant state dormant")
        else:
            self.host.ip(f"link set {self.name} mode default state up")

    def set_mac(self, mac: str) -> None:
        """Set a new hardware address while the interface is up."""
        self.host.ip(f"link set {self.name} address {mac}")
        self.mac = mac

    def rename(self, name: str) -> None:
        """Set a new name while the interface is up, as kernels since 6.2 allow; older ones need it down."""
        try:
            self.host.ip(f"link set {self.name} name {name}")
        except LabError:
            self.down()
            self.host.ip(f"link set {self.name} name {name}")
            self.up()
        self.name = name

    def plug(self) -> None:
        """Put the cable into the bridge: the host gets the frames of the other plugged hosts."""
        self.switch.namespace.ip(f"link set {self.far} master {self.switch.bridge()}")

    def unplug(self) -> None:
        """Take the cable out of the bridge: alone, with carrier."""
        self.switch.namespace.ip(f"link set {self.far} nomaster")

    def lose(self, *, from_host: int = 0, to_host: int = 0) -> None:
        """Drop so many percent of the frames at random; 0, 0 ends it. Needs nft with the netdev family.

        The sniffer also records the dropped frames of the host: the tap comes before the rule.
        """
        for namespace, interface, percent in (
            (self.switch.namespace, self.far, from_host),
            (self.host, self.name, to_host),
        ):
            table = f"loss_{interface}"
            rules = f"add table netdev {table}\ndelete table netdev {table}\n"
            which = "" if percent == 100 else f"numgen random mod 100 < {percent}"
            if percent:
                rules += (
                    f"add table netdev {table}\n"
                    f'add chain netdev {table} in {{ type filter hook ingress device "{interface}"'
                    " priority 0; }\n"
                    f"add rule netdev {table} in {which} drop\n"
                )
            namespace.run("nft", "-f", "-", stdin=rules)

    # Sending

    def send(self, frame: bytes) -> None:
        """Send a frame to the host unchanged (14 bytes at least). Raises OSError."""
        if self._socket is None:
            sock = self.switch.namespace.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
            try:
                sock.bind((self.far, 0))
            except BaseException:
                sock.close()
                raise
            self._socket = sock
        self._socket.send(frame)

    def send_stamped(self, frame: bytes, timeout: float = PATIENCE) -> int:
        """Do as `send`; return the kernel's stamp of the frame that left (CLOCK_REALTIME, ns). ARP frames only."""
        since = self.sniffer.mark()
        self.send(frame)
        seen = self.sniffer.wait_for(
            lambda f: f.data == frame, timeout, since=since, from_host=False
        )
        return seen.ns

    def neighbour(self, *rules: Rule, mac: str = "02:00:00:00:00:fe") -> Neighbour:
        """Return a scripted host at the switch's end of this cable. It ends with the port."""
        neighbour = Neighbour(self.switch.namespace, self.far, *rules, mac=mac)
        self.neighbours.append(neighbour)
        return neighbour

    def close(self) -> None:
        """Stop the port's sniffer and neighbours; the cable itself goes with the namespaces."""
        for neighbour in self.neighbours:
            neighbour.close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._sniffer is not None:
            self._sniffer.close()
