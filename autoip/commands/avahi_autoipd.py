"""The command line of avahi-autoipd, for what calls that program by its name: see docs/avahi-autoipd.md."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from ipaddress import IPv4Address

from autoip.commands import arguments
from autoip.control.client import ask
from autoip.errors import AlreadyRunning, AutoipError, NoPermission, NotRunning, UsageError
from autoip.option_table import Option, one_interface_name
from autoip.paths import runtime_directory

TYPE_CHECKING = False
if TYPE_CHECKING:  # `avahi-autoipd -c` must answer fast
    from collections.abc import Mapping, Sequence
    from typing import Any

SCRIPT = "/etc/avahi/avahi-autoipd.action"
"""The script that avahi-autoipd runs if no other one is named."""
NOT_STARTED = 255
"""Exit status with -D if the daemon ended before it served the interface."""
_START_TIME = 20.0  # seconds for which -D waits, as avahi-autoipd does
_KILL_TIME = 5.0  # seconds for which -k waits for the daemon's end
_RETRY = 0.05


def _ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise UsageError("not an IPv4 address") from None


# fmt: off
OPTIONS = (
    Option(
        "daemonize", "", "go on in the background once the interface is served",
        "What is wrong after that goes to syslog.", letter="D",
    ),
    Option("wait", "", "with `-D`: once there is an address, of any kind; after 20 s in any case", letter="w"),
    Option("kill", "", "end the daemon of the interface, and wait 5 s for its end", letter="k"),
    Option("refresh", "", "have the daemon of the interface probe its address again", letter="r"),
    Option("check", "", "exit status 0 if a daemon of the interface runs, else 1", letter="c"),
    Option("syslog", "", "log to syslog instead of standard error; implied by `-D`", letter="s"),
    Option(
        "start", "ADDRESS", "first candidate; one that may not be claimed is left out, with a warning",
        read=_ipv4, letter="S", repeat="last",
    ),
    Option(
        "script", "SCRIPT", f"run `SCRIPT` when the address comes and goes; default: `{SCRIPT}`",
        "Without that file there is no script, and `--default-route` of `autoip(8)` instead.",
        letter="t", repeat="last", offers="files",
    ),
    Option("force-bind", "", "have the address also beside a routable one"),
    Option("no-drop-root", "", "stay root's, so that the script runs as root"),
    Option("no-chroot", "", "without effect: the root directory stays"),
    Option("no-proc-title", "", "without effect: the title of the process stays"),
    Option("debug", "", "verbose"),
    Option("version", "", "show the version of autoip", letter="V"),
    Option("interface", "IFACE", "the interface", read=one_interface_name, operand="1", offers="interfaces"),
)
# fmt: on


def main(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Do what avahi-autoipd would do with this command line; return its exit status.

    Raises:
        AutoipError: with exit status 1, which avahi-autoipd has for all failures.
    """
    try:
        given = arguments.texts(
            "avahi-autoipd",
            OPTIONS,
            words,
            prog="avahi-autoipd",
            usage=f"avahi-autoipd{arguments.usage(OPTIONS)}",
            description="Serve an interface as avahi-autoipd does, by autoip.",
            allow_abbrev=True,
        )
        found = arguments.values(OPTIONS, given)
        interface = found["interface"]
        if found["kill"]:
            return _kill(interface)
        if found["check"]:
            return 0 if daemon_of(interface) is not None else 1
        if found["refresh"]:
            if daemon_of(interface) is None:
                raise NotRunning(interface)
            ask(runtime_directory(environ), interface, "refresh")
            return 0
        return _run(interface, found, environ)
    except AutoipError as error:
        if error.exit_status == 1:
            raise
        raise AutoipError(str(error)) from error


def pid_file(interface: str) -> str:
    """Return the path of the file with the daemon's pid."""
    return f"/run/avahi-autoipd.{interface}.pid"


def daemon_of(interface: str) -> int | None:
    """Return the pid of the daemon that was started for the interface by this name; None: none runs."""
    with suppress(OSError, ValueError), open(pid_file(interface), encoding="ascii") as file:
        pid = int(file.read(32))
        return pid if os.path.exists(f"/proc/{pid}") else None
    return None


def _kill(interface: str) -> int:
    import select

    if (pid := daemon_of(interface)) is None:
        raise NotRunning(interface)
    try:
        daemon = os.pidfd_open(pid)
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
    except OSError as error:
        raise AutoipError(f"{interface}: cannot end process {pid}: {error.strerror}") from error
    if not select.select([daemon], [], [], _KILL_TIME)[0]:
        raise AutoipError(f"{interface}: process {pid} did not end within {_KILL_TIME:g} s")
    _remove(interface, pid)
    return 0


