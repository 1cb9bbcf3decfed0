"""A program under test in a namespace: its output with times, its address, its end, its cost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import journal
from .namespace import PATIENCE, LabError, Namespace

if TYPE_CHECKING:
    from typing_extensions import Self

REPOSITORY = Path(__file__).resolve().parents[1]
TEMPORARY_PREFIX = f"autoip-lab-{os.getpid()}-"


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of a process so far, all its threads together."""

    threads: int
    voluntary: int
    """Voluntary context switches: each is one sleep, so one wake-up."""
    involuntary: int
    cpu_seconds: float
    """In steps of a clock tick, 10 ms."""
    rss_kib: int

    def __sub__(self, before: Usage) -> Usage:
        return Usage(
            self.threads,
            self.voluntary - before.voluntary,
            self.involuntary - before.involuntary,
            self.cpu_seconds - before.cpu_seconds,
            self.rss_kib - before.rss_kib,
        )


def _runs(pid: int) -> bool:
    """Return whether a thread of the process is neither stopped nor ended."""
    for status in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if status.read_text().rpartition(")")[2].split()[0] not in "TZX":
                return True
    return False


def usage(pid: int) -> Usage:
    """Read /proc. Raises LabError if the process has ended."""
    root = Path(f"/proc/{pid}")
    counts = {"voluntary_ctxt_switches": 0, "nonvoluntary_ctxt_switches": 0}
    threads = 0
    try:
        rss = re.search(r"^VmRSS:\s+(\d+) kB", (root / "status").read_text(), re.MULTILINE)
        fields = (root / "stat").read_text().rpartition(")")[2].split()
        for task in (root / "task").iterdir():
            try:
                text = (task / "status").read_text()
            except (FileNotFoundError, ProcessLookupError):  # this thread has ended
                continue
            threads += 1
            for line in text.splitlines():
                key, _, value = line.partition(":")
                if key in counts:
                    counts[key] += int(value)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise LabError(f"process {pid} has ended") from error
    return Usage(
        threads=threads,
        voluntary=counts["voluntary_ctxt_switches"],
        involuntary=counts["nonvoluntary_ctxt_switches"],
        cpu_seconds=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        rss_kib=int(rss.group(1)) if rss else 0,
    )


