"""Whether NetworkManager allows an address of ours on an interface, followed on D-Bus.

If NetworkManager finds an address on a device that it has not activated, also when it starts, it regards the
device as configured by somebody else ("connected (externally)"), and never connects the profile meant for the
device. So an address is held only while NetworkManager gives the device its addresses or has done so (states 70
to 100), or where NetworkManager leaves the interface alone. The connection that is applied to the device may
forbid one as well: `ipv4.method` is `disabled`, or `link-local`, which NetworkManager then does itself.

Each interface has a `Standing`; only `TRANSITIONS` and `WAITS` change it. NetworkManager's signals report all
changes: nothing is polled. Without a bus, or without NetworkManager installed, there is no connection at all.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoip.daemon.networkmanager.dbus import Bus, Message

NAME = "org.freedesktop.NetworkManager"
PATH = "/org/freedesktop/NetworkManager"
DEVICE = "org.freedesktop.NetworkManager.Device"
IP4_CONFIG = "org.freedesktop.NetworkManager.IP4Config"
PROPERTIES = "org.freedesktop.DBus.Properties"

SYSTEM_BUS = "/run/dbus/system_bus_socket"
"""The socket of the system bus, unless $DBUS_SYSTEM_BUS_ADDRESS names another."""
RUNTIME = "/run/NetworkManager"
"""NetworkManager makes it when it starts, and does not remove it."""
INSTALLED = (RUNTIME, "/etc/NetworkManager", "/usr/lib/NetworkManager")
"""Where none of these exists, NetworkManager is not installed."""

FORBIDDEN = {
    "disabled": "the interface's NetworkManager profile has ipv4.method disabled",
    "link-local": "NetworkManager itself gives it a link-local address: ipv4.method link-local",
}
"""Why a value of `ipv4.method` allows no address of ours."""

UNMANAGED, IP_CONFIG, ACTIVATED = 10, 70, 100
STATES: Mapping[int, str] = {
    0: "unknown",
    10: "unmanaged",
    20: "unavailable",
    30: "disconnected",
    40: "prepare",
    50: "config",
    60: "need-auth",
    70: "ip-config",
    80: "ip-check",
    90: "secondaries",
    100: "activated",
    110: "deactivating",
    120: "failed",
}
"""NMDeviceState, of NetworkManager's D-Bus interface."""

ANSWER_TIMEOUT = 10.0
"""Seconds for NetworkManager's first answer about an interface."""
RETURN_TIMEOUT = 10.0
"""Seconds for NetworkManager, or the bus, to come back. After a crash NetworkManager does not remember what it had
activated: when it starts again there must be no address of ours. Service managers start it again at once."""
SETTLE = 2.0
"""Seconds for NetworkManager to decide on a new device, which begins as unmanaged."""
RETRY_FIRST, RETRY_MAX = 0.5, 30.0
"""Seconds between two attempts to connect to a bus that was there before: doubled each time."""

Permit = Callable[[str, bool, str], None]
"""Takes an interface, whether an address may be held there, and why. Must not raise."""


class Standing(Enum):
    """Where an interface stands with NetworkManager. Values are the reasons, where the device's state is not."""

    ASKED = "waits for NetworkManager's word"
    SILENT = "NetworkManager does not answer"
    MISSING = "NetworkManager does not know it yet"
    NOT_KNOWN = "NetworkManager does not know it"
    NEW = "NetworkManager has just begun with it"
    OPEN = "NetworkManager allows it"
    CLOSED = "NetworkManager does not allow it"
    LEFT = "NetworkManager has left, and may be back at once"
    NOT_RUNNING = "NetworkManager does not run"
    NOT_FOLLOWED = "NetworkManager is not followed"


