"""Bare Debian machines: what a new user has before anything is installed.

`make_root` makes the root file system of one Debian release, once, in a cache. `Bare` runs commands in an overlay
of it, in namespaces of its own (mount, PID, IPC, UTS), as root or as an ordinary user; all that they wrote goes at
the end. apt and pip get the mirror, settings and certificates of this machine, and its network. Root only.
Standard library only: this runs before anything of the project is installed.
"""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .namespace import LabError

SUITES = ("bookworm", "trixie")
"""Debian 12 and 13."""
USER = "user"
"""The ordinary user of each root (uid 1000). With the package sudo it may become root without a password."""
HOST = "bare"
"""The name of the machine."""
FOLDER = Path("/var/cache/autoip-roots")
MAX_AGE = 2 * 24 * 3600
"""Seconds after which a root is made anew: apt's lists in it would name packages that the mirror has replaced."""
INSTALL_LIMIT = 1200
"""Seconds for debootstrap or apt-get."""
END_LIMIT = 20
"""Seconds for the end of a machine."""
FORMAT = 1
"""Raised when roots made by an older version of this file must not be used."""

_CERTIFICATES = "etc/machine-certificates.crt"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "cert")


def make_root(suite: str, packages: Sequence[str] = (), folder: Path | None = None) -> Path:
    """Return the root of a minimal Debian `suite` with these packages besides; make it if need be.

    The cache is `folder`, else $AUTOIP_ROOTS, else FOLDER. A root is never changed after it was made: use `Bare`, or
    a copy. Concurrent callers wait for the one that makes it.

    Raises:
        LabError: debootstrap is missing, or the root could not be made; the message has the last lines.
    """
    folder = folder or Path(os.environ.get("AUTOIP_ROOTS") or FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    packages = sorted(set(packages))
    root = folder / _name(suite, packages)
    with _locked(root, fcntl.LOCK_SH):
        if _usable(root):
            return root
    base = make_root(suite, (), folder) if packages else None
    with _locked(root, fcntl.LOCK_EX):
        if not _usable(root):
            _make(suite, packages, root, base)
    return root


def _name(suite: str, packages: Sequence[str]) -> str:
    if not packages:
        return f"{suite}-{FORMAT}"
    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:10]
    return f"{suite}-{FORMAT}-{digest}"


@contextlib.contextmanager
def _locked(root: Path, kind: int) -> Iterator[None]:
    """Hold the lock beside the root: shared while it is used, exclusive while it is made."""
    with open(f"{root}.lock", "w") as lock:
        fcntl.flock(lock, kind)
        yield


def _usable(root: Path) -> bool:
    try:
        age = time.time() - root.stat().st_mtime
    except FileNotFoundError:
        return False
    return 0 <= age < MAX_AGE


def _make(suite: str, packages: Sequence[str], root: Path, base: Path | None) -> None:
    half = root.with_name(f"{root.name}.half")
    for old in (half, root):
        if old.exists():
            shutil.rmtree(old)
    if base is None:
        _bootstrap(suite, half)
    else:
        with _locked(base, fcntl.LOCK_SH):
            _checked(["cp", "-a", "--reflink=auto", str(base), str(half)], f"copy of {base}")
        install = ["apt-get", "-qq", "install", "--no-install-recommends", *packages]
        _checked(_inside(half, install), f"{suite}: apt-get install {' '.join(packages)}")
    os.utime(half)
    half.rename(root)


