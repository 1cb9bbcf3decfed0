"""The command `hooks`: its arguments and its output."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

from autoip import paths
from autoip.commands import outlook
from autoip.commands.arguments import aligned, texts, values, write
from autoip.dhcp import install, running, trust
from autoip.dhcp.clients import CLIENTS, is_pattern
from autoip.dhcp.image import Image
from autoip.errors import AutoipError, UsageError
from autoip.option_table import Option, interface_name

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterable, Sequence


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _absolute(text: str) -> str:
    if not os.path.isabs(text):
        raise UsageError("not an absolute path")
    return text


def _name(text: str) -> str:
    if "[" in text:
        raise UsageError(f"{text!r}: NetworkManager knows only the patterns '*' and '?'")
    return interface_name(text)


# fmt: off
OPTIONS = (
    Option(
        "client", "NAME", "this client, also if it is not installed; default: all that are",
        "May be given more than once.",
        values=CLIENTS, into="clients", repeat="all",
    ),
    Option(
        "root", "DIR", "an image that is being built; default: /",
        default="/", repeat="last", offers="folders",
    ),
    Option(
        "no-conf", "", "install: leave the client's configuration alone",
        read="no".__eq__, into="conf",
    ),
    Option(
        "program", "PATH", "install: the program that the hooks start; default: the one that runs",
        read=_absolute, repeat="last", offers="files",
    ),
    Option("action", "ACTION", "what to do", values=["install", "remove", "list"], operand="1"),
    Option(
        "interfaces", "IFACE", "install: for clients that are told names; `en*`: a pattern",
        read=_name, repeat="all", operand="*", offers="interfaces",
    ),
)
# fmt: on


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read and check a command line.

    Raises:
        UsageError: with what was wrong and what is allowed.
    """
    found = values(OPTIONS, texts("hooks", OPTIONS, words, epilog="clients: " + ", ".join(CLIENTS)))
    only = found["interfaces"] or not found["conf"] or found["program"]
    if only and found["action"] != "install":
        raise UsageError(f"hooks {found['action']} takes no IFACE, --no-conf and --program")
    return argparse.Namespace(**found)


def main(words: Sequence[str]) -> int:
    """Install, remove or list hooks; print a line for each thing that was done; return 0.

    Raises:
        NotOurs: a file of somebody else is in the way; nothing was changed.
        Untrusted: others than root may write the program; nothing was changed.
        AutoipError: the kernel refused something.
    """
    arguments = parse(words)
    image = Image(arguments.root)
    for line in _lines(image, arguments):
        write(line)
    return 0


def _lines(image: Image, arguments: argparse.Namespace) -> Iterable[str]:
    match arguments.action:
        case "install":
            return _install(image, arguments)
        case "remove":
            namespace = None
            if not image.root:
                with contextlib.suppress(AutoipError):  # without /proc no hook has started anything
                    namespace = paths.network_namespace()
            return install.remove(image, arguments.clients, namespace)
        case _:
            return _tables(image, arguments.clients)


def _install(image: Image, arguments: argparse.Namespace) -> Iterable[str]:
    program = arguments.program or _program()
    trust.check([program], image.root)
    if not arguments.program and not image.root:  # what runs here is what hooks start
        trust.check(trust.below(_PACKAGE))
    names, interfaces, conf = arguments.clients, arguments.interfaces, arguments.conf
    if conf and not interfaces and not image.root:
        beside = "networkmanager" in names if names else install.present(image, "networkmanager")
        devices = running.networkmanager_devices() if beside else None
        interfaces = _chosen([name for name, kind in (devices or {}).items() if kind == "ethernet"])
        conf = bool(interfaces)
    yield from install.install(image, names, interfaces, program, conf=conf)
    if interfaces and not image.root:
        yield from running.reload_networkmanager()
        if conf:
            interfaces = install.named_before(image)
        # The one service first: it gives up what has a unit of its own now.
        units = dict.fromkeys(map(running.unit, sorted(interfaces, key=is_pattern, reverse=True)))
        yield from running.start([unit for unit in units if install.is_enabled(image, unit)])


def _chosen(devices: Sequence[str]) -> list[str]:
    """Return those of the interfaces of NetworkManager that the user names, if there are any to be named.

    Raises:
        AutoipError: nobody is there to be asked, or names none.
    """
    if not devices:
        return []
    why = "NetworkManager does not report a failure of DHCP, so autoip needs the interfaces' names"
    command = f"autoip hooks install {' '.join(devices)}"
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise AutoipError(f"{why}; nothing was changed; run: {command}")
    write(f"{why}. NetworkManager manages: {' '.join(devices)}")
    try:
        answer = input("Names or patterns, or Enter for all of these: ").split() or devices
    except EOFError:
        raise AutoipError(f"no interface was named; nothing was changed; run: {command}") from None
    return [_name(name) for name in answer]


def _tables(image: Image, names: Sequence[str]) -> Iterable[str]:
    yield from _table(image, names or CLIENTS)
    if not names and not image.root and (found := list(outlook.rows(image, os.environ))):
        yield ""
        yield from aligned([("INTERFACE", "IF DHCP FAILED NOW"), *found])


def _table(image: Image, names: Iterable[str]) -> Iterable[str]:
    """Return a line for each DHCP client: whether it is installed, and its hooks."""
    rows = [("CLIENT", "PRESENT", "HOOKS", "FILES")]
    for name in names:
        present = "yes" if install.present(image, name) else "no"
        rows.append((name, present, install.state(image, name), " ".join(CLIENTS[name].paths)))
    return aligned(rows)


def _program() -> str:
    """Return the absolute path that starts this very autoip.

    It is the path that was started; for `PYTHON -m autoip`, the script that was installed together with
    the package, which is beside that Python even if the package is a source tree.

    Raises:
        UsageError: neither is an executable file.
    """
    beside = os.path.join(os.path.dirname(sys.executable), "autoip")
    for path in (os.path.abspath(sys.argv[0]), beside):
        if os.path.basename(path) == "autoip" and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise UsageError("this autoip is not installed; --program PATH says which one to start")
