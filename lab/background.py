"""A thread that reads one socket until `close`."""

from __future__ import annotations

import os
import select
import socket
import threading
from abc import ABC, abstractmethod


class Reader(ABC):
    """Calls `received` whenever the socket is readable; no wake-up without traffic. Closes the socket at the end."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._sock = sock
        sock.setblocking(False)
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._closed = False

    def start(self) -> None:
        self._thread.start()

    @abstractmethod
    def received(self) -> None:
        """Read all waiting data. Runs in the thread."""

    def _loop(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._wake_read in ready:
                return
            try:
                self.received()
            except BlockingIOError:
                pass
            except OSError:  # the interface went away or down: recv fails once, then waits
                continue

    def close(self) -> None:
        """End the thread and close the socket. May be called twice."""
        if self._closed:
            return
        self._closed = True
        os.write(self._wake_write, b"x")
        if self._thread.ident is not None:
            self._thread.join(5)
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._sock.close()

    def __exit__(self, *exc: object) -> None:
        self.close()
