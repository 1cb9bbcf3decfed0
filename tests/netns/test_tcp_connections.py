"""TCP connections with the real kernel: which connections are seen, which are reset."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, TypeVar

import pytest

from autoip.errors import KernelRefused
from autoip.kernel import netlink, tcp_connections
from lab import Namespace

from .helpers import NETNS, PATIENCE, PEER, A, B

pytestmark = NETNS

T = TypeVar("T")


@pytest.fixture
def host(stack: contextlib.ExitStack) -> Namespace:
    """A host with three addresses, that talks to itself."""
    made = stack.enter_context(Namespace("host"))
    for address in (A, B, PEER):
        made.ip(f"addr add {address}/32 dev lo")
    return made


def ask(host: Namespace, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return host.call(lambda: asyncio.run(question()))


def established(host: Namespace, address: IPv4Address) -> bool:
    return ask(host, lambda: tcp_connections.established(address))


def destroy(host: Namespace, address: IPv4Address) -> int:
    return ask(host, lambda: tcp_connections.destroy(address))


@contextlib.contextmanager
def listening(
    host: Namespace, address: str = str(A), family: int = socket.AF_INET
) -> Iterator[socket.socket]:
    with host.call(socket.socket, family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen()
        yield listener


@contextlib.contextmanager
def connected(
    host: Namespace, listener: socket.socket, to: IPv4Address, source: IPv4Address
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends, the accepted one first."""
    with host.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        client.bind((str(source), 0))
        client.connect((str(to), listener.getsockname()[1]))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            yield accepted, client


def is_open(sock: socket.socket) -> bool:
    """Whether nothing has come: no data, no end, no error."""
    return not select.select([sock], [], [], 0)[0]


def is_reset(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) is None
    except OSError as error:
        return error.errno in (errno.ECONNRESET, errno.ECONNABORTED)


def test_nothing_to_find(host: Namespace) -> None:
    with listening(host):
        assert not established(host, A)
        assert destroy(host, A) == 0


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_accepted_and_connected(host: Namespace, family: int) -> None:
    """Both ends of a connection are seen, of a listener for any address, of IPv6 sockets as well."""
    any_address = "::" if family == socket.AF_INET6 else "0.0.0.0"
    host.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0")
    with listening(host, any_address, family) as listener:
        with connected(host, listener, to=A, source=B) as (accepted, client):
            assert accepted.family == family
            assert [established(host, one) for one in (A, B, PEER)] == [True, True, False]
            assert destroy(host, PEER) == 0
            assert is_open(accepted) and is_open(client)
            assert destroy(host, A) == 1
            assert is_reset(client)
            assert is_reset(accepted)
        assert not established(host, A)
        # The listener was left alone.
        with connected(host, listener, to=A, source=B) as (_, client):
            assert established(host, A)


def test_only_of_that_address(host: Namespace) -> None:
    with (
        listening(host, "0.0.0.0") as listener,
        connected(host, listener, to=A, source=PEER) as (accepted, client),
        connected(host, listener, to=B, source=PEER) as (other, other_client),
    ):
        assert destroy(host, A) == 1
        assert is_reset(client)
        assert is_reset(accepted)
        assert is_open(other) and is_open(other_client)
        assert established(host, B)


def test_the_kernel_picks_them_out(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all sockets only those of the address are sent to us: with many others it must not cost much."""
    decode = netlink.Socket._decode
    sent: list[IPv4Address | None] = []

    def spy(self: netlink.Socket, kind: int, data: bytes) -> Any:
        entry = decode(self, kind, data)
        found = tcp_connections.Connection(entry["family"], entry["state"], entry["identity"])
        sent.append(found.local)
        return entry

    monkeypatch.setattr(netlink.Socket, "_decode", spy)
    with (
        listening(host, "0.0.0.0") as listener,
        connected(host, listener, to=A, source=PEER),
        connected(host, listener, to=B, source=PEER),
    ):
        assert established(host, A)
        assert sent == [A]
        assert not established(host, IPv4Address("169.254.1.0"))
        assert sent == [A]


def test_half_closed_and_unanswered(host: Namespace) -> None:
    """CLOSE_WAIT, FIN_WAIT and SYN_SENT are connections to end, but no established ones."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(host))
        close_wait, client = stack.enter_context(connected(host, listener, to=A, source=B))
        client.shutdown(socket.SHUT_WR)
        assert close_wait.recv(1) == b""
        fin_wait, other = stack.enter_context(connected(host, listener, to=A, source=B))
        fin_wait.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""
        caller = stack.enter_context(host.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM))
        caller.setblocking(False)
        caller.bind((str(A), 0))
        # A host that never answers, since nobody has its MAC.
        host.ip("link add v0 type veth peer name v1")
        host.ip("link set v0 up")
        host.ip("link set v1 up")
        host.ip("route add 203.0.113.0/24 dev v0")
        host.ip("neigh add 203.0.113.1 lladdr 02:00:00:00:00:01 dev v0")
        assert caller.connect_ex(("203.0.113.1", 9)) == errno.EINPROGRESS
        assert not established(host, A)
        assert destroy(host, A) == 3
        assert caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED
        assert is_reset(client)
        hung_up = select.poll()
        hung_up.register(other, 0)
        assert hung_up.poll(PATIENCE * 1000)
        with pytest.raises(BrokenPipeError):
            other.send(b"x")


def test_many(host: Namespace) -> None:
    """More than fit one answer of the kernel, and all their descriptors."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(host))
        pairs = [stack.enter_context(connected(host, listener, to=A, source=B)) for _ in range(400)]
        assert destroy(host, A) == len(pairs)
        assert all(is_reset(client) for _, client in pairs)
        assert destroy(host, A) == 0
        assert destroy(host, B) == 0


def test_kernel_without_destroy(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals are told when all was tried: here a request that no kernel has."""
    with (
        listening(host) as listener,
        connected(host, listener, to=A, source=B) as (accepted, _),
    ):
        monkeypatch.setattr(tcp_connections, "SOCK_DESTROY", 22)
        questions = {**tcp_connections.SOCK_DIAG.questions, 22: tcp_connections._Question}
        family = replace(tcp_connections.SOCK_DIAG, questions=questions)
        monkeypatch.setattr(tcp_connections, "SOCK_DIAG", family)
        with pytest.raises(KernelRefused) as caught:
            destroy(host, A)
        assert caught.value.errno == errno.EINVAL
        assert is_open(accepted)