class Trigger(Enum):
    """Why a standing is left for another."""

    NOT_FOLLOWABLE = "no bus, no NetworkManager, or no library"
    APPEARED = "NetworkManager is on the bus"
    DISAPPEARED = "NetworkManager is on the bus no more"
    ABSENT = "NetworkManager was not on the bus, and is not"
    UNKNOWN = "NetworkManager has no such device"
    FIRST_UNMANAGED = "NetworkManager has the device, which is new, in state unmanaged"
    ALLOWS = "the device's state allows an address"
    FORBIDS = "the device's state, or its profile, does not"


_S, _T = Standing, Trigger
_ANY = frozenset(Standing)
_WHILE_IT_RUNS = frozenset(
    {_S.ASKED, _S.SILENT, _S.MISSING, _S.NOT_KNOWN, _S.NEW, _S.OPEN, _S.CLOSED}
)

WAITS: dict[Standing, tuple[float, Standing]] = {
    _S.ASKED: (ANSWER_TIMEOUT, _S.SILENT),
    _S.MISSING: (ANSWER_TIMEOUT, _S.NOT_KNOWN),
    _S.NEW: (SETTLE, _S.OPEN),
    _S.LEFT: (RETURN_TIMEOUT, _S.NOT_RUNNING),
}
"""How long a standing lasts, in seconds, and which one follows. No address may be held meanwhile."""

TRANSITIONS: Mapping[Trigger, tuple[frozenset[Standing], Standing]] = {
    _T.NOT_FOLLOWABLE: (_ANY, _S.NOT_FOLLOWED),
    _T.APPEARED: (_ANY, _S.ASKED),
    _T.DISAPPEARED: (_WHILE_IT_RUNS, _S.LEFT),
    _T.ABSENT: (_ANY - {_S.LEFT}, _S.NOT_RUNNING),
    _T.UNKNOWN: (_WHILE_IT_RUNS, _S.MISSING),
    _T.FIRST_UNMANAGED: (_WHILE_IT_RUNS, _S.NEW),
    _T.ALLOWS: (_WHILE_IT_RUNS, _S.OPEN),
    _T.FORBIDS: (_WHILE_IT_RUNS, _S.CLOSED),
}
"""The standings in which each trigger has an effect, and the standing that follows."""


def allows(standing: Standing) -> bool:
    """Return whether an address may be held."""
    return standing not in WAITS and standing is not Standing.CLOSED


@dataclass(frozen=True, slots=True)
class Kept:
    """What a `Follower` hands over: NetworkManager's unique name; each interface, where it stands, and why."""

    owner: str = ""
    standings: tuple[tuple[str, Standing | None, str], ...] = ()

    def of(self, name: str) -> tuple[Standing, str]:
        """Where the interface stands, and why; one that is new waits for the bus."""
        for known, standing, why in self.standings:
            if known == name and standing is not None:
                return standing, why
        # Where NetworkManager has not run since the boot, nothing is reported of it.
        runs = os.path.exists(RUNTIME)
        return Standing.ASKED, Standing.ASKED.value if runs else "waits for the system bus"


NEW = Kept()


def absence(address: str) -> str:
    """Return in words why NetworkManager cannot be here; empty: it may be.

    Args:
        address: of the system bus, where the user gave one.
    """
    if not address and not os.path.exists(SYSTEM_BUS):
        return "there is no D-Bus system bus"
    if not address and not any(map(os.path.exists, INSTALLED)):
        return "NetworkManager is not installed"
    return ""


