"""The asking side of the control socket: plain sockets, so that a command starts fast."""

from __future__ import annotations

import json
import os
import socket
import struct

from autoip.control.protocol import VERSION, socket_name
from autoip.errors import AutoipError, NoPermission, NotRunning
from autoip.paths import network_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:  # a command must start fast
    from typing import Any

_TRIES = 3  # a daemon under a flood of connections may drop one of ours
_ANSWER_TIME = 10
_LONG_TIME = 60  # the daemon may have to wait for a script
_LONG = ("stop", "reload")
_LINE_MAX = 1 << 20


def served(directory: str) -> list[str]:
    """Return the interfaces of this network namespace for which a daemon's socket exists, sorted."""
    prefix, suffix = socket_name(network_namespace(), "\0").split("\0")
    try:
        names = [entry.name for entry in os.scandir(directory)]
    except OSError:
        return []
    return sorted(
        name[len(prefix) : -len(suffix)]
        for name in names
        if name.startswith(prefix) and name.endswith(suffix)
    )


class Connection:
    """One request to the daemon of an interface, and its answers.

    Args:
        directory: the run-time directory.
        interface: its name.
        request: status, watch, refresh, dhcp-failed, reload or stop.

    Raises:
        NotRunning: no daemon serves the interface.
        NoPermission: its socket may not be used.
        AutoipError: the daemon does not take the request.
    """

    def __init__(self, directory: str, interface: str, request: str) -> None:
        self.interface = interface
        self._waiting = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = os.path.join(directory, socket_name(network_namespace(), interface))
        # The kernel's time-outs: with Python's own, connect() fails at once while many others wait.
        limit = struct.pack("@ll", _LONG_TIME if request in _LONG else _ANSWER_TIME, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.connect(path)
            message = {"version": VERSION, "request": request}
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except PermissionError as error:
            self.close()
            raise NoPermission(f"{path}: {error.strerror}") from error
        except (FileNotFoundError, ConnectionError) as error:
            self.close()
            raise NotRunning(interface) from error
        except BlockingIOError as error:
            self.close()
            raise AutoipError(f"{interface}: the daemon does not answer") from error
        except OSError as error:
            self.close()
            raise AutoipError(f"{path}: {error.strerror or error}") from error

    def fileno(self) -> int:
        """Return the descriptor, which is readable when `read` returns without waiting."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def read(self) -> list[dict[str, Any]] | None:
        """Wait for messages; None: the daemon has closed the connection, or is not an autoip.

        Raises:
            AutoipError: nothing came in time.
        """
        try:
            data = self._socket.recv(65536)
        except ConnectionError:
            return None
        except BlockingIOError:
            raise AutoipError(f"{self.interface}: the daemon does not answer") from None
        if not data:
            return None
        *lines, self._waiting = (self._waiting + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return None
        if len(self._waiting) > _LINE_MAX or not all(isinstance(m, dict) for m in messages):
            return None
        return messages


def ask(directory: str, interface: str, request: str) -> dict[str, Any]:
    """Send a request; return the answer.

    Raises:
        NotRunning: no daemon serves the interface.
        NoPermission: the request is not for this user.
        AutoipError: the daemon refused, or did not answer.
    """
    for _ in range(_TRIES):
        connection = Connection(directory, interface, request)
        try:
            while (messages := connection.read()) is not None:
                if messages:
                    return checked(interface, messages[0])
        finally:
            connection.close()
    raise NotRunning(interface)


def checked(interface: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer, if it is not a refusal.

    Raises:
        NoPermission: the request is not for this user.
        AutoipError: the daemon refused.
    """
    if not answer.get("ok"):
        kind = NoPermission if answer.get("permission") else AutoipError
        raise kind(f"{interface}: {answer.get('error', 'an answer that cannot be read')}")
    return answer
