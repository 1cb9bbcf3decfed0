"""The command line of BusyBox's zcip, for what calls that program by its name: ``zcip [OPTIONS] IFACE SCRIPT``.

Without ``-q``: an address that nobody defends any more is not kept.
"""

from __future__ import annotations

import os
import sys

from autoip.commands import arguments
from autoip.commands.avahi_autoipd import background
from autoip.option_table import Option, one_interface_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# fmt: off
OPTIONS = (
    Option("f", "", "stay in the foreground"),
    Option("r", "ADDRESS", "first candidate", repeat="last"),
    Option("l", "NETWORK", "the range, that of RFC 3927", values=("169.254.0.0",), repeat="last"),
    Option("v", "", "verbose"),
    Option("interface", "IFACE", "the interface", read=one_interface_name, operand="1"),
    Option("script", "SCRIPT", "called with init, config and deconfig", operand="1"),
)
# fmt: on


def main(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Do what zcip would do with this command line; return its exit status.

    Raises:
        AutoipError: a failure.
    """
    from autoip.commands import run

    about = {
        "usage": f"zcip{arguments.usage(OPTIONS)}",
        "description": "Serve an interface as BusyBox's zcip does, by autoip.",
    }
    found = arguments.values(OPTIONS, arguments.texts("zcip", OPTIONS, words, prog="zcip", **about))
    interface = found["interface"]
    script = ["--script", found["script"], "--script-style", "zcip"]
    started = ["run", interface, "--policy", "alongside", *script, *["--debug"] * found["v"]]
    started += [] if found["f"] else ["--syslog"]
    started += ["--ip", found["r"]] if found["r"] is not None else []
    checked = run.parse(started)
    if not found["f"]:
        status = background(interface, environ, address=True)
        if status is not None:
            return status
    os.chdir("/")
    sys.argv[1:] = started  # a reload starts the program with them
    run.serve(checked, environ)
    return 0