def _bootstrap(suite: str, root: Path) -> None:
    if shutil.which("debootstrap") is None:
        raise LabError("debootstrap is missing: tools/deps.sh roots installs it")
    mirror = _mirror()
    command = ["debootstrap", "--variant=minbase", suite, str(root), *([mirror] if mirror else [])]
    _checked(command, f"debootstrap {suite}")
    if not mirror:
        mirror = (root / "etc/apt/sources.list").read_text().split()[1]
    (root / "etc/apt/sources.list").write_text(f"deb {mirror} {suite} main\n")
    (root / "etc/resolv.conf").write_bytes(Path("/etc/resolv.conf").read_bytes())
    hosts = Path("/etc/hosts").read_text()
    (root / "etc/hosts").write_text(f"{hosts.rstrip()}\n127.0.1.1 {HOST}\n")
    (root / "etc/hostname").write_text(f"{HOST}\n")
    _configure_apt_and_pip(root)
    # The user is there before sudo is: the file counts once a root has the package.
    _checked(_inside(root, ["useradd", "-m", "-s", "/bin/bash", USER]), f"{suite}: useradd")
    (root / "etc/sudoers.d").mkdir(mode=0o750)
    (root / "etc/sudoers.d" / USER).write_text(f"{USER} ALL=(ALL:ALL) NOPASSWD: ALL\n")
    (root / "etc/sudoers.d" / USER).chmod(0o440)
    _checked(_inside(root, ["apt-get", "-qq", "update"]), f"{suite}: apt-get update")


def _mirror() -> str | None:
    """Return the mirror from which this machine has Debian; None: it is not a Debian, or apt reports none."""
    if not Path("/etc/debian_version").exists() or shutil.which("apt-get") is None:
        return None
    command = [
        "apt-get",
        "indextargets",
        "--format",
        "$(ORIGIN) $(REPO_URI)",
        "Created-By: Packages",
    ]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    found = [line.split(" ", 1)[1] for line in output.splitlines() if line.startswith("Debian ")]
    return next((uri for uri in found if "security" not in uri), None)


def _configure_apt_and_pip(root: Path) -> None:
    """Give the root this machine's proxies, certificates and package index; apt-get asks nothing."""
    settings = ['APT::Get::Assume-Yes "true";', 'Acquire::Languages "none";']
    if shutil.which("apt-config"):
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout
        wanted = r"Acquire::(http|https|Check-|Retries|ForceIPv)"
        settings += [line for line in dump.splitlines() if re.match(wanted, line)]
    pip = configparser.ConfigParser()
    pip.read("/etc/pip.conf")
    options = dict(pip["global"]) if pip.has_section("global") else {}
    for option in _PIP_OPTIONS:
        value = os.environ.get("PIP_" + option.upper().replace("-", "_"))
        if value:
            options[option] = value
    options = {option: options[option] for option in _PIP_OPTIONS if option in options}
    certificates = Path(options.pop("cert", "") or "/etc/ssl/certs/ca-certificates.crt")
    if certificates.exists():
        shutil.copy(certificates, root / _CERTIFICATES)
        options["cert"] = f"/{_CERTIFICATES}"
        settings.append(f'Acquire::https::CAInfo "/{_CERTIFICATES}";')
    (root / "etc/apt/apt.conf.d/90machine").write_text("\n".join(settings) + "\n")
    lines = [f"{option} = {value}" for option, value in options.items()]
    (root / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]))


def _checked(command: Sequence[str], what: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALL_LIMIT,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-8:])
        raise LabError(f"{what}: exit status {done.returncode}\n{tail}")


# pivot_root and not chroot: in a chroot the kernel refuses user namespaces, unlike on a real machine.
_ENTER = r"""
cd "$1"; shift
mount -t proc proc proc
mount -t sysfs sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p run/lock
hostname "$(cat etc/hostname)"
mkdir tmp/machine
pivot_root . tmp/machine
cd /
"""
_LEAVE = "umount -l /tmp/machine; rmdir /tmp/machine"

# The first process collects orphans, as bash does, and ends when the other end of its input goes.
_MACHINE = rf"""
work=$2 source=$3
mount -t tmpfs none "$work"
mkdir "$work/up" "$work/work" "$work/root"
mount -t overlay -o "lowerdir=$1,upperdir=$work/up,workdir=$work/work" none "$work/root"
if [ -n "$source" ]; then
    mkdir "$work/root/source"
    mount --bind "$source" "$work/root/source"
    mount -o remount,bind,ro "$work/root/source"
fi
set -- "$work/root"
{_ENTER}
{_LEAVE}
echo ready
exec bash -c 'while read -r _; do :; done'
"""


def _unshared(script: str, *arguments: str) -> list[str]:
    namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
    shell = ["sh", "-euc", script, "sh", *arguments]
    return ["unshare", *namespaces, "--propagation", "private", *shell]


