"""Network namespaces that belong to the process that made them.

A namespace here is a thread with a network namespace and a mount namespace of its own, which
runs functions. There is no name under /run/netns, so nothing is left behind even if the tests are killed: with the
thread goes the namespace, and with it the programs started in it (they ask the kernel for SIGKILL at the thread's end).
To enter one while a test waits: `nsenter --net=PATH` with the `path` of the namespace.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import itertools
import os
import select
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, final

from . import rtnl

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = 30.0
"""Seconds to wait for what must come: long, since the machine may be busy, and never waited out."""

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)
_living: dict[str, Namespace] = {}
_made: dict[int, str] = {}
"""Inode and name of every namespace that this process ever made, for `leftovers`."""


class LabError(AssertionError):
    """The laboratory waited in vain, or one of its commands failed."""


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str | None = None) -> None:
    text = None if data is None else data.encode()
    _check(
        _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), text),
        f"mount {kind} on {target}",
    )


def _leave_the_others() -> tuple[int, int]:
    """Make the namespaces, in the namespace's thread. Return the thread's id and the inode of its network namespace."""
    _check(_libc.unshare(CLONE_NEWNET | CLONE_NEWNS), "unshare")
    _mount("none", "/", "none", MS_REC | MS_PRIVATE)
    # A private /run: programs of the tests must neither find this machine's services nor leave a file.
    _mount("autoip-lab", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    # /sys/class/net shows the namespace of its mounter. Without root a container may refuse: not needed then.
    with contextlib.suppress(OSError):
        _mount("autoip-lab", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # No IPv6: silence on the wire is then silence. A kernel without it has no such file.
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    tid = threading.get_native_id()
    return tid, os.stat(f"/proc/self/task/{tid}/ns/net").st_ino


def enter(path: str) -> None:
    """Move the calling thread into the network namespace of a file like /proc/PID/ns/net. Raises OSError."""
    with open(path) as file:
        _check(_libc.setns(file.fileno(), CLONE_NEWNET), f"setns {path}")


def _net_inode(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:  # gone, or a zombie, which has no namespace any more
        return None


def processes_in(inodes: Iterable[int]) -> list[int]:
    """Return the pids of all processes, ours excepted, whose network namespace is one of these."""
    wanted = frozenset(inodes)
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in pids if pid != os.getpid() and _net_inode(pid) in wanted]


@final
class Namespace:
    """A network namespace (with /run and /sys of its own), `lo` up. Needs root, or root in a user namespace.

    Raises PermissionError where it may not be made.
    """

    def __init__(self, hint: str = "") -> None:
        self.name = f"lab{os.getpid()}.{next(_numbers)}" + (f".{hint}" if hint else "")
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=self.name)
        self._children: list[subprocess.Popen[bytes]] = []
        self._netlink: socket.socket | None = None
        self._netlink_lock = threading.Lock()
        self._closed = False
        try:
            self.tid, self.inode = self._worker.submit(_leave_the_others).result()
        except BaseException:
            self._worker.shutdown()
            raise
        self.path = f"/proc/{os.getpid()}/task/{self.tid}/ns/net"
        _living[self.name] = self
        _made[self.inode] = self.name
        self.ip("link set lo up")

    def __repr__(self) -> str:
        return f"<Namespace {self.name} {self.path}>"

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` inside; return its result. For short calls (open a socket, start a program): one at a time.

        A socket opened inside belongs to the namespace for ever and may be used from any thread. What runs inside
        may call this again.
        """
        if threading.get_native_id() == self.tid:
            return function(*args, **kwargs)
        return self._worker.submit(function, *args, **kwargs).result()

    def popen(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        die_with_us: bool = True,
        **kwargs: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a program inside; its pid is the program's own. It is killed at the latest in `close`.

        `die_with_us=False` spares one exec (about a millisecond), for what measures the start.
        """
        full = ["setpriv", "--pdeathsig", "KILL", "--", *command] if die_with_us else list(command)
        environment = None if env is None else dict(env)

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(full, env=environment, **kwargs)

        child = self.call(start)
        self._children.append(child)
        return child

    def run(
        self, *command: str, timeout: float = PATIENCE, check: bool = True, stdin: str = ""
    ) -> str:
        """Run a command to its end; return its standard output. Raises LabError if it fails (with `check`)."""
        child = self.popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            out, err = child.communicate(stdin.encode(), timeout=timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise LabError(f"{shlex.join(command)} took longer than {timeout} s") from None
        finally:
            self._children.remove(child)
        if check and child.returncode != 0:
            text = err.decode(errors="replace").strip()
            raise LabError(f"{shlex.join(command)}: exit status {child.returncode}: {text}")
        return out.decode(errors="replace")

    def ip(self, arguments: str) -> str:
        """Run `ip ARGUMENTS` inside."""
        return self.run("ip", *shlex.split(arguments))

    def index(self, interface: str) -> int:
        """Return the interface's index; OSError if there is none of that name."""
        return self.call(socket.if_nametoindex, interface)

    def addresses(self, interface: str | None = None) -> list[rtnl.Address]:
        """Return IPv4 addresses, of one interface or of all but lo. An interface that is not there has none."""
        with self._netlink_lock:
            if self._netlink is None:
                self._netlink = self.call(
                    socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, rtnl.NETLINK_ROUTE
                )
                self._netlink.settimeout(PATIENCE)
            found = rtnl.dump(self._netlink)
        if interface is None:
            return [address for address in found if not address.address.is_loopback]
        try:
            index = self.index(interface)
        except OSError:
            return []
        return [address for address in found if address.index == index]

    def link_local(self, interface: str) -> list[IPv4Address]:
        """Return the interface's addresses in 169.254/16."""
        return [entry.address for entry in self.addresses(interface) if entry.link_local]

    def send_udp(self, destination: IPv4Address | str, payload: bytes = b"x") -> None:
        """Send a datagram: the kernel asks the link for the destination by ARP, from the address that it selects."""

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(payload, (str(destination), 9))

        self.call(send)

    def processes(self) -> list[int]:
        """Return the pids of the programs inside."""
        return processes_in([self.inode])

    def kill_all(self, timeout: float = PATIENCE) -> None:
        """Kill every program inside, and wait for the end of each. Raises LabError if one stays."""
        until = time.monotonic() + timeout
        while pids := self.processes():
            for pid in pids:
                self._kill(pid)
            self._reap()
            if time.monotonic() > until:
                raise LabError(f"{self.name}: processes {pids} do not end")
        self._reap()

    def _kill(self, pid: int) -> None:
        # A pidfd, and the namespace read again after it was opened: never another process that got the same pid.
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if _net_inode(pid) == self.inode:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], 1)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    def _reap(self) -> None:
        for child in self._children:
            child.poll()

    def close(self) -> None:
        """End every program inside and the namespace. May be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            self.kill_all()
            _living.pop(self.name, None)
        finally:
            for child in self._children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(1)
                for stream in (child.stdin, child.stdout, child.stderr):
                    if stream is not None:
                        stream.close()
            if self._netlink is not None:
                self._netlink.close()
            self._worker.shutdown()
            self._wait_thread_gone()

    def _wait_thread_gone(self) -> None:
        # Python's join comes a moment before the kernel's end of the thread.
        until = time.monotonic() + PATIENCE
        while os.path.exists(self.path) and time.monotonic() < until:
            time.sleep(0.001)


def _close_all() -> None:
    for namespace in list(_living.values()):
        with contextlib.suppress(Exception):
            namespace.close()


atexit.register(_close_all)


def _socket_namespace(fd: int) -> int | None:
    """Return the inode of the network namespace that an open socket keeps alive."""
    siocgskns = 0x894C
    handle = _libc.ioctl(fd, ctypes.c_ulong(siocgskns))
    if handle < 0:
        return None
    try:
        return os.fstat(handle).st_ino
    finally:
        os.close(handle)


def _held_by_us() -> Iterator[str]:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            inode = os.stat(f"/proc/self/task/{thread}/ns/net").st_ino
            if inode in _made:
                yield f"namespace {_made[inode]}: its thread still runs"
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBADF):
                raise
            continue
        if target.startswith("socket:"):
            held = _socket_namespace(fd)
            if held in _made:
                yield f"namespace {_made[held]}: socket {fd} was not closed"


def leftovers() -> list[str]:
    """Return what is left of the namespaces of this process: programs, threads, open sockets. Nothing is good."""
    # Only namespaces that were not closed: the kernel gives the number of one that is gone to the next, of anybody.
    living = [namespace.inode for namespace in _living.values()]
    left = [f"process {pid} still runs in a namespace" for pid in processes_in(living)]
    return left + list(_held_by_us())
