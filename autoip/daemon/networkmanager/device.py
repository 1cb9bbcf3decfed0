"""NetworkManager, asked once: what it does with some interfaces, and for how long it lets DHCP try."""

from __future__ import annotations

import configparser
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from autoip.daemon.networkmanager.gate import DEVICE, NAME, PATH, PROPERTIES, SYSTEM_BUS

if TYPE_CHECKING:
    from autoip.daemon.networkmanager.dbus import Bus, Message

_ACTIVE = "org.freedesktop.NetworkManager.Connection.Active"
_PROFILE = "org.freedesktop.NetworkManager.Settings.Connection"
_NONE = "/"
"""The object path that stands for no object."""
_TIMEOUT = "ipv4.dhcp-timeout"
TIMEOUT_DEFAULT = 45
"""Seconds for which NetworkManager lets DHCP try unless it is told otherwise."""
INFINITE = 2147483647
"""The number of seconds that means for ever."""


@dataclass(frozen=True, slots=True)
class Device:
    """An interface as NetworkManager has it."""

    state: int
    """NMDeviceState."""
    profile: str = ""
    """The name of the profile that is active there; empty: none is."""
    method: str = ""
    """The profile's ipv4.method."""
    link_local: int = 0
    """The profile's ipv4.link-local: 3 enabled, 4 fallback."""
    timeout: int = 0
    """The profile's ipv4.dhcp-timeout in seconds; 0: what the configuration has, see `configured_timeout`."""


async def devices(names: Iterable[str], environ: Mapping[str, str]) -> dict[str, Device]:
    """Ask NetworkManager on the system bus; those of the interfaces that it does not know are left out.

    Waits for as long as the answers take.

    Raises:
        dbus.BusLost: the bus cannot be used.
        ImportError: jeepney is missing.
    """
    from autoip.daemon.networkmanager.dbus import BUS_NAME, BUS_PATH, Bus, socket_of

    address = environ.get("DBUS_SYSTEM_BUS_ADDRESS", "")
    bus = await Bus.connect(socket_of(address) if address else SYSTEM_BUS)
    try:
        match (await _ask(bus, BUS_NAME, BUS_PATH, BUS_NAME, "GetNameOwner", NAME)).arguments(str):
            case [str(owner)]:
                found = {name: await _device(bus, owner, name) for name in names}
                return {name: device for name, device in found.items() if device is not None}
        return {}  # it does not run
    finally:
        bus.close()


async def _device(bus: Bus, owner: str, name: str) -> Device | None:
    match (await _ask(bus, owner, PATH, NAME, "GetDeviceByIpIface", name)).arguments(str):
        case [str(path)]:
            state = await _property(bus, owner, path, DEVICE, "State")
            if not isinstance(state, int):
                return None
            active = await _property(bus, owner, path, DEVICE, "ActiveConnection")
            if not isinstance(active, str) or active == _NONE:
                return Device(state)
            profile = await _property(bus, owner, active, _ACTIVE, "Connection")
            if not isinstance(profile, str) or profile == _NONE:
                return Device(state)
            answer = await _ask(bus, owner, profile, _PROFILE, "GetSettings")
            match answer.arguments(dict):
                case [dict(settings)]:
                    return _with_profile(state, settings)
            return Device(state)
    return None


def _with_profile(state: int, settings: Mapping[str, Any]) -> Device:
    """Return the device with what the profile says; a setting of an unexpected type counts as not set."""

    def value(section: str, key: str, kind: type) -> Any:
        with suppress(KeyError, TypeError, ValueError):
            _, found = settings[section][key]
            if isinstance(found, kind):
                return found
        return kind()

    return Device(
        state,
        profile=value("connection", "id", str),
        method=value("ipv4", "method", str),
        link_local=value("ipv4", "link-local", int),
        timeout=value("ipv4", "dhcp-timeout", int),
    )


async def _property(bus: Bus, owner: str, path: str, interface: str, name: str) -> Any:
    """Return the value of a property; None: there is none."""
    answer = await _ask(bus, owner, path, PROPERTIES, "Get", interface, name)
    match answer.arguments(tuple):
        case [(_, value)]:
            return value
    return None


async def _ask(
    bus: Bus, owner: str, path: str, interface: str, member: str, *words: str
) -> Message:
    """Call a method that takes strings; return the answer, which may be an error."""
    serial = bus.call(owner, path, interface, member, "s" * len(words), *words)
    while (message := await bus.next_message()).answers != serial:
        pass
    return message


def configured_timeout(name: str, texts: Sequence[str]) -> int:
    """Return for how many seconds DHCP may try where the profile does not say: as NetworkManager.conf(5).

    Args:
        name: of the interface.
        texts: the configuration's files, in the order in which NetworkManager reads them.
    """
    last: int | None = None  # [connection] alone comes after all others
    for text in reversed(texts):
        parser = configparser.ConfigParser(
            strict=False, interpolation=None, delimiters="=", comment_prefixes="#"
        )
        with suppress(configparser.Error):
            parser.read_string(text)
        for title in parser.sections():
            section = parser[title]
            if not title.startswith("connection") or not _matches(
                name, section.get("match-device", "*")
            ):
                continue
            with suppress(KeyError, ValueError):
                seconds = int(section[_TIMEOUT].strip().replace("infinity", str(INFINITE)))
                if title != "connection":
                    return seconds
                last = seconds if last is None else last
    return TIMEOUT_DEFAULT if last is None else last


def _matches(name: str, devices: str) -> bool:
    """Return whether a list of devices has the interface, as far as it goes by names."""
    found = False
    for word in devices.replace(";", ",").split(","):
        excepted = word.strip().startswith("except:")
        pattern = word.strip().removeprefix("except:").removeprefix("interface-name:").lstrip("=~")
        if pattern and fnmatchcase(name, pattern):
            if excepted:
                return False
            found = True
    return found
