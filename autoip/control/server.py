"""The daemon's side of the control socket: what a client may request, and when it is cut off.

One Unix stream socket for each interface. A client sends one JSON line,
``{"version": 1, "request": NAME}``, and gets one JSON line, after ``watch`` one for each event.
``status`` and ``watch`` are for everyone, ``refresh``, ``dhcp-failed``, ``reload`` and ``stop`` for root and
the daemon's own user; the kernel reports the client's user (SO_PEERCRED).

A client must cost neither the negotiation nor other clients anything: a request has at most
LINE_MAX bytes and REQUEST_TIME seconds; each user has USER_MAX connections, WATCH_MAX of them
watching, and a new one takes the place of the user's oldest that is not watching; a watcher that
does not read is cut off when more than WRITE_MAX bytes wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from autoip.control.protocol import VERSION

LINE_MAX = 4096
REQUEST_TIME = 10.0
USER_MAX = 32
WATCH_MAX = 24
WRITE_MAX = 65536
_BACKLOG = 16
_ACCEPT_PAUSE = 1.0
"""Seconds without new connections when there is no descriptor for one."""
_CREDENTIALS = struct.Struct("=iII")  # struct ucred


@dataclass(frozen=True, slots=True)
class Handler:
    """What an interface does on request.

    Attributes:
        status: its status object.
        refresh: probes the address again.
        failed: claims an address now, if that waits for DHCP.
        reload: goes on as the program from its file; awaited; returns why it was refused.
        stop: takes off all that is ours; awaited before the answer.
    """

    status: Callable[[], dict[str, Any]]
    refresh: Callable[[], None]
    failed: Callable[[], None]
    reload: Callable[[], Awaitable[str]]
    stop: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class KeptClient:
    """A connection that is handed over.

    Attributes:
        line: what has come so far of its request.
        watching: whether it gets events.
        reloading: whether it waits for the end of a reload.
    """

    descriptor: int
    line: bytes = b""
    watching: bool = False
    reloading: bool = False


@dataclass(frozen=True, slots=True)
class KeptServer:
    """A control socket that is handed over, with its connections."""

    descriptor: int
    clients: tuple[KeptClient, ...] = ()


@dataclass(slots=True)
class Clients:
    """All connections of the process, by user; shared by the servers of all interfaces."""

    by_user: defaultdict[int, list[_Client]] = field(default_factory=lambda: defaultdict(list))

    def admit(self, client: _Client) -> None:
        """Add a client; where its user has too many, drop the oldest that is not watching."""
        mine = self.by_user[client.user]
        if len(mine) >= USER_MAX:
            next(other for other in mine if not other.watching).drop()
        self.by_user[client.user].append(client)

    def may_watch(self, client: _Client) -> bool:
        """Return whether the client's user may have one more watcher."""
        return sum(other.watching for other in self.by_user[client.user]) < WATCH_MAX

    def forget(self, client: _Client) -> None:
        """Remove a client that is gone; do nothing if it is not listed."""
        with contextlib.suppress(ValueError):
            self.by_user[client.user].remove(client)
        if not self.by_user[client.user]:
            del self.by_user[client.user]


def _as_we_are(_directory: Path) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


