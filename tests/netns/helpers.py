"""What the tests of autoip on real interfaces share: starting it, waiting, and what is asserted often."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

import lab
from autoip.kernel import tcx
from lab import ArpFrame, Daemon, LabError, Namespace, Port, frames
from tests.require import requires_kernel_feature, requires_root

A = IPv4Address("169.254.20.20")
B = IPv4Address("169.254.33.44")
PEER = IPv4Address("169.254.77.77")
"""An address that some other host has."""
RIVAL = "02:00:00:00:00:aa"
"""The hardware address of a host that wants what we have."""
NEIGHBOUR = "02:00:00:00:00:fe"
"""The hardware address of a `Port.neighbour`."""
LINK_LOCAL = IPv4Network("169.254.0.0/16")
ETHERTYPE_IPV4 = 0x0800

NETNS = [requires_root, requires_kernel_feature("veth")]
"""The marks of every test here."""

PATIENCE = 30.0
"""Seconds to wait for what must come: long, since the machine may be busy, and never waited out."""


WITHOUT_BPF = ["setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-all", "--"]
"""Before a command, as in a container: the capabilities that load a program cannot be had."""
NO_TCX = "needs tcx of the kernel (Linux 6.6)"


def has_tcx(host: Namespace) -> bool:
    """Whether the kernel has tcx; else the reason to skip is NO_TCX."""
    try:
        host.call(tcx.programs, host.index("lo"), egress=True)
    except OSError:
        return False
    return True


def filters(host: Namespace, interface: str) -> list[str]:
    """The handles of our filters of tc at an interface's egress."""
    shown = host.run("tc", "-j", "filter", "show", "dev", interface, "egress")
    found = [one.get("options", {}) for one in json.loads(shown or "[]")]
    return [one["handle"] for one in found if one.get("bpf_name") == "autoip"]


def broadcasting(host: Namespace, interface: str) -> list[str]:
    """By what ARP leaves an interface by broadcast: "tcx", or "clsact" for each filter of ours."""
    found = ["clsact"] * len(filters(host, interface))
    if has_tcx(host) and host.call(tcx.programs, host.index(interface), egress=True)[1] is not None:
        found.append("tcx")
    return found


def autoip_command() -> list[str]:
    """How the tests start autoip: AUTOIP_COMMAND (shell words) or this Python's `-m autoip`."""
    return shlex.split(os.environ.get("AUTOIP_COMMAND", "")) or [sys.executable, "-m", "autoip"]


def python_for_all() -> list[str]:
    """As `lab.python_for_all`, or skip the test."""
    try:
        return lab.python_for_all()
    except LabError as error:
        pytest.skip(str(error))


