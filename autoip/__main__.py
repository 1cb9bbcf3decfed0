"""The program: ``python -m autoip``, and what the installed `autoip` calls.

A library's user never imports this file, so it may change what a signal does.
"""

from __future__ import annotations

import gc
import signal
import sys

from autoip.errors import shortage

# Ctrl-C during the imports below ends the process silently: nothing has been set up yet. A SIGINT that was ignored at
# the start, as for a background job of a script, stays ignored.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
# The installed program was started with these blocked: Python itself shows a traceback at SIGINT. A daemon lets
# them through when it can take off what a crash or the program before has left, every other command at once.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})

_NOT_BUILT = (
    "autoip.kernel._native",
    "_cffi_backend",
    "cffi",
    "pyroute2",
)
"""The compiled modules, and the packages that they and the program need."""
_GC_THRESHOLD = 50_000
"""Objects made until Python looks for garbage; its own is 700. The daemon sets its own."""


def main() -> int:
    """Run the command line of this process; return its exit status."""
    # asyncio would load OpenSSL: see docs/decisions/asyncio-without-tls.md.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    # What the imports make stays: a search for garbage finds none, and takes a tenth of the start.
    gc.set_threshold(_GC_THRESHOLD)
    try:
        from autoip.commands import main as command_line

        return command_line.main()
    except ModuleNotFoundError as error:
        if error.name not in _NOT_BUILT:
            raise
        print(
            f"autoip: not built for this Python (no {error.name}): run `make`, or `pip install .`",
            file=sys.stderr,
        )
        return 1
    except (OSError, MemoryError, ImportError, RuntimeError) as error:
        if (why := shortage(error)) is None:
            raise
        print(f"autoip: {why}", file=sys.stderr)
        return 1
    finally:
        gc.freeze()  # Python's end would search for garbage once more; the memory goes with the process
        # asyncio and the commands have put back Python's own handler, which could interrupt the end of the process.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
