"""The netlink socket and codec, without root: answers of the kernel are read with care.

The sockets are real; they read first what the test feeds them (`feed`).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

import pytest

from autoip.errors import KernelRefused
from autoip.kernel import netlink, rtnetlink
from autoip.kernel.model import PROTOCOL, Address
from autoip.kernel.netlink import (
    CHANGE,
    DUMP,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    Request,
    Requests,
    Socket,
)
from autoip.kernel.network import Network
from autoip.kernel.rtnetlink import RTM_GETADDR, RTM_NEWADDR, read_address, read_link
from tests.fed_socket import KERNEL, feed, message

T = TypeVar("T")
A = IPv4Address("169.254.20.20")
LIST = Request("list addresses", RTM_GETADDR, {"family": int(socket.AF_INET)})


def answer(kind: int, body: bytes, **changes: int) -> bytes:
    """Return a message of the answer to a socket's first request."""
    return message(kind, body, **{"sequence": 1, **changes})


def attribute(number: int, payload: bytes) -> bytes:
    return rtnetlink.attribute(number, payload)


BODY = struct.pack("=BBBBI", socket.AF_INET, 16, 0, 253, 7) + attribute(2, A.packed)
ADDRESS = answer(RTM_NEWADDR, BODY)
DONE = answer(NLMSG_DONE, bytes(4))


def run(body: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(body, 120))


def ask(*fed: Any, flags: int = DUMP) -> list[Any]:
    """Return the result of a request that has this answer."""

    async def body() -> list[Any]:
        opened = Socket(rtnetlink.ROUTE)
        try:
            feed(opened, *fed)
            return [one async for one in opened.ask(LIST, flags)]
        finally:
            opened.close()

    return run(body())


def test_answer() -> None:
    found = ask(ADDRESS + ADDRESS, ADDRESS + DONE)
    assert [read_address(one) for one in found] == 3 * [Address(7, A, 16, 253, None, None)]
    assert ask(answer(NLMSG_ERROR, bytes(4)), flags=CHANGE) == []


def test_what_is_passed_over() -> None:
    """Ignored: the rest of an older answer, other types of message, and what another process sent."""
    stale = message(RTM_NEWADDR, BODY, sequence=7) * 2 + message(NLMSG_DONE, bytes(4), sequence=7)
    forged: Any = (ADDRESS + DONE, [], 0, (4711, 0))
    other = answer(1, bytes(9)) + answer(99, b"")
    assert len(ask(stale, forged, other, ADDRESS + DONE)) == 1


@pytest.mark.parametrize(
    ("end", "number"),
    [
        (answer(NLMSG_ERROR, struct.pack("=i", -errno.EOPNOTSUPP)), errno.EOPNOTSUPP),
        (answer(NLMSG_DONE, struct.pack("=i", -errno.ENOENT)), errno.ENOENT),
        (answer(NLMSG_ERROR, struct.pack("=i", 5)), errno.EBADMSG),
        (answer(NLMSG_ERROR, struct.pack("=i", -(2**31))), errno.EBADMSG),
        (answer(NLMSG_ERROR, b"\xff\xff\xff"), errno.EBADMSG),
        (answer(NLMSG_DONE, b""), errno.EBADMSG),
        # A dump during which the table changed.
        (answer(NLMSG_DONE, bytes(4), flags=NLM_F_DUMP_INTR), errno.EBUSY),
        (answer(RTM_NEWADDR, BODY, flags=NLM_F_DUMP_INTR) + DONE, errno.EBUSY),
    ],
)
def test_refusal(end: bytes, number: int) -> None:
    """The number that ends an answer; nothing after it is read."""
    with pytest.raises(KernelRefused) as refused:
        ask(ADDRESS + end + b"garbage")
    assert (refused.value.errno, refused.value.what) == (number, "list addresses")