def _environment() -> list[str]:
    fixed = ["HOME=/root", f"PATH={_PATH}", "TERM=dumb", "LANG=C.UTF-8"]
    return ["env", "--chdir=/root", "-i", *fixed, "DEBIAN_FRONTEND=noninteractive"]


def _inside(root: Path, command: Sequence[str]) -> list[str]:
    """A command line that runs `command` in the root itself and changes it."""
    script = f'mount --bind "$1" "$1"\n{_ENTER}\n{_LEAVE}\nexec "$@"'
    return _unshared(script, str(root), *_environment(), *command)


class Bare:
    """A machine of a root for the time of a `with`; all that was written in it goes at the end.

    `source`: a folder of this machine, there at /source, read-only. `pid` is its first process: `nsenter` with it
    gets in; `root` is its root folder as seen from outside.
    """

    def __init__(self, base: Path, source: Path | None = None) -> None:
        self.base = base
        self._source = source
        self._exit = contextlib.ExitStack()
        self._init: subprocess.Popen[str] | None = None
        self.pid = 0

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root")

    def __enter__(self) -> Bare:
        self._exit.enter_context(_locked(self.base, fcntl.LOCK_SH))
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def _start(self) -> None:
        # The overlay is mounted in the machine's mount namespace alone: outside its folder is empty.
        place = self._exit.enter_context(tempfile.TemporaryDirectory(prefix="autoip-bare-"))
        source = str(self._source) if self._source else ""
        self._init = subprocess.Popen(
            _unshared(_MACHINE, str(self.base), place, source),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._exit.callback(self._end)
        assert self._init.stdout is not None and self._init.stderr is not None
        if self._init.stdout.readline() != "ready\n":
            self._init.kill()
            raise LabError(f"{self.base}: cannot run in it: {self._init.stderr.read().strip()}")
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text()
        self.pid = int(children.split()[0])

    def __exit__(self, *exc: object) -> None:
        self._exit.close()

    def _end(self) -> None:
        assert self._init is not None
        # Its input ends, so its first process does; the kernel ends all others of the PID namespace before that is
        # over, and with the last one goes the overlay.
        try:
            self._init.communicate(timeout=END_LIMIT)
        except subprocess.TimeoutExpired:
            self._init.kill()
            self._init.communicate()

    def command(self, command: str | Sequence[str], user: str = "root") -> list[str]:
        """The command line with which this machine runs `command` there: words, or a line for bash.

        A user has a login of its own (PAM, umask, home folder as working directory); root starts in /root.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        namespaces = ["--mount", "--pid", "--ipc", "--uts", "--root"]
        enter = ["nsenter", "-t", str(self.pid), *namespaces, "--wd", "--", *_environment()]
        if user == "root":
            return [*enter, "bash", "-c", line]
        return [*enter, "su", "-", user, "-c", line]

    def run(
        self,
        command: str | Sequence[str],
        user: str = "root",
        timeout: float = 300,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; return its standard output and error together, as `stdout`.

        Raises:
            LabError: it failed (with `check`), or took longer than `timeout` seconds; with its last lines.
        """
        # A file and not a pipe: a process that stays behind with it open must not hold up the caller.
        with tempfile.TemporaryFile() as output:
            try:
                status = subprocess.run(
                    self.command(command, user),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=timeout,
                ).returncode
            except subprocess.TimeoutExpired:
                status = None
            output.seek(0)
            text = output.read().decode(errors="replace")
        if status is None:
            raise LabError(f"{command}: not done after {timeout:.0f} s\n{_tail(text)}")
        if check and status != 0:
            raise LabError(f"{command}: exit status {status}\n{_tail(text)}")
        return subprocess.CompletedProcess(command, status, text)

    def processes(self) -> list[str]:
        """The command lines of all processes that run in it, but for its first."""
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            # It may have ended since it was listed.
            with contextlib.suppress(OSError):
                if int(entry.name) != self.pid and os.readlink(entry / "ns/pid") == mine:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found.append(command.decode(errors="replace").strip())
        return found


def _tail(text: str, lines: int = 40) -> str:
    return "\n".join(text.splitlines()[-lines:])
