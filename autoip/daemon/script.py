"""Scripts written for other programs: the contracts of avahi-autoipd and of BusyBox's zcip.

==========  ==================================  =======================================
what        avahi-autoipd.action(8)             zcip
==========  ==================================  =======================================
start                                           ``init IFACE``; a failure ends it
claimed     ``BIND IFACE ADDRESS``              ``config IFACE``, with ``$ip``
conflict    ``CONFLICT IFACE ADDRESS``          ``deconfig IFACE``, with ``$ip``
else lost   ``UNBIND IFACE ADDRESS``            ``deconfig IFACE``, with ``$ip``
end         ``STOP IFACE ADDRESS``              ``deconfig IFACE``, with ``$ip``
==========  ==================================  =======================================

zcip scripts get ``$interface`` as well. (zcip itself does not pass IFACE as an argument; the older
zeroconf, which has the same contract, does.)

The calls of one interface come one after the other, each in a session of its own, without a shell,
with neither the daemon's environment nor its descriptors, except standard error. Only the daemon's end
waits for them; a call that takes too long is killed with all its children.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from autoip.daemon.child import ended
from autoip.daemon.reporter import Reporter
from autoip.errors import AutoipError

TIMEOUT = 10.0
"""Seconds that a call may take."""
QUEUE_MAX = 8
"""Calls of an interface that wait for the one that runs."""

_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


@dataclass(frozen=True, slots=True)
class Style:
    """The words of a contract.

    Attributes:
        init: before all else; None if there is no such call.
        bind: the address is in use.
        conflict: it was lost to another host.
        unbind: it was lost otherwise.
        stop: it is given up, because the daemon ends.
        address_argument: whether the address is an argument; otherwise it is ``$ip``.
    """

    init: str | None
    bind: str
    conflict: str
    unbind: str
    stop: str
    address_argument: bool


STYLES: Mapping[str, Style] = {
    "avahi": Style(None, "BIND", "CONFLICT", "UNBIND", "STOP", address_argument=True),
    "zcip": Style("init", "config", "deconfig", "deconfig", "deconfig", address_argument=False),
}


@dataclass(frozen=True, slots=True)
class _Call:
    """One call: its word, and the address that it is about."""

    word: str
    address: IPv4Address | None

    def __str__(self) -> str:
        return f"script {self.word}" + (f" {self.address}" if self.address is not None else "")


async def start(
    file: str,
    style: str,
    reporter: Reporter,
    bound: Callable[[], None],
    before: tuple[IPv4Address | None] | None,
) -> ScriptRunner:
    """Make the runner of a script, by the name of its style, and make the call before all else.

    That call is left out if the runner goes on for another one; `before`: the address that this one reported.

    Raises:
        AutoipError: that call failed.
    """
    runner = ScriptRunner(file, STYLES[style], reporter.name, reporter.log, bound)
    if before is None:
        await runner.init()
    else:
        runner.resume(*before)
    return runner


class ScriptRunner:
    """Reports to a script what happens to the address of one interface.

    Args:
        file: absolute path of the script.
        style: one of STYLES.
        interface: its name.
        log: takes a log line, with its level.
        bound: called when the script has ended its call for an address in use. The script may have removed
            that address and added it again.
        timeout: seconds that a call may take.
    """

    def __init__(
        self,
        file: str,
        style: Style,
        interface: str,
        log: Callable[[int, str], None],
        bound: Callable[[], None],
        timeout: float = TIMEOUT,
    ) -> None:
        self._file = file
        self._style = style
        self._interface = interface
        self._log = log
        self._after_bind = bound
        self._timeout = timeout
        self._reported: IPv4Address | None = None  # what the script has, when the queue is empty
        self._queue: deque[_Call] = deque()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    async def init(self) -> None:
        """Make the call before all else.

        Raises:
            AutoipError: the call failed, so the interface must not be served.
        """
        if self._style.init is not None:
            problem = await self._run(_Call(self._style.init, None))
            if problem is not None:
                raise AutoipError(f"{self._interface}: script {self._style.init}: {problem}")

    @property
    def quiet(self) -> bool:
        """Whether no call runs or waits."""
        return self._task is None

    @property
    def reported(self) -> IPv4Address | None:
        """The address of which the script knows."""
        return self._reported

    def resume(self, reported: IPv4Address | None) -> None:
        """Go on for another one, in place of `init`; `reported`: of that one."""
        self._reported = reported

    def bound(self, address: IPv4Address) -> None:
        """Report an address that is on the interface and announced."""
        if not self._stopped and self._reported != address:
            self.lost()
            self._reported = address
            self._add(_Call(self._style.bind, address))

    def lost(self, *, conflict: bool = False) -> None:
        """Report the loss of the address. Harmless when repeated."""
        if not self._stopped and self._reported is not None:
            word = self._style.conflict if conflict else self._style.unbind
            self._add(_Call(word, self._reported))
            self._reported = None

    async def stop(self) -> None:
        """Report the end, and wait until all necessary calls are done."""
        if not self._stopped:
            while self._skip_pair():
                pass
            if self._queue and self._queue[-1].word == self._style.bind:
                self._queue.pop()  # never reported, so there is nothing to take back
            elif self._reported is not None:
                self._add(_Call(self._style.stop, self._reported))
            self._reported = None
            self._stopped = True
        while self._task is not None:
            await asyncio.wait([self._task])

    def _add(self, call: _Call) -> None:
        if len(self._queue) >= QUEUE_MAX:
            self._log(logging.WARNING, "the script is too slow: calls are left out")
            self._skip_pair()
        self._queue.append(call)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def _skip_pair(self) -> bool:
        """Leave out the oldest address that came and went before its calls ran. Return False if there is none.

        The remaining calls still report one address after the other, and end with the present state.
        """
        for position in range(len(self._queue) - 1):
            if self._queue[position].word == self._style.bind:
                del self._queue[position], self._queue[position]
                return True
        return False

    async def _work(self) -> None:
        try:
            while self._queue:
                call = self._queue.popleft()
                problem = await self._run(call)
                if problem is not None:
                    self._log(logging.WARNING, f"{call}: {problem}")
                if call.word == self._style.bind and not self._queue:
                    self._after_bind()
        finally:
            self._task = None

    async def _run(self, call: _Call) -> str | None:
        """Run the script. Return what went wrong, in words; None: nothing."""
        self._log(logging.DEBUG, str(call))
        command = [self._file, call.word, self._interface]
        environment = dict(_ENVIRONMENT)
        if self._style.address_argument:
            command += [] if call.address is None else [str(call.address)]
        else:
            environment["interface"] = self._interface
            environment |= {} if call.address is None else {"ip": str(call.address)}
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 (returns at the exec, about a millisecond)
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if sys.stderr is None else sys.stderr,
                stderr=None if sys.stderr is not None else subprocess.DEVNULL,
                cwd="/",
                env=environment,
                umask=0o022,
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot be run: {error.strerror}"
        in_time = await ended(process, self._timeout)
        status = process.poll()
        if not in_time:
            return f"did not end within {self._timeout:g} s, and was killed"
        if status is not None and status < 0:
            return f"ended by signal {-status} ({signal.strsignal(-status)})"
        return f"exit status {status}" if status else None
