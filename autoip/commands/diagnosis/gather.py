"""Gathers the facts: reads, changes nothing, and waits for nobody longer than it has time.

What may wait for others (a process that hangs, a file on a network, a bus that does not answer) is read side by
side. What has not come in time is left out, with a line in `Facts.unread`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from glob import escape, glob
from importlib.util import find_spec
from typing import TypeVar

from autoip.commands.diagnosis.facts import Configuration, Facts, Hooks, NetworkFile, Node
from autoip.daemon import rivals
from autoip.daemon.networkmanager import device, gate
from autoip.daemon.networkmanager.device import Device
from autoip.daemon.rivals import Process
from autoip.dhcp import install
from autoip.dhcp.clients import CLIENTS, SHARED
from autoip.dhcp.image import Image
from autoip.errors import AutoipError, KernelRefused
from autoip.kernel import capabilities
from autoip.kernel.model import Link
from autoip.kernel.survey import Survey, survey, tables

LIMIT = 1.5
"""Seconds for all that is read, so that the command takes at most two."""
_FILE_MAX = 1 << 20
"""At most this many bytes of a file are read."""
_SETTINGS = ("proxy_arp", "rp_filter")

T = TypeVar("T")


async def kernel(until: float) -> Survey:
    """Return what the kernel has.

    Args:
        until: the event loop's time after which the kernel is no longer waited for.

    Raises:
        KernelRefused: also with ETIMEDOUT.
    """
    try:
        # In a thread, since a request waits while somebody else changes the configuration.
        return await _by(until, _aside(lambda: asyncio.run(survey())))
    except asyncio.TimeoutError:
        raise KernelRefused(errno.ETIMEDOUT, "read the network configuration") from None


async def facts(
    found: Survey,
    links: Sequence[Link],
    environ: Mapping[str, str],
    until: float,
    root: str = "/",
) -> Facts:
    """Return all facts about the interfaces and the host.

    Args:
        found: what the kernel has.
        links: the interfaces that are asked for.
        environ: of the process.
        until: the event loop's time after which nothing is waited for.
        root: the directory below which files are read.
    """
    names = [link.name for link in links]
    unread = [
        f"BPF programs of tcx at {link.name}: needs CAP_NET_ADMIN and CAP_SYS_ADMIN, run it as root"
        for link in links
        if link.index in found.egress and found.egress[link.index].programs is None
    ]

    def part(what: str, work: Awaitable[T]) -> asyncio.Task[T | None]:
        async def read() -> T | None:
            try:
                return await _by(until, work)
            except asyncio.TimeoutError:
                unread.append(f"{what}: no answer within {LIMIT:g} s")
            except (OSError, AutoipError) as problem:
                unread.append(f"{what}: {_reason(problem)}")
            return None

        return asyncio.get_running_loop().create_task(read())

    jeepney = find_spec("jeepney") is not None
    routes = part("routes and neighbours", _aside(lambda: asyncio.run(tables())))
    settings = part("settings of the kernel", _aside(_settings, root, names))
    processes = part("processes", _aside(_processes))
    managed = part("NetworkManager", _networkmanager(names, environ, jeepney=jeepney))
    configuration = part("files of other programs", _aside(_configuration, root, links))
    beyond = part("capabilities", _aside(capabilities.beyond))
    cloud = part("firmware", _aside(_cloud, root))
    hooks = part("hooks", _aside(_hooks, root))
    return Facts(
        kernel=found,
        tables=await routes,
        settings=await settings,
        processes=await processes,
        networkmanager=await managed,
        jeepney=jeepney,
        configuration=await configuration,
        beyond=await beyond,
        cloud=await cloud,
        hooks=await hooks,
        unread=tuple(unread),
    )


async def _by(until: float, work: Awaitable[T]) -> T:
    return await asyncio.wait_for(work, max(until - asyncio.get_running_loop().time(), 0))


def _aside(function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
    """Call a function in a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, problem: Exception | None) -> None:
        if done.done():
            return  # it is no longer waited for
        if problem is not None:
            done.set_exception(problem)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, problem = None, None
        try:
            result = function(*arguments)
        except Exception as error:  # noqa: BLE001 (it is whoever waits who gets it)
            problem = error
        with suppress(RuntimeError):  # the loop is closed: too late
            loop.call_soon_threadsafe(finish, result, problem)

    threading.Thread(target=run, daemon=True).start()
    return done


def _reason(problem: Exception) -> str:
    """Return in words why something was not read, and what to do if that is known."""
    if not isinstance(problem, OSError) or problem.strerror is None:
        return str(problem)
    where = f"{problem.filename}: " if problem.filename else ""
    cure = "; run it as root" if isinstance(problem, PermissionError) else ""
    return f"{where}{problem.strerror}{cure}"


# --- one after the other, in a thread each ---------------------------------------------------------


def _text(path: str) -> str:
    """Return a file's text; empty if there is none. Never waits for a writer of a named pipe.

    Raises:
        OSError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    with open(descriptor, "rb") as file:
        return (file.read(_FILE_MAX) or b"").decode(errors="replace")


def _settings(root: str, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Read net.ipv4.conf of these interfaces, and for `all`."""
    found: dict[str, dict[str, int]] = {}
    for name in ("all", *names):
        for key in _SETTINGS:
            with suppress(ValueError):
                text = _text(os.path.join(root, "proc/sys/net/ipv4/conf", name, key))
                found.setdefault(name, {})[key] = int(text)
    return found


