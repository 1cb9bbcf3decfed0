"""The command `hooks`: its arguments, and what it prints."""

from __future__ import annotations

import contextlib
import os
import sys

from autoip import paths
from autoip.commands.arguments import COMMANDS, Parser, interface_name
from autoip.dhcp import install
from autoip.dhcp.clients import CLIENTS
from autoip.dhcp.image import Image
from autoip.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    import argparse
    from collections.abc import Iterable, Sequence


def parser() -> Parser:
    """Return the options of `hooks`."""
    made = Parser(
        prog="autoip hooks",
        description=COMMANDS["hooks"],
        epilog="clients: " + ", ".join(CLIENTS),
        allow_abbrev=False,
    )
    add = made.add_argument
    add("action", metavar="ACTION", choices=("install", "remove", "list"), help="what to do")
    add("interfaces", metavar="IFACE", nargs="*", help="install: for clients that are told names")
    add(
        "--client",
        dest="clients",
        metavar="NAME",
        action="append",
        default=[],
        help="this client, also if it is not installed; default: all that are",
    )
    add("--root", metavar="DIR", default="/", help="an image that is being built; default: /")
    add(
        "--no-conf",
        dest="conf",
        action="store_false",
        help="install: leave the client's configuration alone",
    )
    add("--program", metavar="PATH", help="install: the program; default: the one that runs")
    return made


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read and check a command line.

    Raises:
        UsageError: with what was wrong and what is allowed.
    """
    found = parser().parse_intermixed_args(list(words))
    for name in found.clients:
        if name not in CLIENTS:
            raise UsageError(f"--client {name}: allowed are {', '.join(CLIENTS)}")
    if found.action != "install" and (found.interfaces or not found.conf or found.program):
        raise UsageError(f"hooks {found.action} takes no IFACE, --no-conf and --program")
    if found.program is not None and not os.path.isabs(found.program):
        raise UsageError(f"--program {found.program}: not an absolute path")
    found.interfaces = list(dict.fromkeys(map(interface_name, found.interfaces)))
    found.clients = list(dict.fromkeys(found.clients))
    return found


def main(words: Sequence[str]) -> int:
    """Do it and print what was done, one line each; 0.

    Raises:
        NotOurs: a file of somebody else is in the way; nothing was changed.
        AutoipError: the kernel refused something.
    """
    arguments = parse(words)
    image = Image(arguments.root)
    for line in _lines(image, arguments):
        print(line)
    return 0


def _lines(image: Image, arguments: argparse.Namespace) -> Iterable[str]:
    match arguments.action:
        case "install":
            program = arguments.program or _program()
            names, interfaces = arguments.clients, arguments.interfaces
            return install.install(image, names, interfaces, program, conf=arguments.conf)
        case "remove":
            namespace = None
            if not image.root:
                with contextlib.suppress(OSError):  # no /proc, so no hook has started anything here
                    namespace = paths.network_namespace()
            return install.remove(image, arguments.clients, namespace)
        case _:
            return _table(image, arguments.clients or CLIENTS)


def _table(image: Image, names: Iterable[str]) -> Iterable[str]:
    """Return a line for each DHCP client: whether it is there, and its hooks."""
    rows = [("CLIENT", "PRESENT", "HOOKS", "FILES")]
    for name in names:
        present = "yes" if install.present(image, name) else "no"
        rows.append((name, present, install.state(image, name), " ".join(CLIENTS[name].paths)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _program() -> str:
    """Return the path by which this very autoip can be started from anywhere.

    That is how it was started; or, for `PYTHON -m autoip`, the script that was installed together with
    the package, which is beside that Python also if the package is a source tree.

    Raises:
        UsageError: there is none.
    """
    beside = os.path.join(os.path.dirname(sys.executable), "autoip")
    for path in (os.path.abspath(sys.argv[0]), beside):
        if os.path.basename(path) == "autoip" and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise UsageError("this autoip is not installed; --program PATH says which one to start")
