"""The command `run`: its options, checked, and the daemon started with them."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from autoip import __version__, config
from autoip.commands.arguments import COMMANDS, Parser, interface_name
from autoip.config import Config
from autoip.core.constants import DELAY_DEFAULT, DELAY_MAX, DELAY_MIN
from autoip.core.policy import Kind
from autoip.errors import AlreadyRunning, AutoipError, UsageError
from autoip.options import AFTER_DEFAULT, CHOICES, LINGER_DEFAULT, Options

_Value = TypeVar("_Value")

SCRIPT_STYLES = ("avahi", "zcip")

_DESCRIPTION = """\
Give network interfaces an IPv4 link-local address (169.254.0.0/16) by the rules of RFC 3927,
and keep it right until stopped by SIGTERM or SIGINT.  SIGHUP probes the address again."""

_EPILOG = """\
commands ('autoip COMMAND --help' tells more):
{commands}

examples:
  autoip eth0                               claim an address on eth0, defend it
  autoip eth0 --ip 169.254.20.20            try this one first
  autoip eth0 eth1 --delay 200              two interfaces, claim in 0.7 s at most
  autoip eth0 --policy fallback             only while DHCP gives nothing
  autoip -o if=eth0,ip=169.254.20.20,abandon
  autoip status --json                      how things stand, for a script

