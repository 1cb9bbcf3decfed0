"""A D-Bus system bus that lies: what follows NetworkManager must outlive whatever it is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from jeepney import DBusAddress, HeaderFields, Message, MessageType, Parser, new_error, new_signal
from jeepney import new_method_return as new_return

from autoip.daemon.networkmanager import gate
from autoip.daemon.networkmanager.gate import DEVICE, NAME, PATH, PROPERTIES, Follower

BUS = "org.freedesktop.DBus"
MANAGER, STRANGER = ":1.9", ":1.666"
QUIET = 0.02
"""Seconds without a call after which the bus ends the connection."""
BODIES: list[tuple[str, tuple[Any, ...]]] = [
    ("", ()),
    ("s", (":1.9",)),
    ("s", ("",)),
    ("o", (f"{PATH}/Devices/2",)),
    ("u", (100,)),
    ("uuu", (30, 100, 0)),
    ("uuu", (100, 70, 0)),
    ("uuu", (4294967295, 0, 0)),
    ("sss", (NAME, ":1.9", "")),
    ("sss", (NAME, "", ":1.9")),
    ("v", (("u", 100),)),
    ("v", (("u", 30),)),
    ("v", (("s", "eth0"),)),
    ("v", (("v", ("v", ("u", 100))),)),
    ("sa{sv}as", (DEVICE, {"Interface": ("s", "eth0")}, [])),
    ("sa{sv}as", (DEVICE, {"Interface": ("u", 3)}, ["x"])),
    ("sa{sv}as", (DEVICE, {"Dhcp4Config": ("o", "/")}, [])),
    ("sa{sv}as", (f"{NAME}.IP4Config", {"Addresses": ("aau", [])}, [])),
    ("a{sa{sv}}t", ({"ipv4": {"method": ("s", "disabled")}}, 1)),
    ("a{sa{sv}}t", ({"ipv4": {"method": ("u", 3)}}, 1)),
    ("a{sa{sv}}t", ({"ipv6": {}}, 1)),
    ("aau", ([[1], []],)),
    ("d", (float("nan"),)),
]
MEMBERS = [
    (DEVICE, "StateChanged"),
    (NAME, "DeviceAdded"),
    (NAME, "DeviceRemoved"),
    (PROPERTIES, "PropertiesChanged"),
    (BUS, "NameOwnerChanged"),
    ("a.b", "c"),
]


@dataclass(frozen=True)
class Step:
    """What the bus does about the next call, besides or instead of answering it."""

    answer: str
    """right, none, error, other (a body of `body`), stranger (right, but another's), or end (of the connection)."""
    body: tuple[str, tuple[Any, ...]]
    signals: list[tuple[str, tuple[str, str], tuple[str, tuple[Any, ...]]]]
    """Before it: sender, interface and member, body."""
    damage: list[tuple[int, int]]
    """Bytes of what is sent that are others: place and value."""
    raw: bytes
    """Before all that."""


@dataclass(frozen=True)
class Script:
    """A whole connection: what authentication answers, then what happens at each call; after the last all is right."""

    greeting: bytes
    steps: list[Step] = field(default_factory=list)


_RIGHT = b"OK 0123456789abcdef0123456789abcdef\r\n"
_STEP = Step("right", ("", ()), [], [], b"")
_NAMED: tuple[str, tuple[Any, ...]] = ("sa{sv}as", (DEVICE, {"Interface": ("s", "eth0")}, []))

FOUND = [
    # A path that is none, as the answer to GetDeviceByIpIface: after Hello, five AddMatch and GetNameOwner.
    Script(_RIGHT, [_STEP] * 8 + [replace(_STEP, answer="other", body=("s", ("",)))]),
    # A signal without a sender, while NetworkManager is not known yet.
    Script(
        _RIGHT, [_STEP, replace(_STEP, signals=[("", (PROPERTIES, "PropertiesChanged"), _NAMED)])]
    ),
]
"""What once broke the follower."""


def scripts() -> st.SearchStrategy[Script]:
    """Buses of all kinds."""
    greeting = st.one_of(
        st.just(_RIGHT),
        st.just(_RIGHT),
        st.just(_RIGHT),
        st.sampled_from([b"", b"REJECTED EXTERNAL\r\n", b"OK\r\n", b"DATA\r\n", b"x" * 70_000]),
        st.binary(max_size=40),
    )
    body = st.sampled_from(BODIES)
    sender = st.sampled_from([BUS, MANAGER, STRANGER, ""])
    signal = st.tuples(sender, st.sampled_from(MEMBERS), body)
    damage = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4)
    step = st.builds(
        Step,
        answer=st.sampled_from(
            ["right", "right", "right", "none", "error", "other", "stranger", "end"]
        ),
        body=body,
        signals=st.lists(signal, max_size=3),
        damage=st.one_of(st.just([]), st.just([]), damage),
        raw=st.one_of(st.just(b""), st.just(b""), st.just(b""), st.binary(max_size=40)),
    )
    return st.builds(Script, greeting, st.lists(step, max_size=12))