class Server:
    """The control socket of one interface."""

    def __init__(
        self,
        path: Path,
        handler: Handler,
        clients: Clients,
        as_owner: Callable[[Path], AbstractContextManager[None]] = _as_we_are,
    ) -> None:
        """Serve at `path`; `as_owner` gives the rights of the owner of the folder for a while."""
        self.path = path
        self.handler = handler
        self.clients = clients
        self._as_owner = as_owner
        self.watchers: set[_Client] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.reloads: set[asyncio.Task[None]] = set()
        self.closed = False
        self._listener: socket.socket | None = None

    async def open(self, kept: KeptServer | None = None) -> None:
        """Listen, or go on for another one. The caller holds the interface's lock, so an older socket is a dead one.

        The socket gets its name only when everyone may connect to it, so that a client never finds
        one that is not ready.

        Raises:
            OSError: the file system or the length of the path does not allow it.
        """
        if kept is not None:
            await self._resume(kept)
            return
        path = self.path.with_name(f".{self.path.name}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self._as_owner(path.parent):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                listener.bind(str(path))
                path.chmod(0o666)
            listener.listen(_BACKLOG)
            self._listen(listener)
            with self._as_owner(path.parent):
                path.rename(self.path)
        except BaseException:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
            raise

    def _listen(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                loop.remove_reader(listener)
                loop.call_later(_ACCEPT_PAUSE, self._accept_again, listener)
            return
        self.start(self._connect(connection, _Client(self)), self.tasks)

    def _accept_again(self, listener: socket.socket) -> None:
        if not self.closed:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def _connect(self, connection: socket.socket, client: _Client) -> None:
        connection.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: client, connection)

    def start(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        """Do something that takes time, in a task that is in `tasks` meanwhile."""
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    # --- from one program to the next --------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """Whether no request is under way but for a reload."""
        return not self.tasks

    def keep(self) -> KeptServer | None:
        """Return what `open` takes. A client that has not read what was written is left out: it is cut off."""
        if self._listener is None:
            return None
        kept = [one for client in self._clients() if (one := client.keep()) is not None]
        return KeptServer(self._listener.fileno(), tuple(kept))

    async def _resume(self, kept: KeptServer) -> None:
        self._listen(socket.socket(fileno=kept.descriptor))
        for one in kept.clients:
            client = _Client(self, one)
            with contextlib.suppress(OSError):  # it is gone
                await self._connect(socket.socket(fileno=one.descriptor), client)

    def _clients(self) -> list[_Client]:
        return [c for cs in self.clients.by_user.values() for c in cs if c.server is self]

    def publish(self, event: dict[str, Any]) -> None:
        """Send an event to all watchers."""
        if self.watchers:
            line = encode(event)
            for client in list(self.watchers):
                client.write(line)

    async def close(self) -> None:
        """Stop listening, and close each connection once its client has read what was written.

        A client that requested `stop` gets its answer first.
        """
        self.closed = True
        for client in self._clients():
            if not client.stopping:
                client.finish()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError), self._as_owner(self.path.parent):
                self.path.unlink()


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server, kept: KeptClient | None = None) -> None:
        self.server = server
        self.user = -1
        self.watching = kept is not None and kept.watching
        self.stopping = False
        self.reloading = kept is not None and kept.reloading
        self.served = self.watching or self.reloading
        self._transport: asyncio.Transport | None = None
        self._line = b"" if kept is None else kept.line
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.server.closed:  # accepted at the last moment
            self._transport.abort()
            return
        self.user = _user(transport.get_extra_info("socket"))
        self.server.clients.admit(self)
        if self.watching:
            self.server.watchers.add(self)
        elif self.reloading:  # this program is what it waited for
            self._answer()
            self.finish()
        else:
            self._timeout = asyncio.get_running_loop().call_later(REQUEST_TIME, self.drop)

    def keep(self) -> KeptClient | None:
        """Return what goes on with the connection; None: it is to be closed."""
        at = self._transport
        if at is None or at.is_closing() or at.get_write_buffer_size():
            return None
        descriptor = at.get_extra_info("socket").fileno()
        return KeptClient(descriptor, self._line, self.watching, self.reloading)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._timeout is not None:
            self._timeout.cancel()
        self.server.watchers.discard(self)
        self.server.clients.forget(self)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        if self.served:
            return  # one request a connection
        self._line += data
        line, newline, _ = self._line.partition(b"\n")
        if newline and len(line) <= LINE_MAX:
            self._serve(line)
        elif len(self._line) > LINE_MAX:
            self._refuse(f"a request has at most {LINE_MAX} bytes")

    def write(self, line: bytes) -> None:
        """Send a line; cut off a client that does not read."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(line)
        if self._transport.get_write_buffer_size() > WRITE_MAX:
            self.drop()

    def drop(self) -> None:
        """Cut the client off."""
        self.server.watchers.discard(self)
        self.server.clients.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def finish(self) -> None:
        """Close the connection once the client has read what was written, or REQUEST_TIME is over."""
        self.watching = False
        if self._transport is not None:
            self._transport.close()

    def _serve(self, line: bytes) -> None:
        self.served = True
        handler = self.server.handler
        match _request(line):
            case "status":
                self._answer(status=handler.status())
                self.finish()
            case "watch" if self.server.clients.may_watch(self):
                if self._timeout is not None:
                    self._timeout.cancel()
                self.watching = True
                self._answer(at=time.time(), status=handler.status())
                self.server.watchers.add(self)
            case "watch":
                self._refuse("this user has too many watchers")
            case "refresh" if self._may_change():
                handler.refresh()
                self._answer()
                self.finish()
            case "dhcp-failed" if self._may_change():
                handler.failed()
                self._answer()
                self.finish()
            case "stop" if self._may_change():
                self.stopping = True
                self._take_time(self._stop(), self.server.tasks)
            case "reload" if self._may_change():
                self.reloading = True
                self._take_time(self._reload(), self.server.reloads)
            case "refresh" | "dhcp-failed" | "reload" | "stop":
                self._refuse("only root and the daemon's own user may do that", permission=True)
            case _:
                self._refuse("not a request: status, watch, refresh, dhcp-failed, reload or stop")

    def _take_time(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        if self._timeout is not None:
            self._timeout.cancel()  # a script may have to be waited for
        self.server.start(work, tasks)

    async def _stop(self) -> None:
        # A client that has gone meanwhile does not undo its request.
        await self.server.handler.stop()
        self._answer()
        self.finish()

    async def _reload(self) -> None:
        refusal = await self.server.handler.reload()
        self.reloading = False
        self._refuse(refusal)

    def _may_change(self) -> bool:
        return self.user in (0, os.geteuid())

    def _refuse(self, error: str, *, permission: bool = False) -> None:
        self.served = True
        self._answer(ok=False, error=error, permission=permission)
        self.finish()

    def _answer(self, *, ok: bool = True, **fields: Any) -> None:
        self.write(encode({"version": VERSION, "ok": ok, **fields}))


def encode(message: dict[str, Any]) -> bytes:
    """Return a message as one JSON line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _request(line: bytes) -> object:
    """Return the name of the request; None if the line is not a request."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message.get("request") if isinstance(message, dict) else None


def _user(connection: socket.socket) -> int:
    """Return the user id of the process at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])
