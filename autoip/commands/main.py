"""The command line: it runs the command, and turns an error into one line and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

from autoip import journal
from autoip.errors import AutoipError, CannotWrite

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Sequence

_ASKING = ("status", "watch", "wait", "refresh", "reload", "stop", "route")
INTERRUPTED = 130
"""Exit status of an interrupted `wait`, `probe` or `scan`, 128 + SIGINT as in a shell: there is no answer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (see `errors` and ``--help``)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # The program of a reload gets the words of `run`, whatever name its file has.
        if arguments is None and "AUTOIP_HANDOVER" not in os.environ:
            return _called(os.path.basename(sys.argv[0]), words)
        return _dispatch(words)
    except SystemExit as ended:  # argparse has shown the help or the version
        return int(ended.code or 0)
    except AutoipError as error:
        journal.failed(str(error), os.environ)
        if isinstance(error, CannotWrite):
            _drop_output()
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output has gone, which is not a failure.
        _drop_output()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED if words[:1] in (["wait"], ["probe"], ["scan"], ["doctor"]) else 0


def _called(name: str, words: list[str]) -> int:
    """Do what the program of this name does with the words; of any name but another program's: what autoip does."""
    if name not in ("avahi-autoipd", "zcip"):
        return _dispatch(words)
    _let_signals_through()
    if name == "zcip":
        from autoip.commands import zcip

        return zcip.main(words, os.environ)
    from autoip.commands import avahi_autoipd

    return avahi_autoipd.main(words, os.environ)


def _drop_output() -> None:
    """Close standard output, so that a later flush of its buffer cannot fail again."""
    with suppress(OSError):
        sys.stdout.close()


def _dispatch(words: list[str]) -> int:
    # Each command imports only what it needs, so that `status` answers before asyncio is loaded.
    command = words[0] if words else ""
    if command in _ASKING:
        from autoip.commands import query

        _let_signals_through()
        return query.main(command, words[1:], os.environ)
    if command == "probe":
        from autoip.commands import probe

        _let_signals_through()
        return probe.main(words[1:])
    if command == "scan":
        from autoip.commands.scan import command as scan

        _let_signals_through()
        return scan.main(words[1:])
    if command == "doctor":
        from autoip.commands import doctor

        _let_signals_through()
        return doctor.main(words[1:], os.environ)
    if command == "hooks":
        from autoip.commands import hooks

        _let_signals_through()
        return hooks.main(words[1:])
    if command in ("help", "version"):
        from autoip.commands import about

        return _dispatch(about.parse(command, words[1:]))
    if not words and _on_terminal():
        return _bare()
    return _run(words)


def _let_signals_through() -> None:
    """Let SIGTERM end the process, and Ctrl-C raise KeyboardInterrupt, from now on (see `__main__`).

    A SIGINT that came during the imports ends the process: an exception in an import may be lost, or shown as a
    traceback.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(words: list[str]) -> int:
    """Serve the interfaces until the daemon is stopped, or show the options; return 0.

    Raises:
        UsageError: a wrong word; without `run`, also the name of an interface that does not exist.
        AutoipError: nothing can be served.
    """
    from autoip.commands import run
    from autoip.options import RUN

    # The signals stay blocked until the daemon handles them: it first takes off what a crash has left.
    if words[:1] != ["run"]:
        from autoip.commands import mistyped

        mistyped.check(words, RUN)
    arguments = run.parse(words)
    if arguments.dry_run:
        from autoip.commands import dry_run

        dry_run.show(arguments, os.environ)
    else:
        run.serve(arguments, os.environ)
    return 0


def _on_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _bare() -> int:
    """Show the status if a daemon runs, else the help: a person typed `autoip` alone."""
    from autoip.commands import query

    return _dispatch(["status"] if query.running(os.environ) else ["run", "--help"])
