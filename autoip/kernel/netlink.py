"""Netlink: the codec of its messages, and sockets for requests to the kernel and for its news.

The sole importer of pyroute2, of which it uses the codec alone (docs/decisions/netlink-codec.md). The messages
themselves are in `rtnetlink` (links, addresses, routes, rules, filters) and `tcp_connections`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import socket
import struct
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from autoip.errors import KernelRefused


def _import_codec() -> Any:
    """Return the class of a netlink message in pyroute2, without the rest of pyroute2.

    Python runs a package's own code before it imports a module of the package, and pyroute2's loads every
    protocol that pyroute2 has: 13 MB, and 30 times as long as the codec takes. The codec needs none of
    it. So an empty package stands in for the real one during the import. Afterwards both are forgotten:
    other code that imports pyroute2 gets a whole one of its own.
    """
    if "pyroute2" not in sys.modules and (spec := importlib.util.find_spec("pyroute2")):
        sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)
        try:
            from pyroute2.netlink import nlmsg

            return nlmsg
        except (ImportError, AttributeError):
            pass  # a release whose codec needs the package's code
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
                del sys.modules[name]
    from pyroute2.netlink import nlmsg

    return nlmsg


nlmsg = _import_codec()

RECEIVE_BUFFER = 4 * 1024 * 1024
"""Bytes that the kernel keeps for a socket (it takes twice that): room for some thousand messages."""
DATAGRAM_MAX = 65536
"""Bytes of the longest datagram that is read. The kernel makes an answer of 32768 at most."""
READ_TRIES = 50
READ_PAUSE = 0.02
"""Seconds. A dump while another one is under way is refused, and a dump of a table that changes is void."""

# include/linux/socket.h and include/uapi/linux/netlink.h
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_GET_STRICT_CHK = 270, 1, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
# Every answer ends with an acknowledgement, or with the end of the dump.
GET = CHANGE = NLM_F_REQUEST | NLM_F_ACK
CREATE = CHANGE | NLM_F_CREATE | NLM_F_EXCL
REPLACE = CHANGE | NLM_F_CREATE | NLM_F_REPLACE
DUMP = NLM_F_REQUEST | NLM_F_DUMP
# include/asm-generic/socket.h
_SO_RCVBUFFORCE = 33

ANSWER_LOST = errno.ENOBUFS
"""The kernel could not deliver an answer: the request may have been carried out."""
GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL)
"""The thing to remove is gone, alone or with its interface."""
NOT_BUILT = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
"""The kernel was built without this feature."""

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr


Wanted = Callable[[int, bytes], bool]
"""Chooses messages by their type and bytes, before they are decoded."""


def _all(_kind: int, _message: bytes) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Family:
    """A netlink protocol of the kernel, and the codec's class of each type of message."""

    number: int
    """NETLINK_*."""
    questions: Mapping[int, Any]
    """Of requests."""
    answers: Mapping[int, Any]
    """Of answers and news. Messages of other types are ignored."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the kernel, without the flags."""

    what: str
    """In words, for the report of a refusal."""
    kind: int
    """The message's type."""
    fields: Mapping[str, object]
    attributes: Sequence[tuple[str, object]] = ()


