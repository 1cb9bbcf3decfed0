"""The command line: words in, one clear line and an exit status out."""

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

_ASKING = ("status", "watch", "wait", "refresh", "stop")
INTERRUPTED = 130
"""Exit status of an interrupted command that gives an answer, as shells have it: no answer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (see `errors` and ``--help``)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except SystemExit as ended:  # argparse has shown what was asked for
        return int(ended.code or 0)
    except AutoipError as error:
        journal.failed(str(error), os.environ)
        if isinstance(error, CannotWrite):
            _drop_output()
        return error.exit_status
    except BrokenPipeError:
        # Whoever read our output has enough.
        _drop_output()
        return 0
    except KeyboardInterrupt:
        # Interrupted is not the same as "held" or "free".
        return INTERRUPTED if words[:1] in (["wait"], ["probe"], ["doctor"]) else 0


def _drop_output() -> None:
    """Close standard output: what is still in its buffer would fail again."""
    with suppress(OSError):
        sys.stdout.close()


def _dispatch(words: list[str]) -> int:
    # Each command imports what it needs and no more: `status` answers before asyncio is loaded.
    command = words[0] if words else ""
    if command in _ASKING:
        from autoip.commands import query

        _hear_interrupt()
        return query.main(command, words[1:], os.environ)
    if command == "probe":
        from autoip.commands import probe

        _hear_interrupt()
        return probe.main(words[1:])
    if command == "doctor":
        from autoip.commands import doctor

        _hear_interrupt()
        return doctor.main(words[1:], os.environ)
    if command == "hooks":
        from autoip.commands import hooks

        _hear_interrupt()
        return hooks.main(words[1:])
    if command in ("help", "version"):
        from autoip.commands import about

        return _dispatch(about.parse(command, words[1:]))
    if not words and _on_terminal():
        return _bare()
    return _run(words)


def _hear_interrupt() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt; during the imports it ended the process (see `__main__`).

    An exception in an import may be lost, or shown as a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(words: list[str]) -> int:
    """Serve the interfaces until told to stop, or show the options; 0.

    Raises:
        UsageError: also for the name of an interface that does not exist and does not follow `run`.
        AutoipError: nothing can be served.
    """
    from autoip.commands import run
    from autoip.options import RUN

    if words[:1] != ["run"]:
        from autoip.commands import mistyped

        mistyped.check(words, RUN)
    arguments = run.parse(words)
    if arguments.dry_run:
        from autoip.commands import dry_run
        from autoip.commands.arguments import write

        write("\n".join(dry_run.table(arguments, run.configured(arguments))))
    else:
        run.serve(arguments, os.environ)
    return 0


def _on_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _bare() -> int:
    """For a person who typed nothing else: the status if a daemon runs, else the help."""
    from autoip.commands import query

    return _dispatch(["status"] if query.running(os.environ) else ["run", "--help"])