def for_every_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start autoip by that Python from now on."""
    if not os.environ.get("AUTOIP_COMMAND"):
        command = shlex.join([*python_for_all(), "-m", "autoip"])
        monkeypatch.setenv("AUTOIP_COMMAND", command)


def wait_until(
    true: Callable[[], object], what: str, timeout: float = PATIENCE, *, pause: float = 0.01
) -> None:
    """Until `true()`, which is called every `pause` seconds. Raises LabError."""
    until = time.monotonic() + timeout
    while not true():
        if time.monotonic() > until:
            raise LabError(f"not within {timeout} s: {what}")
        time.sleep(pause)


def claim(port: Port, daemon: Daemon, *arguments: str) -> IPv4Address:
    """Starts autoip and waits for its first announcement; the address."""
    since = port.sniffer.mark()
    daemon.start(*arguments)
    return claimed(port, since=since)


def claimed(port: Port, *, since: int = 0) -> IPv4Address:
    """The address that is announced first after the mark. It is on the interface when this returns."""
    address = port.sniffer.wait_announcement(timeout=PATIENCE, since=since).spa
    assert address in port.host.link_local(port.name)
    return address


def reclaimed(port: Port, *, since: int) -> IPv4Address:
    """As `claimed`, after the next probe: the announcement that a claim before the mark still owes does not count."""
    probe = port.sniffer.wait_probe(timeout=PATIENCE, since=since)
    address = _announced(port, probe, since=since).spa
    assert address in port.host.link_local(port.name)
    return address


def _announced(port: Port, probe: ArpFrame, *, since: int) -> ArpFrame:
    return port.sniffer.wait_for(
        lambda f: f.is_announcement and f.ns > probe.ns, PATIENCE, since=since
    )


def claimed_other(port: Port, address: IPv4Address, *, since: int = 0) -> IPv4Address:
    """The address that is announced instead of `address`. It is alone on the interface when this returns."""
    other = port.sniffer.wait_for(
        lambda f: f.is_announcement and f.spa != address, PATIENCE, since=since
    ).spa
    assert other in port.host.link_local(port.name)
    assert address not in port.host.link_local(port.name)
    return other


def bind(port: Port, daemon: Daemon, *arguments: str) -> IPv4Address:
    """As `claim`, and waits for the last announcement: from then on there is silence."""
    since, said = port.sniffer.mark(), len(daemon.lines)
    address = claim(port, daemon, *arguments)
    seen = port.sniffer.wait_count(lambda f: f.is_announcement, 2, PATIENCE, since=since)
    assert [f.spa for f in seen] == [address, address]
    daemon.wait_line("announcing -> bound", PATIENCE, since=said)
    assert len(port.sniffer.announcements(since=since)) == 2
    return address


def wait_ready(port: Port) -> None:
    """Until the kernel calls the interface operational, so that autoip negotiates as soon as it runs."""

    def ready() -> bool:
        return bool(link(port.host, port.name)["operstate"] == "UP")

    wait_until(ready, f"{port.name} operational")


def link(namespace: Namespace, name: str) -> Any:
    """What `ip` says about an interface."""
    return json.loads(namespace.run("ip", "-j", "link", "show", "dev", name))[0]


def configuration(namespace: Namespace) -> list[str]:
    """All that autoip could have changed, as text."""
    whats = ("addr", "rule", "route show table all", "-d link", "neigh", "netconf")
    return [*map(namespace.ip, whats), namespace.run("tc", "qdisc")]


def after(seen: list[ArpFrame], frame: ArpFrame | int) -> list[ArpFrame]:
    """Those that came later than a frame, or than a stamp."""
    ns = frame if isinstance(frame, int) else frame.ns
    return [f for f in seen if f.ns > ns]


def probed(port: Port, address: IPv4Address, *, since: int = 0) -> list[ArpFrame]:
    """The three probes that came after the mark, and before the address was announced; no more, no less."""
    begun = port.sniffer.wait_probe(address, PATIENCE, since=since)
    first = _announced(port, begun, since=since)
    probes = [f for f in port.sniffer.probes(address, since) if f.ns < first.ns]
    assert len(probes) == 3, probes
    return probes


def harmless(host: str, address: IPv4Address, number: int = 0) -> dict[str, bytes]:
    """Frames that are no conflict for the host with the MAC `host`, whatever it does with `address`.

    Each has a hardware address of its own, which the log would name if it were taken for a conflict.
    """
    macs = iter(f"02:00:00:0{number}:ee:{n:02x}" for n in range(1, 100))
    make = frames.arp
    request, reply = frames.REQUEST, frames.REPLY
    good = frames.conflict_request(RIVAL, address)
    return {
        "a request for the address from a host with another": make(
            request, sha=next(macs), spa=PEER, tpa=address
        ),
        "the same, by unicast": make(
            request, sha=next(macs), spa=PEER, tpa=address, destination=host
        ),
        "a unicast probe": frames.probe(next(macs), address, destination=host),
        "a probe for another address": frames.probe(next(macs), PEER),
        "an announcement of another address": frames.announcement(next(macs), PEER),
        "a reply to the address from a host with another": make(
            reply, sha=next(macs), spa=PEER, tha=host, tpa=address, destination=host
        ),
        "a reply without sender address": make(
            reply, sha=next(macs), spa=frames.NO_ADDRESS, tpa=address
        ),
        "our announcement, echoed": frames.announcement(host, address),
        "our probe, echoed": frames.probe(host, address),
        "our reply, echoed to another host": frames.conflict_reply(
            host, address, destination=RIVAL
        ),
        "an echo with the sender of an access point": make(
            request, sha=host, spa=address, tpa=address, source=next(macs)
        ),
        "a conflict in another VLAN": frames.tagged(
            frames.conflict_request(next(macs), address), 5
        ),
        "a conflict for another host's ears": frames.conflict_reply(
            next(macs), address, destination="02:00:00:00:dd:dd"
        ),
        "RARP": make(3, sha=next(macs), spa=address, tpa=address),
        "InARP": make(9, sha=next(macs), spa=address, tpa=address),
        "another hardware type": good[:15] + b"\x06" + good[16:],
        "another protocol": good[:16] + b"\x86\xdd" + good[18:],
        "another hardware length": good[:18] + b"\x08" + good[19:],
        "another protocol length": good[:19] + b"\x10" + good[20:],
        "a byte too short": good[:41],
        "only a header": good[:14],
        "another Ethernet type": good[:12] + b"\x80\x35" + good[14:],
    }


@contextlib.contextmanager
def notify_socket() -> Iterator[socket.socket]:
    """A service manager's socket, which every user reaches, as that of systemd."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        Path(folder).chmod(0o755)
        receiver.bind(f"{folder}/notify")
        Path(folder, "notify").chmod(0o777)
        yield receiver
