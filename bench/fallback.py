"""Beside each DHCP client: how soon an address is there without a server, and what happens when one answers.

The table is written into docs/dhcp.md.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lab import AddressMonitor, Daemon, Dhclient, Dhcpd, LabError, Namespace, Port, Switch, machine
from lab import NetworkManager as Manager
from lab.dhcpcd import DhcpcdClient
from lab.networkd import NetworkdClient
from lab.networkmanager import SystemBus
from lab.udhcpc import Udhcpc

from .report import Result, Target
from .setting import AUTOIP, Setting

NAME = "fallback"

PAGE = Path(__file__).resolve().parents[1] / "docs" / "dhcp.md"
SOON = "after = 3\ndelay = 200\n"
LIMIT = 17.0
"""Seconds from the client's start to an address: `after` and a claim, by default; and a second of the machine's own."""
LINGER = 5
_PATIENCE = 120

# In the place of the script that all hooks call: notes the request and the event, then executes that script.
_RECORDER = """#!/bin/sh
event=${reason:-${STATE:-${NM_DISPATCHER_ACTION:-${PHASE:-}}}}
[ -n "$event" ] || event=$(tr '\\0' '\\n' <"/proc/$PPID/cmdline" | tail -n 1)
echo "$1 at $event" >>/run/requests
exec /etc/autoip/hook.real "$@"
"""


class Way(ABC):
    """One DHCP client on a host of its own, with its default time-outs. A subclass for each client."""

    name: ClassVar[str]
    named = False
    """Whether the interface's service runs, as `hooks install IFACE` enables it."""

    def __init__(self, port: Port, stack: contextlib.ExitStack) -> None:
        self.port = port
        self.host = port.host
        self.stack = stack

    @abstractmethod
    def start(self) -> None:
        """Start the client."""

    @abstractmethod
    def stop(self) -> None:
        """Have the client give its lease and the interface up."""

    def prepare(self) -> None:  # noqa: B027 (most need nothing)
        """Give the host what the client needs, before the hooks are installed."""

    def prepare_service(self) -> None:  # noqa: B027 (most need nothing)
        """Start what runs before the client begins, after the hooks were installed."""


class _Dhclient(Way):
    name = "dhclient"

    def start(self) -> None:
        self.client = self.stack.enter_context(Dhclient(self.port, timeout=60, retry=300))
        self.client.start()

    def stop(self) -> None:
        self.client.ask("-r")


