"""The command `run`: its options, checked, and the daemon started with them."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoip import config, journal, paths
from autoip.commands.arguments import COMMANDS, texts
from autoip.config import SERVE, Config, Section
from autoip.control.client import ask
from autoip.core.constants import DEFEND_INTERVAL
from autoip.core.policy import Kind
from autoip.errors import AlreadyRunning, AutoipError, NotArp, UsageError
from autoip.kernel import interface_names
from autoip.option_table import is_pattern
from autoip.options import CONFIGURED, MAC, RUN, WORDS, Options

if TYPE_CHECKING:
    from autoip.daemon.served import Selection

if TYPE_CHECKING:
    from autoip.daemon.handover import Handover
    from autoip.daemon.trace import Trace

_DESCRIPTION = """\
Give network interfaces an IPv4 link-local address (169.254.0.0/16) by the rules of RFC 3927,
and keep it right until stopped by SIGTERM or SIGINT, or the end of the terminal. SIGHUP reads
the configuration again, and goes on as the program that is there then."""

_EPILOG = """\
commands ('autoip help COMMAND' shows more):
{commands}

examples:
  autoip eth0                               claim an address on eth0, defend it
  autoip eth0 --ip 169.254.20.20            try this one first
  autoip eth0 eth1 --delay 200              two interfaces, claim in 0.7 s at most
  autoip eth0 --policy fallback             only while DHCP gives nothing
  autoip run usb0                           wait for an interface that does not exist yet
  autoip run 'eth*' 'usb*'                  serve interfaces as they appear
  autoip -o if=eth0,ip=169.254.20.20,abandon
  autoip status --json                      how things stand, for a script

exit status:
  0  stopped as asked          1  other failure             2  bad option or value
  3  already running for it    4  no permission             5  not an ARP interface
"""

_LOOP_DESCRIPTORS = 3
"""An event loop that cannot have so many leaves a traceback when it is collected, so they are asked for before."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line that has been checked.

    Attributes:
        choices: choices for the interfaces, by field of `Options`; the rest comes from the configuration
            and the defaults.
        hook: a DHCP client's hook started this, for one interface.
        early: DHCP has not had its chance yet.
        configured: serve what the configuration says, even if that is nothing.
        config: file to read instead of the system's.
        trace: file to which all that happens is appended.
        user: whose process a daemon of root's becomes; None: the service's user's.
        dry_run: show the options that would be in force, and serve nothing.
    """

    interfaces: tuple[str, ...]
    choices: Mapping[str, Any]
    debug: bool
    keep_state: bool
    to_syslog: bool
    script: str | None
    script_style: str
    user: str | None
    hook: bool
    early: bool
    configured: bool
    config: str | None
    trace: str | None
    dry_run: bool


SHARED = [option for option in RUN if option.field in Arguments.__slots__]
"""The options for all interfaces together."""


def parse(arguments: Sequence[str]) -> Arguments:
    """Read a command line.

    Raises:
        UsageError: a word is wrong; the message names what is allowed.
    """
    given = texts(
        "run",
        RUN,
        arguments[1:] if arguments[:1] == ["run"] else arguments,
        prog="autoip",
        usage="autoip [run] [IFACE ...] [options]\n       autoip COMMAND ...",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(
            commands="\n".join(f"  {name:<8} {line}" for name, line in COMMANDS.items())
        ),
    )
    implied = [option.implies for option in RUN if option.implies and given[option.name]]
    for name, text in [*implied, *_option_words(given["o"])]:
        given[name].append(text)
    values = {option.field: option.combined(given[option.name]) for option in SHARED}
    named = values.pop("interfaces")
    choices = {
        option.field: option.combined(given[option.name])
        for option in CONFIGURED.values()
        if given[option.name]
    }
    result = Arguments(named, choices, **values)
    if choices.get("policy") is Kind.ROUTE_ONLY and "default_route" in choices:
        raise UsageError(
            "--default-route is for a link-local address; with route-only there is none"
        )
    several = len(named) > 1 or result.configured or any(map(is_pattern, named))
    if several and any(address != MAC for address in choices.get("ip", ())):
        raise UsageError("--ip is for one interface; with several, start one autoip for each")
    if result.hook and (len(named) != 1 or is_pattern(named[0])):
        raise UsageError("--hook is for one interface, which has to be named")
    if result.configured and named:
        raise UsageError("--configured goes without interfaces")
    if result.early and not result.hook:
        raise UsageError("--early goes with --hook; see --after")
    return result


def _option_words(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return name and text of the options that the words of each -o mean."""
    allowed = f"allowed are {', '.join(option.usage for option in WORDS.values())}"
    found: list[tuple[str, str]] = []
    for line in lines:
        for word in line.split(","):
            name, equals, value = word.partition("=")
            if (option := WORDS.get(name)) is None:
                raise UsageError(f"-o: no such option {name!r}; {allowed}")
            if bool(equals) != bool(option.metavar):
                how = "takes no value" if equals else "needs a value"
                raise UsageError(f"-o: {name} {how}; {allowed}")
            found.append((option.name, value if equals else "yes"))
            if name == "debug":  # the AutoIP module's `debug` logs to syslog as well
                found.append(("syslog", "yes"))
    return found


