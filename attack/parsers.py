"""Every parser of autoip's that reads what others have written, given what nobody would write in good faith.

    python -m attack.parsers TARGET SECONDS SEED

Tries inputs until the time is over and prints how many. An input that breaks a parser, made as small as Hypothesis can
make it, ends the run with a traceback and status 1; as a file in `attack/corpus/TARGET` it stays a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from autoip import config
from autoip.commands.scan import report, udp
from autoip.commands.scan.hosts import Host
from autoip.commands.scan.questions import dhcp, gvcp, icmpv6, llmnr, mdns, ssdp, vxi11, wsd
from autoip.control import client, protocol, server
from autoip.core import arp
from autoip.core.constants import is_candidate
from autoip.daemon import lock_file
from autoip.daemon.address_store import AddressStore
from autoip.errors import AutoipError, KernelRefused, NoPermission, StateProblem, UsageError
from autoip.kernel import netlink, rtnetlink, tcp_connections
from autoip.options import CONFIGURED
from autoip.paths import network_namespace
from lab import frames
from tests.fed_socket import feed, message

from . import hostile_bus
from .inputs import like, seeds

T = TypeVar("T")
MAC = b"\x02\x00\x00\x00\x00\x01"
A = IPv4Address("169.254.20.20")
HEARD = {
    "gvcp": gvcp,
    "mdns": mdns,
    "llmnr": llmnr,
    "wsd": wsd,
    "ssdp": ssdp,
    "vxi-11": vxi11,
    "dhcp": dhcp,
}
EXAMPLES = 500
"""Inputs of one round; between rounds the clock is looked at."""


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        inputs: what it is given.
        check: gives it an input; raises what the parser must not raise, or AssertionError.
        known: inputs that are tried first.
    """

    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    known: Sequence[Any] = ()


def wait(body: Awaitable[T]) -> T:
    """Run a coroutine to its end in this process's event loop."""
    return asyncio.get_event_loop().run_until_complete(asyncio.wait_for(body, 60))


# --- frames -----------------------------------------------------------------------------------------


ADDRESS = st.sampled_from([A, IPv4Address(0), IPv4Address("169.254.20.21")])
HARDWARE = st.sampled_from([MAC.hex(":"), "02:00:00:00:00:02", frames.BROADCAST, frames.NO_MAC])
ARP = st.builds(
    lambda op, sha, spa, tha, tpa, to: frames.arp(
        op, sha=sha, spa=spa, tha=tha, tpa=tpa, destination=to
    ),
    *(st.sampled_from([0, 1, 2, 3, 4, 8, 9, 256]), HARDWARE, ADDRESS, HARDWARE, ADDRESS, HARDWARE),
)
"""Frames that are ARP, between few hosts and addresses."""


def check_arp(data: bytes) -> None:
    """autoip's reading of a frame agrees with the laboratory's, and what it writes it reads again."""
    packet = arp.parse(data)
    other = frames.parse(data)
    known = isinstance(other, frames.ArpFrame) and other.op in (frames.REQUEST, frames.REPLY)
    assert (packet is not None) == known
    if packet is None:
        return
    assert isinstance(other, frames.ArpFrame)
    assert (packet.operation, packet.sha.hex(":"), packet.spa) == (other.op, other.sha, other.spa)
    assert (packet.tha.hex(":"), packet.tpa) == (other.tha, other.tpa)
    assert packet.destination.hex(":") == other.destination
    assert arp.parse(packet.emit()) == packet
    assert packet.emit()[12:] == data[12:42]
    assert packet.claims(A, MAC) == (other.spa == A and packet.sha != MAC)
    if packet.probes(A, MAC):
        assert other.broadcast and other.op == frames.REQUEST and other.tpa == A


# --- answers to a scan -------------------------------------------------------------------------------


def check_scan(data: bytes) -> None:
    """Whatever a host answers becomes lines and objects that are bounded, and cannot command a terminal."""
    udp.parse(data)
    icmpv6.answer(data)
    for via, module in HEARD.items():
        answer = module.answer(data)
        if answer is None:
            continue
        assert answer.mac is None or len(answer.mac) == 6
        assert answer.address is None or 0 <= answer.address < 1 << 32
        host = Host("eth0", answer.address, answer.mac or MAC, 1.0)
        host.learn(via, answer.names, answer.kinds)
        line = report.line(host)
        assert line.isprintable() and len(line) < 2000
        assert len(json.dumps(report.value(host))) < 20_000


# --- netlink ----------------------------------------------------------------------------------------

FAMILIES = {"netlink": rtnetlink.ROUTE, "connections": tcp_connections.SOCK_DIAG}
ATTRIBUTE = st.tuples(
    st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 18, 26, 30, 35, 52, 0x8012, 0xFFFF]),
    st.binary(max_size=24),
)


