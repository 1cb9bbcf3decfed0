"""Run the commands of README.md as people meet them: on bare Debian machines, as root and as a user with sudo.

    python3 -m tools.readme [--suite SUITE] [--as root|user] [--jobs N]

Each block of commands in README.md is marked with its kind (KINDS). On each machine (lab/roots.py) the blocks are
run line by line from a clone of the last commit, and each is followed by a check of the machine: what the block
promises must have happened, and nothing may be left behind. Prints each command with its seconds, then all of them
as a table. Exit status 0 only if everything went as promised. Standard library only; root.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from demo import disorder
from lab.namespace import LabError
from lab.roots import SUITES, USER, Bare, make_root

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
KINDS = {
    "try": "run first, on a machine where nothing was installed",
    "use": "needs an interface, or the program installed",
    "install": "the service; what talks to systemd needs a machine that was booted",
    "uninstall": "removes it",
    "test": "run as an ordinary user",
    "work": "for those who work on the project; the linters and benchmarks",
    "none": "no commands: a synopsis, or lines of a file",
}
MARK = re.compile(r"<!-- commands: (\S+) -->")
URL = "URL-OF-THIS-REPOSITORY"
WHO = ("root", "user")
DEMONSTRATION_LIMIT = 60
"""Seconds, as README.md promises."""
COMMAND_LIMIT = 900.0
"""Seconds after which a command is given up."""
PIP_PACKAGES = "gcc libc6-dev python3-dev python3-pip python3-setuptools python3-wheel python3-cffi"


@dataclass(frozen=True)
class Block:
    """A code block of README.md, with the number of its first line; `kind` is None if it is not marked."""

    kind: str | None
    line: int
    commands: tuple[str, ...]


def blocks(text: str) -> list[Block]:
    """Return all code blocks, fenced or indented by four spaces, in their order."""
    found: list[Block] = []
    lines = text.splitlines()
    mark: str | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        if match := MARK.fullmatch(line.strip()):
            mark = match[1]
        elif line.startswith("```") or (line.startswith("    ") and not lines[number - 1].strip()):
            start = number
            fenced = line.startswith("```")
            number += fenced
            body = []
            while number < len(lines) and (
                not lines[number].startswith("```") if fenced else lines[number].startswith("    ")
            ):
                body.append(lines[number] if fenced else lines[number][4:])
                number += 1
            number -= not fenced
            commands = "\n".join(body).replace("\\\n", "").splitlines()
            found.append(Block(mark, start + 1, tuple(filter(str.strip, commands))))
            mark = None
        elif line.strip():
            mark = None
        number += 1
    return found


def commands(kind: str) -> list[str]:
    """Return the commands of all blocks of a kind, in their order, without comments."""
    lines = [
        line
        for block in blocks(README.read_text())
        if block.kind == kind
        for line in block.commands
    ]
    return [re.sub(r"\s+# .*", "", line) for line in lines]


@dataclass
class Visit:
    """One machine: the commands that ran there, their seconds, and the mistakes found."""

    suite: str
    who: str
    seconds: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.suite}, {self.who}"


class Session:
    """A person at the keyboard of a machine: each command starts where the last one left off."""

    def __init__(self, machine: Bare, visit: Visit) -> None:
        self.machine = machine
        self.visit = visit
        self.account = USER if visit.who == "user" else "root"
        self.home = f"/home/{USER}" if visit.who == "user" else "/root"
        self.clone = f"{self.home}/autoip"
        self._folder = self.home

    def type(self, command: str) -> str:
        """Run a command of README.md, note its seconds, and return its output.

        Raises:
            LabError: it failed.
        """
        line = command.replace(URL, "/source/repository")
        if self.account == "root":
            line = re.sub(r"^sudo ", "", line)
        line = f"cd {self._folder}; {line}\nstatus=$?; pwd >/tmp/folder; exit $status"
        began = time.monotonic()
        try:
            output = self.machine.run(line, self.account, COMMAND_LIMIT).stdout
        except LabError as error:
            self._note(command, "FAILED")
            raise LabError(str(error).replace(line, command)) from None
        self._note(command, f"{time.monotonic() - began:.1f} s")
        self._folder = (self.machine.root / "tmp/folder").read_text().strip()
        (self.machine.root / "tmp/folder").unlink()
        return output

    def skip(self, command: str, why: str) -> None:
        self._note(command, why)

    def _note(self, command: str, result: str) -> None:
        self.visit.seconds[command] = result
        print(f"{self.visit}: {command}: {result}", flush=True)

    def expect(self, true: bool, otherwise: str) -> None:
        if not true:
            raise LabError(otherwise)

    # What is on the machine

    def paths(self) -> set[str]:
        """Return all files and folders outside of the clone that are neither apt's own nor of a package."""
        script = (
            f"find / /run /tmp /dev/shm -xdev -path {self.clone} -prune -o"
            " ! -lname '/etc/alternatives/*' -print; echo //; cat /var/lib/dpkg/info/*.list"
        )
        there, _, owned = self.machine.run(script).stdout.partition("\n//\n")
        # A package may own /lib/NAME, which is /usr/lib/NAME.
        known = {re.sub(r"^/(bin|sbin|lib\w*)/", r"/usr/\1/", path) for path in owned.splitlines()}
        return {path for path in there.splitlines() if not APT.match(path)} - known

    def mounts(self) -> list[str]:
        return Path(f"/proc/{self.machine.pid}/mountinfo").read_text().splitlines()

    def expect_nothing_left(self, before: set[str], mounts: list[str]) -> None:
        left = sorted(self.paths() - before)
        self.expect(not left, f"left behind: {left[:20]}")
        self.expect(not self.machine.processes(), f"processes left: {self.machine.processes()}")
        self.expect(self.mounts() == mounts, "mounts left")

    def expect_own_clone(self) -> None:
        """No file in the user's clone may be root's: the user could not remove it."""
        alien = self.machine.run(f"find {self.clone} ! -user {self.account}").stdout.split()
        self.expect(not alien, f"not the user's: {alien[:10]}")