def _run(interface: str, found: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    from autoip.commands import run

    try:
        socket.if_nametoindex(interface)
    except OSError:
        raise UsageError(f"{interface}: no such interface") from None
    if os.geteuid() != 0:
        raise NoPermission("avahi-autoipd is for root; autoip can be run with fewer rights")
    if (pid := daemon_of(interface)) is not None:
        raise AlreadyRunning(interface, pid)
    words = _words(interface, found)
    checked = run.parse(words)
    if found["daemonize"]:
        status = background(interface, environ, address=found["wait"])
        if status is not None:
            return status
    elif found["syslog"]:
        _silence(2)
    os.chdir("/")
    _write_pid_file(interface)
    sys.argv[1:] = words  # a reload starts the program with them
    run.serve(checked, environ)
    return 0


def background(interface: str, environ: Mapping[str, str], *, address: bool) -> int | None:
    """Go on in a child, without the caller's files and terminal. Return None there.

    The parent waits until the child serves the interface, with `address` until there is an address as well.

    Returns:
        there the exit status.

    Raises:
        AutoipError: there: the time is over; the daemon goes on.
    """
    if child := os.fork():
        return _started(child, interface, environ, address=address)
    from autoip.commands import run

    os.setsid()
    run.close_inherited()
    _silence(0, 1, 2)
    return None


def _silence(*streams: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in streams:
        os.dup2(null, stream)
    os.close(null)


def _words(interface: str, found: Mapping[str, Any]) -> list[str]:
    """Return the command line of autoip that means the same."""
    from autoip.options import Options

    words = ["run", interface, "--up"]
    if found["force_bind"]:
        words += ["--policy", "alongside"]
    else:
        words += ["--policy", "fallback", "--after", "0", "--linger", "0"]
    if (address := found["start"]) is not None:
        if Options().pool.allows(address):
            words += ["--ip", str(address)]
        elif sys.stderr is not None:
            sys.stderr.write(f"autoip: {address} cannot be claimed, and is left out\n")
    if found["script"] is not None or os.access(SCRIPT, os.X_OK):
        words += ["--script", found["script"] or SCRIPT]
    else:
        words += ["--default-route"]
    if found["no_drop_root"]:
        words += ["--user", "root"]
    if found["debug"]:
        words += ["--debug"]
    if found["daemonize"] or found["syslog"]:
        words += ["--syslog"]
    return words


def _started(child: int, interface: str, environ: Mapping[str, str], *, address: bool) -> int:
    """Wait until the daemon serves the interface, or there is an address; return the exit status of -D.

    Raises:
        AutoipError: the time is over; the daemon goes on.
    """
    until = time.monotonic() + _START_TIME
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return NOT_STARTED if status else 0
        with suppress(AutoipError):
            report = ask(runtime_directory(environ), interface, "status")["status"]
            if report["pid"] == child and (not address or report["address"] or report["routable"]):
                return 0
        time.sleep(_RETRY)
    what = "no address" if address else "the daemon is not ready"
    raise AutoipError(f"{interface}: {what} after {_START_TIME:g} s; it goes on in the background")


def _write_pid_file(interface: str) -> None:
    """Write the file, and start a process that removes it: the daemon gives up the right to do so.

    Raises:
        AlreadyRunning: another daemon has written it meanwhile.
        AutoipError: it cannot be written.
    """
    pid, path = os.getpid(), pid_file(interface)
    new = f"{path}.{pid}"
    try:
        lock = os.open(os.path.dirname(path), os.O_RDONLY)  # the process ends if what follows fails
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (other := daemon_of(interface)) is not None:  # several were started at once
            raise AlreadyRunning(interface, other)
        with open(new, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(f"{pid}\n")
        os.replace(new, path)
        os.close(lock)
    except OSError as error:
        raise AutoipError(f"{path}: {error.strerror}") from error
    daemon = os.pidfd_open(pid)
    if os.fork():
        os.close(daemon)
        return
    import select

    os.setsid()
    # A service manager sends these to all processes of the service; this one ends with the daemon.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    select.select([daemon], [], [])
    _remove(interface, pid)
    os._exit(0)


def _remove(interface: str, pid: int) -> None:
    """Remove the file of a daemon that has ended, not that of the next one."""
    with suppress(OSError, ValueError):
        with open(pid_file(interface), encoding="ascii") as file:
            if int(file.read(32)) != pid:
                return
        os.unlink(pid_file(interface))
