"""The program of this process, as a script that stands for it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoip.daemon import executable
from autoip.daemon.executable import READABLE, VARIABLE, Executable, inherited
from autoip.daemon.handover import Handover

GIVEN = Handover(names=("eth0",), program="none")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that takes the place of the program; it was started as `autoip eth0 --up`."""
    file = tmp_path / "autoip"
    monkeypatch.setattr(sys, "argv", [str(file), "eth0", "--up"])
    return file


def refusal(file: Path, script: str) -> str | None:
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return asyncio.run(Executable(os.environ).refusal(GIVEN.emit()))


def test_a_program_that_can_read_it(program: Path, tmp_path: Path) -> None:
    got = tmp_path / "got"
    script = f'cat /proc/self/fd/${VARIABLE} >{got}; echo "$*" >>{got}; echo "{READABLE}"'
    assert refusal(program, script) is None
    assert got.read_bytes() == GIVEN.emit() + b"run --dry-run eth0 --up\n"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo autoip: /etc/autoip.conf:3: no >&2; exit 2", "/etc/autoip.conf:3: no"),
        ("echo Traceback >&2; echo SyntaxError: bad >&2; exit 1", "SyntaxError: bad"),
        (f'echo "{READABLE}"; exit 1', READABLE.removeprefix("autoip: ")),
        ("echo options in force", "not a program for that"),
        ("exit 3", "not a program for that"),
        ("kill -9 $$", "not a program for that"),
    ],
)
def test_a_program_that_cannot(program: Path, script: str, why: str) -> None:
    assert refusal(program, script) == why


def test_a_program_that_hangs(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable, "CHECK_TIME", 0.2)
    assert refusal(program, "sleep 1000") == "the new program did not start within 0.2 s"


def test_a_file_that_is_no_program(program: Path) -> None:
    program.write_text("")
    program.chmod(0o755)
    why = asyncio.run(Executable(os.environ).refusal(GIVEN.emit()))
    assert why == f"{program}: Exec format error"


EXECUTES = """
import os, sys
from autoip.daemon import executable
from autoip.daemon.handover import Handover
executable.hand_on = lambda: None
trace = int(sys.argv.pop(1))
sys.argv[0] = os.environ["PROGRAM"]
given = Handover(names=("eth0",), program="none", trace=trace)
try:
    executable.Executable(os.environ).execute(given)
except OSError as error:
    print(error.strerror, os.get_inheritable(trace))
"""


def test_exec(program: Path, tmp_path: Path) -> None:
    """The program gets the words, what is handed over, and its descriptors; a failure leaves them as they were."""
    got = tmp_path / "got"
    trace = os.open(tmp_path / "trace", os.O_RDWR | os.O_CREAT)

    def execute() -> str:
        command = [sys.executable, "-c", EXECUTES, str(trace), "run", "eth0"]
        environ = {**os.environ, "PROGRAM": str(program)}
        done = subprocess.run(
            command,
            env=environ,
            pass_fds=[trace],
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout

    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    assert execute() == "No such file or directory False\n"
    script = f'cat /proc/self/fd/${VARIABLE} >{got}; echo "$*" >/proc/self/fd/{trace}'
    program.write_text(f"#!/bin/sh\n{script}\n")
    assert execute() == ""
    given = Handover(names=("eth0",), program="none", trace=trace)
    assert got.read_bytes() == given.emit()
    assert (tmp_path / "trace").read_text() == "run eth0\n"
    os.close(trace)


def test_inherited(tmp_path: Path) -> None:
    """It is read once, and nothing of it is open for children; what cannot be read is closed."""
    trace, lost = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("one", "two"))
    given = Handover(names=("eth0",), trace=trace, program="none")
    data = given.emit().replace(b'"descriptors": [', f'"descriptors": [{lost}, '.encode())
    os.set_inheritable(trace, True)
    memory = os.memfd_create("test")
    os.write(memory, data)
    environ = {VARIABLE: str(memory)}
    assert inherited(environ) == given
    assert environ == {} and inherited(environ) is None
    assert not os.get_inheritable(trace)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lost)
    os.close(trace)


@pytest.mark.parametrize("content", [b"garbage", b'{"descriptors": [], "format": 99}'])
def test_nothing_to_read(content: bytes) -> None:
    """All that was inherited is closed, but for the standard streams: a lock may be among it."""
    memory, lock = os.memfd_create("test"), os.memfd_create("lock")
    os.write(memory, content)
    code = (
        "import os; from autoip.daemon import executable;"
        " found = executable.inherited(os.environ);"
        f" print(len(found.unread), os.path.exists('/proc/self/fd/{lock}'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, VARIABLE: str(memory)},
        pass_fds=[memory, lock],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1 False\n"
    os.close(memory)
    os.close(lock)