APT = re.compile(
    r"/(proc|sys)(/|$)|/var/(cache|log|lib/(apt|dpkg|systemd|dbus|pam|ucf|python))(/|$)"
    r"|/etc(/|$)|/usr/share/(info|mime|icons|glib-2.0)(/|$)|/usr/lib/(python3|locale)(/|$)"
    r"|/usr/lib/python3\.\d+(/|$)|/usr/share/python3(/|$)|/usr/local/share/ca-certificates(/|$)"
    r"|/run/(lock|sudo|adduser)(/|$)|/usr/local/lib/python3\.\d+(/dist-packages)?$"
)
"""Files that apt, dpkg and the packages' own scripts write without owning them, those in /etc among them."""


def try_it(session: Session) -> None:
    before, mounts = session.paths(), session.mounts()
    # The repository is on this machine, and root's; a reader has a URL.
    (session.machine.root / "etc/gitconfig").write_text("[safe]\ndirectory = *\n")
    output = ""
    for command in commands("try"):
        output = session.type(command)
    wrong = disorder(output[output.find("== ") :])
    session.expect(wrong is None, f"the demonstration: {wrong}")
    took = re.search(r"happened in (\d+) s", output)
    session.expect(took is not None and int(took[1]) < DEMONSTRATION_LIMIT, "it took too long")
    session.expect_nothing_left(before, mounts)
    session.expect_own_clone()
    again = re.findall(r"^autoip: installing from Debian", output, re.MULTILINE)
    session.expect(len(again) == 1, f"apt-get ran {len(again)} times")


def install_and_uninstall(session: Session) -> None:
    # A machine that has a service has systemd; it is not booted here.
    session.machine.run("apt-get install --no-install-recommends systemd")
    before, mounts = session.paths(), session.mounts()
    for kind in ("install", "uninstall"):
        for command in commands(kind):
            if "systemctl" in command:
                session.skip(command, "booted only")
            else:
                session.type(command)
        if kind == "install":
            version = session.machine.run("cd /; autoip --version", session.account).stdout
            session.expect(version.startswith("autoip "), f"the installed program says {version!r}")
            session.expect(bool(session.paths() - before), "nothing was installed")
    session.expect_nothing_left(before, mounts)
    session.expect_own_clone()


