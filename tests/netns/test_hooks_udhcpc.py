"""udhcpc with our wrapper of Debian's script: the real programs on both sides of the cable."""

from __future__ import annotations

import re
import time
from typing import ClassVar

from lab import AddressMonitor, Port, machine
from lab.client import Client
from lab.udhcpc import SCRIPT, Udhcpc
from tests.require import requires_program

from .conftest import MakeDaemon, MakeHost
from .fallback import MakeClient, MakesRoom, calls
from .helpers import NETNS, PEER, bind, configuration, wait_until
from .talk import Talk

pytestmark = [
    *NETNS,
    requires_program("udhcpc", "udhcpc"),
    requires_program("dhcpd", "isc-dhcp-server"),
]

FORMER = f"{SCRIPT}.before-autoip"


class TestUdhcpc(MakesRoom):
    kind = Udhcpc
    name = "udhcpc"
    bound = "bound"
    renewed = "renew"
    words = "run --hook --early"
    lease = 10
    expires = False
    events: ClassVar = {
        "deconfig": ["idle eth0"],
        "leasefail": ["start eth0"],
        "bound": ["keep eth0"],
        "renew": ["keep eth0"],
        "nak": [],
        "unknown": [],
    }

    def give_up(self, client: Client) -> None:
        assert isinstance(client, Udhcpc)
        client.release()

    def called(self, port: Port, words: str) -> list[str]:
        machine.write(port.host, FORMER, "#!/bin/sh\nexit 0\n", 0o755)
        return calls(port, SCRIPT, words, env={"interface": "eth0"})

    def test_the_former_script_sees_no_difference(
        self, port: Port, make_client: MakeClient
    ) -> None:
        """Parent, arguments, environment, descriptors, output, exit status: all but its own name."""
        host, _ = make_client(port, hooks=False)
        recorder = (
            "#!/bin/sh\necho $PPID $#; printf '<%s>' \"$@\"; env | sort; umask; pwd\n"
            "ls -l /proc/$$/fd >/run/fds; sed 's/.* //' /run/fds; read -r line; echo $line; exit 7\n"
        )
        machine.write(port.host, SCRIPT, recorder, 0o755)
        run = (
            "cd /tmp; umask 027; echo given >/run/given;"
            ' interface=eth0 ip="1 2" X= "$1" "$2" "a  b" "" 4>&1 </run/given;'
            ' echo $? $$ | tr -d "\\n"'
        )

        def said(event: str) -> str:
            bare = ("env", "-i", "PATH=/usr/bin:/bin", "LC_ALL=POSIX")
            text = port.host.run(*bare, "sh", "-c", run, "sh", SCRIPT, event)
            text = text.replace(FORMER, SCRIPT)
            own = text.split()[-1]
            return re.sub(rf"\b{own}\b", "PARENT", re.sub(r"pipe:\S+|/proc/\d+", "", text))

        events = ("deconfig", "leasefail", "bound", "renew", "nak")
        before = [said(event) for event in events]
        for text in before:
            assert "\ngiven\n7 PARENT" in text
        host.install("--client", self.name)
        for event, text in zip(events, before, strict=True):
            assert said(event).splitlines() == text.splitlines()
        host.hooks("remove")
        assert machine.read(port.host, SCRIPT) == recorder

    def test_an_address_before_udhcpc_gives_up(self, port: Port, make_client: MakeClient) -> None:
        """By its default time-outs udhcpc reports a failure only after 9 s, and its start as it reports a release."""
        host, client = make_client(port, config="after = 3\n")
        client.command = [client.path, "-f", "-i", "eth0"]
        client.start()
        start = client.wait_reason("deconfig")
        probe = port.sniffer.wait_probe(timeout=60)
        assert (probe.ns - start) / 1e9 >= 3
        assert host.wait_address(port) == probe.tpa
        assert client.reasons() == ["deconfig"]
        assert host.starts() == ["run --hook --early eth0"]
        client.wait_reason("leasefail")
        assert port.host.link_local("eth0") == [probe.tpa]
        assert host.complaints() == []

    def test_a_session_goes_on_beyond_deconfig(
        self, port: Port, make_client: MakeClient, make_host: MakeHost
    ) -> None:
        """udhcpc is started anew: deconfig, then leasefail, and again; a session from our address goes on."""
        peer = make_host(plugged=True)
        peer.host.ip(f"addr add {PEER}/16 dev eth0")
        host, client = make_client(port)
        client.start()
        address = host.wait_address(port)
        port.sniffer.wait_announcement(address, 60)
        (daemon,) = host.daemons("eth0")
        with Talk(peer.host, PEER, port.host, address) as talk:
            talk.alive()
            for _ in range(2):
                client.stop()
                since = len(client.reasons())
                client.start()
                client.wait_reason("deconfig", since=since)
                client.wait_reason("leasefail", since=since)
                talk.alive()
            time.sleep(16)  # no `idle` of before comes true
            talk.alive()
        assert host.daemons("eth0") == [daemon]
        assert host.complaints() == []

    def test_what_its_script_flushes_comes_back(
        self, port: Port, make_client: MakeClient, make_autoip: MakeDaemon
    ) -> None:
        """Debian's script takes all addresses and then all routes away when udhcpc begins."""
        _, client = make_client(port, hooks=False)
        daemon = make_autoip(port, "--delay", "100")
        address = bind(port, daemon)
        before = configuration(port.host)[:3]
        since = port.sniffer.mark()
        with AddressMonitor(port.host) as monitor:
            client.start()
            # It is there again a second later.
            monitor.wait_for(lambda added, entry: not added and entry.address == address, 60)
        client.wait_reason("deconfig")
        port.sniffer.wait_announcement(address, 60, since=since)
        wait_until(lambda: configuration(port.host)[:3] == before, "all as before")
        assert port.sniffer.probes(address, since) == []
        assert daemon.stop() == 0
