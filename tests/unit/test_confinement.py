"""What an attacker could do who runs code in the daemon: `run`, with the attempts in the place of the event loop."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoip.kernel.native import lib

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be what is given up")

ATTEMPTS = """
import ctypes, errno, json, os, signal, socket, subprocess, sys
from pathlib import Path
import autoip.daemon.daemon as daemon
from autoip.commands import main, run
libc = ctypes.CDLL(None, use_errno=True)
folder = Path(sys.argv[1])

def call(number, *words):
    if libc.syscall(number, *words) < 0:
        raise OSError(ctypes.get_errno(), "")

def write(path, data="x"):
    with open(path, "w") as file:
        file.write(data)

def spawned():
    # A program with the set-user-ID bit of root's: it runs, and gains nothing.
    done = subprocess.run([str(folder / "programs" / "id"), "-u"], stdout=subprocess.PIPE)
    assert done.stdout.strip() not in (b"", b"0"), done

def inherited():
    done = subprocess.run(["cat", "/etc/shadow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0

PTRACE_ATTACH, SYS_ptrace, SYS_mount, SYS_unshare, SYS_bpf, SYS_vm_readv = 16, 101, 165, 272, 321, 310
ATTEMPTS = {
    "read /etc/shadow": lambda: open("/etc/shadow").read(),
    "read root's home": lambda: os.listdir("/root"),
    "read what is everybody's": lambda: (folder / "open").read_text(),
    "write /etc/cron.d": lambda: write("/etc/cron.d/autoip-test"),
    "write core_pattern": lambda: write("/proc/sys/kernel/core_pattern", "core"),
    "write where everybody may": lambda: write("/tmp/autoip-test"),
    "write beside the directories": lambda: write(folder / "open" , "x"),
    "setuid": lambda: os.setuid(0),
    "setresuid": lambda: os.setresuid(0, 0, 0),
    "setgroups": lambda: os.setgroups([0]),
    "ptrace init": lambda: call(SYS_ptrace, PTRACE_ATTACH, 1, 0, 0),
    "read init's memory": lambda: call(SYS_vm_readv, 1, 0, 0, 0, 0, 0),
    "kill the parent": lambda: os.kill(os.getppid(), 0),
    "mount": lambda: call(SYS_mount, b"x", b"/tmp", b"tmpfs", 0, 0),
    "unshare": lambda: call(SYS_unshare, 0x10000000),
    "load a program": lambda: call(SYS_bpf, 5, 0, 0),
    "TCP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "raw IPv6 socket": lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58),
    "vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "of another machine's numbers": lambda: call(0x40000000 + 39),
    "a child reads /etc/shadow": inherited,
}
NEEDED = {
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close(),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close(),
    "write state": lambda: write(folder / "state" / "x"),
    "write run": lambda: (write(folder / "run" / "x"), os.rename(folder / "run" / "x", folder / "run" / "y")),
    "make a socket": lambda: socket.socket(socket.AF_UNIX).bind(str(folder / "run" / "s")),
    "read the configuration": lambda: os.listdir("/etc"),
    "the terminal and the log": lambda: open("/dev/null", "r+b", buffering=0).write(b"x"),
    "a program": spawned,
}

async def attack(settings, log):
    results = {}
    for name, attempt in {**ATTEMPTS, **NEEDED}.items():
        try:
            attempt()
        except OSError as problem:
            results[name] = errno.errorcode[problem.errno]
        except AssertionError as problem:
            results[name] = "refused to a child" if name in ATTEMPTS else str(problem)
        else:
            results[name] = "done"
    status = open("/proc/self/status").read()
    fields = dict(line.split(":\\t", 1) for line in status.splitlines() if ":\\t" in line)
    print(json.dumps([results, list(ATTEMPTS), fields, list(settings.limits)]))

daemon.run = attack
sys.exit(main.main(["run", "eth0", *sys.argv[2:]]))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Every user may enter it."""
    path = Path(f"/tmp/autoip-test-{secrets.token_hex(8)}")
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    (path / "open").write_text("x")
    (path / "open").chmod(0o666)
    (path / "programs").mkdir(mode=0o755)
    shutil.copy("/usr/bin/id", path / "programs" / "id")
    (path / "programs" / "id").chmod(0o4755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def attacked(
    folder: Path, *arguments: str
) -> tuple[dict[str, str], list[str], dict[str, str], list[str]]:
    """Return results by attempt, which of them are attacks, the process's status, and what is not confined."""
    environ = {
        **os.environ,
        "RUNTIME_DIRECTORY": f"{folder}/run",
        "STATE_DIRECTORY": f"{folder}/state",
    }
    environ |= {"PYTHONPATH": f"{ROOT}:{folder}/programs", "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-c", ATTEMPTS, str(folder), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, cwd="/", env=environ, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found[0], found[1], found[2], found[3]


def test_what_an_attacker_tries(folder: Path) -> None:
    results, attacks, status, limits = attacked(folder)
    assert limits == []
    assert status["Seccomp"] == "2" and status["NoNewPrivs"] == "1"
    assert 0 not in map(int, status["Uid"].split())
    assert [name for name in attacks if results[name] == "done"] == []
    assert {name: result for name, result in results.items() if name not in attacks} == {
        name: "done" for name in results if name not in attacks
    }
    # Refused by the filter, or by Landlock, and not for want of the file.
    assert results["raw socket"] == results["TCP socket"] == "EAFNOSUPPORT"
    assert results["mount"] == results["ptrace init"] == results["unshare"] == "EPERM"
    assert results["of another machine's numbers"] == "ENOSYS"


def test_landlock(folder: Path) -> None:
    """Files that everybody may read and write are out of reach too, also for one that stays root's."""
    if lib.autoip_files_new() < 0:
        pytest.skip("needs Landlock of the kernel")
    for arguments in ((), ("--user", "root")):
        results = attacked(folder, *arguments)[0]
        for name in ("read what is everybody's", "write where everybody may", "read root's home"):
            assert results[name] == "EACCES", (arguments, name)
        assert results["write beside the directories"] == "EACCES"


def test_a_script_is_not_confined(folder: Path) -> None:
    """It does what it likes, as the user of the daemon; `limits` says so."""
    results, _, status, limits = attacked(folder, "--script", "/bin/true")
    assert status["Seccomp"] == "0" and status["NoNewPrivs"] == "1"
    assert results["read /etc/shadow"] == "EACCES"
    assert results["read what is everybody's"] == "done"
    assert len(limits) == 1 and "because of the script" in limits[0]


def test_a_program_that_a_confined_one_executes() -> None:
    """A reload: it finds the filter, and adds no second one, however often."""
    code = """
import os, sys
from autoip.kernel import capabilities, confinement
capabilities.limit()
before = confinement.lib.autoip_confined()
confinement.confine([], [])
status = open("/proc/self/status").read()
print(before, status.partition("Seccomp_filters:")[2].split()[0], flush=True)
left = int(sys.argv[1])
if left:
    os.execv(sys.executable, [sys.executable, "-c", CODE, str(left - 1)])
"""
    code = f"CODE = {code!r}\nCODE = 'CODE = ' + repr(CODE) + chr(10) + CODE\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code, "2"], capture_output=True, text=True, cwd=ROOT
    )
    first, *later = done.stdout.splitlines()
    assert first == "0 1", done.stderr
    assert later and set(later) == {"1 1"}, done.stderr


def test_the_list_is_within_that_of_the_unit() -> None:
    """Ours has no call that the service's has not, but for those of a daemon that stays root's for a while."""
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("needs systemd-analyze")
    text = subprocess.run([analyze, "syscall-filter"], capture_output=True, text=True, check=True)
    sets: dict[str, list[str]] = {}
    for line in text.stdout.splitlines():
        if line.startswith("@"):
            name = line.strip()
            sets[name] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            sets[name].append(line.strip())

    def calls(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        return {call for entry in sets[name] for call in calls(entry)}

    allowed = calls("@default")
    unit = (ROOT / "share/autoip@.service").read_text()
    for words in re.findall(r"(?m)^SystemCallFilter=(.*)", unit):
        named = {call for word in words.lstrip("~").split() for call in calls(word)}
        allowed = allowed - named if words.startswith("~") else allowed | named
    lines = (ROOT / "csrc/system_calls").read_text().splitlines()
    ours = {name for line in lines if not line.startswith("#") for name in line.split()}
    assert len(ours) > 200
    assert {
        name for name in ours - allowed if not re.fullmatch("set(fs|re|res)[ug]id(32)?", name)
    } == set()