def test_it(session: Session) -> None:
    """Start from a clean tree again: the files of other blocks would be in the way."""
    session.machine.run(f"cd {session.clone} && make clean", session.account)
    for command in commands("test"):
        session.type(command)
    session.expect_own_clone()


def pip_without_make(session: Session) -> None:
    """`pip install .` with nothing but Debian's own packages, and no network."""
    session.machine.run(f"apt-get install --no-install-recommends {PIP_PACKAGES}")
    options = "--no-build-isolation --no-index --no-deps --break-system-packages --root-user-action=ignore"
    command = f"pip install {options} ."
    clean = f"cd {session.clone} && make -s clean"
    unbuilt = session.machine.run(f"{clean} >/dev/null && python3 -m autoip lo", check=False)
    one_line = unbuilt.stdout.count("\n") == 1 and "`make`" in unbuilt.stdout
    session.expect(unbuilt.returncode == 1 and one_line, f"not built, it says {unbuilt.stdout!r}")
    began = time.monotonic()
    session.machine.run(f"{clean} && unshare --net env PYTHONWARNINGS=default {command}")
    session.visit.seconds["pip install ."] = f"{time.monotonic() - began:.1f} s"
    version = session.machine.run("cd /; autoip --version").stdout
    session.expect(version.startswith("autoip "), f"the installed program says {version!r}")
    names = session.machine.run("cd /; pip show autoip").stdout
    session.expect("Apache-2.0" in names, f"no license: {names}")


STEPS = {
    "root": (try_it, install_and_uninstall, pip_without_make),
    "user": (try_it, install_and_uninstall, test_it),
}


def visit(suite: str, who: str, source: Path) -> Visit:
    result = Visit(suite, who)
    try:
        base = make_root(suite, ["sudo"] if who == "user" else [])
        with Bare(base, source) as machine:
            session = Session(machine, result)
            for step in STEPS[who]:
                step(session)
    except LabError as error:
        result.faults.append(str(error))
        print(f"{result}: {error}", file=sys.stderr, flush=True)
    return result


def committed(folder: Path) -> None:
    """Put the last commit into `folder`/repository, from which the machines clone."""
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    ).stdout
    if changed:
        print(f"not committed, so not tried:\n{changed}", file=sys.stderr)
    words = ["git", "-c", "safe.directory=*", "clone", "-q", "--bare", "--depth=1"]
    subprocess.run([*words, f"file://{REPOSITORY}", str(folder / "repository")], check=True)
    folder.chmod(0o755)


def table(visits: Sequence[Visit]) -> str:
    rows: dict[str, None] = {}
    for one in visits:
        rows.update(dict.fromkeys(one.seconds))
    lines = ["| command | " + " | ".join(map(str, visits)) + " |", "|---" * (len(visits) + 1) + "|"]
    for command in rows:
        cells = [one.seconds.get(command, "") for one in visits]
        lines.append(f"| `{command}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.readme")
    parser.add_argument("--suite", action="append", choices=SUITES)
    parser.add_argument("--as", dest="who", action="append", choices=WHO)
    parser.add_argument("--jobs", type=int, default=4, help="machines side by side")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if os.geteuid() != 0:
        parser.error("needs root, to make machines")
    plan = [(suite, who) for suite in options.suite or SUITES for who in options.who or WHO]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="autoip-readme-") as name:
        committed(Path(name))
        with ThreadPoolExecutor(options.jobs) as pool:
            visits = list(pool.map(lambda one: visit(one[0], one[1], Path(name)), plan))
    print(f"\n{table(visits)}\n\n{time.monotonic() - began:.0f} s in all")
    for one in visits:
        for fault in one.faults:
            print(f"FAILED: {one}: {fault.splitlines()[0]}", file=sys.stderr)
    return 1 if any(one.faults for one in visits) else 0


if __name__ == "__main__":
    sys.exit(main())
