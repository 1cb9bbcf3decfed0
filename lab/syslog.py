"""The syslog lines of the programs in a namespace."""

from __future__ import annotations

import os
import re
import select
import socket
import threading
import time
from collections.abc import Iterable

from . import journal
from .background import Reader
from .namespace import PATIENCE, LabError, Namespace


class Syslog(Reader):
    """A private /dev/log in the namespace. With `prepared`: an earlier one made the private /dev, and is gone."""

    def __init__(self, namespace: Namespace, *, prepared: bool = False) -> None:
        # A new /dev with what a program needs; the machine's own is not touched.
        script = """
            set -e
            mkdir /run/dev; mount -t tmpfs autoip-lab /run/dev
            for name in null zero full random urandom tty; do
                touch /run/dev/$name; mount --bind /dev/$name /run/dev/$name
            done
            mount --rbind /run/dev /dev
        """
        if not prepared:
            namespace.run("sh", "-c", script)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            namespace.call(sock.bind, "/dev/log")
            namespace.call(os.chmod, "/dev/log", 0o666)  # as every log daemon makes it
        except BaseException:
            sock.close()
            raise
        super().__init__(sock, "syslog")
        self._lines: list[tuple[int, str]] = []
        self._may_read = threading.Lock()
        journal.register(self)
        self.start()

    @property
    def lines(self) -> list[str]:
        """All lines so far, each with its priority and tag."""
        return [line for _, line in list(self._lines)]

    def wait_empty(self, timeout: float = PATIENCE) -> None:
        """Wait until all that was sent has been read. Raises LabError."""
        until = time.monotonic() + timeout
        while select.select([self._sock], [], [], 0)[0]:
            if time.monotonic() > until:
                raise LabError("syslog is not read")
            time.sleep(0.01)

    def stuck(self) -> threading.Lock:
        """Nothing is read while this is held."""
        return self._may_read

    def __enter__(self) -> Syslog:
        return self

    def received(self) -> None:
        with self._may_read:
            line = self._sock.recv(8192).decode(errors="replace").rstrip("\0")
            self._lines.append((time.time_ns(), line))

    def wait_line(self, pattern: str, timeout: float = PATIENCE) -> str:
        """Wait for the first line that has the regular expression. Raises LabError."""
        until = time.monotonic() + timeout
        while True:
            for line in self.lines:
                if re.search(pattern, line):
                    return line
            if time.monotonic() > until:
                raise LabError(f"syslog did not get {pattern!r} within {timeout} s")
            time.sleep(0.01)

    def entries(self) -> Iterable[tuple[int, str, str]]:
        """For the timeline."""
        return [(ns, "syslog", f"| {line}") for ns, line in list(self._lines)]
