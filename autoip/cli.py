"""The command line: words in, one clear line and an exit status out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from autoip.errors import AutoipError
from autoip.usage import Parser

_ASKING = ("status", "watch", "wait", "refresh", "stop")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (see `errors` and ``--help``)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = _dispatch(words)
        if sys.stdout is not None:  # closed by whoever started us
            sys.stdout.flush()
        return result
    except AutoipError as error:
        from autoip import log

        log.failed(str(error), os.environ)
        return error.exit_status
    except BrokenPipeError:
        # Whoever read our output has enough.  What is still in the buffer would raise again.
        with suppress(OSError):
            sys.stdout.close()
        return 0
    except KeyboardInterrupt:
        # Interrupted is not the same as "held" or "free".
        return 130 if words[:1] in (["wait"], ["probe"]) else 0


def parser(command: str) -> Parser:
    """The options of a command of `usage.COMMANDS`."""
    from autoip import ask, hooks, probe, run

    if command in ask.COMMANDS:
        return ask.parser(command)
    return {"run": run.parser, "probe": probe.parser, "hooks": hooks.parser}[command]()


def _dispatch(words: list[str]) -> int:
    # Each command imports what it needs and no more: `status` answers before asyncio is loaded.
    command = words[0] if words else ""
    if command in _ASKING:
        from autoip import ask

        return ask.main(command, words[1:], os.environ)
    if command == "probe":
        from autoip import probe

        return probe.main(words[1:])
    if command == "hooks":
        from autoip import hooks

        return hooks.main(words[1:])
    from autoip import run

    run.serve(run.parse(words), os.environ)
    return 0