def _from(message: Message, sender: str) -> Message:
    if sender:
        message.header.fields[HeaderFields.sender] = sender
    return message


def _right(call: Message) -> Message:
    """What the real ones answer."""
    match call.header.fields[HeaderFields.member]:
        case "Hello":
            return _from(new_return(call, "s", (":1.7",)), BUS)
        case "AddMatch":
            return _from(new_return(call), BUS)
        case "GetNameOwner":
            return _from(new_return(call, "s", (MANAGER,)), BUS)
        case "GetDeviceByIpIface":
            return _from(new_return(call, "o", (f"{PATH}/Devices/2",)), MANAGER)
        case "GetAppliedConnection":
            settings = {"ipv4": {"method": ("s", "auto")}}
            return _from(new_return(call, "a{sa{sv}}t", (settings, 1)), MANAGER)
        case _:
            value = ("s", "eth0") if call.body[1] == "Interface" else ("u", 100)
            return _from(new_return(call, "v", (value,)), MANAGER)


class _Connection:
    """The bus's end of a connection."""

    def __init__(self, script: Script, writer: asyncio.StreamWriter) -> None:
        self._steps = iter(script.steps)
        self._writer = writer
        self._serial = 0

    def _send(self, message: Message, damage: list[tuple[int, int]]) -> None:
        self._serial += 1
        data = bytearray(message.serialise(self._serial))
        for place, value in damage:
            if place < len(data):
                data[place] = value
        self._writer.write(bytes(data))

    def on_call(self, call: Message) -> bool:
        """Whether the connection goes on."""
        step = next(self._steps, None)
        if step is None:
            self._send(_right(call), [])
            return True
        self._writer.write(step.raw)
        for sender, (interface, member), (signature, body) in step.signals:
            address = DBusAddress(f"{PATH}/Devices/2", interface=interface)
            signal = new_signal(address, member, signature or None, body)
            self._send(_from(signal, sender), step.damage)
        if step.answer == "end":
            return False
        if answer := self._answer(call, step):
            self._send(answer, step.damage)
        return True

    def _answer(self, call: Message, step: Step) -> Message | None:
        right = _right(call)
        sender = right.header.fields[HeaderFields.sender]
        match step.answer:
            case "none":
                return None
            case "error":
                return _from(new_error(call, "a.b.C", step.body[0] or None, step.body[1]), sender)
            case "other":
                return _from(new_return(call, step.body[0] or None, step.body[1]), sender)
            case "stranger":
                return _from(right, STRANGER)
        return right


async def _serve(
    script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    parser = Parser()
    connection = _Connection(script, writer)
    try:
        await reader.read(4096)
        writer.write(script.greeting)
        await asyncio.wait_for(reader.readuntil(b"BEGIN\r\n"), QUIET)
        while data := await asyncio.wait_for(reader.read(65536), QUIET):
            parser.add_data(data)
            while (call := parser.get_next_message()) is not None:
                if call.header.message_type is MessageType.method_call and not connection.on_call(
                    call
                ):
                    return
    except (asyncio.TimeoutError, asyncio.IncompleteReadError, OSError):
        pass  # nothing more is asked, or the client has had enough
    finally:
        writer.transport.abort()


class _Errors(logging.Handler):
    """Keeps the records that say that something is wrong in autoip."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def _logger() -> Iterator[tuple[logging.Logger, _Errors]]:
    log = logging.getLogger("autoip.attack.bus")
    log.propagate = False
    errors = _Errors()
    log.addHandler(errors)
    yield log, errors
    log.removeHandler(errors)


async def check(folder: Path, script: Script) -> None:
    """Follow NetworkManager on such a bus until it ends the connection; no error of ours, no rest of it."""
    path = folder / "bus"
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _serve(script, reader, writer)
        finally:
            served.set()

    bus = await asyncio.start_unix_server(serve, str(path))
    permitted: dict[str, bool] = {}

    def permit(name: str, allowed: bool, _: str) -> None:
        permitted[name] = allowed

    with _logger() as (log, errors):
        follower = Follower(permit, log, {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={path}"})
        follower.start(["eth0"])
        await served.wait()
        while follower._bus is not None:
            await asyncio.sleep(0)
        assert follower._task is not None and not follower._task.done()
        await follower.stop()
        bus.close()
        await bus.wait_closed()
        assert not errors.records, errors.records[0].getMessage()
        assert not follower._answers and not follower._devices and not follower._owner
        gates = follower._gates
        assert permitted == {"eth0": gate.allows(gates["eth0"].standing or gate.Standing.ASKED)}
