"""A D-Bus bus of its own, on which a few lines play NetworkManager; root is not needed for it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    message_bus,
    new_error,
    new_method_return,
    new_signal,
)
from jeepney.io.asyncio import DBusConnection, DBusRouter, Proxy, open_dbus_connection

NAME = "org.freedesktop.NetworkManager"
PATH = "/org/freedesktop/NetworkManager"
DEVICE = "org.freedesktop.NetworkManager.Device"

_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
  <policy context="default"><allow user="*"/><allow own="*"/>
    <allow send_type="method_call"/><allow send_type="signal"/>
    <allow send_type="method_return"/><allow send_type="error"/>
    <allow receive_type="method_call"/><allow receive_type="signal"/>
    <allow receive_type="method_return"/><allow receive_type="error"/></policy>
</busconfig>
"""


class PrivateBus:
    """dbus-daemon on a socket in a folder; it can be ended and started again."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "bus"
        self.address = f"unix:path={self.socket}"
        self._config = folder / "bus.conf"
        self._config.write_text(_CONFIG.format(socket=self.socket))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("dbus-daemon")
        assert program is not None
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [program, f"--config-file={self._config}", "--nofork", "--nopidfile", "--nosyslog"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 30
        while not self._listens():
            assert time.monotonic() < until and self._process.poll() is None
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class FakeNetworkManager:
    """Has devices, and sends the signals of the real one. `mute`: it answers nothing."""

    def __init__(self, bus: PrivateBus) -> None:
        self._bus = bus
        self.devices: dict[str, tuple[str, int]] = {}
        """By object path: name of the interface, number of the state."""
        self.profiles: dict[str, dict[str, dict[str, tuple[str, object]]]] = {}
        """By object path of the device: the settings of the profile that is active there."""
        self.method = "auto"
        """`ipv4.method` of the connection that all devices have."""
        self.mute = False
        self.nonsense = False
        self.asked: list[str] = []
        self._connection: DBusConnection | None = None

    async def __aenter__(self) -> FakeNetworkManager:
        self._connection = await open_dbus_connection(self._bus.address)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._connection is not None
        with contextlib.suppress(ConnectionError):
            await self._connection.close()

    async def own_name(self) -> None:
        assert self._connection is not None
        async with DBusRouter(self._connection) as router:
            await Proxy(message_bus, router).RequestName(NAME)

    async def serve(self) -> None:
        """Answers until cancelled, or the bus ends."""
        assert self._connection is not None
        while True:
            try:
                message = await self._connection.receive()
            except (EOFError, ConnectionError):
                return
            if message.header.message_type is MessageType.method_call and not self.mute:
                await self._connection.send(self._answer(message))

    def _answer(self, call: Message) -> Message:
        fields = call.header.fields
        assert call.header.flags & MessageFlag.no_auto_start
        member = fields[HeaderFields.member]
        path = fields[HeaderFields.path]
        self.asked.append(member)
        if self.nonsense:
            return new_method_return(call, "au", ([1, 2],))
        if member == "GetDeviceByIpIface":
            for found, (name, _) in self.devices.items():
                if name == call.body[0]:
                    return new_method_return(call, "o", (found,))
            return new_error(call, f"{NAME}.UnknownDevice")
        if member == "GetAppliedConnection":
            if not 40 <= self.devices[path][1] <= 100:
                return new_error(call, f"{DEVICE}.NotActive")
            settings = {"ipv4": {"method": ("s", self.method)}, "connection": {"id": ("s", "a")}}
            return new_method_return(call, "a{sa{sv}}t", (settings, 1))
        if member == "GetSettings":
            return new_method_return(call, "a{sa{sv}}", (self.profiles[path.removesuffix("/p")],))
        assert member == "Get"
        if call.body == (f"{NAME}.Connection.Active", "Connection"):
            return new_method_return(call, "v", (("o", path.replace("/a", "/p")),))
        assert call.body[0] == DEVICE
        name, state = self.devices[path]
        values = {
            "Interface": ("s", name),
            "State": ("u", state),
            "ActiveConnection": ("o", f"{path}/a" if path in self.profiles else "/"),
        }
        return new_method_return(call, "v", (values[call.body[1]],))

    async def signal(
        self, path: str, interface: str, member: str, signature: str, *body: Any, to: str = ""
    ) -> None:
        """A signal to all, or to one client alone."""
        assert self._connection is not None
        message = new_signal(DBusAddress(path, interface=interface), member, signature, body)
        if to:
            message.header.fields[HeaderFields.destination] = to
        await self._connection.send(message)

    async def change(self, path: str, state: int) -> None:
        """Change the device's state, and send the signal of it."""
        name, old = self.devices[path]
        self.devices[path] = name, state
        await self.signal(path, DEVICE, "StateChanged", "uuu", state, old, 0)

    async def apply(self, path: str, method: str) -> None:
        """Apply a connection with this `ipv4.method`, as `nmcli device modify` does."""
        self.method = method
        if method in ("auto", "disabled"):
            of = DEVICE
            changed: dict[str, tuple[str, Any]] = {"Dhcp4Config": ("o", f"{PATH}/DHCP4Config/7")}
        else:
            of, path = f"{NAME}.IP4Config", f"{PATH}/IP4Config/7"
            changed = {"Addresses": ("aau", [])}
        properties = "org.freedesktop.DBus.Properties"
        await self.signal(path, properties, "PropertiesChanged", "sa{sv}as", of, changed, [])

    async def add(self, path: str, name: str, state: int) -> None:
        self.devices[path] = name, state
        await self.signal(PATH, NAME, "DeviceAdded", "o", path)

    async def remove(self, path: str) -> None:
        del self.devices[path]
        await self.signal(PATH, NAME, "DeviceRemoved", "o", path)

    async def rename(self, path: str, name: str) -> None:
        self.devices[path] = name, self.devices[path][1]
        changed = {"Interface": ("s", name)}
        properties = "org.freedesktop.DBus.Properties"
        await self.signal(path, properties, "PropertiesChanged", "sa{sv}as", DEVICE, changed, [])
