"""SIGHUP: a user asks for a reload, or the terminal is gone."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable

HANGUP_TIME = 1.0
"""Seconds after SIGHUP at which the terminal is checked once more."""

_GONE = (errno.ENXIO, errno.EIO)


class Hangup:
    """Distinguishes the two meanings of SIGHUP.

    If the process had a controlling terminal when this was made, and now has none, the terminal is
    gone. The kernel takes a terminal away from every process of the session when it is closed, and
    when the process that leads the session ends.

    Args:
        reload: called when a user asks for a reload.
        end: called when the terminal is gone; may be called more than once.
        had_terminal: whether the program that this one goes on for had one.
    """

    def __init__(
        self, reload: Callable[[], object], end: Callable[[], None], *, had_terminal: bool = False
    ) -> None:
        self._reload = reload
        self._end = end
        self.had_terminal = had_terminal or _open_terminal() == 0

    def watch(self) -> None:
        """Handle the signal from now on, in the running loop.

        A signal that was ignored at the start, as by nohup(1), stays ignored.
        """
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.signalled)

    def signalled(self) -> None:
        """Handle SIGHUP."""
        if not self._end_without_terminal():
            self._reload()
            self.look_later()

    def look_later(self) -> None:
        """Look once more: the kernel and sudo(8) may send the signal before the terminal is taken away."""
        asyncio.get_running_loop().call_later(HANGUP_TIME, self._end_without_terminal)

    def _end_without_terminal(self) -> bool:
        """Call `end` if the terminal is gone. Return whether it is."""
        gone = self.had_terminal and _open_terminal() in _GONE
        if gone:
            self._end()
        return gone


def _open_terminal() -> int:
    """Open the controlling terminal and close it again. Return 0, or the positive error number."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.ENXIO
    return 0
