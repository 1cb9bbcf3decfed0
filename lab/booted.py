"""A Debian machine booted with systemd as PID 1, on a machine that need not have systemd itself.

`Booted` boots a root file system (see `roots.make_root`) with systemd-nspawn, in an overlay that goes at the end. It
has two interfaces, eth0 and eth1, whose cables end as `peer0` and `peer1` in a network namespace of the laboratory: a
sniffer or a neighbour goes there, as at a `Switch`. Root and systemd-nspawn only. Standard library only.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, ParamSpec, TypeVar, final

from . import journal
from .namespace import PATIENCE, LabError, Namespace, enter

P = ParamSpec("P")
T = TypeVar("T")

BOOT_LIMIT = 180.0
"""Seconds in which the guest must be up."""
POWER_OFF_LIMIT = 120.0
"""Seconds after which a guest that does not power off is killed."""
CABLES = ("peer0", "peer1")

_PLACE = "/run/guest"
"""Where the guest's files are, in the mount namespace of `lan` alone: they go with it."""
_GROUPS = "/sys/fs/cgroup/autoip-lab-"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = ["env", "-i", f"PATH={_PATH}", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8"]
_numbers = itertools.count(1)

_MOUNT = f"""
mkdir {_PLACE}
mount -t tmpfs autoip-lab {_PLACE}
cd {_PLACE}
mkdir up work root
mount -t overlay -o "lowerdir=$1,upperdir=up,workdir=work" autoip-lab root
# systemd-nspawn looks at what is at this place: it gets a view of cgroup2 alone, whatever the machine has.
mount -t cgroup2 autoip-lab /sys/fs/cgroup
# The guest shares the machine's devices. It gets events of its network interfaces, and triggers no others.
folder=root/etc/systemd/system/systemd-udev-trigger.service.d
mkdir -p "$folder"
printf '%s\\n' '[Service]' ExecStart= 'ExecStart=udevadm trigger --action=add --subsystem-match=net' >"$folder/lab.conf"
"""

# $1: its control group; $2: its name, of which its MACs are made: the same ones at each boot.
_BOOT = f"""
mkdir -p "$1"
echo $$ >"$1/cgroup.procs"
# Without this file PID 1, which starts before udev, would take it that there is none, and never get its events.
rm -rf {_PLACE}/udev
mkdir {_PLACE}/udev
touch {_PLACE}/udev/control
# A writable /sys lets systemd-udevd run; the kernel sends it events of its own namespace's interfaces.
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes
exec systemd-nspawn --quiet --register=no --keep-unit --boot --directory={_PLACE}/root --machine="$2" \\
    --bind={_PLACE}/udev:/run/udev --private-network --network-veth-extra=peer0:eth0 --network-veth-extra=peer1:eth1 \\
    --capability=all --system-call-filter="bpf @keyring" --resolv-conf=off --timezone=off \\
    --link-journal=no --console=read-only
"""


@final
class Booted:
    """One machine; it is off until `boot`. Its disk keeps what it writes until `close`.

    `lan` is where its cables end.
    """

    def __init__(self, root: Path, name: str = "booted") -> None:
        self.name = name
        self.lan = Namespace("lan")
        self.bridge = ""
        """The bridge of `lan` into which each boot puts the first cable; empty: none."""
        self._group = f"{_GROUPS}{os.getpid()}-{next(_numbers)}"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init: int | None = None
        try:
            self.lan.run("sh", "-euc", _MOUNT, "sh", str(root))
            self.lan.call(_sweep)
        except BaseException:
            self.lan.close()
            raise

    def __enter__(self) -> Booted:
        journal.register(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Its disk

    def unpack(self, archive: IO[bytes], folder: str = "") -> None:
        """Put the files of a tar archive into a folder of its disk. Raises LabError."""
        place = f"{_PLACE}/root/{folder}"
        tar = self.lan.popen(
            ["sh", "-c", 'mkdir -p "$1" && exec tar -C "$1" -xf -', "sh", place], stdin=archive
        )
        if tar.wait() != 0:
            raise LabError(f"cannot unpack into {folder or '/'}")

    def write(self, path: str, text: str) -> None:
        """Write a file of its disk, on or off; make the folder if need be."""
        script = 'mkdir -p "${1%/*}" && cat >"$1"'
        self.lan.run("sh", "-euc", script, "sh", f"{_PLACE}/root{path}", stdin=text)

    # On and off

    @property
    def running(self) -> bool:
        return self._nspawn is not None and self._nspawn.poll() is None

    def boot(self, *, cable: bool = True) -> float:
        """Switch it on and wait until its boot has ended; return the seconds that this took.

        Without `cable` eth0 and eth1 have no carrier until `cable(True)`. Raises LabError.
        """
        if self.running:
            raise LabError(f"{self.name} is on already")
        started = time.monotonic()
        # A PID namespace: its first process dies with ours, and with that one the kernel ends the whole guest.
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
        self._nspawn = self.lan.popen(
            [*apart, "sh", "-euc", _BOOT, "sh", self._group, self.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        until = started + BOOT_LIMIT
        self._init = self._wait_init(until)
        self._wait_cables(until)
        if self.bridge:
            self.lan.ip(f"link set {CABLES[0]} master {self.bridge}")
        if cable:
            self.cable(True)
        self._wait(until, "its udev", "sh", "-c", _UDEV_RUNS)
        # "running" and "degraded" both are the end of a boot; the caller may check which one it is.
        self._wait(until, "the end of its boot", "sh", "-c", _BOOTED)
        return time.monotonic() - started

    def _wait_init(self, until: float) -> int:
        """The pid of the guest's PID 1 on this machine."""
        assert self._nspawn is not None
        while self.running and time.monotonic() < until:
            with contextlib.suppress(OSError):
                for nspawn in _children(self._nspawn.pid):
                    for child in _children(nspawn):
                        if _pid_namespace(child) != _pid_namespace(nspawn):
                            return child
            time.sleep(0.02)
        raise LabError(f"{self.name} does not start: {self._last_words()}")

    def _wait_cables(self, until: float) -> None:
        """Wait until systemd-nspawn has made the cables, which it does while PID 1 starts."""
        while not all(name in self.lan.ip("-br link") for name in CABLES):
            if not self.running or time.monotonic() > until:
                raise LabError(f"{self.name} gets no cables: {self._last_words()}")
            time.sleep(0.02)

    def _last_words(self) -> str:
        """Return the output of systemd-nspawn, after killing it."""
        assert self._nspawn is not None
        self._nspawn.kill()
        return self._nspawn.communicate()[0].decode(errors="replace").strip() or "no output"

    def _wait(self, until: float, what: str, *command: str) -> None:
        while self.run(*command, check=False).strip() != "yes":
            if not self.running or time.monotonic() > until:
                jobs = self.run("systemctl", "list-jobs", "--no-pager", check=False)
                raise LabError(f"{self.name}: {what} does not come; jobs:\n{jobs}")
            time.sleep(0.05)

    def power_off(self) -> float:
        """Shut it down in order; return the seconds that this took. Raises LabError if it had to be killed."""
        assert self._nspawn is not None
        started = time.monotonic()
        self.run("systemctl", "poweroff", "--no-block", check=False)
        try:
            self._nspawn.wait(POWER_OFF_LIMIT)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name}: not off after {POWER_OFF_LIMIT} s") from None
        finally:
            self._off()
        return time.monotonic() - started

    def reboot(self, *, cable: bool = True) -> float:
        """Switch it off and on again, as `boot`: at a reboot of its guest systemd-nspawn would end."""
        self.power_off()
        return self.boot(cable=cable)

    def _off(self) -> None:
        """Kill all of its processes; nothing is left in the control groups."""
        if self._nspawn is not None:
            self._nspawn.kill()
            self._nspawn.wait()
            if self._nspawn.stdout is not None:
                self._nspawn.stdout.close()
        self._nspawn = self._init = None
        self.lan.call(_remove_group, Path(self._group))

    def close(self) -> None:
        """Switch it off without a shutdown; nothing of it is left. May be called twice."""
        try:
            self._off()
        finally:
            self.lan.close()

    # In it, and at the other end

    def run(self, *command: str, timeout: float = 60, check: bool = True) -> str:
        """Run a command in it to its end; return its standard output. Raises LabError if it fails (with `check`)."""
        if self._init is None:
            raise LabError(f"{self.name} is off")
        enter = ["nsenter", "-t", str(self._init)]
        enter += ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--wd", "--"]
        # The guest's own timeout ends the command itself; nsenter would leave it there.
        bounded = ["timeout", "-k", "5", f"{timeout:g}"]
        return self.lan.run(
            *enter, *_ENVIRONMENT, *bounded, *command, timeout=timeout + 20, check=check
        )

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` of this process in its network namespace; return its result. For a socket there."""
        with ThreadPoolExecutor(1) as thread:
            thread.submit(enter, f"/proc/{self._init}/ns/net").result()
            return thread.submit(function, *args, **kwargs).result()

    def cable(self, on: bool, which: str = CABLES[0]) -> None:
        """Put a cable in, or pull it, at its other end; all cables are out after a boot without `cable`."""
        self.lan.ip(f"link set {which} {'up' if on else 'down'}")

    def entries(self) -> Iterable[tuple[int, str, str]]:
        """Return its journal since its boot, for the timeline."""
        if not self.running:
            return []
        with contextlib.suppress(LabError, OSError):
            text = self.run("journalctl", "-b", "--no-pager", "-o", "short-unix", check=False)
            return list(_journal_entries(text, self.name))
        return []


# Without these two the socket is there, but PID 1 does not use udev.
_UDEV_RUNS = "test -S /run/udev/control && systemctl is-active -q systemd-udevd && echo yes"
_BOOTED = "case $(systemctl is-system-running) in running | degraded) echo yes ;; esac"


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _pid_namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def _journal_entries(text: str, who: str) -> Iterator[tuple[int, str, str]]:
    for line in text.splitlines():
        stamp, _, rest = line.partition(" ")
        with contextlib.suppress(ValueError):
            yield int(float(stamp) * 1e9), who, rest.partition(" ")[2]


def _sweep() -> None:
    """Remove the control groups, empty by now, of processes that were killed."""
    place, _, prefix = _GROUPS.rpartition("/")
    for group in Path(place).glob(f"{prefix}*"):
        if not Path("/proc", group.name.removeprefix(prefix).partition("-")[0]).exists():
            _remove_group(group)


def _remove_group(group: Path) -> None:
    """Remove a control group with all below it, once the kernel has ended its processes."""
    until = time.monotonic() + PATIENCE
    while group.exists():
        for folder in sorted(group.glob("**/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if time.monotonic() > until:
            raise LabError(f"control group {group} cannot be removed")
        time.sleep(0.01)
