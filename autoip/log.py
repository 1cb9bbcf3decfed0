"""Where log lines go: a person's terminal, the journal, syslog.

On a terminal (or a file) a line is the message alone.  Under systemd, which sets
JOURNAL_STREAM, it begins with the priority prefix of sd-daemon(3).  With `syslog` it goes to
syslog(3) as well, facility daemon.  Writing a log line never raises, and never waits for whoever
reads stderr: a pipe that is full must not stop the negotiation.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import syslog
from collections.abc import Mapping
from typing import TextIO

LOGGER = "autoip"

_PRIORITIES: Mapping[int, int] = {
    logging.DEBUG: syslog.LOG_DEBUG,
    logging.INFO: syslog.LOG_INFO,
    logging.WARNING: syslog.LOG_WARNING,
    logging.ERROR: syslog.LOG_ERR,
    logging.CRITICAL: syslog.LOG_CRIT,
}


def priority(level: int) -> int:
    """The syslog priority (0 to 7) of a logging level."""
    return _PRIORITIES.get(level, syslog.LOG_NOTICE)


class JournalFormatter(logging.Formatter):
    """Puts ``<N>`` before each line, which the journal reads as its priority."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{priority(record.levelno)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class PromptHandler(logging.StreamHandler[TextIO]):
    """Drops lines as long as the stream takes none, and says later how many.

    A pipe that poll(2) calls writable takes PIPE_BUF bytes, more than a line has, without blocking.
    To make the stream non-blocking would be wrong: other programs have the same open file.
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
    """Passes lines to syslog(3); the C library finds the local daemon, or drops them."""

    def __init__(self) -> None:
        super().__init__()
        syslog.openlog("autoip", syslog.LOG_PID, syslog.LOG_DAEMON)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for line in self.format(record).splitlines():
                syslog.syslog(priority(record.levelno), line)
        except Exception:  # noqa: BLE001 (a line that cannot be written must cost nothing else)
            self.handleError(record)


def for_journal(environ: Mapping[str, str], descriptor: int) -> bool:
    """Whether the descriptor is the journal's stream that JOURNAL_STREAM names (systemd.exec)."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


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
        if for_journal(environ, sys.stderr.fileno()):
            stream.setFormatter(JournalFormatter())
        logger.addHandler(stream)
    if to_syslog:
        logger.addHandler(SyslogHandler())
    return logger


def progress_level(*, debug: bool) -> int:
    """The level of step-by-step lines: shown to a person at a terminal, else only for debugging."""
    watched = sys.stderr is not None and sys.stderr.isatty()
    return logging.INFO if watched or debug else logging.DEBUG