def by_hook(arguments: Arguments) -> dict[str, Any]:
    """Return the choices that `--hook` makes for an interface, by field of `Options`."""
    if not arguments.hook:
        return {}
    failed = {} if arguments.early else {"after": 0.0}  # DHCP has failed
    return {"policy": Kind.FALLBACK, **failed}


def options_of(interface: str, arguments: Arguments, configuration: Config) -> Options:
    """Return the options in force: each from the command line, else the configuration, else `--hook` or the default.

    Raises:
        UsageError: they leave no candidate, or exclude one that was chosen.
    """
    chosen = {**by_hook(arguments), **configuration.choices(interface), **arguments.choices}
    options = Options(**chosen)
    try:
        options.check()
    except UsageError as problem:
        raise UsageError(f"{interface}: {problem}") from None
    return options


def configured(arguments: Arguments) -> Config:
    """Return the configuration: that of the system, or of `--config`.

    Raises:
        UsageError: a line is wrong.
        NoPermission: a file cannot be read.
    """
    return config.load(None if arguments.config is None else Path(arguments.config))


def selection(arguments: Arguments, configuration: Config) -> Selection | None:
    """Return what to serve as it appears; None: what is named, or the one interface there is."""
    from autoip.daemon.served import Selection

    rules = tuple((interface_names.proper(name), True) for name in arguments.interfaces)
    if not rules:
        rules = configuration.served
        return Selection(rules) if rules or arguments.configured else None
    return Selection(rules) if any(map(is_pattern, arguments.interfaces)) else None


def check_policy(names: Sequence[str], arguments: Arguments, configuration: Config) -> None:
    """Refuse options of the policy fallback where no interface has it.

    Raises:
        UsageError: such an option was given, and would do nothing.
    """
    given = [name for name in ("after", "linger") if name in arguments.choices]
    policies = {options_of(name, arguments, configuration).policy for name in names}
    if given and names and Kind.FALLBACK not in policies:
        policy = min(kind.value for kind in policies)
        raise UsageError(
            f"--{given[0]} is for --policy fallback; the policy of {' '.join(names)} is {policy}"
        )


def serve(arguments: Arguments, environ: Mapping[str, str]) -> None:
    """Run the daemon until it is stopped.

    Raises:
        AutoipError: nothing can be served.
    """
    from autoip import log

    _reserve_standard_streams()
    handed = _inherited()
    if arguments.hook and handed is None:
        close_inherited()
    # Nobody reads the standard error of a hook, unless the service manager keeps it.
    unread = arguments.hook and not journal.is_stream(environ, sys.stderr.fileno())
    logger = log.set_up(
        debug=arguments.debug, to_syslog=arguments.to_syslog or unread, environ=environ
    )
    try:
        _serve(arguments, environ, logger, handed)
    except AutoipError as error:
        if arguments.hook and isinstance(error, NotArp):
            # DHCP clients and network managers call their hooks for tunnels as well.
            _nothing_to_serve(str(error), environ, logger)
            return
        if arguments.hook and isinstance(error, AlreadyRunning):
            if not arguments.early:
                with suppress(AutoipError):  # it may be another user's
                    ask(paths.runtime_directory(environ), error.interface, "dhcp-failed")
            # A DHCP client fails again and again, and each time its hook starts autoip.
            _nothing_to_serve(str(error), environ, logger, logging.DEBUG)
            return
        if arguments.to_syslog or unread:
            log.failed_to_syslog(str(error))  # `main` writes it to stderr
        raise


def _nothing_to_serve(
    why: str, environ: Mapping[str, str], logger: logging.Logger, level: int = logging.INFO
) -> None:
    """Log why a hook started this for nothing, and report success to the service manager."""
    from autoip.daemon.sd_notify import Notifier

    logger.log(level, "%s", why)
    # A service that ends before it was ready has failed for the service manager, which starts it again.
    Notifier(environ).ready()


def _reserve_standard_streams() -> None:
    """Keep the numbers of closed standard streams from other files: the program of a reload would write there."""
    with suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass  # closed at the exec
        os.close(descriptor)


def close_inherited() -> None:
    """Close a DHCP client's lease file, sockets and pipes: a process that waits for their end would wait for ours."""
    with suppress(FileNotFoundError):  # without /proc nothing can be served: the error comes later
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2:
                with suppress(OSError):  # the descriptor of the listing itself is closed already
                    os.close(int(name))


def _inherited() -> Handover | None:
    """Return what the program before has handed over to this one; None: there was none."""
    if "AUTOIP_HANDOVER" not in os.environ:
        return None  # without the import, since most of the start's time is for it
    from autoip.daemon import executable

    return executable.inherited(os.environ)


def _let_signals_wait() -> None:
    """Keep the signals that end a daemon until it handles them: it then takes off what a crash has left."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})


def _import_what_comes_later(arguments: Arguments) -> None:
    """Import what is used after the process has become a user who may not read the program, as in root's home."""
    import concurrent.futures.thread  # noqa: F401

    if arguments.script is not None:
        from autoip.daemon import script  # noqa: F401
    from autoip.daemon.networkmanager import gate

    if os.path.exists(gate.RUNTIME):
        with suppress(ImportError):  # reported by the gate
            from autoip.daemon.networkmanager import dbus  # noqa: F401