exit status:
  0  stopped as asked          1  other failure             2  bad option or value
  3  already running for it    4  no permission             5  not an ARP interface
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line that has been checked.

    Attributes:
        choices: what was chosen for the interfaces, by field of `Options`; the configuration and the
            defaults have the rest.
        hook: started by a DHCP client's hook, for one interface.
        early: before DHCP had its chance.
        config: file to read instead of the system's.
    """

    interfaces: tuple[str, ...]
    choices: Mapping[str, Any]
    debug: bool
    keep_state: bool
    to_syslog: bool
    script: str | None
    script_style: str
    hook: bool
    early: bool
    config: str | None


def parser() -> Parser:
    """The options of `run`, which are those of `autoip` without a command."""
    commands = "\n".join(f"  {name:<8} {line}" for name, line in COMMANDS.items())
    made = Parser(
        prog="autoip",
        usage="autoip [run] [IFACE ...] [options]\n       autoip COMMAND ...",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(commands=commands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "interfaces",
        metavar="IFACE",
        nargs="*",
        help="interface; default: the one Ethernet-like interface there is",
    )
    add("--ip", metavar="ADDRESS", action="append", default=[], help="first candidate")
    add("--abandon", action="store_true", help="give up at the first conflict (default: defend)")
    add(
        "--delay",
        metavar="MS",
        action="append",
        default=[],
        help=f"longest pause between two probes, {DELAY_MIN} to {DELAY_MAX} ms;"
        f" default {DELAY_DEFAULT}, which is RFC 3927",
    )
    add("--up", action="store_true", help="bring an interface that is down up")
    add(
        "--policy",
        metavar="POLICY",
        action="append",
        default=[],
        help="alongside: an address whatever else there is (the default);"
        " fallback: only while there is no routable address; route-only: never",
    )
    add(
        "--after",
        metavar="S",
        action="append",
        default=[],
        help="fallback: seconds without a routable address before one is claimed;"
        f" default {AFTER_DEFAULT:g}",
    )
    add(
        "--linger",
        metavar="S",
        action="append",
        default=[],
        help="fallback: seconds for which the address stays beside a new routable one;"
        f" default {LINGER_DEFAULT:g}",
    )
    add(
        "--route-only",
        action="store_true",
        help="no address: reach link-local hosts from the routable one (--policy route-only)",
    )
    add(
        "--default-route",
        action="store_true",
        help="reach all destinations on the link while there is no default route",
    )
    add(
        "--config",
        metavar="FILE",
        action="append",
        default=[],
        help=f"read FILE instead of {config.FILE} and {config.FOLDER}/*.conf",
    )
    add(
        "--hook",
        action="store_true",
        help="started by a DHCP client's hook: fallback, and at once",
    )
    add("--early", action="store_true", help="with --hook: DHCP has not had its chance yet")
    add("--no-state", action="store_true", help="neither read nor write the last address")
    add(
        "--script",
        metavar="FILE",
        action="append",
        default=[],
        help="run FILE when the address comes and goes: BIND, CONFLICT, UNBIND or STOP, IFACE, ADDRESS",
    )
    add(
        "--script-style",
        metavar="STYLE",
        action="append",
        default=[],
        help="whose scripts: avahi (avahi-autoipd.action, the default) or zcip (BusyBox)",
    )
    add("--debug", action="store_true", help="verbose")
    add("--syslog", action="store_true", help="log to syslog as well")
    add(
        "-o",
        dest="words",
        metavar="WORD[,WORD...]",
        action="append",
        default=[],
        help="the AutoIP module's option string: if=IFACE ip=ADDRESS delay=MS debug abandon",
    )
    add("--version", action="version", version=f"autoip {__version__}")
    return made


def parse(arguments: Sequence[str]) -> Arguments:
    """Read a command line.

    Raises:
        UsageError: with what was wrong and what is allowed.
    """
    words = list(arguments)
    if words and words[0] == "run":
        del words[0]
    found = parser().parse_intermixed_args(words)
    interfaces: list[str] = list(found.interfaces)
    # The texts of each choice, by its name in `options.CHOICES`.
    texts: dict[str, list[str]] = {
        name: list(getattr(found, name)) for name in ("ip", "delay", "policy", "after", "linger")
    }
    texts["abandon"] = ["yes"] if found.abandon else []
    texts["up"] = ["yes"] if found.up else []
    texts["default-route"] = ["yes"] if found.default_route else []
    texts["policy"] += ["route-only"] if found.route_only else []
    debug, to_syslog = found.debug, found.syslog
    for name, value in _option_words(found.words):
        match name:
            case "if":
                interfaces.append(value)
            case "ip" | "delay":
                texts[name].append(value)
            case "abandon":
                texts[name].append("yes")
            case "debug":  # as the module did, to syslog as well
                debug = to_syslog = True
    result = Arguments(
        interfaces=tuple(dict.fromkeys(interface_name(name) for name in interfaces)),
        choices=_choices(texts),
        debug=debug,
        keep_state=not found.no_state,
        to_syslog=to_syslog,
        script=_one("--script", found.script, _script),
        script_style=_one("--script-style", found.script_style, _style) or SCRIPT_STYLES[0],
        hook=found.hook,
        early=found.early,
        config=_one("--config", found.config, str),
    )
    if result.choices.get("policy") is Kind.ROUTE_ONLY and found.default_route:
        raise UsageError(
            "--default-route is for a link-local address; with route-only there is none"
        )
    if "first" in result.choices and len(result.interfaces) > 1:
        raise UsageError("--ip is for one interface; with several, start one autoip for each")
    if result.hook and len(result.interfaces) != 1:
        raise UsageError("--hook is for one interface, which has to be named")
    if result.early and not result.hook:
        raise UsageError("--early goes with --hook; see --after")
    return result


def _choices(texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The choices that were made, by field of `Options`."""
    chosen: dict[str, Any] = {}
    for name, given in texts.items():
        choice = CHOICES[name]
        value = _one(f"--{name}", given, choice.read)
        if value is not None:
            chosen[choice.field] = value
    return chosen


def _option_words(texts: Sequence[str]) -> list[tuple[str, str]]:
    """The words of each -o, as (name, value)."""
    allowed = "allowed are if=IFACE, ip=ADDRESS, delay=MS, debug, abandon"
    words: list[tuple[str, str]] = []
    for text in texts:
        for word in text.split(","):
            name, equals, value = word.partition("=")
            if name not in ("if", "ip", "delay", "debug", "abandon"):
                raise UsageError(f"-o: no such option {name!r}; {allowed}")
            if bool(equals) != (name in ("if", "ip", "delay")):
                how = "takes no value" if equals else "needs a value"
                raise UsageError(f"-o: {name} {how}; {allowed}")
            words.append((name, value))
    return words