HOSTILE = {
    "a header that is cut off": DONE[:15],
    "one byte": b"\0",
    "no length": answer(NLMSG_DONE, bytes(4), length=0),
    "shorter than its header": answer(NLMSG_DONE, bytes(4), length=15),
    "longer than the datagram": answer(NLMSG_DONE, bytes(4), length=21),
    "as long as can be": answer(NLMSG_DONE, bytes(4), length=2**32 - 1),
    "fields that are cut off": answer(RTM_NEWADDR, BODY[:7]),
    "nothing in it": answer(RTM_NEWADDR, b""),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_lengths(what: str) -> None:
    with pytest.raises(KernelRefused) as refused:
        ask(ADDRESS + HOSTILE[what])
    assert (refused.value.errno, refused.value.what) == (errno.EBADMSG, "list addresses")


def test_a_datagram_that_is_cut_off() -> None:
    with pytest.raises(KernelRefused) as refused:
        ask((ADDRESS + DONE, [], socket.MSG_TRUNC, KERNEL))
    assert refused.value.errno == errno.EMSGSIZE


def test_garbage() -> None:
    """Random bytes give messages, or a refusal."""
    chance = random.Random(3927)
    good = ADDRESS + answer(NLMSG_ERROR, struct.pack("=i", -1)) + DONE
    outcomes = set()

    async def body() -> None:
        for _ in range(3000):
            datagram = bytearray(good[: chance.randrange(len(good) + 1)])
            for _ in range(chance.randrange(6)):
                if datagram:
                    datagram[chance.randrange(len(datagram))] = chance.randrange(256)
            opened = Socket(rtnetlink.ROUTE)
            feed(opened, bytes(datagram), DONE)
            try:
                outcomes.add("read" if [one async for one in opened.ask(LIST, DUMP)] else "nothing")
            except KernelRefused:
                outcomes.add("failed" if opened.failed else "refused")
            finally:
                opened.close()

    run(body())
    assert outcomes == {"read", "nothing", "refused", "failed"}


# Requests


def requests(body: Callable[[Requests], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        opened = Requests(rtnetlink.ROUTE)
        opened.open()
        try:
            return await body(opened)
        finally:
            opened.close()

    return run(main())


@pytest.mark.parametrize(
    "first",
    [
        answer(NLMSG_DONE, bytes(4), flags=NLM_F_DUMP_INTR),
        answer(NLMSG_ERROR, struct.pack("=i", -errno.EBUSY)),
    ],
)
def test_a_dump_that_was_disturbed_is_repeated(first: bytes) -> None:
    async def body(opened: Requests) -> None:
        before = opened._socket
        feed(before, ADDRESS + first, message(NLMSG_DONE, bytes(4), sequence=2))
        assert await opened.dump(LIST) == []
        assert opened._socket is before

    requests(body)


def route(dst_len: int, protocol: int = 4, table: int = 254) -> bytes:
    """Return a route of an answer to the first request."""
    body = struct.pack("=8BI", socket.AF_INET, dst_len, 0, 0, table, protocol, 0, 1, 0)
    return answer(rtnetlink.RTM_NEWROUTE, body)


def other_default(monkeypatch: pytest.MonkeyPatch, *fed: bytes) -> tuple[bool, int, int]:
    """Return whether there is a default route, how many messages were decoded, and how many at most were kept."""
    decoded: weakref.WeakSet[Any] = weakref.WeakSet()
    count = most = 0
    decode = Socket._decode

    def counted(opened: Socket, kind: int, data: bytes) -> Any:
        nonlocal count, most
        found = decode(opened, kind, data)
        decoded.add(found)
        count += 1
        if count % 100 == 0:
            gc.collect()  # a message is garbage in cycles
            most = max(most, len(decoded))
        return found

    async def body() -> bool:
        network = Network()
        await network.open()
        try:
            feed(network._requests._socket, *fed)
            return await network.other_default()
        finally:
            network.close()

    monkeypatch.setattr(Socket, "_decode", counted)
    monkeypatch.setattr(rtnetlink._RouteMessage, "__hash__", object.__hash__)
    gc.freeze()  # what other tests have left is not looked through each time
    try:
        return run(body()), count, most
    finally:
        gc.unfreeze()


def test_routes_that_do_not_matter_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    others = 500 * route(24)
    assert other_default(monkeypatch, *(100 * [others]), DONE) == (False, 0, 0)
    found, decoded, _ = other_default(monkeypatch, others + route(0), others + DONE)
    assert (found, decoded) == (True, 1)


def test_of_many_default_routes_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = route(0, protocol=PROTOCOL)
    found, decoded, most = other_default(monkeypatch, *(20 * [50 * ours]), DONE)
    assert (found, decoded) == (False, 1000)
    assert most <= 5


def test_a_route_of_an_attempt_that_was_disturbed_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed = answer(NLMSG_DONE, bytes(4), flags=NLM_F_DUMP_INTR)
    again = message(NLMSG_DONE, bytes(4), sequence=2)
    assert other_default(monkeypatch, route(0) + disturbed, again)[0] is False


def test_a_dump_is_not_repeated_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "READ_TRIES", 3)

    async def body(opened: Requests) -> None:
        disturbed = [
            message(NLMSG_DONE, bytes(4), sequence=n, flags=NLM_F_DUMP_INTR) for n in range(1, 5)
        ]
        feed(opened._socket, *disturbed)
        with pytest.raises(KernelRefused) as refused:
            await opened.dump(LIST)
        assert refused.value.errno == errno.EBUSY
        assert opened._socket is not None
        assert opened._socket._socket.fed == disturbed[3:]  # type: ignore[attr-defined]

    requests(body)


@pytest.mark.parametrize(
    ("fed", "number"),
    [
        (OSError(errno.ENOBUFS, "lost"), errno.ENOBUFS),
        (OSError(errno.EIO, "broken"), errno.EIO),
        (b"\0", errno.EBADMSG),
        (answer(RTM_NEWADDR, b""), errno.EBADMSG),
    ],
)
def test_a_socket_that_failed_is_replaced(fed: Any, number: int) -> None:
    async def body(opened: Requests) -> None:
        before = opened._socket
        feed(before, fed)
        with pytest.raises(KernelRefused) as refused:
            await opened.send(LIST, DUMP)
        assert (refused.value.errno, refused.value.what) == (number, "list addresses")
        await opened.send(LIST, DUMP)
        assert opened._socket is not before

    requests(body)


def test_a_question_whose_answer_is_lost_is_asked_again() -> None:
    async def body(opened: Requests) -> None:
        before = opened._socket
        # Nothing can be read, until the kernel reports the loss.
        feed(before, BlockingIOError(), OSError(errno.ENOBUFS, "lost"))
        await opened.dump(LIST)
        assert opened._socket is not before

    requests(body)


def test_the_rest_of_an_answer_that_timed_out_is_passed_over() -> None:
    """Also while the kernel is still busy with the dump."""
    links = Request("list links", rtnetlink.RTM_GETLINK, {})

    async def body(opened: Requests) -> None:
        wanted = [one["index"] for one in await opened.dump(links)]
        before = opened._socket
        for passes in range(6):
            feed(before, BlockingIOError())
            asked = asyncio.ensure_future(opened.dump(LIST))
            for _ in range(passes):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            assert [one["index"] for one in await opened.dump(links)] == wanted
        assert opened._socket is before

    requests(body)


def test_no_socket_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request tries again, and a refusal has the reason."""

    async def body(opened: Requests) -> None:
        feed(opened._socket, OSError(errno.EIO, "broken"))
        with pytest.raises(KernelRefused):
            await opened.send(LIST, DUMP)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", _no_descriptor)
            with pytest.raises(KernelRefused) as refused:
                await opened.send(LIST, DUMP)
            assert refused.value.errno == errno.EMFILE
        await opened.send(LIST, DUMP)

    requests(body)


def _no_descriptor(*_: object) -> socket.socket:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_set_up_that_fails_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(socket, "SO_RCVBUF", -1)
    with pytest.raises(KernelRefused) as refused:
        Socket(rtnetlink.ROUTE)
    assert refused.value.errno == errno.ENOPROTOOPT
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_sequence_numbers_wrap() -> None:
    async def body() -> list[int]:
        opened = Socket(rtnetlink.ROUTE)
        opened._sequence = 2**32 - 2
        used = []
        for number in (2**32 - 1, 1):
            feed(opened, message(NLMSG_DONE, bytes(4), sequence=number))
            assert [one async for one in opened.ask(LIST, DUMP)] == []
            used.append(opened._sequence)
        opened.close()
        return used

    assert run(body()) == [2**32 - 1, 1]


# Messages


def decoded(body: bytes, kind: int = rtnetlink.RTM_NEWLINK) -> Any:
    found = rtnetlink.ROUTE.answers[kind](message(kind, body))
    found.decode()
    return found


@pytest.mark.parametrize("mac", [b"", b"\1\2\3\4", bytes(range(6)), bytes(range(20))])
@pytest.mark.parametrize("name", [b"eth0", "é".encode(), b"\xff\xfe", b"0123456789abcde"])
def test_any_hardware_address_and_name(mac: bytes, name: bytes) -> None:
    """InfiniBand's addresses have 20 bytes, a tunnel's 4 or 16; a name need not be UTF-8."""
    body = struct.pack("=BxHiII", 0, 32, 7, 3, 0)
    body += attribute(1, mac) + attribute(3, name + b"\0") + attribute(4, struct.pack("=I", 1500))
    link = read_link(decoded(body))
    assert link is not None
    assert (link.mac, os.fsencode(link.name), link.hardware_type) == (mac, name, 32)
    assert link.speaks_arp is False


# The codec alone


def python(code: str, *folders: Path) -> str:
    path = os.pathsep.join(map(str, folders))
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_else_of_pyroute2_is_loaded() -> None:
    """Other code that imports pyroute2 gets a whole one."""
    code = (
        "import sys; from autoip.kernel.netlink import nlmsg;"
        "print([name for name in sys.modules if name.startswith('pyroute2')]);"
        "import pyroute2.netlink; pyroute2.IPRoute; pyroute2.netlink.nlmsg;"
        "print(pyroute2.netlink.nlmsg is nlmsg)"
    )
    assert python(code).split("\n") == ["[]", "False"]


def test_a_whole_pyroute2_that_is_there_is_used() -> None:
    code = (
        "import pyroute2.netlink; from autoip.kernel.netlink import nlmsg;"
        "print(pyroute2.netlink.nlmsg is nlmsg)"
    )
    assert python(code) == "True"


def test_a_release_whose_codec_needs_the_package(tmp_path: Path) -> None:
    package = tmp_path / "pyroute2"
    (package / "netlink").mkdir(parents=True)
    (package / "__init__.py").write_text("word = 'whole'\n")
    (package / "netlink" / "__init__.py").write_text(
        "from pyroute2 import word\nclass nlmsg:\n    what = word\n"
    )
    code = "from autoip.kernel.netlink import nlmsg; print(nlmsg.what)"
    assert python(code, tmp_path) == "whole"