def _give_up(
    arguments: Arguments,
    directories: Sequence[str],
    handed: Handover | None,
    logger: logging.Logger,
) -> list[str]:
    """Become the daemon's user, with two capabilities, and confine the process. Return what could not be given up.

    Raises:
        UsageError: `--user` by a user who cannot become another one.
        MissingCapability: one of the two is missing.
    """
    from autoip.daemon import stale_files
    from autoip.kernel import capabilities, confinement, users

    if arguments.user is not None and handed is None and not users.may_become(arguments.user):
        raise UsageError(f"--user {arguments.user}: only root may become another user")
    _import_what_comes_later(arguments)
    folders = [Path(directory) for directory in directories]
    if handed is None:
        with suppress(AutoipError, KeyError):
            users.become("root", [])  # with the rights of the service's user on files, if needed
            stale_files.remove(folders[0])
    kept = [users.become(arguments.user, folders)]
    capabilities.limit(pass_on=arguments.script is not None)
    if arguments.script is None:
        # The directory: an editor replaces the file.
        read = [Path(arguments.config).absolute().parent] if arguments.config is not None else []
        try:
            kept.append(confinement.confine(folders, read))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise  # the daemon needs more of them than this
            kept.append(f"system calls and files are not confined: {error.strerror}")
    limits = [line for line in kept if line is not None]
    for line in limits:
        logger.warning("%s", line)
    if arguments.script is not None:  # children inherit it, and a script may do anything
        limits.append("because of the script neither system calls nor files are confined further")
    return limits


def _configuration(arguments: Arguments, handed: Handover | None, logger: logging.Logger) -> Config:
    """Return what the configuration says; after a reload, if it is wrong since the trial, what was in force.

    Raises:
        UsageError: a line of it is wrong.
        NoPermission: it cannot be read.
    """
    try:
        return configured(arguments)
    except AutoipError as error:
        if handed is None:
            raise
        logger.warning("%s; the options of before stay in force", error)
    return Config(
        [
            Section(
                escape(kept.name),
                {field.name: getattr(kept.options, field.name) for field in fields(Options)},
                {},
                {SERVE.name: True} if arguments.configured else {},
            )
            for kept in handed.interfaces
        ]
    )


def _trace(file: str | None, handed: Handover | None, logger: logging.Logger) -> Trace | None:
    """Return the trace that the user asked for: the open one after a reload."""
    if file is None:
        return None
    from autoip.daemon.trace import Trace

    if handed is not None and handed.trace is not None:
        return Trace(handed.trace, logger)
    return Trace.open(file, logger)


def _serve(
    arguments: Arguments,
    environ: Mapping[str, str],
    logger: logging.Logger,
    handed: Handover | None,
) -> None:
    configuration = _configuration(arguments, handed, logger)
    check_policy(
        [interface_names.proper(name) for name in arguments.interfaces if not is_pattern(name)],
        arguments,
        configuration,
    )
    if arguments.hook and handed is None and not configuration.hooks(arguments.interfaces[0]):
        text = f"{arguments.interfaces[0]}: not for hooks to start, by the configuration"
        _nothing_to_serve(text, environ, logger)
        return

    _let_signals_wait()
    # These imports take most of the start, so the command line and the configuration are checked before.
    from autoip import log
    from autoip.daemon import daemon, executable
    from autoip.kernel import arp_socket

    def options(name: str) -> Options:
        if name not in arguments.interfaces:
            check_policy([name], arguments, configuration)
        return options_of(name, arguments, configuration)

    # This needs privileges that `limit` gives up.
    program = arp_socket.load_broadcast() if handed is None else handed.program
    defence = arp_socket.load_defence(DEFEND_INTERVAL) if handed is None else handed.defence
    state = [paths.state_directory(environ)] if arguments.keep_state else []
    directories = [paths.runtime_directory(environ), *state]
    trace = _trace(arguments.trace, handed, logger)
    limits = _give_up(arguments, directories, handed, logger)
    settings = daemon.Settings(
        interfaces=arguments.interfaces,
        options=options,
        keep_state=arguments.keep_state,
        progress=log.progress_level(),
        environ=environ,
        script=arguments.script,
        script_style=arguments.script_style,
        program=program,
        defence=defence,
        trace=trace,
        selection=selection(arguments, configuration),
        limits=limits,
        handed=handed,
        executable=executable.Executable(environ),
    )
    _run_loop(daemon.run(settings, logger))


def _run_loop(serving: Coroutine[Any, Any, None]) -> None:
    """Run the daemon in an event loop. Raises AutoipError as it does, and OSError if the loop cannot be made."""
    import asyncio

    try:
        for spare in [os.dup(2) for _ in range(_LOOP_DESCRIPTORS)]:
            os.close(spare)
        asyncio.run(serving)
    finally:
        serving.close()  # if the event loop could not be made