class _Ifupdown(Way):
    name = "ifupdown"

    def prepare(self) -> None:
        machine.write(self.host, "/etc/network/interfaces", "iface eth0 inet dhcp\n")
        # The time-out is dhclient's default.
        machine.write(self.host, "/etc/dhcp/dhclient.conf", "select-timeout 0;\nrequest routers;\n")

    def start(self) -> None:
        self.host.popen(["ifup", "eth0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self.host.run("ifdown", "eth0", timeout=_PATIENCE)


class _Dhcpcd(Way):
    name = "dhcpcd"

    def start(self) -> None:
        self.client = self.stack.enter_context(DhcpcdClient(self.port))
        self.client.start()

    def stop(self) -> None:
        self.client.release()


class _Udhcpc(Way):
    name = "udhcpc"

    def prepare(self) -> None:
        self.client = self.stack.enter_context(Udhcpc(self.port))
        self.client.command = [self.client.path, "-f", "-i", "eth0"]

    def start(self) -> None:
        self.client.start()

    def stop(self) -> None:
        self.client.release()


class _Networkd(Way):
    name = "networkd-dispatcher"

    def start(self) -> None:
        self.client = self.stack.enter_context(NetworkdClient(self.port))
        self.client.start()

    def stop(self) -> None:
        self.client.networkctl("down", "eth0")


class _NetworkManager(Way):
    name = "networkmanager"
    named = True

    def prepare(self) -> None:
        bus = self.stack.enter_context(SystemBus(self.host))
        self.manager = self.stack.enter_context(Manager(self.host))
        bus.start()

    def prepare_service(self) -> None:
        self.manager.start()
        daemon = self.stack.enter_context(Daemon(self.host, "eth0", [*AUTOIP, "run", "eth0"]))
        del daemon.env["RUNTIME_DIRECTORY"]
        daemon.start()
        self.manager.wait_state("eth0", 30)
        daemon.wait_line("standby", 30)

    def start(self) -> None:
        self.profile = self.manager.add_profile("eth0", ipv6__method="disabled")

    def stop(self) -> None:
        self.manager.nmcli(f"con down {self.profile}")


WAYS: tuple[type[Way], ...] = (
    *(_Dhclient, _Ifupdown, _Dhcpcd, _Udhcpc),
    *(_Networkd, _NetworkManager),
)


@dataclass(slots=True)
class Seen:
    """What was measured with one client.

    Attributes:
        default, soon: seconds to an address, by autoip's defaults and with SOON.
        starts, stops: the hooks' requests until the address was there, and when the client gave the interface up.
        losses: how often the link-local address went while the lease came and LINGER was not over.
        gap: seconds until it was there again.
    """

    default: list[float]
    soon: list[float]
    starts: str = ""
    stops: str = ""
    losses: int = 0
    gap: float = 0.0


def measure(setting: Setting) -> Result:
    head = ("client", "starts", "stops", "address after (s)", "with after 3, delay 200 (s)", "")
    result = Result(NAME, "DHCP clients without a server, and with a late one", head)
    for way in WAYS:
        seen = Seen([], [])
        for _ in range(setting.times(3, 1)):
            seen.default.append(_run(way, "", seen))
            seen.soon.append(_run(way, SOON, None))
        default, soon = statistics.median(seen.default), statistics.median(seen.soon)
        times = (f"{default:.1f}", f"{soon:.1f}")
        result.rows.append((way.name, seen.starts, seen.stops, *times, _difference(seen)))
        result.numbers[way.name] = {"default": seen.default, "soon": seen.soon, "gap": seen.gap}
        result.targets.append(Target(f"{way.name}: address", LIMIT + 1, default, "s"))
    result.notes = [
        (
            "From the client's start (NetworkManager: from the profile) until the address is on the interface; medians."
            " The clients have their default time-outs, autoip runs as hooks start it, without systemd."
        )
    ]
    PAGE.write_text(_written(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
    return result


def _difference(seen: Seen) -> str:
    if not seen.losses:
        return "our address stays while the lease comes"
    return f"the lease takes our address off; it is there again after {seen.gap:.1f} s"


def _run(way: type[Way], config: str, seen: Seen | None) -> float:
    """Run a client where no server answers; return the seconds to an address.

    Args:
        way: the client.
        config: lines of autoip's configuration.
        seen: if given, a server answers afterwards, then the client gives up: what happens is noted there.
    """
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(Switch())
        port = switch.attach(stack.enter_context(Namespace("host")), plugged=True)
        machine.give_own_files(port.host)
        machine.write(port.host, "/etc/autoip.conf", f"[*]\nlinger = {LINGER}\n{config}")
        client = way(port, stack)
        client.prepare()
        names = ["eth0"] if way.named else []
        port.host.run(*AUTOIP, "hooks", "install", "--client", way.name, *names)
        if way is _Ifupdown:
            port.host.run(*AUTOIP, "hooks", "install", "--client", "dhclient")
        port.host.run("mv", "/etc/autoip/hook", "/etc/autoip/hook.real")
        machine.write(port.host, "/etc/autoip/hook", _RECORDER, 0o755)
        monitor = stack.enter_context(AddressMonitor(port.host))
        client.prepare_service()
        start = time.time_ns()
        client.start()
        _wait(lambda: _first(monitor), "an address")  # the monitor may be late
        took = (_first(monitor) - start) / 1e9
        if seen is not None:
            seen.starts = _once(_requests(port)) or "the service, enabled"
            server = stack.enter_context(
                Dhcpd(switch.attach(stack.enter_context(Namespace("server")), plugged=True))
            )
            _late_server(port, client, server, monitor, seen)
        port.host.run("sh", "-c", "/etc/autoip/hook.real stop eth0")
        return took


def _late_server(
    port: Port, client: Way, server: Dhcpd, monitor: AddressMonitor, seen: Seen
) -> None:
    """Have a server answer, wait until the lease is alone, then have the client give up."""
    (address,) = port.host.link_local("eth0")
    server.start()
    _wait(lambda: len(port.host.addresses("eth0")) > len(port.host.link_local("eth0")), "a lease")
    time.sleep(LINGER - 2)
    changes = [(ns, added) for ns, added, event in monitor.events() if event.address == address]
    gone = [ns for ns, added in changes if not added]
    back = [ns for ns, added in changes if added and gone and ns > gone[0]]
    seen.losses = len(gone)
    if back:
        seen.gap = (back[0] - gone[0]) / 1e9
    _wait(lambda: not port.host.link_local("eth0"), "the lease alone")
    before = len(_requests(port))
    client.stop()
    time.sleep(2)
    seen.stops = _once(_requests(port)[before:]) or "nothing"


def _first(monitor: AddressMonitor) -> int:
    seen = monitor.events()
    return next((ns for ns, added, event in seen if added and event.link_local), 0)


def _requests(port: Port) -> list[str]:
    """Return the hooks' requests so far."""
    return machine.read(port.host, "/run/requests").splitlines()


def _once(requests: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(requests))


def _written(text: str, result: Result) -> str:
    """Return the page with the table between its marks."""
    rows = [result.head, ("---",) * len(result.head), *result.rows]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    pattern = rf"(?s)(<!-- begin {NAME.upper()}\b[^\n]*\n).*?(<!-- end {NAME.upper()} -->)"
    new, count = re.subn(pattern, lambda found: found[1] + table + found[2], text)
    if count != 1:
        raise LabError(f"{PAGE.name}: {NAME.upper()} stands there {count} times")
    return new


def _wait(true: Callable[[], object], what: str) -> None:
    until = time.monotonic() + _PATIENCE
    while not true():
        if time.monotonic() > until:
            raise LabError(f"not within {_PATIENCE} s: {what}")
        time.sleep(0.02)
