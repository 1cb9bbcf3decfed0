"""The command `run`: its options, checked, and the daemon started with them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import TypeVar

from autoip import __version__
from autoip.acd import Defence
from autoip.constants import (
    DELAY_DEFAULT,
    DELAY_MAX,
    DELAY_MIN,
    FIRST_CANDIDATE,
    LAST_CANDIDATE,
    METADATA_ADDRESS,
)
from autoip.errors import UsageError
from autoip.ipv4ll import is_candidate
from autoip.usage import COMMANDS, Parser, delay, interface_name

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
  autoip -o if=eth0,ip=169.254.20.20,abandon
  autoip status --json                      how things stand, for a script

exit status:
  0  stopped as asked          1  other failure             2  bad option or value
  3  already running for it    4  no permission             5  not an ARP interface
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line that has been checked."""

    interfaces: tuple[str, ...]
    first: IPv4Address | None
    abandon: bool
    debug: bool
    delay: int
    bring_up: bool
    keep_state: bool
    to_syslog: bool
    script: str | None
    script_style: str


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
    addresses: list[str] = list(found.ip)
    delays: list[str] = list(found.delay)
    abandon, debug, to_syslog = found.abandon, found.debug, found.syslog
    for name, value in _option_words(found.words):
        match name:
            case "if":
                interfaces.append(value)
            case "ip":
                addresses.append(value)
            case "delay":
                delays.append(value)
            case "abandon":
                abandon = True
            case "debug":  # as the module did, to syslog as well
                debug = to_syslog = True
    result = Arguments(
        interfaces=tuple(dict.fromkeys(interface_name(name) for name in interfaces)),
        first=_one("--ip", [_candidate(text) for text in addresses]),
        abandon=abandon,
        debug=debug,
        delay=_one("--delay", [delay(text) for text in delays]) or DELAY_DEFAULT,
        bring_up=found.up,
        keep_state=not found.no_state,
        to_syslog=to_syslog,
        script=_one("--script", [_script(text) for text in found.script]),
        script_style=_one("--script-style", [_style(text) for text in found.script_style])
        or SCRIPT_STYLES[0],
    )
    if result.first is not None and len(result.interfaces) > 1:
        raise UsageError("--ip is for one interface; with several, start one autoip for each")
    return result


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


def _one(option: str, values: Sequence[_Value]) -> _Value | None:
    if len(set(values)) > 1:
        given = " and ".join(str(value) for value in dict.fromkeys(values))
        raise UsageError(f"{option} was given as {given}; give one value")
    return values[0] if values else None


def _candidate(text: str) -> IPv4Address:
    address: IPv4Address | None = None
    with suppress(AddressValueError):
        address = IPv4Address(text)
    if address is None or not is_candidate(address):
        raise UsageError(
            f"ip {text}: not an address to claim; allowed are {FIRST_CANDIDATE} to"
            f" {LAST_CANDIDATE} but for {METADATA_ADDRESS}"
        )
    return address


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


def serve(arguments: Arguments, environ: Mapping[str, str]) -> None:
    """Run the daemon until it is told to stop.

    Raises:
        AutoipError: nothing can be served.
    """
    # These imports take most of the start: a mistake in the command line is told before.
    import asyncio

    from autoip import arpsock, daemon, interface, log, privileges

    logger = log.set_up(debug=arguments.debug, to_syslog=arguments.to_syslog, environ=environ)
    program = arpsock.load_broadcast()  # with privileges that are given up now
    privileges.limit(pass_on=arguments.script is not None)
    options = interface.Options(
        first=arguments.first,
        defence=Defence.ABANDON if arguments.abandon else Defence.ONCE,
        delay=arguments.delay,
        bring_up=arguments.bring_up,
    )
    settings = daemon.Settings(
        interfaces=arguments.interfaces,
        options=options,
        keep_state=arguments.keep_state,
        progress=log.progress_level(debug=arguments.debug),
        environ=environ,
        script=arguments.script,
        script_style=arguments.script_style,
        program=program,
    )
    asyncio.run(daemon.run(settings, logger))