@dataclass(slots=True)
class _Gate:
    """The gate of one interface: its standing, why, and until when."""

    standing: Standing | None = None
    why: str = ""
    timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Cancel the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _Gates:
    """The gates of all interfaces, by name.

    Args:
        permit: called at every change.
    """

    def __init__(self, permit: Permit) -> None:
        self._permit = permit
        self._gates: dict[str, _Gate] = {}
        self._last: tuple[Trigger, str] = (Trigger.APPEARED, "")  # what all got last

    def __iter__(self) -> Iterator[str]:
        return iter([*self._gates])

    def __getitem__(self, name: str) -> _Gate:
        return self._gates[name]

    def begin(self, names: Iterable[str]) -> None:
        """Have a gate for each of these, which stands nowhere yet."""
        self._gates = {name: _Gate() for name in names}

    def add(self, name: str) -> None:
        """Have one more gate; what all got last counts for it."""
        self._gates[name] = _Gate()
        self.go(name, *self._last)

    def drop(self, name: str) -> None:
        """Forget a gate. Harmless when repeated."""
        if (gate := self._gates.pop(name, None)) is not None:
            gate.close()

    def all(self, trigger: Trigger, why: str = "") -> None:
        """`go` for each."""
        self._last = trigger, why
        for name in self._gates:
            self.go(name, trigger, why)

    def go(self, name: str, trigger: Trigger, why: str = "") -> None:
        """Follow the table; `why`: the reason, if not the standing's own."""
        if name not in self._gates:
            return  # dropped, before the answer came
        before = self._gates[name].standing
        sources, standing = TRANSITIONS[trigger]
        if before is None or before in sources:
            self.enter(name, standing, why or standing.value)

    def enter(self, name: str, standing: Standing, why: str) -> None:
        """Change the standing; the only place that does."""
        gate = self._gates[name]
        gate.close()
        before = gate.standing is not None and (allows(gate.standing), gate.why)
        gate.standing, gate.why = standing, why
        if standing in WAITS:
            seconds, then = WAITS[standing]
            reason = why if then is Standing.OPEN else then.value
            loop = asyncio.get_running_loop()
            gate.timer = loop.call_later(seconds, self.enter, name, then, reason)
        if before != (allows(standing), why):
            self._permit(name, allows(standing), why)