@final
class Socket:
    """One open netlink socket, which accepts messages from the kernel alone.

    The kernel's buffer is the only queue. The kernel drops what does not fit, and reports that once: the next
    read raises OSError(ENOBUFS).

    Args:
        family: the protocol.
        groups: multicast groups to receive, a bit each.
        prepare: takes the socket before it joins the groups; may raise OSError.

    Raises:
        KernelRefused: the socket cannot be opened.
    """

    def __init__(
        self,
        family: Family,
        groups: int = 0,
        prepare: Callable[[socket.socket], None] = lambda _: None,
    ) -> None:
        self._family = family
        self.failed = False
        """There was an error, or a message that cannot be read: a further answer may never come."""
        self._sequence = 0
        self._wake: Callable[[], None] | None = None
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        try:
            with contextlib.ExitStack() as unless_done:
                self._socket = socket.socket(socket.AF_NETLINK, kind, family.number)
                unless_done.callback(self._socket.close)
                prepare(self._socket)
                self._set_up(groups)
                unless_done.pop_all()
        except OSError as problem:
            raise KernelRefused(problem.errno or errno.EIO, "open a netlink socket") from problem

    def _set_up(self, groups: int) -> None:
        # The kernel checks requests and filters what it dumps (Linux 4.20).
        with contextlib.suppress(OSError):
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        # Beyond net.core.rmem_max. Refused in a user namespace, where more Resyncs follow.
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._socket.bind((0, groups))
        # From now on the kernel delivers nothing that another process sends to this socket.
        self._socket.connect((0, 0))

    def join(self, group: int) -> None:
        """Receive one more multicast group.

        Raises:
            OSError: the kernel refused.
        """
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def close(self) -> None:
        """Close the socket; a task that waits for it gets OSError(EBADF)."""
        if self._wake is not None:
            self._wake()
        self._socket.close()

    async def news(self, wanted: Wanted = _all) -> list[Any]:
        """Wait for the next datagram of a multicast group, and return its messages.

        May be cancelled; no datagram is lost.

        Args:
            wanted: chooses the messages that are decoded and returned.

        Raises:
            OSError: ENOBUFS if messages were lost, EBADMSG or EMSGSIZE if one cannot be read.
        """
        return self._news(await self._receive(), wanted)

    def more_news(self, wanted: Wanted = _all) -> list[Any] | None:
        """Return the messages of a datagram that waits already, as `news` does; None: none waits."""
        try:
            datagram = self._read()
        except BlockingIOError:
            return None
        return [] if datagram is None else self._news(datagram, wanted)

    def _news(self, datagram: bytes, wanted: Wanted) -> list[Any]:
        return [
            self._decode(kind, message)
            for kind, _, _, message in _split(datagram)
            if kind in self._family.answers and wanted(kind, message)
        ]

    async def ask(
        self, request: Request, flags: int, wanted: Wanted = _all
    ) -> AsyncGenerator[Any, None]:
        """Send one request; yield the messages of its answer, as they arrive.

        Args:
            request: what to ask.
            flags: NLM_F_*.
            wanted: chooses the messages that are decoded and yielded.

        Raises:
            KernelRefused: EBUSY if what a dump lists changed meanwhile, ANSWER_LOST or another error of
                the socket (see `failed`), or the kernel's refusal.
        """
        self._sequence = sequence = self._sequence % 0xFFFFFFFF + 1
        disturbed = False
        try:
            self._socket.send(self._encode(request, flags, sequence))
            while True:
                for kind, marks, number, message in _split(await self._receive()):
                    if number != sequence:
                        continue  # the rest of an answer that is not awaited any more
                    disturbed |= bool(marks & NLM_F_DUMP_INTR)
                    if kind in (NLMSG_ERROR, NLMSG_DONE):
                        if error := _error(message) or (errno.EBUSY if disturbed else 0):
                            raise KernelRefused(error, request.what)
                        return
                    if kind in self._family.answers and wanted(kind, message):
                        yield self._decode(kind, message)
        except OSError as problem:
            self.failed = True
            raise KernelRefused(problem.errno or errno.EIO, request.what) from problem

    async def ask_together(self, requests: Sequence[tuple[Request, int]]) -> list[int]:
        """Send requests, each with its flags, in one system call.

        A process that is killed has sent all or none of them; the kernel carries out the later ones also if it
        refuses an earlier one.

        Returns:
            An error number for each; 0: done.

        Raises:
            KernelRefused: ANSWER_LOST or another error of the socket (see `failed`).
        """
        datagram = b""
        outcomes: dict[int, int | None] = {}
        for request, flags in requests:
            self._sequence = self._sequence % 0xFFFFFFFF + 1
            outcomes[self._sequence] = None
            encoded = self._encode(request, flags, self._sequence)
            datagram += encoded + bytes(-len(encoded) % 4)
        try:
            self._socket.send(datagram)
            while None in outcomes.values():
                for kind, _, number, message in _split(await self._receive()):
                    if number in outcomes and kind == NLMSG_ERROR:
                        outcomes[number] = _error(message)
        except OSError as problem:
            self.failed = True
            raise KernelRefused(problem.errno or errno.EIO, requests[0][0].what) from problem
        return [outcome or 0 for outcome in outcomes.values()]

    async def _receive(self) -> bytes:
        """Return the next datagram from the kernel."""
        while True:
            # Other tasks run between any two datagrams. Not after the read: a datagram that was read
            # must not be lost by a cancellation.
            await asyncio.sleep(0)
            try:
                datagram = self._read()
            except BlockingIOError:
                await self._readable()
            else:
                if datagram is not None:
                    return datagram

    def _read(self) -> bytes | None:
        """Return the datagram that waits; None: it is not from the kernel.

        Raises:
            BlockingIOError: none waits.
        """
        datagram, _, flags, (port, _) = self._socket.recvmsg(DATAGRAM_MAX)
        if port != 0:
            return None  # a privileged process can send to a multicast group
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, "a datagram was cut off")
        return datagram

    async def _readable(self) -> None:
        """Wait until there is something to read, or until the socket is closed."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        descriptor = self._socket.fileno()

        def wake() -> None:
            self._wake = None
            loop.remove_reader(descriptor)
            if not ready.done():
                ready.set_result(None)

        # After a cancellation the reader stays until the next one replaces it, or until its call removes it.
        self._wake = wake
        loop.add_reader(descriptor, wake)
        await ready

    def _encode(self, request: Request, flags: int, sequence: int) -> bytes:
        message = self._family.questions[request.kind]()
        message.update(request.fields)
        message["attrs"] = list(request.attributes)
        message["header"].update(type=request.kind, flags=flags, sequence_number=sequence)
        message.encode()
        return bytes(message.data)

    def _decode(self, kind: int, data: bytes) -> Any:
        message = self._family.answers[kind](data)
        try:
            message.decode()
        except Exception as problem:  # whatever the codec raises
            raise OSError(errno.EBADMSG, f"a message cannot be read: {problem!r}") from problem
        return message


def _split(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield type, flags, sequence number and bytes of each message.

    Raises:
        OSError: EBADMSG.
    """
    at = 0
    while (left := len(datagram) - at) > 0:
        length = kind = flags = sequence = 0
        if left >= _HEADER.size:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, at)
        if not _HEADER.size <= length <= left:
            raise OSError(errno.EBADMSG, "a message's length is wrong")
        yield kind, flags, sequence, datagram[at : at + length]
        at += (length + 3) & ~3


