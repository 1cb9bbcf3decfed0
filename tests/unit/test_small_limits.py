"""Small limits, no /proc: one clear line and a documented exit status, no traceback."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from autoip import paths
from autoip.daemon.recovery import Recovery
from autoip.daemon.reporter import Reporter
from autoip.errors import AutoipError, shortage


def run(*words: str, prelude: str) -> subprocess.CompletedProcess[str]:
    """Run autoip; `prelude`: Python that runs first."""
    code = f"{prelude}\nimport sys\nfrom autoip.__main__ import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], status: int, text: str) -> None:
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("autoip: ")
    assert text in line


NO_PROC = """\
import os
stat, listdir = os.stat, os.listdir
def missing(call):
    def checked(path=".", *words, **named):
        if isinstance(path, str) and path.startswith("/proc/"):
            raise FileNotFoundError(2, "No such file or directory")
        return call(path, *words, **named)
    return checked
os.stat, os.listdir = missing(stat), missing(listdir)
"""


@pytest.mark.parametrize(
    "words",
    ["status", "status nowhere0", "stop nowhere0", "stop --leftovers nowhere0", "refresh nowhere0"],
)
def test_without_proc(words: str) -> None:
    assert_one_line(run(*words.split(), prelude=NO_PROC), 1, "mount /proc")


def test_the_error_names_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> os.stat_result:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "stat", missing)
    with pytest.raises(AutoipError, match="mount /proc"):
        paths.network_namespace()


RAISES = """\
from autoip.commands import main as command_line
def main():
    raise {}
command_line.main = main
"""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("MemoryError", "no memory is left"),
        ("OSError(24, 'x')", "Too many open files"),
        ("ImportError('failed to map segment')", "failed to map segment"),
    ],
)
def test_a_command_that_reaches_a_limit(error: str, text: str) -> None:
    assert_one_line(run("status", prelude=RAISES.format(error)), 1, text)


def test_a_bug_is_not_hidden() -> None:
    assert "Traceback" in run("status", prelude=RAISES.format("OSError(22, 'x')")).stderr


DAEMON_THREAD = """\
import resource, threading, time
import autoip.kernel.native
threading.Thread(target=time.sleep, args=(0.3,), daemon=True).start()
class Slow:
    def __del__(self, sleep=time.sleep):  # while Python ends, the thread wakes
        sleep(1.0)
keep = Slow()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
"""


def test_a_daemon_thread_at_the_end_without_descriptors() -> None:
    # Without descriptors what measures the coverage cannot write.
    environ = {name: text for name, text in os.environ.items() if not name.startswith("COVERAGE_")}
    words = [sys.executable, "-c", DAEMON_THREAD]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environ)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "no memory is left"),
        (OSError(errno.EMFILE, "x"), "Too many open files"),
        (OSError(errno.EAGAIN, "x"), "Resource temporarily unavailable"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (ImportError("failed to map segment"), "failed to map segment"),
    ],
)
def test_what_a_small_limit_does(error: Exception, text: str) -> None:
    found = shortage(error)
    assert found is not None and text in found


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EINVAL, "x"), RuntimeError("a bug"), ModuleNotFoundError("x"), KeyError("x")],
)
def test_other_errors_are_not_hidden(error: Exception) -> None:
    assert shortage(error) is None


@pytest.mark.parametrize(
    ("error", "traceback"),
    [(OSError(errno.EMFILE, "x"), False), (OSError(errno.EINVAL, "x"), True)],
)
def test_an_interface_starts_over(error: OSError, traceback: bool) -> None:
    """Without a traceback where a limit is the reason, which is not a bug."""
    records: list[logging.LogRecord] = []
    log = logging.getLogger("small-limits")
    log.propagate = False
    handler = logging.Handler()
    handler.handle = records.append  # type: ignore[assignment]
    log.addHandler(handler)
    reporter = Reporter("eth0", log, logging.INFO, lambda: 0.0, lambda _: None)
    abandoned: list[Callable[[], None]] = []

    def fail() -> None:
        raise error

    async def play() -> None:
        recovery = Recovery(reporter, lambda: abandoned.append(fail), lambda: None)
        with recovery.guarded("link"):
            fail()
        recovery.close()

    asyncio.run(play())
    (record,) = records
    assert bool(record.exc_info) == traceback
    assert "starting over" in record.getMessage()
    assert len(abandoned) == 1