class Follower:
    """Follows NetworkManager for some interfaces. No method raises.

    Args:
        permit: called at once in `start`, and at every change.
        log: the program's logger.
        environ: the process's environment.
    """

    def __init__(
        self,
        permit: Permit,
        log: logging.Logger,
        environ: Mapping[str, str],
    ) -> None:
        self.limits: list[str] = []
        """What cannot be done here, one line each, for the status."""
        self._log = log
        self._address = environ.get("DBUS_SYSTEM_BUS_ADDRESS", "")
        self._gates = _Gates(permit)
        self._task: asyncio.Task[None] | None = None
        self._bus: Bus | None = None
        self._answers: dict[int, Callable[[Message], None]] = {}
        self._owner = ""  # NetworkManager's unique name
        self._devices: dict[str, str] = {}  # D-Bus path of a device: name of its interface
        self._states: dict[str, int] = {}  # path of a device: number of its last known state

    # --- its life ----------------------------------------------------------------------------

    def start(self, interfaces: Iterable[str], kept: Kept = NEW) -> None:
        """Begin to follow, and permit or forbid an address for each interface, by name, at once; `kept`: as before."""
        self._gates.begin(interfaces)
        if why := absence(self._address):
            self._gates.all(Trigger.NOT_FOLLOWABLE, why)
        elif find_spec("jeepney") is None:
            self._cannot_follow()
        else:
            self._owner = kept.owner
            for name in self._gates:
                self._gates.enter(name, *kept.of(name))
            self._task = asyncio.get_running_loop().create_task(self._run())

    def add(self, name: str) -> None:
        """Follow for one more interface: permit or forbid an address at once."""
        self._gates.add(name)
        if self._owner:
            self._look_up(name)

    def drop(self, name: str) -> None:
        """Follow no longer for an interface. Harmless when repeated."""
        self._gates.drop(name)

    def keep(self) -> Kept:
        """Return what `start` of the next one takes."""
        gates = [(name, self._gates[name]) for name in self._gates]
        return Kept(self._owner, tuple((name, gate.standing, gate.why) for name, gate in gates))

    async def stop(self) -> None:
        """End. Nothing is permitted or forbidden any more."""
        self._owner = ""
        while self._task is not None and not self._task.done():
            # More than once: before Python 3.12 wait_for() may forget it.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.1)
        for name in self._gates:
            self._gates[name].close()

    def _cannot_follow(self) -> None:
        self._gates.all(Trigger.NOT_FOLLOWABLE)
        if not os.path.exists(RUNTIME):
            return  # installed, and has not run since the boot
        text = (
            "NetworkManager is not followed: the Python package jeepney is missing; where it manages"
            " the interface, it may take the address off, and never connect the profile meant for it"
        )
        self.limits.append(text)
        self._log.warning("%s", text)

    async def _run(self) -> None:
        try:
            from autoip.daemon.networkmanager import dbus
        except ImportError:  # a part of jeepney is missing
            self._cannot_follow()
            return
        pause = RETRY_FIRST
        while True:
            try:
                socket = dbus.socket_of(self._address) if self._address else SYSTEM_BUS
                self._bus = await dbus.Bus.connect(socket)
                pause = RETRY_FIRST
                await self._follow(self._bus)
            except dbus.BusLost as error:
                level = logging.DEBUG if self._bus is None else logging.WARNING
                self._log.log(level, "D-Bus system bus: %s", error)
            except Exception:  # noqa: BLE001 (a bug of ours must not end it)
                self._log.exception("internal error in what follows NetworkManager")
            finally:
                self._disconnect()
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX)

    def _disconnect(self) -> None:
        if self._bus is not None:
            bus, self._bus = self._bus, None
            if self._owner:  # else nothing has changed
                self._is_away()
            self._answers.clear()  # the next connection counts its calls from 1 again
            bus.close()

    # --- what comes from the bus -------------------------------------------------------------

    async def _follow(self, bus: Bus) -> None:
        """Read until the bus is lost."""
        for interface, member in (
            (NAME, "DeviceAdded"),
            (NAME, "DeviceRemoved"),
            (DEVICE, "StateChanged"),
        ):
            bus.subscribe(sender=NAME, interface=interface, member=member)
        # Only these signals report a new name of a device, and another profile in the same state.
        for of in (DEVICE, IP4_CONFIG):
            bus.subscribe(sender=NAME, interface=PROPERTIES, member="PropertiesChanged", arg0=of)
        # Last: signals report what happens between the request and its answer.
        self._answers[bus.watch_name(NAME)] = self._on_owner
        while True:
            message = await bus.next_message()
            if message.kind != "signal":
                if (answer := self._answers.pop(message.answers, None)) is not None:
                    answer(message)
            elif message.from_bus:
                self._on_name_owner_changed(message)
            elif self._owner and message.sender == self._owner:
                self._on_signal(message)

    def _on_owner(self, message: Message) -> None:
        match message.arguments(str):
            case [owner]:
                self._appeared(owner)
            case _:
                self._is_away()

    def _on_name_owner_changed(self, message: Message) -> None:
        match message.member, message.arguments(str, str, str):
            case "NameOwnerChanged", [name, _, owner] if name == NAME:
                if owner:
                    self._appeared(owner)
                else:
                    self._is_away()

    def _appeared(self, owner: str) -> None:
        """Ask about all interfaces: NetworkManager is on the bus, or a new instance of it."""
        if owner != self._owner:
            self._forget()
            self._owner = owner
            self._gates.all(Trigger.APPEARED)
        for name in self._gates:
            self._look_up(name)

    def _is_away(self) -> None:
        """Forget NetworkManager, which is not, or no longer, on the bus."""
        self._gates.all(Trigger.DISAPPEARED if self._owner else Trigger.ABSENT)
        self._forget()

    def _look_up(self, name: str) -> None:
        def found(message: Message) -> None:
            match message.arguments(str):
                case [path]:
                    self._devices[path] = name
                    self._ask_state(path)
                case _:
                    self._is_unknown(name)

        self._call(found, PATH, NAME, "GetDeviceByIpIface", "s", name)

    def _ask_state(self, path: str, *, new: bool = False) -> None:
        def answered(message: Message) -> None:
            match message.arguments(tuple):
                case [(_, int(state))]:
                    self._judge(path, state, new=new)

        self._call(answered, path, PROPERTIES, "Get", "ss", DEVICE, "State")

    def _on_signal(self, message: Message) -> None:
        match message.interface, message.member:
            case "org.freedesktop.NetworkManager.Device", "StateChanged":
                match message.arguments(int, int, int):
                    case [new, _, _]:
                        self._judge(message.path, new)
            case "org.freedesktop.NetworkManager", "DeviceAdded":
                match message.arguments(str):
                    case [path]:
                        self._ask_name(path)
            case "org.freedesktop.NetworkManager", "DeviceRemoved":
                match message.arguments(str):
                    case [path]:
                        self._lose(path)
            case "org.freedesktop.DBus.Properties", "PropertiesChanged":
                match message.arguments(str, dict, list):
                    case [_, {"Interface": (_, str(name))}, _]:
                        self._is_named(message.path, name)
                    case [_, {"Dhcp4Config": _} | {"Addresses": _}, _]:
                        # `nmcli device modify` has applied another profile to a device, or only its addresses differ.
                        for path, state in [*self._states.items()]:
                            if IP_CONFIG <= state <= ACTIVATED:
                                self._judge(path, state)

    def _ask_name(self, path: str) -> None:
        def answered(message: Message) -> None:
            match message.arguments(tuple):
                case [(_, str(name))]:
                    self._is_named(path, name)

        self._call(answered, path, PROPERTIES, "Get", "ss", DEVICE, "Interface")

    def _is_named(self, path: str, name: str) -> None:
        """Handle the name of a new device, or the new name of a known one."""
        if self._devices.get(path) == name:
            return
        self._lose(path)
        if name in self._gates:
            self._devices[path] = name
            self._ask_state(path, new=True)

    def _lose(self, path: str) -> None:
        self._states.pop(path, None)
        if (name := self._devices.pop(path, None)) is not None:
            self._is_unknown(name)

    # --- what follows from it ----------------------------------------------------------------

    def _is_unknown(self, name: str) -> None:
        """NetworkManager has no such device: it has each interface within moments, managed or not."""
        if name not in self._devices.values():
            self._gates.go(name, Trigger.UNKNOWN)

    def _judge(self, path: str, state: int, *, new: bool = False) -> None:
        if (name := self._devices.get(path)) is None:
            return
        self._states[path] = state
        why = f"NetworkManager has it in state {STATES.get(state, state)}"
        if IP_CONFIG <= state <= ACTIVATED:
            self._ask_method(path, state, why)
        elif state == UNMANAGED:
            self._gates.go(name, Trigger.FIRST_UNMANAGED if new else Trigger.ALLOWS, why)
        else:
            self._gates.go(name, Trigger.FORBIDS, why)

    def _ask_method(self, path: str, state: int, why: str) -> None:
        """Allow an address in this state, unless the connection that the device has now forbids one."""

        def answered(message: Message) -> None:
            name = self._devices.get(path)
            if name is None or self._states.get(path) != state:
                return  # a later state, which came before this answer, has been judged
            match message.arguments(dict, int):
                case [{"ipv4": {"method": (_, str(method))}}, _] if method in FORBIDDEN:
                    self._gates.go(name, Trigger.FORBIDS, FORBIDDEN[method])
                case _:  # also where NetworkManager is too old to answer
                    self._gates.go(name, Trigger.ALLOWS, why)

        self._call(answered, path, DEVICE, "GetAppliedConnection", "u", 0)

    # --- calls -------------------------------------------------------------------------------

    def _call(
        self,
        answer: Callable[[Message], None],
        path: str,
        interface: str,
        member: str,
        signature: str,
        *arguments: Any,
    ) -> None:
        """Call a method of NetworkManager; `answer` gets the answer."""
        if self._bus is not None:
            serial = self._bus.call(self._owner, path, interface, member, signature, *arguments)
            self._answers[serial] = answer

    def _forget(self) -> None:
        """Forget all that came from NetworkManager."""
        self._owner = ""
        self._devices.clear()
        self._states.clear()
        self._answers.clear()