def _one(option: str, texts: Sequence[str], read: Callable[[str], _Value]) -> _Value | None:
    """The value of an option that may be given again, but not as something else."""
    values = [read(text) for text in texts]
    if any(value != values[0] for value in values):
        given = " and ".join(dict.fromkeys(texts))
        raise UsageError(f"{option} was given as {given}; give one value")
    return values[0] if values else None


def _script(text: str) -> str:
    """The absolute path of a script, which is run elsewhere."""
    if not os.path.isfile(text):
        raise UsageError(f"--script {text}: no such file")
    if not os.access(text, os.X_OK):
        raise UsageError(f"--script {text}: not executable")
    return os.path.abspath(text)


def _style(text: str) -> str:
    if text not in SCRIPT_STYLES:
        raise UsageError(f"--script-style {text}: allowed are {' and '.join(SCRIPT_STYLES)}")
    return text


def options_of(interface: str, arguments: Arguments, configuration: Config) -> Options:
    """What holds for an interface: the command line, else the configuration, else the defaults."""
    by_hook: dict[str, Any] = {"policy": Kind.FALLBACK} if arguments.hook else {}
    if arguments.hook and not arguments.early:
        by_hook["after"] = 0.0  # DHCP has failed
    chosen = {**by_hook, **configuration.choices(interface), **arguments.choices}
    return Options(**chosen)


def serve(arguments: Arguments, environ: Mapping[str, str]) -> None:
    """Run the daemon until it is told to stop.

    Raises:
        AutoipError: nothing can be served.
    """
    from autoip import log

    if arguments.hook:
        _close_inherited()
    # Nobody reads what a hook writes, unless the service manager keeps it.
    unread = arguments.hook and not log.for_journal(environ, sys.stderr.fileno())
    logger = log.set_up(
        debug=arguments.debug, to_syslog=arguments.to_syslog or unread, environ=environ
    )
    try:
        _serve(arguments, environ, logger)
    except AlreadyRunning:
        raise  # a client fails again and again, and each time its hook starts us
    except AutoipError as error:
        if unread:
            logger.error("%s", error)  # noqa: TRY400 (one line, for a mistake is no bug)
        raise


def _close_inherited() -> None:
    """Close a client's lease file, sockets and pipes: who waits for their end would wait for ours."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with suppress(OSError):  # the one of the listing itself is gone already
                os.close(int(name))


def _import_asyncio() -> None:
    """Import asyncio without TLS, which takes 4 MB and which nothing here speaks.

    asyncio does without it where Python has none. Other code can import it as ever.
    """
    if "ssl" not in sys.modules:
        sys.modules["ssl"] = None  # type: ignore[assignment]
        try:
            import asyncio  # noqa: F401
        finally:
            del sys.modules["ssl"]


def _serve(arguments: Arguments, environ: Mapping[str, str], logger: logging.Logger) -> None:
    configuration = config.load(None if arguments.config is None else Path(arguments.config))
    if arguments.hook and not configuration.hooks(arguments.interfaces[0]):
        logger.info("%s: not for hooks to start, by the configuration", arguments.interfaces[0])
        return

    # These imports take most of the start: a mistake in what was asked for is told before.
    _import_asyncio()
    import asyncio

    from autoip import log
    from autoip.daemon import daemon
    from autoip.kernel import arp_socket, capabilities

    program = arp_socket.load_broadcast()  # with privileges that are given up now
    capabilities.limit(pass_on=arguments.script is not None)
    settings = daemon.Settings(
        interfaces=arguments.interfaces,
        options=lambda name: options_of(name, arguments, configuration),
        keep_state=arguments.keep_state,
        progress=log.progress_level(debug=arguments.debug),
        environ=environ,
        script=arguments.script,
        script_style=arguments.script_style,
        program=program,
    )
    asyncio.run(daemon.run(settings, logger))
