"""One connection to the D-Bus system bus, as a client: calls go out, messages come in.

The only importer of jeepney, and only of its part without input and output: parser and authentication. What comes
in is bounded, and an end of any kind is one exception.

Any process on the machine may send a signal directly to a client of the system bus, also one that the client did not
subscribe to: the caller must check `Message.sender`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import jeepney
from jeepney import DBusAddress, HeaderFields, MessageFlag, MessageType, new_method_call
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_connectable_addresses
from jeepney.low_level import calc_msg_size

BUS_NAME = "org.freedesktop.DBus"
"""The name of the bus itself; nobody else may have it."""
BUS_PATH = "/org/freedesktop/DBus"

CONNECT_TIMEOUT = 5.0
"""Seconds for the connection, the authentication and the bus's first answer."""
_LARGEST = 1 << 20
"""Bytes of a message. Expected ones have some hundreds; the bus itself passes on 32 MiB and more."""
_UNANSWERED = 1000
"""At most this many calls wait for an answer, so that they cannot exhaust memory."""
_START = 16
"""Bytes that show the size of a message."""
_CHUNK = 1 << 14


class BusLost(Exception):
    """There is no connection to the bus, or it has ended; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Message:
    """What came from the bus.

    Attributes:
        kind: "signal", "return" or "error".
        sender: the sender's unique name, which the bus guarantees; the bus itself is `BUS_NAME`.
        path, interface, member: of a signal; else empty.
        answers: the serial number of the call that it answers; 0 for a signal.
        error: the name of the error; else empty.
        body: the arguments, unchecked, with jeepney's Python types for those of D-Bus.
    """

    kind: str
    sender: str
    path: str
    interface: str
    member: str
    answers: int
    error: str
    body: tuple[Any, ...]

    @property
    def from_bus(self) -> bool:
        """Whether the bus itself sent it."""
        return self.sender == BUS_NAME

    def arguments(self, *types: type) -> Sequence[Any] | None:
        """Return the arguments if they have exactly these types; otherwise None.

        A variant is a tuple of signature and value.
        """
        if len(self.body) != len(types) or self.kind == "error":
            return None
        pairs = zip(self.body, types, strict=True)
        return self.body if all(isinstance(value, kind) for value, kind in pairs) else None


_KINDS = {
    MessageType.signal: "signal",
    MessageType.method_return: "return",
    MessageType.error: "error",
}


def socket_of(address: str) -> str:
    """Return the socket that a D-Bus address names (a leading zero byte: abstract).

    Raises:
        BusLost: no usable socket.
    """
    try:
        return str(next(iter(get_connectable_addresses(address))))
    except Exception as error:  # whatever the user wrote there
        raise BusLost(f"{address!r} is not a usable address of a bus") from error


@final
class Bus:
    """An open connection, made by `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._serial = 0
        self._unanswered: dict[int, str] = {}  # by serial number: the name that must answer

    @classmethod
    async def connect(cls, socket: str) -> Bus:
        """Connect to the socket, as `socket_of` gives it, and say hello.

        Raises:
            BusLost: there is no bus, or it refuses the connection.
        """
        try:
            return await asyncio.wait_for(cls._connect(socket), CONNECT_TIMEOUT)
        except BusLost:
            raise
        except asyncio.TimeoutError:
            raise BusLost(f"no answer within {CONNECT_TIMEOUT:g} s") from None
        except OSError as error:
            raise BusLost(error.strerror or str(error)) from error
        except Exception as error:  # whatever the other side made of the protocol
            raise BusLost(f"it does not speak D-Bus: {error!r}") from error

    @classmethod
    async def _connect(cls, socket: str) -> Bus:
        reader, writer = await asyncio.open_unix_connection(socket)
        try:
            authenticator = Authenticator()
            for line in authenticator:
                writer.write(line)
                answer = await reader.read(_CHUNK)
                if not answer:
                    raise BusLost("it closed the connection")
                authenticator.feed(answer)
            writer.write(BEGIN)
            bus = cls(reader, writer)
            hello = bus.call(BUS_NAME, BUS_PATH, BUS_NAME, "Hello")
            while (message := await bus.next_message()).answers != hello:
                pass
            if message.kind != "return":
                raise BusLost(f"it does not let us in: {message.error}")
        except BaseException:
            writer.transport.abort()
            raise
        return bus

    def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *arguments: Any,
    ) -> int:
        """Call a method, without starting a service; return the serial number that the answer will have.

        `destination` is a unique name, or the bus; only its answer counts.

        Raises:
            BusLost: too many calls have no answer, or `path`, which NetworkManager sent, cannot be an object's.
        """
        if len(self._unanswered) >= _UNANSWERED:
            raise BusLost(f"{_UNANSWERED} calls were not answered")
        try:
            address = DBusAddress(path, bus_name=destination, interface=interface)
            message = new_method_call(address, member, signature or None, arguments)
            message.header.flags |= MessageFlag.no_auto_start
            data = message.serialise(self._serial + 1)
        except ValueError as error:  # of DBusAddress or serialise, by jeepney's version
            raise BusLost(f"{member} cannot be called: {error}") from None
        self._serial += 1
        self._unanswered[self._serial] = destination
        self._writer.write(data)
        return self._serial

    def subscribe(self, **rule: str) -> int:
        """Ask for the signals that the rule describes (D-Bus specification, "Match Rules")."""
        text = ",".join(f"{key}='{value}'" for key, value in {"type": "signal", **rule}.items())
        return self.call(BUS_NAME, BUS_PATH, BUS_NAME, "AddMatch", "s", text)

    def watch_name(self, name: str) -> int:
        """Subscribe to a name's NameOwnerChanged, and ask for its owner; return the serial number of that call."""
        self.subscribe(sender=BUS_NAME, interface=BUS_NAME, member="NameOwnerChanged", arg0=name)
        return self.call(BUS_NAME, BUS_PATH, BUS_NAME, "GetNameOwner", "s", name)

    async def next_message(self) -> Message:
        """Wait for a signal or an answer.

        Raises:
            BusLost: the connection has ended.
        """
        while True:
            try:
                data = await self._next_bytes()
            except OSError as error:
                raise BusLost(error.strerror or str(error)) from error
            except asyncio.IncompleteReadError:
                raise BusLost("it closed the connection") from None
            message = _read(data)
            if message is not None and self._wanted(message):
                return message

    async def _next_bytes(self) -> bytes:
        """Return the next message. Skip one that is too large: any process may send it."""
        while True:
            start = await self._reader.readexactly(_START)
            try:
                size = calc_msg_size(start)
            except Exception as error:  # jeepney raises what it meets
                raise BusLost(f"it sent what is not a message: {start!r}") from error
            if size <= _LARGEST:
                return start + await self._reader.readexactly(size - _START)
            size -= _START
            while size > 0:
                size -= len(await self._reader.readexactly(min(size, _CHUNK)))

    def _wanted(self, message: Message) -> bool:
        """Return whether it is a signal, or an answer from the destination of its call."""
        if message.kind == "signal":
            return True
        if self._unanswered.get(message.answers) != message.sender:
            return False
        del self._unanswered[message.answers]
        return True

    def close(self) -> None:
        """End the connection, also with unsent data."""
        self._writer.transport.abort()


def _read(data: bytes) -> Message | None:
    """Return a message as a value; None: neither signal nor answer, or unreadable."""
    try:
        message = jeepney.Message.from_buffer(data)
        fields = message.header.fields
        kind = _KINDS[message.header.message_type]
        return Message(
            kind=kind,
            sender=fields.get(HeaderFields.sender, ""),
            path=fields.get(HeaderFields.path, ""),
            interface=fields.get(HeaderFields.interface, ""),
            member=fields.get(HeaderFields.member, ""),
            answers=fields.get(HeaderFields.reply_serial, 0) if kind != "signal" else 0,
            error=fields.get(HeaderFields.error_name, ""),
            body=tuple(message.body),
        )
    except Exception:  # noqa: BLE001 (jeepney raises what it meets)
        return None
