"""The program that this process runs, from its file anew: tried out in a child, then in this process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import NoReturn, final

from autoip.daemon import handover
from autoip.daemon.child import ended
from autoip.daemon.handover import Handover
from autoip.kernel.capabilities import hand_on, next_user

VARIABLE = "AUTOIP_HANDOVER"
"""Of the environment: the descriptor of what is handed over."""
READABLE = "autoip: handed over"
"""Written at its end by `run --dry-run` that could read what was handed over. An older program does not."""
CHECK_TIME = 10.0
"""Seconds that the new program may take to read options, configuration, and what is handed over."""
_SIZE_MAX = 1 << 26


@final
class Executable:
    """The program, with the command line of this process.

    Args:
        environ: the process's environment.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        words = sys.argv[1:]
        self._words = words[1:] if words[:1] == ["run"] else words
        self._start = [os.path.abspath(sys.argv[0])]
        if not os.access(self._start[0], os.X_OK):  # started by an interpreter: python -m autoip
            self._start = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(words)]]

    async def refusal(self, data: bytes) -> str | None:
        """Run the program so that it only reads all that it would start with. Return why it cannot; None: it can."""
        user, group = next_user()
        with _memfd(data) as handed, _memfd(b"") as output:
            try:
                process = subprocess.Popen(  # noqa: ASYNC220 (returns at the exec)
                    [*self._start, "run", "--dry-run", *self._words],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[handed],
                    env={**self._environ, VARIABLE: str(handed)},
                    start_new_session=True,
                    user=user if user != os.geteuid() else None,
                    group=group if user != os.geteuid() else None,
                )
            except OSError as error:
                return f"{self._start[0]}: {error.strerror}"
            in_time = await ended(process, CHECK_TIME)
            status = process.poll()
            if not in_time:
                return f"the new program did not start within {CHECK_TIME:g} s"
            lines = os.pread(output, _SIZE_MAX, 0).decode(errors="replace").split("\n")[:-1]
        if status == 0 and lines[-1:] == [READABLE]:
            return None
        return lines[-1].removeprefix("autoip: ") if lines and status else "not a program for that"

    def execute(self, given: Handover) -> NoReturn:
        """Go on as the program from its file, with what is handed over and its descriptors.

        Raises:
            OSError: the kernel refused; all is as before.
        """
        with _memfd(given.emit()) as handed:
            passed = [handed, *given.descriptors]
            try:
                for descriptor in passed:
                    os.set_inheritable(descriptor, True)
                hand_on()
                environ = {**self._environ, VARIABLE: str(handed)}
                command = [*self._start, "run", *self._words]
                os.execve(self._start[0], command, environ)  # noqa: S606 (no shell)
            finally:
                _keep_to_us(passed)


def inherited(environ: MutableMapping[str, str]) -> Handover | None:
    """Return what the program before has handed over to this one; None: there was none.

    What cannot be read is closed. Children of this process get nothing of it.
    """
    if (text := environ.pop(VARIABLE, None)) is None:
        return None
    try:
        with open(int(text), "rb") as file:
            file.seek(0)
            data = file.read(_SIZE_MAX)
    except (OSError, ValueError) as error:
        return Handover(unread=(f"nothing was handed over: {error}",))
    found, unread = handover.parse(data)
    _keep_to_us(found.descriptors)
    # Without a list of descriptors all go: a lock among them would keep this program away.
    for descriptor in unread if found.names else _inheritable():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return found


def _inheritable() -> list[int]:
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    found = []
    for number in numbers:
        with contextlib.suppress(OSError):  # of the list itself
            if number > 2 and os.get_inheritable(number):
                found.append(number)
    return found


def _keep_to_us(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, False)


@contextlib.contextmanager
def _memfd(data: bytes) -> Iterator[int]:
    """Give the descriptor of a file in memory, with this content."""
    descriptor = os.memfd_create("autoip")
    try:
        os.write(descriptor, data)
        yield descriptor
    finally:
        os.close(descriptor)
