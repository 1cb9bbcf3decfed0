"""Several links with link-local neighbours: the first packet, the memory, what wakes the daemon, and a flood."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
from ipaddress import IPv4Address

from lab import LabError, Namespace
from lab.daemon import Daemon
from lab.frames import announcement

from . import cables
from .cables import Cable
from .costs import cost
from .idle import resident
from .report import Result, Target, number
from .setting import Setting, autoip

NAME = "neighbours"

LINKS, DEVICES = 4, 250
FLOOD = 10_000
"""ARP frames a second, each of another host."""
_PORT = 4711


def measure(setting: Setting) -> Result:
    result = Result(
        NAME,
        "neighbours on several links",
        ("", "samples", "median", "worst"),
    )
    samples = setting.times(50, 5)
    with contextlib.ExitStack() as stack:
        one, _ = _start(setting, stack, 1)
        several, daemon = _start(setting, stack, 2)
        known = {
            "known neighbour, 1 link": _first(one[0], "169.254.21.", samples, announced=False),
            "known neighbour, 2 links": _first(several[1], "169.254.22.", samples, announced=True),
        }
        unknown = {
            "unknown neighbour, 2 links": _first(
                several[1], "169.254.23.", samples, announced=False
            )
        }
        for name, found in (known | unknown).items():
            result.numbers[name] = {"median_ms": statistics.median(found), "worst_ms": max(found)}
            cells = (number(statistics.median(found)), number(max(found)))
            result.rows.append((f"first answer, ms: {name}", str(len(found)), *cells))
        before, after = _crowd(setting, stack)
        quiet, flooded, stayed = _disturbed(setting, several, daemon)
    alone, second = (statistics.median(found) for found in known.values())
    late = statistics.median(unknown["unknown neighbour, 2 links"]) - alone
    result.targets = [
        Target("first answer of a known neighbour, 2 links against 1", 2, second / alone, "times"),
        Target("unknown neighbour: more than with 1 link", 1200, late, "ms"),
        Target(f"memory of {LINKS} links with {DEVICES} neighbours", 1024, after - before, "kB"),
        Target("wake-ups by known neighbours", 0, quiet, ""),
        Target(f"CPU in a flood of {FLOOD} frames a second", 25, flooded, "%"),
        Target("the other link's neighbours stay", 1, float(stayed), "", at_least=True),
    ]
    result.notes = [
        (
            "A client that is bound to nothing sends a datagram, again after 1 s, until the answer comes;"
            " the kernel does not know the neighbour's hardware address. Wake-ups: while 100 neighbours that"
            " are known announce themselves ten times."
        )
    ]
    return result


def _start(setting: Setting, stack: contextlib.ExitStack, count: int) -> tuple[list[Cable], Daemon]:
    """Start autoip on so many cables, each with a neighbour's namespace of its own."""
    host = stack.enter_context(Namespace("host"))
    laid = [
        cables.lay(stack.enter_context(Namespace("far")), host, first=number)[0]
        for number in range(count)
    ]
    daemon = stack.enter_context(autoip(setting, laid, "--delay", "50"))
    daemon.start()
    cables.wait_held(laid, 30)
    time.sleep(3)  # the announcements are over
    return laid, daemon


def _announce(cable: Cable, hosts: list[tuple[str, IPv4Address]], pause: float = 0.0) -> None:
    with cable.yonder.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((cable.far, 0))
        begun = time.monotonic()
        for number_, (mac, address) in enumerate(hosts):
            sender.send(announcement(mac, address))
            ahead = begun + number_ * pause - time.monotonic()
            if ahead > 0.005:
                time.sleep(ahead)


def _first(cable: Cable, prefix: str, samples: int, *, announced: bool) -> list[float]:
    """Return, for each of so many new neighbours, the milliseconds to its first answer."""
    addresses = [IPv4Address(f"{prefix}{n + 1}") for n in range(samples)]
    for address in addresses:
        cable.yonder.ip(f"addr add {address}/16 dev {cable.far}")
    if announced:
        _announce(cable, [(cable.far_mac, address) for address in addresses])
        time.sleep(1)
    found = []
    with cable.yonder.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind(("", _PORT))
        answering = threading.Thread(target=_answer, args=(far, samples), daemon=True)
        answering.start()
        for address in addresses:
            with cable.host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as near:
                found.append(_ask(near, address))
        answering.join(5)
    return found


def _answer(far: socket.socket, samples: int) -> None:
    far.settimeout(20)
    seen: set[bytes] = set()
    while len(seen) < samples:
        content, sender = far.recvfrom(100)
        seen.add(content)
        far.sendto(content, sender)


def _ask(near: socket.socket, address: IPv4Address) -> float:
    near.settimeout(1)
    begun = time.monotonic()
    for _ in range(10):
        near.sendto(str(address).encode(), (str(address), _PORT))
        with contextlib.suppress(TimeoutError):
            near.recv(100)
            return (time.monotonic() - begun) * 1e3
    raise LabError(f"{address} does not answer")


def _crowd(setting: Setting, stack: contextlib.ExitStack) -> tuple[float, float]:
    """Return the kilobytes of the daemon before and after LINKS links have DEVICES neighbours each."""
    laid, daemon = _start(setting, stack, LINKS)
    before = resident(daemon.pid)
    for link, cable in enumerate(laid):
        hosts = [
            (f"02:00:00:0a:{link:02x}:{n:02x}", IPv4Address(f"169.254.{30 + link}.{n + 1}"))
            for n in range(DEVICES)
        ]
        for part in range(0, DEVICES, 50):
            _announce(cable, hosts[part : part + 50])
            time.sleep(0.3)
    time.sleep(3)
    routes = laid[0].host.run("ip", "route", "show", "table", "169254000").splitlines()
    if len(routes) != LINKS * DEVICES:
        raise LabError(f"{len(routes)} routes")
    return before, resident(daemon.pid)


def _disturbed(setting: Setting, laid: list[Cable], daemon: Daemon) -> tuple[int, float, bool]:
    """Return the wake-ups by known neighbours, the percents of a processor in a flood, and whether the others stay."""
    hosts = [(f"02:00:00:0b:00:{n:02x}", IPv4Address(f"169.254.40.{n + 1}")) for n in range(100)]
    for _ in range(3):
        _announce(laid[0], hosts)
        time.sleep(2)
    before = cost([daemon.pid])
    for _ in range(10):
        _announce(laid[0], hosts)
        time.sleep(0.1)
    quiet = (cost([daemon.pid]) - before).wakeups
    seconds = setting.times(10, 3)
    # Not the daemon's own, which it would have to give up: then one link is left, which needs no routes.
    ours = {address for cable in laid for address in cable.host.link_local(cable.name)}
    flood = [
        (f"02:0f:00:00:{n >> 8 & 255:02x}:{n & 255:02x}", IPv4Address("169.254.64.0") + n % 40_000)
        for n in range(FLOOD * seconds)
        if IPv4Address("169.254.64.0") + n % 40_000 not in ours
    ]
    before = cost([daemon.pid])
    begun = time.monotonic()
    _announce(laid[1], flood, 1 / FLOOD)
    took = time.monotonic() - begun
    spent = cost([daemon.pid]) - before
    routes = laid[0].host.run("ip", "route", "show", "table", "169254000")
    stayed = all(f"{address} dev {laid[0].name} " in routes for _, address in hosts)
    return quiet, 100 * spent.cpu / took, stayed