def _error(message: bytes) -> int:
    """Return the error number of NLMSG_ERROR or NLMSG_DONE, made positive; 0: success."""
    if len(message) < _HEADER.size + 4:
        return errno.EBADMSG
    (number,) = struct.unpack_from("=i", message, _HEADER.size)
    return -number if -number in errno.errorcode else errno.EBADMSG if number else 0


@final
class Requests:
    """Requests to a family of the kernel, one after the other, on a socket of their own.

    Closed until `open`. A socket that failed is replaced when the next request comes.

    Raises:
        KernelRefused: from each method but `close`.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._open = False
        self._socket: Socket | None = None
        self._lock = asyncio.Lock()

    def open(self) -> None:
        """Open the socket."""
        self._socket = Socket(self._family)
        self._open = True

    def close(self) -> None:
        """Close the socket. Harmless when repeated."""
        self._open = False
        self._close_socket()

    def require_open(self) -> None:
        """Raise KernelRefused(EBADF) before `open` and after `close`."""
        if not self._open:
            raise KernelRefused(errno.EBADF, "use netlink after it was closed")

    async def send(self, request: Request, flags: int) -> list[Any]:
        """Send one request and return all messages of its answer."""
        found: list[Any] = []
        await self._send(request, flags, found.append, _all)
        return found

    async def _send(
        self, request: Request, flags: int, take: Callable[[Any], object], wanted: Wanted
    ) -> None:
        async with self._lock:
            async for message in self._usable().ask(request, flags, wanted):
                take(message)

    async def send_together(self, *requests: tuple[Request, int]) -> list[int]:
        """Send requests as one, see `Socket.ask_together`. Return an error number for each; 0: done."""
        async with self._lock:
            return await self._usable().ask_together(requests)

    def _usable(self) -> Socket:
        self.require_open()
        if self._socket is None or self._socket.failed:
            self._close_socket()
            self._socket = Socket(self._family)
        return self._socket

    async def delete(self, request: Request) -> None:
        """Send a request to remove something, which may be gone already."""
        try:
            await self.send(request, CHANGE)
        except KernelRefused as problem:
            if problem.errno not in (*GONE, *NOT_BUILT):
                raise

    async def dump(self, request: Request) -> list[Any]:
        """Return the messages of a dump, which is repeated until nothing changed meanwhile."""
        found: list[Any] = []
        await self.scan(request, found.append, found.clear)
        return found

    async def scan(
        self,
        request: Request,
        take: Callable[[Any], object],
        begin: Callable[[], object],
        wanted: Wanted = _all,
    ) -> None:
        """Pass each message of a dump to `take` as it arrives, and keep none: a table of routes can be long.

        The dump is repeated until nothing changed meanwhile.

        Args:
            request: the dump.
            take: takes a message.
            begin: called before each attempt: what `take` got before is void.
            wanted: chooses the messages that are decoded and taken.
        """
        for _ in range(READ_TRIES):
            begin()
            try:
                return await self._send(request, DUMP, take, wanted)
            except KernelRefused as problem:
                # EBUSY: the table changed, or a cancelled dump is still under way.
                if problem.errno not in (errno.EBUSY, ANSWER_LOST):
                    raise
            await asyncio.sleep(READ_PAUSE)
        raise KernelRefused(errno.EBUSY, request.what)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
