"""The command line: words in, one clear line and an exit status out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from autoip import journal
from autoip.errors import AutoipError

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
        journal.failed(str(error), os.environ)
        return error.exit_status
    except BrokenPipeError:
        # Whoever read our output has enough.  What is still in the buffer would raise again.
        with suppress(OSError):
            sys.stdout.close()
        return 0
    except KeyboardInterrupt:
        # Interrupted is not the same as "held" or "free".
        return 130 if words[:1] in (["wait"], ["probe"]) else 0


def _dispatch(words: list[str]) -> int:
    # Each command imports what it needs and no more: `status` answers before asyncio is loaded.
    command = words[0] if words else ""
    if command in _ASKING:
        from autoip.commands import query

        return query.main(command, words[1:], os.environ)
    if command == "probe":
        from autoip.commands import probe

        return probe.main(words[1:])
    if command == "hooks":
        from autoip.commands import hooks

        return hooks.main(words[1:])
    from autoip.commands import run

    run.serve(run.parse(words), os.environ)
    return 0