def _processes() -> tuple[Process, ...]:
    """Read the processes of this network namespace.

    Raises:
        OSError: there is no /proc, or it hides those of other users.
    """
    if not _text("/proc/1/cmdline"):
        raise PermissionError(errno.EACCES, "those of other users are hidden")
    return tuple(rivals.running())


async def _networkmanager(
    names: Sequence[str], environ: Mapping[str, str], *, jeepney: bool
) -> dict[str, Device]:
    if not jeepney or gate.absence(environ.get("DBUS_SYSTEM_BUS_ADDRESS", "")):
        return {}
    from autoip.daemon.networkmanager.dbus import BusLost

    try:
        return await device.devices(names, environ)
    except BusLost as problem:
        raise AutoipError(f"D-Bus system bus: {problem}") from problem


def _configuration(root: str, links: Sequence[Link]) -> Configuration:
    files: dict[str, str] = {}
    for folder in ("usr/lib", "run", "etc"):
        for path in glob(os.path.join(escape(root), folder, "NetworkManager/conf.d/*.conf")):
            files[os.path.basename(path)] = path  # of two with one name the later one counts
    etc = os.path.join(root, "etc/NetworkManager/")
    last = [path for path in files.values() if path.startswith(etc)]
    first = [path for path in files.values() if not path.startswith(etc)]
    texts = [_text(path) for path in (*sorted(first), f"{etc}NetworkManager.conf", *sorted(last))]
    networkd = {link.name: _network_file(root, link.index) for link in links}
    return Configuration(
        dhcpcd=_text(os.path.join(root, "etc/dhcpcd.conf")),
        connman=_text(os.path.join(root, "etc/connman/main.conf")),
        networkd={name: file for name, file in networkd.items() if file is not None},
        networkmanager=os.path.exists(os.path.join(root, gate.RUNTIME.lstrip("/"))),
        timeouts={link.name: device.configured_timeout(link.name, texts) for link in links},
    )


def _network_file(root: str, index: int) -> NetworkFile | None:
    """Read what systemd-networkd has for an interface; None: nothing."""
    state = _text(os.path.join(root, "run/systemd/netif/links", str(index)))
    path = next((line[13:] for line in state.splitlines() if line.startswith("NETWORK_FILE=")), "")
    if not path:
        return None
    full = os.path.join(root, path.lstrip("/"))
    changes = {
        os.path.basename(change): change
        for folder in ("usr/lib", "run", "etc")
        for change in glob(
            os.path.join(
                escape(root), folder, "systemd/network", f"{os.path.basename(path)}.d/*.conf"
            )
        )
    }
    found = NetworkFile(path)
    for file in (full, *(changes[name] for name in sorted(changes))):
        for value in _link_local(_text(file)):
            found = NetworkFile(file, value.lower())
    return found


def _link_local(text: str) -> Iterator[str]:
    """Yield the values of LinkLocalAddressing= in a file of systemd-networkd."""
    section = ""
    for line in map(str.strip, text.splitlines()):
        key, _, value = line.partition("=")
        if line.startswith("["):
            section = line
        elif section == "[Network]" and key.strip() == "LinkLocalAddressing":
            yield value.strip()


_CLOUDS = {
    "sys_vendor": (
        *("Alibaba Cloud", "Amazon EC2", "DigitalOcean", "Exoscale", "Google", "Hetzner"),
        *("OpenStack Foundation", "Scaleway", "Tencent Cloud", "UpCloud", "Vultr"),
    ),
    "product_name": ("Google Compute Engine", "OpenStack Compute", "OpenStack Nova"),
    # Of Azure; its vendor and product are those of every Hyper-V.
    "chassis_asset_tag": ("7783-7084-3265-9085-8269-3286-77", "OracleCloud.com"),
}
"""What a machine's firmware says in a cloud that serves metadata at 169.254.169.254."""


def _cloud(root: str) -> str:
    """Read the name of the cloud that this machine is in; empty if none is known."""
    for name, known in _CLOUDS.items():
        value = _text(os.path.join(root, "sys/class/dmi/id", name)).strip()
        if value in known:
            return value if name != "chassis_asset_tag" else f"a cloud ({value})"
    return ""


def _hooks(root: str) -> Hooks:
    """Read what is installed of our hooks.

    Raises:
        AutoipError: something may not be read.
        OSError: the same.
    """
    image = Image(root)
    clients = {
        name: install.present(image, name)
        for name in CLIENTS
        if install.state(image, name) in ("installed", "partly")
    }
    paths = [SHARED, *(path for client in CLIENTS.values() for path in client.paths)]
    ours = [path for path in paths if image.at(path).is_ours]
    program = install.program(image) if SHARED in ours else ""
    there = bool(program) and _can_be_run(image.full(program))
    nodes: dict[str, Node] = {}
    for path in (*ours, *([program] if there else [])):
        full = image.full(path)
        for real in (os.path.realpath(full), os.path.realpath(os.path.dirname(full))):
            nodes |= _way(os.path.realpath(root), real)
    return Hooks(clients, SHARED in ours, program, there, tuple(nodes.values()))


def _can_be_run(path: str) -> bool:
    """Return whether root could run a file. Raises OSError if whoever asks may not look."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _way(root: str, path: str) -> dict[str, Node]:
    """Return the file and the directories that it is in, up to the root, by path."""
    found: dict[str, Node] = {}
    while True:
        status = os.stat(path)
        found[path] = Node(path, status.st_uid, status.st_gid, status.st_mode)
        if path in (root, "/"):
            return found
        path = os.path.dirname(path)
