"""Reports to the service manager: the sd_notify protocol (systemd's sd_notify(3)).

Datagrams of ``NAME=value`` lines to the AF_UNIX socket that $NOTIFY_SOCKET names. A daemon must not fail because its
manager does: without a socket every method does nothing, and no method raises.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

# A manager that is busy for longer than this loses a message. Blocking for longer would delay the
# defence of an address for the sake of a status line.
SEND_TIMEOUT = 0.1


class Notifier:
    """Sends the state of the daemon to the service manager, if there is one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Take the socket's name from `environ`. The environment is not changed."""
        name = environ.get("NOTIFY_SOCKET", "")
        self._address: bytes | None = None
        self._ready = False
        if name.startswith("@") and len(name) > 1:
            # "@name" is how the abstract name space (a leading zero byte) is written in text.
            self._address = b"\0" + os.fsencode(name[1:])
        elif name.startswith("/"):
            self._address = os.fsencode(name)
        self.watchdog_interval = _watchdog_interval(environ) if self._address else None
        """Seconds between two calls of `watchdog`; None: do not call it.

        Half of what the manager allows, as sd_watchdog_enabled(3) recommends.
        """

    def ready(self) -> None:
        """Send READY=1, once: the daemon serves, with or without an address."""
        if not self._ready:
            # Only after it was sent: a type=notify service that is never ready is killed.
            self._ready = self._send("READY=1")

    def reloading(self) -> None:
        """RELOADING=1: a reload has begun; `reloaded`, or READY=1 of the program that goes on, is its end."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """READY=1 once more: the reload is over."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Send STATUS=text: one line for `systemctl status`."""
        # A line break in the text would start another variable, such as MAINPID=.
        self._send("STATUS=" + " ".join(text.split()))

    def stopping(self) -> None:
        """Send STOPPING=1: the shutdown has begun."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Send WATCHDOG=1: still alive. Without it in time the manager ends the process."""
        self._send("WATCHDOG=1")

    def _send(self, line: str) -> bool:
        """Send one datagram. Return whether it was sent."""
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_TIMEOUT)
                sender.sendto(line.encode("utf-8", "replace"), self._address)
        except OSError:
            return False
        return True


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Return half of $WATCHDOG_USEC in seconds, if it is meant for this process ($WATCHDOG_PID)."""
    try:
        allowed = int(environ.get("WATCHDOG_USEC", ""))
        meant = int(environ.get("WATCHDOG_PID") or os.getpid()) == os.getpid()
    except ValueError:
        return None
    return allowed / 2e6 if meant and allowed > 0 else None
