"""Where log lines go: a person's terminal, the journal, syslog.

On a terminal (or a file) a line is the message alone. Under systemd, which sets
JOURNAL_STREAM, a line begins with the priority prefix of sd-daemon(3). With `syslog` it goes to
the local syslog daemon as well. Writing a log line never raises and never waits for its reader:
a full pipe, or a log daemon that is stuck, must not stop the negotiation.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import sys
import syslog
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from autoip import journal

LOGGER = "autoip"
NOTICE = 25
"""A level between INFO and WARNING, LOG_NOTICE of syslog(3)."""

_PRIORITIES: Mapping[int, int] = {
    logging.DEBUG: syslog.LOG_DEBUG,
    logging.INFO: syslog.LOG_INFO,
    NOTICE: syslog.LOG_NOTICE,
    logging.WARNING: syslog.LOG_WARNING,
    logging.ERROR: syslog.LOG_ERR,
    logging.CRITICAL: syslog.LOG_CRIT,
}


def priority(level: int) -> int:
    """Return the syslog priority (0 to 7) of a logging level."""
    return _PRIORITIES.get(level, syslog.LOG_NOTICE)


class JournalFormatter(logging.Formatter):
    """Puts ``<N>`` before each line, which the journal reads as its priority."""

    def format(self, record: logging.LogRecord) -> str:
        return journal.prefixed(priority(record.levelno), super().format(record))


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:  # Python 3.10 cannot subscript it
    _StreamHandler = logging.StreamHandler


class PromptHandler(_StreamHandler):
    """Drops lines while the stream takes none, and logs later how many.

    A pipe that poll(2) reports as writable takes PIPE_BUF bytes, more than a line has, without blocking.
    The stream stays a blocking one: other programs have the same open file.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._dropped = 0
        self._poll = select.poll()
        self._poll.register(stream.fileno(), select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        if self._dropped and self._poll.poll(0):
            text = f"{self._dropped} log lines were dropped: nobody read them"
            self._dropped = 0
            super().emit(logging.makeLogRecord({"msg": text, "levelno": logging.WARNING}))
        if self._poll.poll(0):
            super().emit(record)
        else:
            self._dropped += 1


class SyslogHandler(logging.Handler):
    """Passes lines to the local syslog daemon, facility daemon; drops them while its queue is full.

    Sends the datagrams of syslog(3), which would wait while the queue is full.
    """

    def __init__(self, path: str = "/dev/log") -> None:
        super().__init__()
        self._path = path
        self._socket: socket.socket | None = None

    def emit(self, record: logging.LogRecord) -> None:
        number = syslog.LOG_DAEMON | priority(record.levelno)
        try:
            for line in self.format(record).splitlines():
                text = f"<{number}>{time.strftime('%b %e %T')} autoip[{os.getpid()}]: {line}"
                self._send(text.encode(errors="backslashreplace"))
        except Exception:  # noqa: BLE001 (a line that cannot be written must cost nothing else)
            self.handleError(record)

    def _send(self, datagram: bytes) -> None:
        for _ in range(2):  # a daemon that was restarted has another socket
            try:
                if self._socket is None:
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                    self._socket.setblocking(False)
                    self._socket.connect(self._path)
                self._socket.send(datagram)
            except BlockingIOError:
                return
            except OSError:
                self._disconnect()
            else:
                return

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def close(self) -> None:
        self._disconnect()
        super().close()


def set_up(*, debug: bool, to_syslog: bool, environ: Mapping[str, str]) -> logging.Logger:
    """Make the program's logger.

    Args:
        debug: verbose.
        to_syslog: to syslog as well.
        environ: the process's environment.
    """
    logging.raiseExceptions = False
    logging.logProcesses = logging.logThreads = False
    logger = logging.getLogger(LOGGER)
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    if sys.stderr is not None:
        stream = PromptHandler(sys.stderr)
        if journal.is_stream(environ, sys.stderr.fileno()):
            stream.setFormatter(JournalFormatter())
        logger.addHandler(stream)
    if to_syslog:
        logger.addHandler(SyslogHandler())
    return logger


def progress_level() -> int:
    """Return the level of step-by-step lines: INFO where a person watches a terminal, else DEBUG."""
    watched = sys.stderr is not None and sys.stderr.isatty()
    return logging.INFO if watched else logging.DEBUG


def failed_to_syslog(text: str) -> None:
    """Log the error line of a command to syslog alone."""
    record = logging.makeLogRecord(
        {"msg": text, "levelno": logging.ERROR, "levelname": "ERROR", "name": LOGGER}
    )
    handler = SyslogHandler()
    handler.emit(record)
    handler.close()