@st.composite
def messages(draw: st.DrawFn, kinds: Sequence[int]) -> bytes:
    """Netlink messages whose frame is right, and whose content need not be."""
    data = b""
    for _ in range(draw(st.integers(1, 3))):
        body = bytes([draw(st.sampled_from([0, 2, 7, 10]))]) + draw(st.binary(max_size=60))
        body += b"".join(rtnetlink.attribute(*one) for one in draw(st.lists(ATTRIBUTE, max_size=6)))
        sequence = draw(st.sampled_from([0, 1, 1, 1, 2]))
        data += message(draw(st.sampled_from(list(kinds))), body, sequence=sequence)
    return data


def read_all(found: Any) -> None:
    """Read a message as each thing that it may be."""
    kind = found["header"]["type"]
    if kind in (rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK):
        rtnetlink.read_link(found)
        rtnetlink.promote_secondaries(found)
    elif kind in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR):
        rtnetlink.read_address(found)
    elif kind in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE):
        rtnetlink.read_route(found)


def netlink_check(target: str) -> Callable[[bytes], None]:
    """The answers and the news of a family of the kernel: at worst one error that says what was asked."""
    family = FAMILIES[target]
    anything = tcp_connections.Connection(0, 0, bytes(48))
    request = {
        "netlink": netlink.Request("list", rtnetlink.RTM_GETLINK, {}),
        "connections": tcp_connections._request(
            "list", tcp_connections.SOCK_DIAG_BY_FAMILY, anything
        ),
    }[target]
    end = message(netlink.NLMSG_DONE, bytes(4), sequence=1)

    # The codec prints a traceback for each message that it cannot read.
    logging.getLogger("pyroute2").setLevel(logging.CRITICAL + 1)

    async def ask(data: bytes) -> None:
        opened = netlink.Socket(family)
        try:
            feed(opened, data, end, end)
            try:
                found = [one async for one in opened.ask(request, netlink.DUMP)]
            except KernelRefused as problem:
                assert problem.errno > 0 and problem.what == "list"
                found = []
            for one in found:
                if target == "netlink":
                    read_all(one)
                else:
                    connection = tcp_connections.Connection(
                        one["family"], one["state"], one["identity"]
                    )
                    assert connection.local is None or isinstance(connection.local, IPv4Address)
        finally:
            opened.close()

    return lambda data: wait(ask(data))


# --- files ------------------------------------------------------------------------------------------


def check_config(folder: Path) -> Callable[[bytes], None]:
    """A configuration file: choices, or one line with the file's name and the line's number."""
    path = folder / "autoip.conf"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found = config.load(path)
        except (UsageError, NoPermission) as problem:
            assert str(path) in str(problem) and "\n" not in str(problem)
            return
        for name in ("eth0", "br-lan", "\udcff"):
            fields = {option.field for option in CONFIGURED.values()}
            assert set(found.choices(name)) <= fields and set(found.places(name)) <= fields
            assert found.hooks(name) in (True, False)

    return check


def check_store(folder: Path) -> Callable[[bytes], None]:
    """A saved address, ours and avahi-autoipd's: a candidate, none, or one line."""
    store = AddressStore(folder, folder)

    def check(data: bytes) -> None:
        (folder / f"{MAC.hex()}.json").write_bytes(data)
        (folder / MAC.hex(":")).write_bytes(data)
        for load in (store.load, store.load_avahi):
            try:
                address = load(MAC)
            except StateProblem as problem:
                assert "\n" not in str(problem)
            else:
                assert address is not None and is_candidate(address)

    return check


WORD = st.sampled_from(
    (
        *(
            "pid=",
            "pid=7",
            "pid=-1",
            "index=",
            "index=2",
            "index=-3",
            "index=99999999999",
            "index=1_0",
        ),
        *(
            "address=169.254.20.20",
            "address=10.0.0.1",
            "address=169.254.0.1",
            "address=x",
            "=",
            "a=b",
        ),
    )
)


def record(words: Sequence[str]) -> bytes:
    """A lock file's record with a check sum that is right, whatever it says."""
    body = " ".join(["autoip 1", *words]).encode("ascii").ljust(lock_file.RECORD_SIZE - 10)
    return body[: lock_file.RECORD_SIZE - 10] + b" %08x\n" % zlib.crc32(body)


def check_record(data: bytes) -> None:
    """A lock file's record: what it names can be a process, and an address of ours on an interface."""
    pid, held = lock_file._parse(data)
    assert pid is None or 0 < pid < 2**31
    assert held is None or (0 < held.index < 2**31 and is_candidate(held.address))


# --- the control socket -----------------------------------------------------------------------------


class Transport(asyncio.Transport):
    """A connection of a user's, which keeps what was written."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self.connection = connection
        self.written = b""
        self.closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.connection if name == "socket" else default

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True


CHANGES = ("refresh", "dhcp-failed", "reload", "stop")
REQUESTS = {"status", "watch", *CHANGES}


def asked(data: bytes) -> str | None:
    """The request that the first line of the input makes, by the protocol's own words."""
    line, newline, _ = data.partition(b"\n")
    if not newline or len(line) > server.LINE_MAX:
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    name = found.get("request") if isinstance(found, dict) else None
    return name if isinstance(name, str) and name in REQUESTS else None