class Daemon:
    """A command in a namespace that looks after `interface`. It may be started again after it ended.

    RUNTIME_DIRECTORY and STATE_DIRECTORY are folders of its own (`runtime`, `state`) that live until `close`, so a
    second start finds the files of the first one. The working directory is the repository's top folder.
    """

    label = "daemon"

    def __init__(
        self,
        namespace: Namespace,
        interface: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        terminal: bool = False,
    ) -> None:
        self.terminal = terminal
        """Its output is a terminal, as for a person at the keyboard."""
        self.namespace = namespace
        self.interface = interface
        self.command = list(command)
        self.folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
        self.runtime = self.folder / "run"
        self.state = self.folder / "state"
        self.runtime.mkdir(mode=0o755)
        self.state.mkdir(mode=0o755)
        # Others than root must get through: some programs change their user.
        self.folder.chmod(0o755)
        self.env = {
            **{key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"},
            "RUNTIME_DIRECTORY": str(self.runtime),
            "STATE_DIRECTORY": str(self.state),
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }
        self.started_ns = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: list[tuple[int, str]] = []
        self._news = threading.Condition()
        self._reader: threading.Thread | None = None
        journal.register(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self, *arguments: str, die_with_us: bool = True) -> None:
        """Start it; the arguments are added to the command's."""
        if self.running:
            raise LabError(f"{self.label} runs already")
        self.started_ns = time.time_ns()
        ours, theirs = os.openpty() if self.terminal else os.pipe()
        try:
            self._process = self.namespace.popen(
                [*self.command, *arguments],
                env=self.env,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                die_with_us=die_with_us,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, ours: int) -> None:
        # A terminal whose last writer is gone gives EIO instead of an end of file.
        with contextlib.suppress(OSError), open(ours, "rb") as stream:
            for raw in stream:
                text = raw.decode(errors="replace").rstrip("\r\n")
                ns = time.time_ns()
                # Before the threads that wait for the line go on.
                self.printed(text)
                with self._news:
                    self._lines.append((ns, text))
                    self._news.notify_all()

    def printed(self, text: str) -> None:
        """Handle a line of output, in a thread; a subclass may show it."""

    # Its output

    @property
    def lines(self) -> list[str]:
        """Its output so far, standard output and standard error together."""
        with self._news:
            return [text for _, text in self._lines]

    @property
    def stamped(self) -> list[tuple[int, str]]:
        """The output, each line with the time at which it was read (CLOCK_REALTIME, ns)."""
        with self._news:
            return list(self._lines)

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_line(self, pattern: str, timeout: float = PATIENCE, *, since: int = 0) -> str:
        """Wait for the first line, from number `since` on, that has the regular expression. Raises LabError."""
        with self._news:
            line = self._news.wait_for(lambda: self._line(pattern, since), timeout)
        if line is None:
            raise LabError(f"{self.label} did not print {pattern!r} within {timeout} s")
        return line

    def _line(self, pattern: str, since: int) -> str | None:
        return next((text for _, text in self._lines[since:] if re.search(pattern, text)), None)

    def entries(self) -> Iterable[tuple[int, str, str]]:
        """For the timeline."""
        return [(ns, self.label, f"| {text}") for ns, text in self.stamped]

    # Its address

    def request(self, name: str) -> dict[str, Any]:
        """Send a request to autoip's control socket of the interface. Return the answer.

        Raises:
            LabError: autoip refused it.
        """
        (path,) = self.runtime.glob(f"*-{self.interface}.sock")
        with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as answers:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(json.dumps({"version": 1, "request": name}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(answers.readline())
        if not answer["ok"]:
            raise LabError(f"{self.label}: {name}: {answer['error']}")
        return answer

    def addresses(self) -> list[IPv4Address]:
        """Return the link-local addresses of its interface."""
        return self.namespace.link_local(self.interface)

    def wait_address(
        self, timeout: float = PATIENCE, *, other_than: IPv4Address | None = None
    ) -> IPv4Address:
        """Wait until its interface has exactly one link-local address; return it. Raises LabError."""
        until = time.monotonic() + timeout
        while True:
            held = self.addresses()
            if len(held) == 1 and held[0] != other_than:
                return held[0]
            if time.monotonic() > until or not self.running:
                why = "" if self.running else f", it ended with status {self.status}"
                raise LabError(
                    f"{self.label}: {self.interface} has {[str(a) for a in held]} after"
                    f" {timeout} s{why}"
                )
            time.sleep(0.01)

    def wait_no_address(self, timeout: float = PATIENCE) -> None:
        """Wait until its interface has no link-local address. Raises LabError."""
        until = time.monotonic() + timeout
        while held := self.addresses():
            if time.monotonic() > until:
                raise LabError(f"{self.interface} still has {held}")
            time.sleep(0.01)

    # Its process

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise LabError(f"{self.label} was not started")
        return self._process

    @property
    def pid(self) -> int:
        """The program's own pid."""
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """Exit status as `subprocess` gives it: None while it runs, -9 for SIGKILL."""
        return None if self._process is None else self._process.poll()

    def usage(self) -> Usage:
        """Return its cost so far."""
        return usage(self.pid)

    # Its end

    def signal(self, number: int) -> None:
        """Send a signal to the program itself. After SIGSTOP each of its threads has stopped. Raises LabError."""
        os.kill(self.pid, number)
        until = time.monotonic() + PATIENCE
        while number == signal.SIGSTOP and _runs(self.pid):
            if time.monotonic() > until:
                raise LabError(f"{self.label} was not stopped within {PATIENCE} s")
            time.sleep(0.001)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; return the exit status. Raises LabError."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.label} did not end within {timeout} s") from None
        if self._reader is not None:
            self._reader.join(1)  # the last lines; a child that keeps the pipe open must not block
        return status

    def stop(self, timeout: float = PATIENCE) -> int:
        """Send SIGTERM and wait; return the exit status."""
        if self.running:
            self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def end(self, timeout: float) -> None:
        """Stop it if it runs; after `timeout` seconds, kill it."""
        if self.running:
            try:
                self.stop(timeout)
            except LabError:
                self.kill()

    def kill(self) -> None:
        """Send SIGKILL: a crash."""
        if self.running:
            self.signal(signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        """End it by force if need be, and remove its folders. May be called twice."""
        if self.running:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._reader is not None:
            self._reader.join(1)
        shutil.rmtree(self.folder, ignore_errors=True)


def leftover_folders() -> list[str]:
    """Return the temporary folders that this process made and did not remove; none is good."""
    place = Path(tempfile.gettempdir())
    return [f"folder {path}" for path in place.glob(f"{TEMPORARY_PREFIX}*")]