async def converse(parts: Sequence[bytes]) -> None:
    """A client's bytes, in these parts: one answer, at once, and done is what was asked and no more."""
    done: list[str] = []

    async def stop() -> None:
        done.append("stop")

    async def reload() -> str:
        done.append("reload")
        return "a reason"

    handler = server.Handler(
        dict, lambda: done.append("refresh"), lambda: done.append("dhcp-failed"), reload, stop
    )
    clients = server.Clients()
    serving = server.Server(Path("unused"), handler, clients)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = Transport(ours)
        one = server._Client(serving)
        one.connection_made(transport)
        for part in parts:
            one.data_received(part)
        while serving.tasks or serving.reloads:
            await asyncio.sleep(0)
        request = asked(b"".join(parts))
        assert done == [name for name in CHANGES if name == request]
        answers = [json.loads(line) for line in transport.written.splitlines()]
        assert len(answers) <= 1
        if request not in (None, "reload"):
            assert answers[0]["ok"] is True and one.watching == (request == "watch")
        elif answers:
            assert answers[0]["ok"] is False and transport.closing
        one.connection_lost(None)
    assert not clients.by_user and not serving.watchers


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """What a client sends, in parts."""
    data = draw(like("requests"))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def check_answers(folder: Path, stack: contextlib.ExitStack) -> Callable[[bytes], None]:
    """What a daemon that is none answers to a command: objects, or one line of ours."""
    path = folder / protocol.socket_name(network_namespace(), "eth0")
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    listener.listen()

    def answer(data: bytes) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(data)

    def check(data: bytes) -> None:
        watching = client.Connection(str(folder), "eth0", "watch")
        answer(data[:50_000])
        try:
            while (found := watching.read()) is not None:
                for one in found:
                    assert isinstance(one, dict)
                    with contextlib.suppress(AutoipError):
                        client.checked("eth0", one)
        finally:
            watching.close()

    return check


# --- all of them ------------------------------------------------------------------------------------


def targets(folder: Path, stack: contextlib.ExitStack) -> dict[str, Callable[[], Target]]:
    """By name; a folder for files, and what closes at the end."""

    def of_bytes(
        name: str, check: Callable[[bytes], None], *more: st.SearchStrategy[bytes]
    ) -> Target:
        return Target(st.one_of(like(name), *more), check, seeds(name))

    def of_netlink(name: str) -> Target:
        kinds = [*FAMILIES[name].answers, netlink.NLMSG_ERROR, netlink.NLMSG_DONE]
        return of_bytes(name, netlink_check(name), messages(kinds))

    return {
        "arp": lambda: of_bytes("arp", check_arp, ARP),
        "scan": lambda: of_bytes("scan", check_scan),
        "netlink": lambda: of_netlink("netlink"),
        "connections": lambda: of_netlink("connections"),
        "config": lambda: of_bytes("config", check_config(folder)),
        "store": lambda: of_bytes("store", check_store(folder)),
        "record": lambda: of_bytes("record", check_record, st.lists(WORD, max_size=6).map(record)),
        "requests": lambda: Target(
            conversations(),
            lambda parts: wait(converse(parts)),
            [[one] for one in seeds("requests")],
        ),
        "answers": lambda: of_bytes("answers", check_answers(folder, stack)),
        "bus": lambda: Target(
            hostile_bus.scripts(),
            lambda script: wait(hostile_bus.check(folder, script)),
            hostile_bus.FOUND,
        ),
    }


NAMES = tuple(targets(Path(), contextlib.ExitStack()))


@contextlib.contextmanager
def opened(name: str) -> Iterator[Target]:
    """A target, with an event loop and a folder of its own."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    with (
        tempfile.TemporaryDirectory(prefix="autoip-attack-") as folder,
        contextlib.ExitStack() as stack,
    ):
        try:
            yield targets(Path(folder), stack)[name]()
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def attack(name: str, seconds: float, number: int) -> int:
    """Give a parser inputs until the time is over (0: a few); return how many. Raises what the parser must not."""
    end = time.monotonic() + seconds
    count = 0
    with opened(name) as target:
        for one in target.known:
            target.check(one)

        def check(one: Any) -> None:
            nonlocal count
            count += 1
            target.check(one)

        rounds = 0
        while rounds == 0 or time.monotonic() < end:
            chosen = settings(
                max_examples=EXAMPLES if seconds else 10,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )
            seed(number * 1_000_003 + rounds)(chosen(given(target.inputs)(check)))()
            rounds += 1
    return count + len(target.known)


if __name__ == "__main__":
    print(attack(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
